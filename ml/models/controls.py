"""Trivial predictors and controls: what a model must beat before transfer can be said to help.

Each is a pair of user and item factors with r̂ = u·v, so that evaluation, ranking and recommendation treat it
as they treat a model. All are fitted in closed form, in float64, to what the cell's models may see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ml.data import Problem, Ratings, SourceUsers
from ml.replicas import replica_generator

SHRINKAGE = 5.0  # ratings that a mean or bias is shrunk by, where no validation user can choose
CANDIDATES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
PENALTY = 1.0  # of ridge regressions
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Evidence:
    """What the predictors of one cell learn from.

    known: all target ratings that may be trained on, of overlapping and other users. training: those of the
    training users, validation: the hidden ones of the validation users (None without any); the users of both
    are rows of `source` (n, 5) float64, the overlapping users' statistics in the source domain as
    `source_statistics` gives them. scale: lowest and highest rating of the target domain.
    """

    known: Ratings
    n_items: int
    training: Ratings
    validation: Ratings | None
    source: Tensor
    scale: tuple[float, float]

    @cached_property
    def items(self) -> ItemMeans:
        """Item means with the shrinkage that is best on the validation users by RMSE, else SHRINKAGE."""
        means = ItemMeans.of(self.known, self.n_items)
        if self.validation is None:
            return means
        choices = [replace(means, shrinkage=s) for s in CANDIDATES]
        return min(choices, key=lambda choice: self._validation_error(choice.means))

    def _validation_error(self, means: Tensor) -> float:
        predicted = means[self.validation.items].clamp(*self.scale)
        return (predicted - self.validation.values).square().mean().item()


@dataclass(frozen=True)
class ItemMeans:
    """Ratings of each item: total (items,) and count (items,) float64, and the mean of all ratings.

    An item's mean is (Σ r + s·μ) / (n + s) with s = shrinkage: an item without ratings has the mean of all.
    """

    total: Tensor
    count: Tensor
    overall: float
    shrinkage: float = SHRINKAGE

    @classmethod
    def of(cls, ratings: Ratings, n_items: int) -> ItemMeans:
        """Raises ValueError where there is no rating to take a mean of."""
        if len(ratings) == 0:
            raise ValueError("no rating to learn from: the domain has none but those of held-out users")
        values = ratings.values.double()
        total = torch.bincount(ratings.items, values, minlength=n_items)
        count = torch.bincount(ratings.items, minlength=n_items).double()
        return cls(total, count, values.mean().item())

    @property
    def means(self) -> Tensor:
        return self._shrunk(self.total, self.count)

    def without(self, ratings: Ratings) -> tuple[Tensor, Tensor]:
        """Mean and count (m,) of each rating's item without that rating, which must be one of those counted.

        A held-out rating is no part of its item's mean, so what is fitted must not see it there either.
        """
        total = self.total[ratings.items] - ratings.values.double()
        count = self.count[ratings.items] - 1
        return self._shrunk(total, count), count

    def _shrunk(self, total: Tensor, count: Tensor) -> Tensor:
        return (total + self.shrinkage * self.overall) / (count + self.shrinkage)


def source_statistics(ratings: Ratings, n_users: int, n_items: int, scale: tuple[float, float]) -> Tensor:
    """Statistics (n_users, 5) float64 of each user's ratings; the users of `ratings` are in 0..n_users-1.

    Columns: shrunk bias Σ (r − item mean) / (n + SHRINKAGE); standard deviation; share of ratings at the top
    of the scale (5 stars) and in its lowest quarter (1 and 2 stars); log (1 + number of ratings).
    A user without ratings has zeros.
    """
    means = ItemMeans.of(ratings, n_items).means
    values = ratings.values.double()

    def total(numbers: Tensor) -> Tensor:
        return torch.bincount(ratings.users, numbers.double(), minlength=n_users)

    count = torch.bincount(ratings.users, minlength=n_users).double()
    present = count.clamp(min=1)
    bias = total(values - means[ratings.items]) / (count + SHRINKAGE)
    from_mean = values - (total(values) / present)[ratings.users]
    deviation = (total(from_mean.square()) / present).sqrt()
    low, high = scale
    top = total(values >= high) / present
    bottom = total(values <= low + (high - low) / 4) / present
    return torch.stack([bias, deviation, top, bottom, count.log1p()], 1)


def global_mean(evidence: Evidence) -> Factors:
    """The mean of all known ratings, for every user and item."""
    return _one_for_all(evidence, torch.full((evidence.n_items,), evidence.items.overall))


def item_mean(evidence: Evidence) -> Factors:
    """The item's shrunk mean, for every user."""
    return _one_for_all(evidence, evidence.items.means)


def popularity(evidence: Evidence) -> Factors:
    """log (1 + number of ratings) of the item, for every user: a ranking, no rating."""
    return _one_for_all(evidence, evidence.items.count.log1p())


def item_source_bias(evidence: Evidence) -> Factors:
    """Shrunk item mean + a · the user's shrunk source bias; a by least squares on the training users."""
    bias, training = evidence.source[:, 0], evidence.training
    residual = training.values - evidence.items.without(training)[0]
    mine = bias[training.users]
    slope = (mine @ residual) / (mine @ mine).clamp(min=torch.finfo(mine.dtype).tiny)
    return _additive(evidence.items.means, slope * bias)


def ridge_source(evidence: Evidence) -> Factors:
    """Ridge regression on the item's mean and log count, and the user's five source statistics.

    Features are standardised over the training users' ratings; the intercept is not penalised.
    """
    training, means = evidence.training, evidence.items
    mean, count = means.without(training)
    features = torch.cat(
        [mean[:, None], count.log1p()[:, None], evidence.source[training.users]],
        1,
    )
    centre, spread = features.mean(0), features.std(0, correction=0)
    # A feature that is constant in training says nothing: its weight becomes 0.
    spread = torch.where(spread > 0, spread, torch.inf)
    values = training.values.double()
    weights = ridge((features - centre) / spread, values - values.mean()) / spread
    items = torch.stack([means.means, means.count.log1p()], 1) @ weights[:2]
    users = evidence.source @ weights[2:] + values.mean() - centre @ weights
    return _additive(items, users)


PREDICTORS = {
    predictor.__name__: predictor
    for predictor in (global_mean, item_mean, item_source_bias, ridge_source, popularity)
}


def mean_target_vector(problem: Problem) -> Tensor:
    """The mean of the training users' target factors: (k,)."""
    return problem.target_factors.mean(0)


def shared_vector(problem: Problem) -> Tensor:
    """The one user vector (k,) that fits the training users' ratings best: ridge on the items' factors."""
    items = problem.target_items[problem.ratings.items].double()
    return ridge(items, problem.ratings.values.double()).float()


VECTORS = {vector.__name__: vector for vector in (mean_target_vector, shared_vector)}


def permuted(users: SourceUsers, seed: int, purpose: str) -> SourceUsers:
    """`users`, each with the source factors and history of another of them; one user alone keeps their own.

    A model that makes use of the source must get worse by it.
    """
    return users.take(shuffled(len(users), seed, purpose))


def shuffled(n: int, seed: int, purpose: str) -> Tensor:
    """A permutation (n,) int64 of n users in which nobody keeps their place, but for one user alone."""
    order = torch.randperm(n, generator=replica_generator(seed, f"permuted/{purpose}"))
    other = torch.empty_like(order)
    # Along one cycle through all users nobody stays where they are.
    other[order] = order.roll(1)
    return other


def ridge(features: Tensor, values: Tensor, penalty: float = PENALTY) -> Tensor:
    """argmin_w ‖features (m, k) w − values (m,)‖² + penalty ‖w‖²: (k,)."""
    gram = features.mT @ features + penalty * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(gram, features.mT @ values)


def _one_for_all(evidence: Evidence, items: Tensor) -> Factors:
    return torch.ones(len(evidence.source), 1), items[:, None].float()


def _additive(items: Tensor, users: Tensor) -> Factors:
    """Factors of items_i + users_u."""
    return (
        torch.stack([torch.ones_like(users), users], 1).float(),
        torch.stack([items, torch.ones_like(items)], 1).float(),
    )
