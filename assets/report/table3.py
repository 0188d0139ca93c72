"""Table 3: what diffusion, alignment and task loss are each worth."""

import pandas as pd

from assets.report.metrics import ERRORS
from assets.report.names import Names
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.summaries import (
    PUBLISHED,
    SELECTIONS,
    beside_the_papers,
    best_rows,
    headline,
    of_metrics,
    published,
    summary,
)
from assets.report.table import KIND, Number, Table, digits, table
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile

# The rows of the paper's table with the models that each is the best of; no model: of the controls.
ROWS = pd.read_csv(PUBLISHED / "table3_rows.csv", keep_default_na=False)


def models_of(profile: Profile) -> dict[str, list[str]]:
    """The models of each row."""
    return {row.row: row.models.split() or list(profile.controls) for row in ROWS.itertuples()}


def ablated(profile: Profile) -> list[str]:
    """What the table is made from, of what the profile trains."""
    wanted = {name for names in models_of(profile).values() for name in names}
    return [n for n in profile.trained if n in wanted and "rating" in profile.objectives_of(n)]


def table3_frame(results: pd.DataFrame, catalog: Catalog, profile: Profile) -> pd.DataFrame:
    """Ablation: task, beta, metric, selection, row, model, mean, std, seeds, paper.

    A row of several models has the best by its mean, for each metric apart as the paper forms it; `model`
    says which.
    """
    rows = models_of(profile)
    keys = ["task", "beta", "metric", "selection"]
    every = [name for names in rows.values() for name in names]
    frame = summary(of_metrics(results, ERRORS, every), [*keys, "model"])
    best = []
    for row, models in rows.items():
        mine = frame[frame["model"].isin(models)]
        # A single model is shown where it diverged, too.
        best.append((mine if len(models) == 1 else best_rows(mine, keys)).assign(row=row))
    theirs = published("table3").rename(columns={"value": "paper"})
    whole = pd.concat([part for part in best if len(part)] or best[:1], ignore_index=True)
    joined = beside_the_papers(whole, theirs, catalog, ["beta", "metric", "row"])
    return joined[[*keys, "row", "model", "mean", "std", "seeds", "paper"]]


def table3_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """One table for each selection rule and metric: rows variants, columns β × task, as in the paper."""
    chosen = [
        (
            f"{metric.title}: {caption}",
            frame[(frame["selection"] == rule) & (frame["metric"] == metric.name)],
            rule != headline(names.profile),
        )
        for rule, caption in SELECTIONS.items()
        for metric in ERRORS
    ]
    return [_ablation(*each, names) for each in chosen if len(each[1])]


def _ablation(caption: str, chosen: pd.DataFrame, folded: bool, names: Names) -> Table:
    columns = [
        (beta, task)
        for beta in sorted(chosen["beta"].unique())
        for task in names.in_order(chosen.loc[chosen["beta"] == beta, "task"])
    ]
    titles = {where: (f"β = {where[0]:.0%}", names.short_task(where[1])) for where in columns}
    best = chosen.groupby(["beta", "task"])[["mean", "paper"]].min()
    rows = []
    for row in ROWS.itertuples():
        mine = chosen[chosen["row"] == row.row].set_index(["beta", "task"])
        cells: dict[str, dict] = {"ours": {}, "paper": {}, "difference": {}}
        for where in (where for where in columns if where in mine.index):
            value, title = mine.loc[where], titles[where]
            cells["ours"][title] = Number(value["mean"], best=value["mean"] == best.loc[where, "mean"])
            if pd.notna(value["paper"]):
                is_best = value["paper"] == best.loc[where, "paper"]
                cells["paper"][title] = Number(value["paper"], best=is_best)
                cells["difference"][title] = Number(value["mean"] - value["paper"], digits(4, True))
        head = {"Kind": row.kind, "Method": row.title}
        rows += [{**head, KIND: kind, **values} for kind, values in cells.items() if values]
    return table(caption, rows, ["Kind", "Method", KIND, *titles.values()], keys=2, folded=folded)


def table3_part(source: Source) -> Part:
    profile = source.profile
    frame = table3_frame(source.results, source.catalog, profile)
    notes = (
        "† The lowest mean of CMF, EMCDR, SSCDR and LACDR, for each column apart, as the paper forms it. "
        "DA: diffusion and alignment without the task loss; AT: alignment and task loss without "
        "diffusion; DAT: all of DiffCDR. Means over seeds, bold is the best of a column, lower is better.",
    )
    gaps = source.gaps(ablated(profile), ("rating",))
    title = f"Table 3. Ablation. {profile.title}"
    return Part("table3", title, frame, table3_tables(frame, source.names), notes, gaps)


TABLE3 = Chapter(
    "table3",
    "Ablation",
    "What each part of DiffCDR is worth.",
    "Table 3: what diffusion, alignment and task loss are each worth.",
    table3_part,
    ablated,
    lambda profile: bool(profile.ablations) and profile.plain,
    reproduces=True,
)
