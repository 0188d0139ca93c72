"""The tables as assets: Parquet and CSV for programs, Markdown and HTML for readers.

A table is made from the cells that exist and says how many are missing.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import jinja2
import pandas as pd

from assets import tables
from assets.models import TITLES
from assets.partitions import CATALOG
from assets.profiles import Profile
from assets.results import read_results
from assets.splits import overlap
from assets.store import Store, code_version

CODE = code_version(
    "assets/reports.py", "assets/tables.py", "assets/results.py", "assets/templates", "assets/published"
)
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True
)
# Tables follow their cells without waiting for all of them.
FRESH = (
    dg.AutomationCondition.any_deps_updated()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)


@dg.asset(
    name="table1",
    deps=[overlap],
    group_name="reports",
    kinds={"parquet", "markdown"},
    owners=["team:recsys"],
    code_version=CODE,
    automation_condition=FRESH,
)
def table1(store: Store) -> dg.MaterializeResult:
    """Table 1, data statistics of each task, with the paper's numbers where the task is the paper's."""
    frame = tables.table1(store, CATALOG)
    page = {"": tables.table1_layout(frame, CATALOG)}
    return _publish(store.report("table1"), "Table 1: data statistics", frame, page, note="")


def table2_asset(profile: Profile) -> dg.AssetsDefinition:
    """Table 2 of one profile."""

    @dg.asset(
        name="table2",
        key_prefix=profile.name,
        deps=[dg.AssetKey([profile.name, model]) for model in profile.models],
        group_name="reports",
        kinds={"parquet", "markdown"},
        owners=["team:recsys"],
        code_version=CODE,
        automation_condition=FRESH,
        description="Table 2, cold-start MAE and RMSE of every model, mean and spread over seeds, under each "
        f"selection rule, beside the paper's values. Profile: {profile.title}.",
    )
    def table2(store: Store) -> dg.MaterializeResult:
        results = read_results(store, profile=profile.name)
        frame, page = tables.table2(results, CATALOG), table2_page(profile, results)
        gaps = tables.missing(results, CATALOG.tasks.values(), CATALOG, profile.models)
        note = "; ".join(f"{task}: {text}" for task, text in gaps.items())
        title = f"Table 2: cold-start errors. {profile.title}"
        return _publish(store.report(profile.name, "table2"), title, frame, page, note)

    return table2


def table2_page(profile: Profile, results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Table 2 as it is read: one layout for each selection rule that has results, by caption."""
    frame = tables.table2(results, CATALOG)
    titles = {model: TITLES.get(model, model) for model in profile.models}
    return {
        caption: tables.table2_layout(frame, selection, profile.models, titles)
        for selection, caption in tables.SELECTIONS.items()
        if (frame["selection"] == selection).any()
    }


def _publish(
    folder: Path, title: str, frame: pd.DataFrame, page: Mapping[str, pd.DataFrame], note: str
) -> dg.MaterializeResult:
    """Write a table in every format and describe it to Dagster. `page` holds readable tables by caption."""
    name = folder.name
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    frame.to_csv(folder / f"{name}.csv", index=False)
    text = markdown(title, page, note)
    (folder / f"{name}.md").write_text(text)
    html = TEMPLATES.get_template("table.html").render(title=title, note=note, tables=_as_cells(page))
    (folder / f"{name}.html").write_text(html)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(frame),
            "table": dg.MetadataValue.md(text),
            "missing": note or "none",
            "html": dg.MetadataValue.path(str(folder / f"{name}.html")),
        }
    )


def markdown(title: str, page: Mapping[str, pd.DataFrame], note: str) -> str:
    parts = [f"# {title}"]
    for caption, table in page.items():
        parts += [f"## {caption}"] if caption else []
        parts.append(table.to_markdown(index=False) if len(table) else "Nothing has been computed yet.")
    return "\n\n".join([*parts, *([note] if note else [])]) + "\n"


def _as_cells(page: Mapping[str, pd.DataFrame]) -> dict[str, dict]:
    """Tables for the template: cells as (text, is it the row's best)."""
    return {
        caption: {
            "columns": list(table.columns),
            "rows": [
                [(str(v).replace("**", ""), bool(re.search(r"\*\*", str(v)))) for v in row]
                for row in table.values
            ],
        }
        for caption, table in page.items()
    }
