"""Fold-in: factors of a user who was not in the training, in closed form on frozen item factors.

A factorization models r = o_i + u·v_i + ε. With the trained item factors v and offsets o as they are,
Gaussian noise ε ~ N(0, σ²) and u ~ N(μ, Σ) as what is known of a user beforehand, a user with ratings r_i of
items i has the posterior mean

    u = argmin Σ_i (r_i − o_i − u·v_i)² / σ² + (u − μ)ᵀ Σ⁻¹ (u − μ)
      = (VᵀV/σ² + Σ⁻¹)⁻¹ (Vᵀ(r − o)/σ² + Σ⁻¹μ).

For plain factors, as `ml.factorization.adam` trains them, μ and Σ are those of the trained user factors and
σ² is the mean squared error in training: ridge regression that shrinks to the mean user, with a weight that
is measured and not tuned. For biased ones (`ml.factorization.biased`) o is the items' offset, μ = 0, σ² = 1
and Σ⁻¹ the penalties, which is the solve that training ends with: a user of the training with the same
ratings gets the very vector that was trained. So it is for factors of choices (`ml.factorization.implicit`)
with μ = 0, σ² = 1 / (c − 1), Σ⁻¹ = VᵀV + λI and every rating counted as c / (c − 1), c the confidence. What
models are given of users of these two, (u − c) / s, is standardised.
A user without ratings gets μ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from scipy.sparse import csr_array
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.factorization.biased import BiasedFactors, centre_and_scale

# Ratings whose outer products v vᵀ are held at a time: 50 MB at k = 10.
BLOCK = 1 << 16
BY_VALUE = torch.tensor(float("nan"), dtype=torch.float64)


@dataclass(frozen=True)
class FoldIn:
    """item_factors: (items, k) and offset: (items,), float32; float64 are mean: (k,) and covariance: (k, k),
    the prior μ and Σ of a user, noise: (), σ², centre and scale: (k,), c and s, and choice: (), what every
    rating counts as, NaN where it counts as its value."""

    item_factors: Tensor
    offset: Tensor
    mean: Tensor
    covariance: Tensor
    noise: Tensor
    centre: Tensor
    scale: Tensor
    choice: Tensor

    @classmethod
    def of(cls, user_factors: Tensor, item_factors: Tensor, ratings: Ratings) -> Self:
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
        mean, width = users.mean(0), users.shape[1]
        noise = torch.tensor(_squared_error(user_factors, item_factors, ratings), dtype=torch.float64)
        centered = users - mean
        return cls(
            item_factors,
            torch.zeros(len(item_factors)),
            mean,
            # A floor, so that a table of equal users or a perfect fit still has an inverse.
            centered.T @ centered / len(users) + 1e-6 * torch.eye(width),
            noise.clamp(1e-6),
            torch.zeros(width, dtype=torch.float64),
            torch.ones(width, dtype=torch.float64),
            BY_VALUE,
        )

    @classmethod
    def of_biased(cls, factors: BiasedFactors, penalty: float, bias_penalty: float, rows: Tensor) -> Self:
        """The solve of `BiasedFactorization` with its penalties, standardised over the users `rows`, as
        `ml.factorization.biased.standardize` does it. Raises ValueError as that does."""
        width = factors.users.shape[1]
        penalties = torch.tensor([penalty] * (width - 1) + [bias_penalty], dtype=torch.float64)
        centre, scale = centre_and_scale(factors, rows)
        return cls(
            factors.items,
            factors.offset,
            torch.zeros(width, dtype=torch.float64),
            (1 / penalties).diag(),
            torch.ones((), dtype=torch.float64),
            centre,
            scale,
            BY_VALUE,
        )

    @classmethod
    def of_choices(cls, factors: BiasedFactors, penalty: float, confidence: float, rows: Tensor) -> Self:
        """The solve of `ImplicitFactorization` with its settings, standardised over the users `rows`; the
        offset of `factors` is 0. Raises ValueError as `standardize` does."""
        items, width = factors.items.double(), factors.users.shape[1]
        centre, scale = centre_and_scale(factors, rows)
        more = confidence - 1
        return cls(
            factors.items,
            factors.offset,
            torch.zeros(width, dtype=torch.float64),
            torch.linalg.inv(items.T @ items + penalty * torch.eye(width, dtype=torch.float64)),
            torch.tensor(1 / more, dtype=torch.float64),
            centre,
            scale,
            torch.tensor(confidence / more, dtype=torch.float64),
        )

    @property
    def standardized_items(self) -> Tensor:
        """Item factors (items, k) float32 as models are given them, s·v."""
        return (self.item_factors.double() * self.scale).float()

    def __call__(self, ratings: Ratings, n: int) -> Tensor:
        """User factors (n, k) float32 of `ratings`, with users in 0..n-1 and items of the item table."""
        check_rows("ratings.users", ratings.users, n)
        check_rows("ratings.items", ratings.items, len(self.item_factors))
        k = len(self.mean)
        precision = torch.linalg.inv(self.covariance)
        left = precision.repeat(n, 1, 1)
        right = (precision @ self.mean).repeat(n, 1)
        for users, items, values in _blocks(ratings):
            rows, of = users.unique(return_inverse=True)
            rated, which = items.unique(return_inverse=True)
            factors = self.item_factors[rated].double() / self.noise.sqrt()
            outer = (factors[:, :, None] * factors[:, None, :]).view(len(rated), k * k)
            counted = values.double() if self.choice.isnan() else self.choice
            residual = (counted - self.offset[items].double()) / self.noise.sqrt()
            # A product by sparse sums takes each item's outer product once, however many users rated it.
            shape = len(rows), len(rated)
            left.view(n, k * k)[rows] += _sums(of, which, torch.ones_like(residual), shape, outer)
            right[rows] += _sums(of, which, residual, shape, factors)
        return ((torch.linalg.solve(left, right) - self.centre) / self.scale).float()


def _sums(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], table: Tensor) -> Tensor:
    """The product of a sparse matrix, `values` at `rows` and `columns`, and a table (columns, q)."""
    matrix = csr_array((values.numpy(), (rows.numpy(), columns.numpy())), shape=shape)
    return torch.from_numpy(matrix @ table.numpy())


def _squared_error(user_factors: Tensor, item_factors: Tensor, ratings: Ratings) -> float:
    total = 0.0
    for users, items, values in _blocks(ratings):
        predicted = (user_factors[users] * item_factors[items]).sum(1)
        total += (predicted - values).double().square().sum().item()
    return total / len(ratings)


def _blocks(ratings: Ratings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    columns = (ratings.users, ratings.items, ratings.values)
    return zip(*(column.split(BLOCK) for column in columns), strict=True)
