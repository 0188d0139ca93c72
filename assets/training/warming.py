"""`warming_up`: how a cold-start user's error falls with the first target ratings, without training and with.

Samples of the user's vector are weighted by the likelihood of what has been rated so far; beside them stand
fine-tuning, and the shrunk residuals of two simple predictors (`ml.distribution.warming`).
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd

from assets.data.cell import held_out_ratings
from assets.settings.axes import SEEDS_TOGETHER, Cell, cells
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.progress import Stopwatch
from assets.state.store import Store, fingerprint, parquet
from assets.training.controls import evidence, source_of
from assets.training.distributions import DIFFUSION, overlap_codes, source_effects
from assets.training.outcome import restored
from ml.splits import TEST, VALIDATION

if TYPE_CHECKING:
    from ml.data import Ratings
    from ml.distribution.warming import Newcomers, UserShift
    from ml.models.controls import Evidence

log = logging.getLogger("diffcdr")
CODE = code_of("assets.training.warming:warm_up")
# Users a cell: enough for the picture, and the same share of work at every β.
USERS = 300
# The predictors whose residuals are shrunk, and what that is called.
SHIFTS = {"ridge_source": "gaussian_prior", "item_source_bias": "shrunk_bias"}


def warming_asset(profile: Profile) -> dg.AssetsDefinition:
    """The warming up of a profile's distributions."""

    @dg.asset(
        name="warming_up",
        key_prefix=profile.name,
        partitions_def=cells,
        deps=[dg.AssetKey([profile.name, name]) for name in ("source_effects", *diffusions(profile))],
        group_name="models",
        kinds={"pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=SEEDS_TOGETHER,
        description="Error of the later target ratings of test users after n of their first, by reweighting "
        f"samples, fine-tuning and shrunk residuals. Profile: {profile.title}.",
    )
    def warming_up(context: dg.AssetExecutionContext, store: Store) -> None:
        for key in context.partition_keys:
            facts = warm_up(store, profile, Cell.parse(key))
            context.add_asset_metadata({"dagster/row_count": facts["rows"]}, partition_key=key)

    return warming_up


def diffusions(profile: Profile) -> list[str]:
    """The models and ablations of a profile that sample users' vectors."""
    names = (*profile.models, *profile.ablations)
    return [
        name
        for name in names
        if profile.registered(name) == DIFFUSION and profile.model(name, "").get("vectors") != "mean"
    ]


def warm_up(store: Store, profile: Profile, cell: Cell) -> dict:
    """The manifest of a cell's errors by number of first ratings, computed where missing or stale."""
    entry, title = store.warming(profile.name, cell), f"{profile.name}/warming_up {cell.key}"
    models = {name: store.model(profile.name, name, cell) for name in diffusions(profile)}
    wanted = fingerprint(code=CODE, models={name: m.require()["fingerprint"] for name, m in models.items()})
    if entry.is_current(wanted):
        log.info("%s: up to date", title)
        return entry.require()
    with Stopwatch() as watch:
        frame = pd.concat([_of_model(store, profile, cell, name) for name in models], ignore_index=True)
    log.info("%s: %.1f s", title, watch.seconds)
    return entry.write({"warming.parquet": parquet(frame)}, wanted, rows=len(frame))


def _of_model(store: Store, profile: Profile, cell: Cell, name: str) -> pd.DataFrame:
    """Errors by method and n; what does not depend on the model is measured beside the first one only."""
    from ml.distribution.warming import error_by_n

    model, most = restored(store.model(profile.name, name, cell)), first_ratings(store, cell)
    newcomers = _newcomers(store, profile, cell, TEST)
    if name == diffusions(profile)[0]:
        members, ratings = _some(store, profile, cell, TEST)
        known = evidence(store, profile, cell, source_of(store, cell.task))
        shifts = _shifts(known, members, ratings)
        rows = error_by_n(model, newcomers, _newcomers(store, profile, cell, VALIDATION), shifts, most=most)
    else:
        rows = error_by_n(model, newcomers, most=most)
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


def _newcomers(store: Store, profile: Profile, cell: Cell, role: int) -> "Newcomers":
    """The users of a role; their ratings are stored in order of time, where there is time."""
    from ml.distribution.warming import Newcomers

    members, ratings = _some(store, profile, cell, role)
    description = source_effects(store, profile, cell).tensors("effects.safetensors")["description"]
    return Newcomers(description[overlap_codes(store, cell.task, "source")[members]], ratings)


def _some(store: Store, profile: Profile, cell: Cell, role: int) -> "tuple[np.ndarray, Ratings]":
    """Overlap rows and ratings of the users of a role, of USERS drawn ones where there are more."""
    import torch

    from ml.data import Ratings
    from ml.replicas import replica_generator

    members, ratings = held_out_ratings(store, profile, cell, role)
    order = torch.randperm(len(members), generator=replica_generator(cell.seed, f"warming {role}"))
    kept = order[:USERS].sort().values
    place = torch.full((len(members),), -1)
    place[kept] = torch.arange(len(kept))
    rows = place[ratings.users] >= 0
    return members[kept.numpy()], Ratings(
        place[ratings.users[rows]], ratings.items[rows], ratings.values[rows]
    )


def _shifts(known: "Evidence", members: np.ndarray, ratings: "Ratings") -> "dict[str, UserShift]":
    """The simple predictors with a Gaussian prior on what a user departs from them: by a constant; the ridge
    also in the weight of the item's part, which is centred.

    ratings: of the test users, who are `members` (n,) of the overlap table.
    """
    import torch

    from ml.distribution.warming import Undetermined, UserShift
    from ml.evaluation.ratings import predict
    from ml.models.controls import PREDICTORS

    training = known.training
    tested = replace(ratings, users=torch.from_numpy(members)[ratings.users])
    shifts = {}
    for predictor, method in SHIFTS.items():
        users, items = PREDICTORS[predictor](known)
        part = items[:, 0].double()
        columns = [
            torch.stack([torch.ones(len(rows)), part[rows.items] - part[training.items].mean()], 1)
            if method == "gaussian_prior"
            else torch.ones(len(rows), 1)
            for rows in (tested, training)
        ]
        predicted, fitted = (predict(users, items, rows) for rows in (tested, training))
        try:
            shifts[method] = UserShift.learned(predicted, columns[0], training, fitted, columns[1])
        except Undetermined as reason:
            log.info("warming up leaves out %s: %s", method, reason)
    return shifts
