"""Ten test users: what they rated in the source domain, and what each model would have shown them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from assets.data.domain import domain_ratings, ids, titles
from assets.data.ratings import ratings_fingerprint
from assets.report.forest import REFERENCES, leading
from assets.report.metrics import LIST_HEADLINE
from assets.report.names import Names
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.table import HIT, Hit, Table, table
from assets.report.verdict import recommended
from assets.settings.axes import Axes, Cell
from assets.settings.profile import Profile
from assets.state.store import NotMaterialized, Store

USERS = 10
SHOWN = 8  # of a history and of a list, what fits beside each other
NEIGHBOURHOOD = "user_neighbourhood"
COLUMNS = ["task", "beta", "seed", "user", "side", "place", "item", "stars", "hit"]
HISTORY = "history"  # of `side`, which else is a model


def people_frame(source: Source) -> pd.DataFrame:
    """Of each task USERS test users, drawn by chance but always the same ones: COLUMNS.

    A row is an item of the user's source history (side `history`, best rated first) or of a model's list,
    with its place from 1; stars: the user's rating of it, NaN where there is none; hit: whether an item of a
    list is one that the user has rated. Of lists all items are there.
    """
    frames = [_of_task(source, task) for task in source.names.in_order(source.results["task"])]
    frames = [frame for frame in frames if frame is not None]
    if not frames:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def listed(profile: Profile) -> list[str]:
    """The models whose lists stand beside each other: ours, the neighbourhood and popularity."""
    wanted = [*profile.ours, NEIGHBOURHOOD, REFERENCES[LIST_HEADLINE]]
    return [name for name in wanted if name in profile.entries and "ranking" in profile.objectives_of(name)]


def _of_task(source: Source, task: str) -> pd.DataFrame | None:
    lists = source.table("lists.parquet", LISTS, "ranking", task)
    if lists.empty:
        return None
    models = _models(source, task, leading(lists))
    lists = lists[lists["model"].isin(models)]
    where = lists.groupby(["beta", "seed"])["model"].nunique()
    if where.empty:
        return None
    # The first cell that has most of them.
    beta, seed = where[where == where.max()].index[0]
    lists = lists[(lists["beta"] == beta) & (lists["seed"] == seed)]
    cell = Axes(source.catalog).cell(task, beta, int(seed))
    try:
        rows = _rows(source, cell, {name: part for name, part in lists.groupby("model")}, models)
    except NotMaterialized:
        return None
    return pd.DataFrame(rows).assign(task=task, beta=beta, seed=int(seed))


PLACES = [f"{place}" for place in range(1, 21)]
LISTS = ["task", "beta", "seed", "model", "user", *PLACES]


def _models(source: Source, task: str, beta: float) -> list[str]:
    """Those of `listed`, and whom validation recommends if it is another."""
    models, use = listed(source.profile), []
    if source.profile.validation:
        found = recommended(source)
        found = found[(found["task"] == task) & (found["beta"] == beta) & (found["metric"] == LIST_HEADLINE)]
        use = [name for name in found["model"] if name not in models]
    return [*models[:1], *use, *models[1:]]


def _rows(source: Source, cell: Cell, lists: Mapping[str, pd.DataFrame], models: Sequence[str]) -> list[dict]:
    store = source.store
    overlap = store.overlap(cell.task).table("users.parquet").set_index("user")
    domains = {side: getattr(cell, side).name for side in ("source", "target")}
    for domain in (cell.source, cell.target):
        store.ratings(domain.name).require_current(ratings_fingerprint(store, domain))
    items = {side: _names(store, name) for side, name in domains.items()}
    known = set.intersection(*(set(part["user"]) for part in lists.values()))
    chosen = np.random.default_rng(0).permutation(sorted(known))[:USERS]
    rows = []
    for user in sorted(chosen):
        rated = {s: _rated(store, domains[s], overlap.loc[user, f"{s}_user"]) for s in domains}
        name = overlap.loc[user, "user_id"]
        rows += [
            {"user": name, "side": HISTORY, "place": place, "item": items["source"][item], "stars": stars}
            for place, (item, stars) in enumerate(rated["source"].items(), 1)
        ]
        for model in (model for model in models if model in lists):
            part = lists[model]
            shown = part.loc[part["user"] == user, PLACES].iloc[0].dropna()
            rows += [
                {
                    "user": name,
                    "side": model,
                    "place": int(place),
                    "item": items["target"][int(item)],
                    "stars": rated["target"].get(int(item), np.nan),
                    "hit": int(item) in rated["target"],
                }
                for place, item in shown.items()
                if item >= 0
            ]
    return rows


def _names(store: Store, domain: str) -> list[str]:
    """What a domain's items are called, by row: their titles, else their ids."""
    return [
        title or item for title, item in zip(titles(store, domain), ids(store, domain, "item"), strict=True)
    ]


def _rated(store: Store, domain: str, user: int) -> dict[int, float]:
    """A user's items with their stars, best rated first."""
    ratings = domain_ratings(store, domain)
    start, end = np.searchsorted(ratings.users, [user, user + 1])
    items, values = ratings.items[start:end], ratings.values[start:end]
    order = np.lexsort((items, -values))
    return dict(zip(items[order].tolist(), values[order].tolist(), strict=True))


def people_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """A table for each task, whose sections are users: their history, then a column for each model."""
    tables = []
    for task in names.in_order(frame["task"]):
        of_task = frame[frame["task"] == task]
        rows = [row for _, part in of_task.groupby("user", sort=False) for row in _person(part, names)]
        caption = names.task(task) if frame["task"].nunique() > 1 else ""
        tables.append(table(caption, rows, keys=1, sections=True, small=True))
    return tables


def _person(part: pd.DataFrame, names: Names) -> list[dict]:
    history = part[part["side"] == HISTORY]
    heading = f"User {part['user'].iloc[0]}: {_count(len(history), 'rating')} in the source domain"
    rated = [f"{row.item}\N{NO-BREAK SPACE}{row.stars:g}★" for row in history.itertuples()]
    if len(rated) > SHOWN:
        rated = [*rated[: SHOWN - 1], f"and {len(rated) - SHOWN + 1} more"]
    columns = {"Has rated": rated}
    ends = {"Has rated": ""}
    for model in dict.fromkeys(part.loc[part["side"] != HISTORY, "side"]):
        mine = part[part["side"] == model].sort_values("place")
        title = names.model(model)
        columns[title] = [Hit(row.item) if row.hit else row.item for row in mine.itertuples()][:SHOWN]
        hits = int(mine["hit"].astype(bool).sum())
        ends[title] = f"{_count(hits, 'hit')} in {len(mine)}"
    length = max(map(len, columns.values()))
    rows = [
        {"User": heading, **{title: cells[i] if i < len(cells) else "" for title, cells in columns.items()}}
        for i in range(length)
    ]
    return [*rows, {"User": heading, **ends}]


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count or 'no'} {what}s"


def said(frame: pd.DataFrame, names: Names) -> list[str]:
    """`Something that they did choose is in the list of 20 for 6 of these 10 users by X, for 4 by Y.`"""
    sentences = []
    for task in names.in_order(frame["task"]):
        lists = frame[(frame["task"] == task) & (frame["side"] != HISTORY)]
        happy = lists.assign(hit=lists["hit"].astype(bool)).groupby(["side", "user"], sort=False)["hit"].any()
        models, users = list(dict.fromkeys(lists["side"])), lists["user"].nunique()
        first, *others = [(names.model(m), happy[m].sum() or "none") for m in models]
        each = [
            f"for {first[1]} of these {users} users by {first[0]}",
            *(f"for {n} by {m}" for m, n in others),
        ]
        where = f"{names.task(task)}: something" if frame["task"].nunique() > 1 else "Something"
        length = lists["place"].max()
        sentences.append(f"{where} that they did choose is in the list of {length} {', '.join(each)}.")
    return sentences


def _of_cells(frame: pd.DataFrame) -> str:
    """` of β = 20%, seed 0`, of each task's cell; empty where there is none."""
    cells = frame[["beta", "seed"]].drop_duplicates().itertuples()
    said = " and ".join(f"β = {cell.beta:.0%}, seed {cell.seed}" for cell in cells)
    return f" of {said}" if said else ""


def people_part(source: Source) -> Part:
    frame, names = people_frame(source), source.names
    notes = (
        f"Test users{_of_cells(frame)}, drawn by chance and always the same ones. {HIT}: the user did rate "
        "that item in the target domain, which no model was told. Histories begin with what was rated best; "
        f"of each list the first {SHOWN} items are here, the files of this chapter have all.",
    )
    title = f"People. {source.profile.title}"
    tables = people_tables(frame, names) if len(frame) else []
    return Part("people", title, frame, tables, notes, "", (), said(frame, names) if len(frame) else ())


PEOPLE = Chapter(
    "people",
    "People",
    "What ten users had rated in the source domain, and what they would have been shown on their first visit "
    "to the target domain, side by side.",
    "Ten test users: their source history and what ours, the neighbourhood and popularity show them.",
    people_part,
    listed,
    lambda profile: bool(listed(profile)),
)
