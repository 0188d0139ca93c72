"""Which models of a profile answer: one for lists and one for stars, chosen on validation users."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from assets.report.results import source
from assets.settings.axes import Axes, Cell, span
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Entry, NotMaterialized, Store
from assets.training.choose import best, candidates
from assets.training.fingerprints import expected_fingerprint

# What makes the lists, where a profile trains for it, and what says the stars.
LISTS, STARS = "ranking", "rating"


@dataclass(frozen=True)
class Choice:
    """A model of a profile, trained for an objective."""

    name: str
    objective: str


@dataclass(frozen=True)
class Chosen:
    """The models that answer for a task: for lists, and for stars where the profile has ratings. Where it
    trains no model for lists, the one for stars makes them, by its mean."""

    lists: Choice
    stars: Choice | None

    @property
    def all(self) -> tuple[Choice, ...]:
        return tuple(dict.fromkeys(each for each in (self.lists, self.stars) if each is not None))

    def __str__(self) -> str:
        if self.stars in (None, self.lists):
            return self.lists.name
        return f"{self.lists.name} for lists and {self.stars.name} for stars"


def objectives(profile: Profile) -> list[str]:
    """What a profile has models for that may be used: lists before stars."""
    return [each for each in (LISTS, STARS) if each in profile.objectives and candidates(profile, each)]


def choose(store: Store, catalog: Catalog, profile: Profile, cells: Sequence[Cell]) -> Chosen:
    """The best of the models that are current in `cells`, of one task, by their validation values.

    A profile without validation users has nothing to choose by: the model that it calls its own answers.
    Raises NotMaterialized where none is trained, ValueError for a profile without a model that may be used.
    """
    from ml.evaluation.selection import OBJECTIVES

    task, asked = cells[0].task, objectives(profile)
    if not asked:
        raise ValueError(f"profile {profile.name} has no model that can answer for new users; add one")
    found = {}
    for objective in asked:
        names, rule = candidates(profile, objective), OBJECTIVES[objective]
        if profile.validation:
            values = validated(store, catalog, profile, cells, objective)
            name = best(values, names, rule.criterion, rule.higher_is_better)
        else:
            own = [n for n in profile.ours if n in names]
            trained = (
                n for n in own if any(current(store, catalog, profile, c, n, objective) for c in cells)
            )
            name = next(trained, None)
        if name is None:
            raise NotMaterialized(
                f"{span(cells)}: no model of profile {profile.name} is trained and up to date for "
                f"{objective}; run `diffcdr run --task {task} --profile {profile.name}` first"
            )
        found[objective] = Choice(name, objective)
    stars = found.get(STARS)
    return Chosen(found.get(LISTS, stars), stars)


def complete(
    store: Store, catalog: Catalog, profile: Profile, cells: Sequence[Cell], chosen: Chosen
) -> list[Cell]:
    """The cells in which all chosen models are current."""
    return [
        cell
        for cell in cells
        if all(current(store, catalog, profile, cell, each.name, each.objective) for each in chosen.all)
    ]


def current(
    store: Store, catalog: Catalog, profile: Profile, cell: Cell, name: str, objective: str
) -> Entry | None:
    """A model's entry, where what is there is what today's settings, code and inputs give."""
    entry = store.model(profile.name, name, cell, objective)
    if entry.manifest() is None:
        return None
    expected = expected_fingerprint(store, catalog, profile, name, cell, objective)
    return entry if expected is not None and entry.is_current(expected) else None


def validated(
    store: Store, catalog: Catalog, profile: Profile, cells: Sequence[Cell], objective: str
) -> pd.DataFrame:
    """Validation values at the epoch that validation chose, of the current ones of these cells: columns seed
    (the cell's key, as `best` takes it), model and the objective's criterion; NaN where one has diverged."""
    from ml.evaluation.selection import OBJECTIVES

    keys = {(cell.task, cell.beta, cell.seed): cell.key for cell in cells}
    found = source(store, catalog, profile).validated(objective)
    named = [keys.get(key) for key in found[["task", "beta", "seed"]].itertuples(index=False, name=None)]
    rows = found.assign(seed=pd.Series(named, dtype=object, index=found.index)).dropna(subset="seed")
    return rows[["seed", "model", OBJECTIVES[objective].criterion]]


def choose_at(store: Store, axes: Axes, profile: Profile, cell: Cell) -> Chosen:
    """The models that answer in a cell: the best over all seeds of its β; where they are not trained in it,
    the best that are. Raises as `choose`."""
    beside = [each for each in axes.of_task(cell.task) if each.beta == cell.beta]
    chosen = choose(store, axes.catalog, profile, beside)
    here = complete(store, axes.catalog, profile, [cell], chosen)
    return chosen if here else choose(store, axes.catalog, profile, [cell])
