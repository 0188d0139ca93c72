"""What was run: the cells of each model that count, and how many do not."""

from collections.abc import Mapping

import pandas as pd

from assets.report.part import Part
from assets.report.results import DIVERGED, FINISHED, MISSING, STALE, STATES, Source
from assets.report.table import table
from assets.settings.axes import place
from assets.settings.catalog import Catalog

COUNTED = (FINISHED, STALE, MISSING, DIVERGED)
KEYS = ["profile", "task", "objective", "model"]


def summary_frame(states: pd.DataFrame) -> pd.DataFrame:
    """Cells of the tasks with any entry, by state: KEYS, the states of COUNTED, expected, trials.

    trials names those that are not finished, such as `b20-s0`.
    """
    begun = states.loc[states["state"] != MISSING, ["profile", "task"]].drop_duplicates()
    states = states.merge(begun, on=["profile", "task"])
    counts = states.groupby(KEYS, sort=False)["state"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=list(COUNTED), fill_value=0)
    keys = [place(beta, seed) for beta, seed in zip(states["beta"], states["seed"], strict=True)]
    absent = states.assign(trials=keys)[states["state"] != FINISHED]
    trials = absent.groupby(KEYS)["trials"].agg(" ".join).reindex(counts.index, fill_value="")
    return counts.assign(expected=counts.sum(axis=1), trials=trials).reset_index()


def _said(row) -> str:
    if row.finished == row.expected:
        return f"{row.finished}"
    others = [f"{getattr(row, state)} {state}" for state in (STALE, DIVERGED) if getattr(row, state)]
    return ", ".join([f"{row.finished} of {row.expected}", *others])


def summary_part(catalog: Catalog, sources: Mapping[str, Source]) -> Part:
    """Finished cells by profile, task, objective and model."""
    states = [source.states for source in sources.values()]
    frame = summary_frame(pd.concat(states) if states else pd.DataFrame(columns=STATES))
    rows = []
    for (profile, task, objective), part in frame.groupby(KEYS[:3], sort=False):
        names = sources[profile].names
        head = {"Profile": names.profile.title, "Task": names.task(task), "Objective": objective}
        rows.append({**head, **{names.model(row.model): _said(row) for row in part.itertuples()}})
    betas, seeds = (
        ", ".join(f"{beta:.0%}" for beta in catalog.betas),
        ", ".join(map(str, catalog.seeds)),
    )
    notes = (
        f"The catalogue asks for β {betas}; seeds {seeds}. Stale: made with other settings, code or inputs "
        "than today's. Stale and missing cells are in no table. Diverged: trained to no finite number. "
        "Blank: the profile does not train that model for that objective.",
    )
    tables = [table("", rows, keys=3, sections=True)] if rows else []
    return Part("summary", "What was run", frame, tables, notes)
