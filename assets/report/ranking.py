"""Ranking of the whole catalogue, k = 20, beside simple orders."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from assets.report.metrics import BY_NAME, LIST_HEADLINE, shown_in
from assets.report.names import Names, trained_for
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
    task_betas,
)
from assets.report.table import KIND, Number, Table, counted, digits, fold, table
from assets.settings.profile import Profile
from assets.training.choose import role

GROUPS = ["task", "beta", "seed", "model", "by", "group"]
BEYOND = {"coverage": "Coverage", "overlap": "Overlap of lists", "self_information": "Self-information"}
THIRDS = {"head": "Head", "middle": "Middle", "tail": "Tail"}
# By popularity third: the column of `list_groups` and its title.
OF_THIRDS = {"recall": "Recall@20", "listed": "Share of places"}
OF_HISTORY = {metric.name: metric.title for metric in shown_in("history")}
SHARE, SCORE = "{:.1%}", digits(4)
ROLES = {"learned": "trained", "simple": "simple", "blind": "knows no user", "probe": "probe"}


def ranking_frame(results: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Ranking metrics: task, beta, stage, half, metric, model, selection, mean, std, seeds.

    half is `all` (every held-out rating) or `later` (those that warm start is tested on).
    """
    metrics = {metric.name for name in ("ranking", "lists") for metric in shown_in(name)}
    mine = results[(results["objective"] == "ranking") & results["model"].isin(models)].copy()
    later = mine["metric"].str.endswith("_later") | (mine["stage"] == "warm")
    mine["half"] = np.where(later, "later", "all")
    mine["metric"] = mine["metric"].str.removesuffix("_later")
    mine = mine[mine["metric"].isin(metrics)]
    return summary(mine, ["task", "beta", "stage", "half", "metric", "selection", "model"])


def groups_frame(sums: pd.DataFrame) -> pd.DataFrame:
    """What lists are beyond accuracy, and where they are good: task, beta, by, group, metric, model, mean,
    std, seeds.

    sums: `list_groups.parquet` of every cell, where `by` is all, popularity (of the item) or history (length
    of the user's). A group that no user of a seed is in has no value there.
    """
    long = sums.melt(GROUPS, [*BEYOND, *OF_THIRDS, *OF_HISTORY], "metric").dropna(subset=["value"])
    return summary(long, ["task", "beta", "by", "group", "metric", "model"])


def ranking_tables(frame: pd.DataFrame, of_groups: pd.DataFrame, names: Names) -> list[Table]:
    """Cold start on all held-out ratings; then, of models, cold and warm start on the later half, where there
    is one. A profile that is judged on validation users has one row a model, and how its lists differ."""
    of_rule = frame[_of_rule(frame, headline(names.profile))]
    whole = of_rule[(of_rule["stage"] == "cold") & (of_rule["half"] == "all")]
    if names.profile.validation:
        return [*list_tables(whole, of_groups, names), *_later(of_rule, names)]
    models, controls = names.profile.models, names.profile.controls
    both = [*models, *controls]
    rows = [
        {**head, **model_cells(part, names, both, metric, controls), "Seeds": counted(part["seeds"])}
        for head, metric, part in groups(whole, names, shown_in("ranking"))
    ]
    notes = (BEATEN_NOTE,) if whole["model"].isin(controls).any() else ()
    tables = table_by_model(_WHOLE, rows, names, both, notes)
    return [*tables, *_later(of_rule, names)]


def _later(of_rule: pd.DataFrame, names: Names) -> list[Table]:
    models = names.profile.models
    half = of_rule[(of_rule["half"] == "later") & of_rule["model"].isin(models)]
    later = [
        {**head, KIND: stage, **model_cells(mine, names, models, metric)}
        for head, metric, part in groups(half, names, shown_in("ranking_later"))
        for stage, mine in part.groupby("stage")
    ]
    caption = "Cold and warm start, later half of each test user's ratings"
    return fold(table_by_model(caption, later, names, models))


def list_tables(whole: pd.DataFrame, of_groups: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × model, best nDCG@20 first: metrics and what lists are beyond accuracy; by popularity of
    the item; by length of the user's history."""
    tables = {_WHOLE: [], _BY_THIRD: [], _BY_HISTORY: []}
    simple = [n for n in names.profile.trained if role(names.profile, n) in ("simple", "blind")]
    for head, part, groups_of in _places(whole, of_groups, names):
        means = part.pivot(index="model", columns="metric", values="mean")
        spread = part.pivot(index="model", columns="metric", values="std")
        seeds = part.groupby("model")["seeds"]
        for model in means.sort_values(LIST_HEADLINE, ascending=False).index:
            mine = groups_of[groups_of["model"] == model]
            values = mine.set_index(["by", "metric", "group"])["mean"]
            row = {**head, "Model": names.model(model)}
            kind = "ablation" if model in names.profile.ablations else ROLES[role(names.profile, model)]
            cells = _metric_cells(model, means, spread, simple)
            beyond = _group_cells(values, "all", BEYOND, {"all": ""})
            count = {"Seeds": counted(seeds.get_group(model))}
            tables[_WHOLE].append({**row, "Kind": kind, **cells, **beyond, **count})
            lengths = sorted(mine.loc[mine["by"] == "history", "group"].unique(), key=_start)
            thirds = _group_cells(values, "popularity", OF_THIRDS, THIRDS)
            histories = _group_cells(values, "history", OF_HISTORY, {name: name for name in lengths})
            tables[_BY_THIRD] += [{**row, **thirds}] if thirds else []
            tables[_BY_HISTORY] += [{**row, **histories}] if histories else []
    return [
        # Words are leading columns: what kind of model it is, too.
        table(
            caption,
            rows,
            keys=3 + (caption == _WHOLE),
            sections=True,
            notes=[_BEATEN][: caption == _WHOLE],
            folded=caption != _WHOLE,
        )
        for caption, rows in tables.items()
        if rows
    ]


_WHOLE = "Cold start, all held-out ratings"
_BY_THIRD, _BY_HISTORY = "By popularity of the item", "By length of the user's source history"
_BEATEN = "‡ Not better than the best row that is simple or knows no user."


def _places(
    whole: pd.DataFrame, of_groups: pd.DataFrame, names: Names
) -> Iterator[tuple[dict[str, str], pd.DataFrame, pd.DataFrame]]:
    """Each task × β in reading order: its key cells and the rows of both frames."""
    for task, beta, head in task_betas(whole, names):
        yield head, *(each[(each["task"] == task) & (each["beta"] == beta)] for each in (whole, of_groups))


def _start(group: str) -> int:
    """Where a group such as `5–9` or `50 or more` begins."""
    return int(group.replace("–", " ").split()[0])


def _metric_cells(
    model: str, means: pd.DataFrame, spread: pd.DataFrame, simple: Sequence[str]
) -> dict[str, Number]:
    cells = {}
    for metric in (metric for metric in shown_in("lists") if metric.name in means):
        values = means[metric.name]
        value, control = values[model], metric.best(values[values.index.isin(simple)])
        # A closed form such as the random order's has no value for some.
        if metric.name == LIST_HEADLINE or pd.notna(value):
            cells[metric.title] = Number(
                value,
                SCORE,
                spread=spread.loc[model, metric.name],
                best=value == metric.best(values),
                beaten=model not in simple and metric.is_beaten(value, control),
            )
    return cells


def _group_cells(
    values: pd.Series, by: str, metrics: dict[str, str], of_groups: dict[str, str]
) -> dict[object, Number]:
    """Cells by metric and group, of those that have a value."""
    return {
        (title, of_groups[group]) if of_groups[group] else title: Number(
            values[by, name, group], _style(name)
        )
        for name, title in metrics.items()
        for group in of_groups
        if (by, name, group) in values.index
    }


def _style(metric: str) -> str:
    if metric in BY_NAME or metric == "recall":
        return SCORE
    return "{:.2f}" if metric == "self_information" else SHARE


def against_popularity(whole: pd.DataFrame, names: Names) -> str:
    """One sentence on which models have no better nDCG@20 than popularity; empty where there is nothing to
    compare. whole: cold start, all held-out ratings, one selection rule."""
    of_metric = whole[whole["metric"] == LIST_HEADLINE]
    by_place = of_metric.pivot(index=["task", "beta"], columns="model", values="mean")
    models = [name for name in names.profile.models if name in by_place]
    if "popularity" not in by_place or not models:
        return ""
    rival, lost, of = by_place["popularity"], [], 0
    for model in models:
        both = by_place[model].notna() & rival.notna()
        count, of = int((by_place[model] <= rival)[both].sum()), of + int(both.sum())
        lost += [(names.model(model), count, int(both.sum()))] if count else []
    total = sum(count for _, count, _ in lost)
    if of == 0:
        return ""
    if total == of:
        return (
            f"Every model of the profile ({', '.join(name for name, *_ in lost)}) has a lower nDCG@20 than "
            "popularity, in every task and at every β that was run."
        )
    if not lost:
        return "Every model of the profile has a higher nDCG@20 than popularity, wherever it was run."
    said = ", ".join(f"{name} (in {count} of {cells})" for name, count, cells in lost)
    return f"No better than popularity in nDCG@20, in so many of the tasks and β that were run: {said}."


def _of_rule(frame: pd.DataFrame, selection: str) -> pd.Series:
    """Rows of the selection rule; what knows no epochs, such as the random ranker, has one row for any."""
    untrained = frame.groupby("model")["selection"].transform("nunique") == 1
    return (frame["selection"] == selection) | untrained


def ranked(profile: Profile) -> list[str]:
    """What is trained for ranking."""
    return trained_for(profile, "ranking")


def ranking_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    models = ranked(profile)
    frame = ranking_frame(source.results, models)
    columns = [*GROUPS, *BEYOND, *OF_THIRDS, *OF_HISTORY]
    of_groups = groups_frame(source.table("list_groups.parquet", columns, "ranking"))
    whole = frame[_of_rule(frame, headline(profile)) & (frame["stage"] == "cold") & (frame["half"] == "all")]
    sentence = against_popularity(whole, names)
    notes = (
        *([sentence] if sentence else []),
        "All items of the target domain are ranked, k = 20; higher is better. Epochs: "
        f"{SELECTIONS[headline(profile)]}. Random: the closed-form expectation of a random order; "
        "popularity: by number of training ratings.",
        *(_LIST_NOTES if profile.validation else _PAPER_NOTES),
    )
    tables, gaps = ranking_tables(frame, of_groups, names), source.gaps(models, ("ranking",))
    frame = frame.assign(by="all", group="all")
    if len(of_groups):
        where = {"stage": "cold", "half": "all", "selection": headline(profile)}
        frame = pd.concat([frame, of_groups.assign(**where)], ignore_index=True)
    return Part("ranking", f"Ranking. {profile.title}", frame, tables, notes, gaps)


_PAPER_NOTES = ("nDCG@20 of retrieved divides by the DCG of the same hits in the first places.",)
_LIST_NOTES = (
    "Relevant is every item that the user rated. Means over users, then over seeds. Hit rate: share of users "
    "with any relevant item in the list; MRR: 1 over the place of the first. Coverage: share of the items "
    "with training ratings that are in any list; overlap: mean share of items that two users' lists have in "
    "common; self-information: mean of −log2 of an item's share of users, in bits.",
    "Head, middle and tail have a third of the training ratings each, by falling popularity of the item: "
    "recall of the relevant items there, and the share of all places that lists give them. A history's "
    "length is the number of liked source items.",
)
RANKING = Chapter(
    "ranking",
    "Ranking",
    "How well all items of the target domain are ordered. Compare each model with popularity and the other "
    "simple orders first: with tens of thousands of items all numbers are small.",
    "Ranking of the whole catalogue, k = 20, beside simple orders.",
    ranking_part,
    ranked,
    lambda profile: "ranking" in profile.objectives,
)
