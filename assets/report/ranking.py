"""Ranking of the whole catalogue, k = 20, beside simple orders."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from assets.report.metrics import shown_in
from assets.report.names import Names, compared
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.summaries import (
    BEATEN_NOTE,
    SELECTIONS,
    groups,
    headline,
    model_cells,
    summary,
    table_by_model,
)
from assets.report.table import KIND, Table, counted
from assets.settings.profile import Profile


def ranking_frame(results: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Ranking metrics: task, beta, stage, half, metric, model, selection, mean, std, seeds.

    half is `all` (every held-out rating) or `later` (those that warm start is tested on).
    """
    mine = results[(results["objective"] == "ranking") & results["model"].isin(models)].copy()
    later = mine["metric"].str.endswith("_later") | (mine["stage"] == "warm")
    mine["half"] = np.where(later, "later", "all")
    mine["metric"] = mine["metric"].str.removesuffix("_later")
    mine = mine[mine["metric"].isin([metric.name for metric in shown_in("ranking")])]
    return summary(mine, ["task", "beta", "stage", "half", "metric", "selection", "model"])


def ranking_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Cold start on all held-out ratings, models and controls; then, of models, cold and warm start on the
    later half, where there is one."""
    models, controls = names.profile.models, names.profile.controls
    of_rule = frame[_of_rule(frame, headline(names.profile))]
    whole = of_rule[(of_rule["stage"] == "cold") & (of_rule["half"] == "all")]
    both = [*models, *controls]
    rows = [
        {**head, **model_cells(part, names, both, metric, controls), "Seeds": counted(part["seeds"])}
        for head, metric, part in groups(whole, names, shown_in("ranking"))
    ]
    notes = (BEATEN_NOTE,) if whole["model"].isin(controls).any() else ()
    half = of_rule[(of_rule["half"] == "later") & of_rule["model"].isin(models)]
    later = [
        {**head, KIND: stage, **model_cells(mine, names, models, metric)}
        for head, metric, part in groups(half, names, shown_in("ranking_later"))
        for stage, mine in part.groupby("stage")
    ]
    caption = "Cold and warm start, later half of each test user's ratings"
    return [
        *table_by_model("Cold start, all held-out ratings", rows, names, both, notes),
        *table_by_model(caption, later, names, models),
    ]


def _of_rule(frame: pd.DataFrame, selection: str) -> pd.Series:
    """Rows of the selection rule; what knows no epochs, such as the random ranker, has one row for any."""
    untrained = frame.groupby("model")["selection"].transform("nunique") == 1
    return (frame["selection"] == selection) | untrained


def ranked(profile: Profile) -> list[str]:
    """What is trained for ranking."""
    return [name for name in compared(profile) if "ranking" in profile.objectives_of(name)]


def ranking_part(source: Source) -> Part:
    profile = source.profile
    models = (*profile.models, *profile.controls)
    frame = ranking_frame(source.results, models)
    notes = (
        "All items of the target domain are ranked, k = 20; higher is better. Epochs: "
        f"{SELECTIONS[headline(profile)]}. Random: the closed-form expectation of a random order; "
        "popularity: by number of training ratings. "
        "nDCG@20 of retrieved divides by the DCG of the same hits in the first places.",
    )
    tables, gaps = ranking_tables(frame, source.names), source.gaps(models, ("ranking",))
    return Part("ranking", f"Ranking. {profile.title}", frame, tables, notes, gaps)


RANKING = Chapter(
    "ranking",
    "Ranking",
    "How well all items of the target domain are ordered. Compare each model with the random order first: "
    "with tens of thousands of items all numbers are small.",
    "Ranking of the whole catalogue, k = 20, beside the expectation of a random order.",
    ranking_part,
    ranked,
    lambda profile: "ranking" in profile.objectives,
)
