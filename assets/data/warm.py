"""Warm start: held-out users' target ratings in two halves by time, to tune on and to be judged on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from assets.data.cell import held_out_ratings
from assets.settings.axes import Cell
from assets.settings.profile import Profile
from assets.state.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Ratings
    from ml.evaluation.selection import Objective


@dataclass(frozen=True)
class WarmHalves:
    """Held-out users' ratings for warm start, by time: `tuning` and then `later`, to be judged on.

    known: the earlier ratings, which are not ranked again; in ranking, `tuning` adds negatives to them.
    left_out: users with fewer than two ratings, who are in neither.
    """

    tuning: "Ratings"
    known: "Ratings"
    later: "Ratings"
    left_out: int


def warm_halves(
    store: Store, profile: Profile, cell: Cell, role: int, objective: "Objective"
) -> WarmHalves | None:
    """The halves of the users with a role; None where no user has two ratings."""
    import torch

    members, ratings = held_out_ratings(store, profile, cell, role)
    later = torch.from_numpy(_later(store, cell, members, ratings))
    users = ratings.users[later].unique()
    if len(users) == 0:
        return None
    early = ~later & torch.isin(ratings.users, users)
    known = _rows(ratings, early)
    tuning = known if objective.name == "rating" else _tuning_negatives(store, cell, role, known)
    return WarmHalves(tuning, known, _rows(ratings, later), left_out=len(members) - len(users))


def _later(store: Store, cell: Cell, members: np.ndarray, ratings: "Ratings") -> np.ndarray:
    warm = store.split(cell).table("warm.parquet")
    warm = warm[warm["user"].isin(members)]
    if not np.array_equal(warm["item"].to_numpy(), ratings.items.numpy()):
        raise RuntimeError(f"{cell.key}: warm.parquet and the ratings differ; materialize split again")
    return warm["later"].to_numpy()


def _rows(ratings: "Ratings", keep: "Tensor") -> "Ratings":
    from ml.data import Ratings

    return Ratings(ratings.users[keep], ratings.items[keep], ratings.values[keep])


def _tuning_negatives(store: Store, cell: Cell, role: int, known: "Ratings") -> "Ratings":
    """`known` with negatives drawn against it alone: others would tell which items come later."""
    import torch

    from ml.data import Ratings
    from ml.factorization.negatives import sample_negatives
    from ml.replicas import replica_generator

    target = cell.target.name
    negatives = sample_negatives(
        known.users,
        known.items,
        store.ratings(target).require()["items"],
        generator=replica_generator(cell.seed, f"negatives/warm/{target}/{role}"),
    )
    return Ratings(
        users=torch.cat([known.users, negatives.users]),
        items=torch.cat([known.items, negatives.items]),
        values=torch.cat([known.values, torch.zeros(len(negatives))]),
    )
