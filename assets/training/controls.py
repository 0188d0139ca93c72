"""Trivial predictors and controls of a cell: which there are, and what they may learn from."""

from typing import TYPE_CHECKING

import numpy as np

from assets.data.cell import domain_ratings, held_out_ratings, training_rows
from assets.settings.axes import CATALOG, Cell
from assets.settings.profile import Profile
from assets.state.store import Store
from ml.splits import TRAIN, VALIDATION

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Ratings
    from ml.models.controls import Evidence

# Fitted to ratings alone; to the target factors; and a trained model under users that are mixed up.
PREDICTORS = ("global_mean", "item_mean", "item_source_bias", "ridge_source", "popularity")
VECTORS = ("mean_target_vector", "shared_vector")
PERMUTED = "permuted_source"
PERMUTED_MODEL = "diffcdr"


def source_of(store: Store, task_name: str) -> "Tensor":
    """Statistics (n, 5) of the overlapping users' source ratings, see `ml.models.controls`."""
    import torch

    from ml.models.controls import source_statistics

    domain = CATALOG.tasks[task_name].source
    ratings = domain_ratings(store, domain)
    scale = CATALOG.domains[domain].scale
    statistics = source_statistics(ratings.tensors(), ratings.n_users, ratings.n_items, scale)
    users = store.overlap(task_name).table("users.parquet")
    return statistics[torch.from_numpy(users["source_user"].to_numpy(dtype=np.int64))]


def evidence(store: Store, profile: Profile, cell: Cell, source: "Tensor") -> "Evidence":
    """What the predictors of a cell learn from, with the task's `source_of`.

    Of held-out users' target ratings nothing but this: those of the validation users choose how far item
    means are shrunk.
    """
    from ml.models.controls import Evidence

    target = CATALOG.tasks[cell.task].target
    ratings = domain_ratings(store, target)
    validation = _of_role(store, profile, cell, VALIDATION)
    return Evidence(
        known=ratings.tensors(training_rows(store, profile, cell)),
        n_items=ratings.n_items,
        training=_of_role(store, profile, cell, TRAIN),
        validation=validation if len(validation) else None,
        source=source,
        scale=CATALOG.domains[target].scale,
    )


def _of_role(store: Store, profile: Profile, cell: Cell, role: int) -> "Ratings":
    """Target ratings of the users with a role, whose numbers are rows of the overlap table."""
    import torch

    from ml.data import Ratings

    members, ratings = held_out_ratings(store, profile, cell, role)
    return Ratings(torch.from_numpy(members)[ratings.users], ratings.items, ratings.values)
