"""The user vectors of a trained model that Figure 4 shows (paper section 4.4)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from ml.data import SourceUsers
from ml.models.diffcdr import DiffCDR
from ml.models.transfer import TransferModel

NFE = (5, 15, 20, 30)  # the numbers of function evaluations of Figure 4 (c, d)


class Variant(NamedTuple):
    """One way to get a vector for a user: a model, and for DiffCDR the function evaluations of its solver."""

    model: str
    nfe: int | None = None


def transferred(name: str, model: TransferModel, users: SourceUsers) -> dict[Variant, Tensor]:
    """Target vectors (n, k) of `users` by a trained `model` of one replica, under its `name` in the profile.

    A DiffCDR with a diffusion module gives `name` (the aligned output) and also `name`_dim, the vectors
    before alignment, which Figure 4 shows, by each of NFE and by its own number of evaluations.
    """
    if not isinstance(model, DiffCDR):
        return {Variant(name): model.transfer([users])[0]}
    vectors = {Variant(name, model.nfe): model.transfer([users])[0]}
    if model.parts == "at":
        return vectors
    for nfe in sorted({*NFE, model.nfe}):
        solver = dataclasses.replace(model, nfe=nfe).load_state_dict(model.state_dict())
        vectors[Variant(f"{name}_dim", nfe)] = solver.dim_output([users])[0]
    return vectors
