"""Fold-in: factors of a user who was not in the training, in closed form on frozen item factors.

The factorization of the source domain models r = u·v + ε. With the trained item factors v as they are,
Gaussian noise ε ~ N(0, σ²) and the trained user table as what is known of a user beforehand, u ~ N(μ, Σ), a
user with ratings r_i of items v_i has the posterior mean

    u = argmin Σ_i (r_i − u·v_i)² / σ² + (u − μ)ᵀ Σ⁻¹ (u − μ)
      = (VᵀV/σ² + Σ⁻¹)⁻¹ (Vᵀr/σ² + Σ⁻¹μ).

It is ridge regression that shrinks to the mean user μ rather than to 0, with a weight λ = σ²Σ⁻¹ that is
measured and not tuned: μ and Σ are those of the trained user factors, σ² the mean squared error in training.
A user without ratings gets μ. For factors without biases, as `ml.factorization.adam` trains them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data import Ratings, check_rows

# Ratings whose outer products v vᵀ are held at a time: 50 MB at k = 10.
BLOCK = 1 << 16


@dataclass(frozen=True)
class FoldIn:
    """item_factors: (items, k) float32; mean: (k,) and covariance: (k, k), float64, the prior μ and Σ of a
    user; noise: σ², the variance of a rating about its prediction."""

    item_factors: Tensor
    mean: Tensor
    covariance: Tensor
    noise: float

    @classmethod
    def of(cls, user_factors: Tensor, item_factors: Tensor, ratings: Ratings) -> FoldIn:
        """The prior of trained `user_factors` (n, k) and the noise of their training `ratings`.

        Raises ValueError without ratings, and where widths or rows do not fit.
        """
        if user_factors.shape[1] != item_factors.shape[1]:
            raise ValueError(
                f"user factors have width {user_factors.shape[1]}, item factors {item_factors.shape[1]}; "
                "take both from one factorization"
            )
        if len(ratings) == 0:
            raise ValueError("no training ratings: there is no noise to measure")
        check_rows("ratings.users", ratings.users, len(user_factors))
        check_rows("ratings.items", ratings.items, len(item_factors))
        users = user_factors.double()
        mean = users.mean(0)
        centered = users - mean
        # A floor, so that a table of equal users or a perfect fit still has an inverse.
        covariance = centered.T @ centered / len(users) + 1e-6 * torch.eye(users.shape[1])
        return cls(
            item_factors, mean, covariance, max(_squared_error(user_factors, item_factors, ratings), 1e-6)
        )

    def __call__(self, ratings: Ratings, n: int) -> Tensor:
        """User factors (n, k) float32 of `ratings`, with users in 0..n-1 and items of the item table."""
        check_rows("ratings.users", ratings.users, n)
        check_rows("ratings.items", ratings.items, len(self.item_factors))
        k = len(self.mean)
        precision = torch.linalg.inv(self.covariance)
        left = precision.repeat(n, 1, 1)
        right = (precision @ self.mean).repeat(n, 1)
        for users, items, values in _blocks(ratings):
            factors = self.item_factors[items].double()
            outer = (factors[:, :, None] * factors[:, None, :]).view(len(users), k * k)
            left.view(n, k * k).index_add_(0, users, outer / self.noise)
            right.index_add_(0, users, factors * values[:, None].double() / self.noise)
        return torch.linalg.solve(left, right).float()


def _squared_error(user_factors: Tensor, item_factors: Tensor, ratings: Ratings) -> float:
    total = 0.0
    for users, items, values in _blocks(ratings):
        predicted = (user_factors[users] * item_factors[items]).sum(1)
        total += (predicted - values).double().square().sum().item()
    return total / len(ratings)


def _blocks(ratings: Ratings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    columns = (ratings.users, ratings.items, ratings.values)
    return zip(*(column.split(BLOCK) for column in columns), strict=True)
