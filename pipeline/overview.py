"""What is finished, stale and missing (`diffcdr status`), and what a run would compute (`run --dry-run`)."""

from collections.abc import Iterator, Sequence

import pandas as pd

from assets.data.ratings import ratings_fingerprint
from assets.data.splits import overlap_fingerprint
from assets.report.results import DIVERGED, FINISHED, MISSING, STALE, source
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Entry, NotMaterialized, Store
from pipeline.chain import Chain

STATES = [FINISHED, STALE, MISSING, DIVERGED]
NAMED = 4  # models that are called by their names
CELL = ["profile", "task", "beta", "seed"]


def status(
    store: Store, catalog: Catalog, profiles: Sequence[Profile], task: str | None = None
) -> pd.DataFrame:
    """One row for each profile, task, β and seed in which anything was trained.

    Columns: CELL, how many models, once for each objective, are in each of STATES, and which are
    not finished.
    """
    states = pd.concat([source(store, catalog, profile).states for profile in profiles])
    states = states if task is None else states[states["task"] == task]
    counts = states.groupby([*CELL, "state"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=STATES, fill_value=0)
    counts = counts[counts.drop(columns=MISSING).sum(axis=1) > 0]
    open_ = states[states["state"] != FINISHED].groupby(CELL)[["model", "objective", "state"]]
    words = {cell: _words(rows) for cell, rows in open_}
    return counts.assign(**{"not finished": [words.get(cell, "") for cell in counts.index]}).reset_index()


def not_begun(
    store: Store, catalog: Catalog, profiles: Sequence[Profile], shown: pd.DataFrame, task: str | None = None
) -> list[str]:
    """Of how many tasks nothing was trained, by profile: `tuned: 5 of 6 tasks`."""
    begun = set(shown[["profile", "task"]].itertuples(index=False, name=None))
    tasks = [task] if task else list(catalog.tasks)
    absent = {each.name: [name for name in tasks if (each.name, name) not in begun] for each in profiles}
    return [f"{name}: {len(of)} of {len(tasks)} tasks" for name, of in absent.items() if of]


def plan(chain: Chain, store: Store) -> list[list[str]]:
    """What a run would do: for each stage that is not up to date its name, the number of models to be trained
    and which. Tables are made anew by each run."""
    rows = [[stage, "", "read"] for stage in _stale_data(chain, store)]
    for name in chain.profiles:
        states = source(store, chain.catalog, chain.known[name]).states
        wanted = states[
            states["task"].isin(chain.tasks)
            & states["beta"].isin(chain.betas)
            & states["seed"].isin(chain.seeds)
            & states["model"].isin(chain.models[name])
            & states["state"].isin([STALE, MISSING])
        ]
        for (task, beta), of_beta in wanted.groupby(["task", "beta"], sort=False):
            seeds = ", ".join(map(str, sorted(of_beta["seed"].unique())))
            rows.append([f"{name} on {task}, β {beta:g}, seed {seeds}", str(len(of_beta)), _words(of_beta)])
    return rows


def _words(rows: pd.DataFrame) -> str:
    """Models by state: `stale: emcdr; missing: tgt, cmf, lacdr, ptupcdr and 12 more`."""
    said = []
    for state, of_state in rows.groupby("state", sort=False):
        names = list(of_state["model"].unique())
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        said.append(f"{state}: {', '.join(names[:NAMED])}{more}")
    return "; ".join(said)


def _stale_data(chain: Chain, store: Store) -> Iterator[str]:
    """The domains and overlaps of a chain's tasks that are missing or out of date."""
    catalog = chain.catalog
    tasks = [catalog.tasks[name] for name in chain.tasks]
    for domain in dict.fromkeys(side for task in tasks for side in (task.source, task.target)):
        known = catalog.domains[domain]
        if not _is_current(store.ratings(domain), lambda known=known: ratings_fingerprint(store, known)):
            yield f"reviews and ratings of {domain}"
    for task in tasks:
        expected = lambda name=task.name: overlap_fingerprint(store, catalog, name)  # noqa: E731
        if not _is_current(store.overlap(task.name), expected):
            yield f"overlap of {task.name}"


def _is_current(entry: Entry, expected) -> bool:
    try:
        return entry.manifest() is not None and entry.is_current(expected())
    except NotMaterialized:
        return False
