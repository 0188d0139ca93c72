"""Fold-in of new users on frozen effects: their vectors θ are the modes of `ml.distribution.effects`,
equations (1) and (2), given the item vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.distribution.effects import level_index, posterior_modes

NEWTON_STEPS = 12


@dataclass(frozen=True)
class EffectsFoldIn:
    """Descriptions of new users on the frozen `Effects` of the source domain, fitted with no c.

    items: (m, D), φ; intercept: (D,); levels: (L,); basis: (L, D); prior_map: (1, D) and prior_covariance:
    (D, D), of θ; all float64.
    """

    items: Tensor
    intercept: Tensor
    levels: Tensor
    basis: Tensor
    prior_map: Tensor
    prior_covariance: Tensor

    def __call__(self, ratings: Ratings, n: int) -> Tensor:
        """Descriptions (n, D + 1) float64 of `ratings`, with users in 0..n-1 and items of the source domain.

        A user without ratings gets the prior mean. Raises ValueError for rows outside the tables and ratings
        that are no levels.
        """
        check_rows("ratings.users", ratings.users, n)
        check_rows("ratings.items", ratings.items, len(self.items))
        start = self.prior_map.expand(n, -1)
        modes, _ = posterior_modes(
            ratings.users,
            ((self.intercept + self.items) @ self.basis.T)[ratings.items],
            level_index(ratings.values, self.levels),
            self.basis,
            start,
            self.prior_covariance,
            start,
            NEWTON_STEPS,
        )
        counts = torch.bincount(ratings.users, minlength=n).double()
        return torch.cat([modes, counts.log1p()[:, None]], 1)
