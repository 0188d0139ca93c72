"""The tiny task in a store, its data and its models, without an orchestrator."""

from collections.abc import Iterable

from assets.data.ratings import ingest_domain
from assets.data.reviews import obtain
from assets.data.splits import draw_split, find_overlap
from assets.settings.axes import Cell
from assets.settings.profile import Profile
from assets.state.compute import Compute
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.effects import fit_source
from assets.training.factors import train_source, train_target
from assets.training.models import upstream
from assets.training.run import Training
from ml.evaluation.selection import OBJECTIVES
from tests.assets.axes import CATALOG, CELL


def prepare(store: Store, cells: Iterable[Cell] = (CELL,)) -> Store:
    """Ratings of both domains, their overlap and the splits of `cells` of the tiny task."""
    for domain in ("tiny_video", "tiny_music"):
        obtain(store, CATALOG.domains[domain])
        ingest_domain(store, CATALOG.domains[domain])
    find_overlap(store, CATALOG, "tiny")
    for cell in cells:
        draw_split(store, CATALOG, cell)
    return store


def train(
    store: Store, profile: Profile, names: Iterable[str], cell: Cell = CELL, **overrides: object
) -> None:
    """Train what `names` of a profile need and then each of them, in a cell of a prepared store.

    overrides: `compute` or `tracking`, where a test has its own.
    """
    compute = overrides.get("compute") or Compute(device="cpu")
    tracking = overrides.get("tracking") or MlflowTracking(home=str(store.root))
    bases = {base for name in names for base in upstream(profile, name)}
    for objective in profile.objectives:
        if "source_factors" in bases:
            train_source(store, compute, CATALOG, profile, [cell], objective)
        if "target_factors" in bases:
            train_target(store, compute, CATALOG, profile, [cell], objective)
    if "source_effects" in bases:
        fit_source(store, CATALOG, profile, cell)
    for name in names:
        for objective in profile.objectives_of(name):
            training_of(store, profile, name, objective, compute=compute, tracking=tracking).run([cell])


def training_of(
    store: Store, profile: Profile, name: str, objective: str = "rating", **overrides
) -> Training:
    """The training of one model."""
    compute = overrides.get("compute") or Compute(device="cpu")
    tracking = overrides.get("tracking") or MlflowTracking(home=str(store.root))
    return Training(store, compute, tracking, CATALOG, profile, name, OBJECTIVES[objective], {})


def measured(
    store: Store, profile: Profile, name: str, selection: str, cell: Cell = CELL
) -> dict[str, float]:
    """Cold-start metrics of a trained model for ratings."""
    rows = store.model(profile.name, name, cell).table("metrics.parquet")
    rows = rows[(rows["stage"] == "cold") & (rows["selection"] == selection)]
    return rows.set_index("metric")["value"].to_dict()
