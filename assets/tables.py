"""The paper's tables as data: long frames with the paper's values beside ours, and their readable layout."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from assets.catalog import Catalog, Task
from assets.store import Store

PUBLISHED = Path(__file__).parent / "published"
# Headline first; a profile without validation users has no such row.
SELECTIONS = {
    "validation": "selected on validation users",
    "last": "last epoch",
    "best_on_test": "best epoch on the test users, MAE and RMSE apart (as the paper reports)",
}
METRICS = {"mae": "MAE", "rmse": "RMSE"}


def table1(store: Store, catalog: Catalog) -> pd.DataFrame:
    """Data statistics of each task whose overlap is known: task, quantity, side, ours, paper (thousands)."""
    rows = []
    for task in catalog.tasks.values():
        shared = store.overlap(task.name).manifest()
        if shared is None:
            continue
        for side, domain in (("source", task.source), ("target", task.target)):
            facts = store.ratings(domain).require()
            rows += [
                (task.name, quantity, side, facts[quantity]) for quantity in ("items", "ratings", "users")
            ]
        rows.append((task.name, "overlap", "both", shared["users"]))
    frame = pd.DataFrame(rows, columns=["task", "quantity", "side", "ours"])
    published = pd.read_csv(PUBLISHED / "table1.csv").rename(
        columns={"task": "paper_task", "thousands": "paper"}
    )
    frame["paper_task"] = frame["task"].map(_paper_numbers(catalog))
    return frame.merge(published, how="left", on=["paper_task", "quantity", "side"]).drop(
        columns="paper_task"
    )


def table1_layout(frame: pd.DataFrame, catalog: Catalog) -> pd.DataFrame:
    """One row a task: domains, then ours and, where there is one, the paper's number in thousands."""
    rows = []
    for task, part in frame.groupby("task", sort=False):
        row = {"Task": catalog.tasks[task].title}
        for side in ("source", "target"):
            row[side.capitalize()] = catalog.domains[getattr(catalog.tasks[task], side)].title
        for record in part.itertuples():
            side = "" if record.side == "both" else f" ({record.side})"
            paper = "" if pd.isna(record.paper) else f" [paper: {record.paper:.0f} K]"
            row[f"{record.quantity.capitalize()}{side}"] = f"{record.ours:,}{paper}"
        rows.append(row)
    return pd.DataFrame(rows)


def table2(results: pd.DataFrame, catalog: Catalog) -> pd.DataFrame:
    """Cold-start errors: mean, spread (sample standard deviation) and number of seeds, beside the paper's.

    Columns task, beta, metric, model, selection, mean, std, seeds, paper, paper_significant; std is null for
    one seed, paper is null where the task is not the paper's.
    """
    cold = results[(results["stage"] == "cold") & (results["objective"] == "rating")]
    cold = cold[cold["metric"].isin(METRICS)]
    keys = ["task", "beta", "metric", "model", "selection"]
    frame = cold.groupby(keys, as_index=False)["value"].agg(mean="mean", std="std", seeds="count")
    published = pd.read_csv(PUBLISHED / "table2.csv").rename(
        columns={"task": "paper_task", "value": "paper", "significant": "paper_significant"}
    )
    frame["paper_task"] = frame["task"].map(_paper_numbers(catalog))
    joined = frame.merge(published, how="left", on=["paper_task", "beta", "metric", "model"])
    return joined.drop(columns="paper_task")


def table2_layout(
    frame: pd.DataFrame, selection: str, models: Sequence[str], titles: dict[str, str]
) -> pd.DataFrame:
    """Table 2 as the paper sets it: rows task × β × metric, one column a model, then DiffCDR's improvement.

    The lowest error of a row is marked by **; a second row gives the paper's values where there are any.
    """
    rows = []
    chosen = frame[frame["selection"] == selection]
    for (task, beta, metric), part in chosen.groupby(["task", "beta", "metric"], sort=True):
        by_model = part.set_index("model")
        present = [model for model in models if model in by_model.index]
        head = {"Task": task, "β": f"{beta:.0%}", "Metric": METRICS[metric], "": "ours"}
        ours = by_model.loc[present, "mean"]
        rows.append({**head, **_cells(by_model, present, titles), "Improve": improvement(ours)})
        if by_model["paper"].notna().any():
            paper = by_model.loc[present, "paper"]
            values = {titles[m]: _emphasised(paper[m], paper) for m in present if pd.notna(paper[m])}
            rows.append({**head, "": "paper", **values, "Improve": improvement(paper)})
    return pd.DataFrame(rows).fillna("")


def improvement(values: pd.Series) -> str:
    """DiffCDR's relative gain over the best other model, in percent (the paper's column Improve)."""
    others = values.drop("diffcdr", errors="ignore").dropna()
    if "diffcdr" not in values or others.empty:
        return ""
    return f"{(others.min() - values['diffcdr']) / others.min():.1%}"


def missing(
    results: pd.DataFrame, tasks: Iterable[Task], catalog: Catalog, models: Sequence[str]
) -> dict[str, str]:
    """How many of each task's cells × models have no result, as text, for the tasks that have any."""
    expected = len(catalog.betas) * len(catalog.seeds) * len(models)
    have = results[results["model"].isin(models)].drop_duplicates(["task", "beta", "seed", "model"])
    counts = have.groupby("task").size()
    return {
        task.name: f"{expected - counts[task.name]} of {expected} cells missing"
        for task in tasks
        if task.name in counts
    }


def _cells(by_model: pd.DataFrame, models: Sequence[str], titles: dict[str, str]) -> dict[str, str]:
    means = by_model.loc[list(models), "mean"]
    out = {}
    for model in models:
        spread = by_model.loc[model, "std"]
        out[titles[model]] = _emphasised(means[model], means) + (
            "" if np.isnan(spread) else f" ± {spread:.4f}"
        )
    return out


def _emphasised(value: float, row: pd.Series) -> str:
    return f"**{value:.4f}**" if value == row.min() else f"{value:.4f}"


def _paper_numbers(catalog: Catalog) -> dict[str, int | None]:
    return {task.name: task.paper for task in catalog.tasks.values()}
