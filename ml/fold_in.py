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
with μ = 0, σ² = 1 / (c − 1), Σ⁻¹ = VᵀV + λI and every rating counted as c / (c − 1), c the confidence. Where
Spark solved (`ml.factorization.spark`), λnI takes the place of λI and of the penalties, n the number of the
user's ratings: each rating adds λ to the diagonal. What models are given of users of all these, (u − c) / s,
is standardised.
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
NOTHING = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class FoldIn:
    """item_factors: (items, k) and offset: (items,), float32; float64 are mean: (k,) and precision: (k, k),
    the prior μ and Σ⁻¹ of a user, per_rating: (), what each rating adds to the diagonal of Σ⁻¹, noise: (),
    σ², centre and scale: (k,), c and s, and choice: (), what every rating counts as, NaN where it counts as
    its value."""

    item_factors: Tensor
    offset: Tensor
    mean: Tensor
    precision: Tensor
    per_rating: Tensor
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
        # A floor, so that a table of equal users or a perfect fit still has an inverse.
        covariance = centered.T @ centered / len(users) + 1e-6 * torch.eye(width)
        return cls(
            item_factors,
            torch.zeros(len(item_factors)),
            mean,
            torch.linalg.inv(covariance),
            NOTHING,
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
            penalties.diag(),
            NOTHING,
            torch.ones((), dtype=torch.float64),
            centre,
            scale,
            BY_VALUE,
        )

    @classmethod
    def of_choices(cls, factors: BiasedFactors, penalty: float, confidence: float, rows: Tensor) -> Self:
        """The solve of `ImplicitFactorization` with its settings, standardised over the users `rows`; the
        offset of `factors` is 0. Raises ValueError as `standardize` does."""
        penalties = penalty * torch.eye(factors.users.shape[1], dtype=torch.float64)
        return cls._of_choices(factors, penalties, NOTHING, confidence, rows)

    @classmethod
    def of_spark(cls, factors: BiasedFactors, penalty: float, confidence: float | None, rows: Tensor) -> Self:
        """The solve of `SparkFactorization`, or with a confidence that of `SparkImplicitFactorization`; else
        as `of_choices`."""
        width = factors.users.shape[1]
        nothing = torch.zeros(width, width, dtype=torch.float64)
        per_rating = torch.tensor(penalty, dtype=torch.float64)
        if confidence is not None:
            return cls._of_choices(factors, nothing, per_rating, confidence, rows)
        centre, scale = centre_and_scale(factors, rows)
        one = torch.ones((), dtype=torch.float64)
        return cls(
            factors.items, factors.offset, nothing[0], nothing, per_rating, one, centre, scale, BY_VALUE
        )

    @classmethod
    def _of_choices(
        cls, factors: BiasedFactors, penalties: Tensor, per_rating: Tensor, confidence: float, rows: Tensor
    ) -> Self:
        items, more = factors.items.double(), confidence - 1
        centre, scale = centre_and_scale(factors, rows)
        return cls(
            factors.items,
            factors.offset,
            torch.zeros(items.shape[1], dtype=torch.float64),
            items.T @ items + penalties,
            per_rating,
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
        left = self.precision.repeat(n, 1, 1)
        right = (self.precision @ self.mean).repeat(n, 1)
        counts = torch.bincount(ratings.users, minlength=n)
        left.diagonal(dim1=1, dim2=2).add_(self.per_rating * counts[:, None])
        # Their prior may have no precision at all.
        alone = counts == 0
        left[alone], right[alone] = torch.eye(k, dtype=torch.float64), self.mean
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
