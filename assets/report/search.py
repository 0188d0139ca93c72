"""Search: validation error by λ and s."""

import pandas as pd

from assets.report.names import Names
from assets.report.part import Chapter, Part, stored_picture
from assets.report.results import Source
from assets.report.summaries import task_betas
from assets.report.table import KIND, Number, Table, table
from assets.training.search import PAPER

COLUMNS = ["task", "beta", "seed", "task_weight", "guidance", "epoch", "validation_mae", "validation_rmse"]
COLUMNS += ["chosen"]


def search_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows searched cells: chosen λ and s with their validation errors, and those of the paper's choice."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        part = frame[(frame["task"] == task) & (frame["beta"] == beta)]
        for seed, of_seed in part.groupby("seed"):
            rows += [{**head, "Seed": f"{seed}", **cells} for cells in _rows(of_seed)]
    return (
        [table("Chosen and the paper's settings", rows, keys=3, sections=True, folded=True)] if rows else []
    )


def _rows(part: pd.DataFrame) -> list[dict[str, object]]:
    the_papers = (part[list(PAPER)] == pd.Series(PAPER)).all(axis=1)
    chosen = part["chosen"].astype(bool)
    return [
        {
            KIND: kind,
            "λ": Number(trial.task_weight, "{:g}"),
            "s": Number(trial.guidance, "{:g}"),
            "Epoch": f"{trial.epoch:.0f}",
            "Validation MAE": Number(trial.validation_mae),
            "Validation RMSE": Number(trial.validation_rmse),
        }
        for kind, rows in (("chosen", part[chosen]), ("paper", part[the_papers]))
        for trial in rows.itertuples()
    ]


def search_part(source: Source) -> Part:
    names = source.names
    frame = source.analysis("search", "surface.parquet", COLUMNS)
    notes = (
        "Every pair of λ (weight of the task loss) and s (guidance) is trained; errors are on validation "
        "users only. Paper: its choice, λ = 0.1 and s = 0.1, on the same users.",
    )
    pictures = [
        stored_picture(
            entry,
            "surface",
            f"surface-{cell.task}",
            f"{names.task(cell.task)}, β = {cell.beta:.0%}, seed {cell.seed}: validation error by λ and s.",
        )
        for cell, entry in source.analysed("search").items()
    ]
    title = f"Search of λ and s. {source.profile.title}"
    return Part("search_surface", title, frame, search_tables(frame, names), notes, "", pictures)


SEARCH = Chapter(
    "search_surface",
    "Search",
    "How sensitive DiffCDR is to its two main settings, on validation users.",
    "Validation error by λ and s.",
    search_part,
    lambda profile: ["search"],
    lambda profile: bool(profile.search),
    folded=True,
)
