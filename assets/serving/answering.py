"""What answers a task where nobody has said: the champion, else the best models of the first trained cell."""

from dataclasses import dataclass

from assets.serving.bundle import Bundle, RecommendationError
from assets.serving.choice import Chosen, choose_at
from assets.serving.registry import champion
from assets.serving.versions import ALIAS, registered_name
from assets.settings.axes import Axes, Cell
from assets.settings.profile import Profile
from assets.state.store import NotMaterialized, Store
from assets.state.tracking import MlflowTracking

# The first trained cell of the profile, even where there is a champion.
ANY_CELL = "any"


@dataclass(frozen=True)
class Answering:
    """A bundle, and what it is, for a reader."""

    bundle: Bundle
    what: str


def answering(
    store: Store, tracking: MlflowTracking, axes: Axes, task: str, profile: Profile, place: str = ""
) -> Answering:
    """What answers for a task. place: β and seed of a cell of the profile, such as `b20-s0`, or ANY_CELL; ""
    for the champion where one is registered.

    Raises RecommendationError for a place that is not in the catalogue, NotMaterialized where nothing is
    trained, TrackingError where the champion's server does not answer.
    """
    if not place and (found := champion(tracking, task)) is not None:
        bundle, version = found
        title = f"the {ALIAS}, version {version} of {registered_name(task)}"
        return Answering(bundle, f"{title}: {bundle.names} of {bundle.cell}, profile {bundle.profile}")
    cells = axes.of_task(task)
    if place not in ("", ANY_CELL):
        cells = [cell for cell in cells if cell.place == place]
        if not cells:
            known = ", ".join(cell.place for cell in axes.of_task(task))
            raise RecommendationError(f"unknown cell {place!r}; known are {known}")
    cell, chosen = _first(store, axes, profile, cells)
    bundle = Bundle.of_cell(store, profile, cell, chosen)
    return Answering(bundle, f"{chosen} of {cell.key}, profile {profile.name}")


def _first(store: Store, axes: Axes, profile: Profile, cells: list[Cell]) -> tuple[Cell, Chosen]:
    """The first of the cells that has models which may answer, and the best of them."""
    missing: list[NotMaterialized] = []
    for cell in cells:
        try:
            return cell, choose_at(store, axes, profile, cell)
        except NotMaterialized as error:
            missing.append(error)
    raise missing[0]
