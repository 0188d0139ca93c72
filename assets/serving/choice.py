"""Which models of a profile answer: one for lists and one for stars, chosen on validation users."""

from collections.abc import Sequence
from dataclasses import dataclass

from assets.settings.axes import Axes, Cell, span
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import NotMaterialized, Store
from assets.training.candidates import best, candidates, current, validated
from assets.training.fingerprints import Fingerprints

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
    fingerprints, found = Fingerprints(store, catalog, profile), {}
    for objective in asked:
        names, rule = candidates(profile, objective), OBJECTIVES[objective]
        if profile.validation:
            values = validated(fingerprints, cells, names, objective)
            name = best(values, names, rule.criterion, rule.higher_is_better)
        else:
            own = [n for n in profile.ours if n in names]
            trained = (n for n in own if any(current(fingerprints, c, n, objective) for c in cells))
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
    fingerprints = Fingerprints(store, catalog, profile)
    return [
        cell
        for cell in cells
        if all(current(fingerprints, cell, each.name, each.objective) for each in chosen.all)
    ]


def choose_at(store: Store, axes: Axes, profile: Profile, cell: Cell) -> Chosen:
    """The models that answer in a cell: the best over all seeds of its β; where they are not trained in it,
    the best that are. Raises as `choose`."""
    beside = [each for each in axes.of_task(cell.task) if each.beta == cell.beta]
    chosen = choose(store, axes.catalog, profile, beside)
    here = complete(store, axes.catalog, profile, [cell], chosen)
    return chosen if here else choose(store, axes.catalog, profile, [cell])
