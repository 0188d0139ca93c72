"""`warming_up`: how a cold-start user's error falls with the first target ratings, without training and with.

Samples of the user's vector are weighted by the likelihood of what has been rated so far; beside them stand
fine-tuning, and the shrunk residuals of two simple predictors (`ml.distribution.warming`).
"""

import logging
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd

from assets.data.cell import SIDES, Gate
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.progress import Stopwatch
from assets.state.store import Store, fingerprint, parquet
from assets.training.fingerprints import Fingerprints
from assets.training.run import restored_model

if TYPE_CHECKING:
    from ml.data import HeldOut
    from ml.distribution.warming import Newcomers, UserShift

log = logging.getLogger("diffcdr")
CODE = code_of("assets.training.warming:warm_up")
# Users a cell: enough for the picture, and the same share of work at every β.
USERS = 300
# The predictors whose residuals are shrunk, and what that is called.
SHIFTS = {"ridge_source": "gaussian_prior", "item_source_bias": "shrunk_bias"}


def warming_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The warming up of a profile's models that sample users' vectors."""

    @dg.asset(
        name="warming_up",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=[dg.AssetKey([profile.name, name]) for name in ("source_effects", *sampling_models(profile))],
        group_name=profile.group("models"),
        kinds={"pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=axes.seeds_together,
        description="Error of the later target ratings of test users after n of their first, by reweighting "
        f"samples, fine-tuning and shrunk residuals. Profile: {profile.title}.",
    )
    def warming_up(context: dg.AssetExecutionContext, store: Store) -> None:
        for key in context.partition_keys:
            manifest = warm_up(store, axes.catalog, profile, axes.parse(key))
            context.add_asset_metadata({"dagster/row_count": manifest["rows"]}, partition_key=key)

    return warming_up


def sampling_models(profile: Profile) -> list[str]:
    """The models and ablations of a profile that sample users' vectors."""
    names = (*profile.models, *profile.ablations)
    return [
        name
        for name in names
        if profile.facts[profile.kind(name)].warms_by == "samples"
        and profile.model(name, "").get("vectors") != "mean"
    ]


def warming_fingerprint(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> str:
    """What a cell's warming up is made of: the models that sample."""
    fingerprints = Fingerprints(store, catalog, profile)
    models = {name: fingerprints.model(name, cell, "rating") for name in sampling_models(profile)}
    return fingerprint(code=CODE, models=models)


def warm_up(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> dict:
    """The manifest of a cell's errors by number of first ratings, computed where missing or stale."""
    entry, title = store.warming(profile.name, cell), f"{profile.name}/warming_up {cell.key}"
    expected = warming_fingerprint(store, catalog, profile, cell)
    if entry.is_current(expected):
        log.info("%s: up to date", title)
        return entry.require()
    fingerprints = Fingerprints(store, catalog, profile)
    for name in sampling_models(profile):
        model = store.model(profile.name, name, cell)
        model.require_current(fingerprints.model(name, cell, "rating"))
    with Stopwatch() as watch:
        frames = [_of_model(store, profile, cell, name) for name in sampling_models(profile)]
    log.info("%s: %.1f s", title, watch.seconds)
    frame = pd.concat(frames, ignore_index=True)
    return entry.write({"warming.parquet": parquet(frame)}, expected, rows=len(frame))


def _of_model(store: Store, profile: Profile, cell: Cell, name: str) -> pd.DataFrame:
    """Errors by method and n; what does not depend on the model is measured beside the first one only."""
    from ml.distribution.warming import error_by_n

    model = restored_model(store, profile, name, cell, "rating").cell()
    gate, most = Gate(store, profile, cell, needs=("ratings", "effects")), first_ratings(store, cell)
    test = some_users(gate, "test")
    if name == sampling_models(profile)[0]:
        validation = _newcomers(some_users(gate, "validation"))
        rows = error_by_n(model, _newcomers(test), validation, _shifts(gate, test), most=most)
    else:
        rows = error_by_n(model, _newcomers(test), most=most)
    columns = ["method", "n", "most", "users", "ratings", "mae", "rmse", "crps"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["method"] = frame["method"].replace("samples", name)
    return frame


def first_ratings(store: Store, cell: Cell) -> int:
    """How many first ratings are set aside: the most that enough test users may be expected to exceed, and at
    least one. The same for all seeds, whose means would else be over different ratings."""
    from ml.distribution.warming import COUNTS, ENOUGH_USERS

    rated = store.overlap(cell.task).table("users.parquet")["target_ratings"]
    share = min(cell.beta, USERS / len(rated))
    enough = [n for n in COUNTS if share * (rated > n).sum() >= ENOUGH_USERS]
    return max([1, *enough])


def _newcomers(held: "HeldOut") -> "Newcomers":
    """Users whose ratings are stored in order of time, where there is time."""
    from ml.distribution.warming import Newcomers

    return Newcomers(held.users.description, held.ratings, held.users.ratings)


def some_users(gate: Gate, side: str) -> "HeldOut":
    """The users of a side and their ratings, of USERS drawn ones where there are more."""
    import torch

    from ml.data import HeldOut, Ratings
    from ml.replicas import replica_generator

    held = gate.held_out(side)
    # Named for the role's number, as it always was: another name would draw other users.
    generator = replica_generator(gate.cell.seed, f"warming {SIDES[side]}")
    kept = torch.randperm(len(held), generator=generator)[:USERS].sort().values
    place = torch.full((len(held),), -1)
    place[kept] = torch.arange(len(kept))
    rows = place[held.ratings.users] >= 0
    ratings = Ratings(place[held.ratings.users[rows]], held.ratings.items[rows], held.ratings.values[rows])
    return HeldOut(held.users.take(kept), ratings)


def _shifts(gate: Gate, test: "HeldOut") -> "dict[str, UserShift]":
    """The simple predictors with a Gaussian prior on what a user departs from them: by a constant; the ridge
    also in the weight of the item's part, which is centred."""
    import torch

    from ml.distribution.warming import Undetermined, UserShift
    from ml.models.registry import build

    data, shifts = gate.data, {}
    for name, method in SHIFTS.items():
        model = build(name)
        list(model.fit([data]))
        part = model.items()[:, 0].double()
        columns = [
            torch.stack([torch.ones(len(rows)), part[rows.items] - part[data.training.items].mean()], 1)
            if method == "gaussian_prior"
            else torch.ones(len(rows), 1)
            for rows in (test.ratings, data.training)
        ]
        predicted = model.predict(test.users, test.ratings).mean
        fitted = model.predict(data.train, data.training).mean
        try:
            shifts[method] = UserShift.learned(predicted, columns[0], data.training, fitted, columns[1])
        except Undetermined as reason:
            log.info("warming up leaves out %s: %s", method, reason)
    return shifts
