"""Table 1: data statistics of each task, with the paper's numbers where the task is the paper's."""

from collections.abc import Sequence

import pandas as pd

from assets.report.histograms import data_pictures
from assets.report.part import Part
from assets.report.summaries import beside_the_papers, published
from assets.report.table import KIND, Number, Table, table
from assets.settings.catalog import Catalog
from assets.state.store import Store

QUANTITIES = [(quantity, side) for quantity in ("items", "ratings", "users") for side in ("source", "target")]
QUANTITIES += [("overlap", "both")]


def table1_frame(store: Store, catalog: Catalog) -> pd.DataFrame:
    """Statistics of each task whose overlap is known: task, quantity, side, ours, paper (thousands)."""
    rows = []
    for task in catalog.tasks.values():
        shared = store.overlap(task.name).manifest()
        if shared is None:
            continue
        for side, domain in (("source", task.source), ("target", task.target)):
            facts = store.ratings(domain).require()
            rows += [(task.name, quantity, of, facts[quantity]) for quantity, of in QUANTITIES if of == side]
        rows.append((task.name, "overlap", "both", shared["users"]))
    frame = pd.DataFrame(rows, columns=["task", "quantity", "side", "ours"])
    theirs = published("table1").rename(columns={"thousands": "paper"})
    return beside_the_papers(frame, theirs, catalog, ["quantity", "side"])


def table1_tables(frame: pd.DataFrame, catalog: Catalog) -> list[Table]:
    """Rows: ours and the paper's, for each task; columns: items, ratings and users of both domains."""
    rows = []
    for task in (task for task in catalog.tasks.values() if task.name in set(frame["task"])):
        part = frame[frame["task"] == task.name].set_index(["quantity", "side"])
        head = {"Task": task.title, ("Domain", "Source"): catalog.domains[task.source].title}
        head["Domain", "Target"] = catalog.domains[task.target].title
        rows.append({**head, KIND: "ours", **_cells(part["ours"], "{:,.0f}")})
        if part["paper"].notna().any():
            rows.append({**head, KIND: "paper", **_cells(part["paper"], "{:,.0f} K")})
    return [table("", rows, keys=3)] if rows else []


def _cells(values: pd.Series, style: str) -> dict[tuple[str, str], Number]:
    titles = {"both": "Users"}
    return {
        (quantity.capitalize(), titles.get(side, side.capitalize())): Number(values[quantity, side], style)
        for quantity, side in QUANTITIES
    }


def table1_of_tasks(store: Store, catalog: Catalog, tasks: Sequence[str]) -> list[Table]:
    """The table of these tasks; none where the overlap of none is known."""
    frame = table1_frame(store, catalog)
    return table1_tables(frame[frame["task"].isin(tasks)], catalog)


def table1_part(store: Store, catalog: Catalog) -> Part:
    frame = table1_frame(store, catalog)
    notes = (
        "Counts after removing repeated ratings of the same user and item. Overlap: users with ratings in "
        "both domains. The paper gives thousands (K).",
    )
    tables, pictures = table1_tables(frame, catalog), data_pictures(store, catalog)
    return Part("table1", "Table 1. Data statistics", frame, tables, notes, "", pictures)
