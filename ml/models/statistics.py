"""Predictors from rating statistics, in closed form: what transfer must beat before it can be said to help.

Each is a pair of user and item vectors of one or two numbers, r̂ = item part + user part, fitted in float64 to
what the cell's models may see. Of held-out users' target ratings they read nothing but this: those of the
validation users choose how far item means are shrunk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Ratings, Users
from ml.models.contract import VectorModel
from ml.replicas import Epoch

SHRINKAGE = 5.0  # ratings that a mean or bias is shrunk by, where no validation user can choose
CANDIDATES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
PENALTY = 1.0  # of ridge regressions


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


def source_statistics(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    scale: tuple[float, float],
    means: Tensor | None = None,
) -> Tensor:
    """Statistics (n_users, 5) float64 of each user's ratings; the users of `ratings` are in 0..n_users-1.
    means: (n_items,) float64, the items' shrunk means; those of `ratings` where not given.

    Columns: shrunk bias Σ (r − item mean) / (n + SHRINKAGE); standard deviation; share of ratings at the top
    of the scale (5 stars) and in its lowest quarter (1 and 2 stars); log (1 + number of ratings).
    A user without ratings has zeros.
    """
    means = ItemMeans.of(ratings, n_items).means if means is None else means
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


def shrunk_means(data: Data) -> ItemMeans:
    """Item means with the shrinkage that is best on the validation users by RMSE, else SHRINKAGE."""
    means = ItemMeans.of(data.target, data.n_items)
    if data.validation is None:
        return means
    held = data.validation.ratings

    def error(choice: ItemMeans) -> float:
        predicted = choice.means[held.items].clamp(*data.scale)
        return (predicted - held.values).square().mean().item()

    return min((replace(means, shrinkage=s) for s in CANDIDATES), key=error)


class Statistic(VectorModel):
    """r̂_ui = item part + user part, where the user part is affine in the user's source statistics.

    Subclasses say in `solve` what both are: the items' part (items,), the weights (5,) of the statistics,
    zeros where the user does not count, and a constant, all float64.
    """

    on_device: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("ratings",)

    def __post_init__(self) -> None:
        self.fitted_: list[dict[str, Tensor]] = []

    @abstractmethod
    def solve(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Items' part (items,), weights (5,) of the user's statistics, and constant (), float64."""

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        names = ("items", "weights", "constant")
        self.fitted_ = [dict(zip(names, self.solve(each), strict=True)) for each in data]
        yield Epoch(1, {})

    def vectors(self, users: Users, replica: int = 0) -> Tensor:
        fitted = self.fitted_[replica]
        part = users.statistics @ fitted["weights"]
        return torch.stack([torch.ones(len(users)), (part + fitted["constant"]).float()], 1)

    def items(self, replica: int = 0) -> Tensor:
        part = self.fitted_[replica]["items"].float()
        return torch.stack([part, torch.ones_like(part)], 1)

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.fitted_[replica].items()}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        self.fitted_ = [dict(state) for state in states]
        return self


def _nothing() -> tuple[Tensor, Tensor]:
    """Weights and constant of what does not ask who the user is."""
    return torch.zeros(5, dtype=torch.float64), torch.zeros((), dtype=torch.float64)


@dataclass
class GlobalMean(Statistic):
    """The mean of all known ratings, for every user and item."""

    name: ClassVar[str] = "global_mean"
    title: ClassVar[str] = "Global mean"
    summary: ClassVar[str] = "the mean of all training ratings; predictions are clipped to the scale."
    objectives: ClassVar[tuple[str, ...]] = ("rating",)
    role: ClassVar[str] = "blind"

    def solve(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        mean = ItemMeans.of(data.target, data.n_items).overall
        return torch.full((data.n_items,), mean, dtype=torch.float64), *_nothing()


@dataclass
class ItemMean(Statistic):
    """The item's shrunk mean, for every user."""

    name: ClassVar[str] = "item_mean"
    title: ClassVar[str] = "Item mean"
    summary: ClassVar[str] = "each item's mean, shrunk to the mean of all as far as validation users say."
    objectives: ClassVar[tuple[str, ...]] = ("rating",)
    role: ClassVar[str] = "blind"

    def solve(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        return shrunk_means(data).means, *_nothing()


@dataclass
class Popularity(Statistic):
    """log (1 + number of ratings) of the item, for every user: a ranking, no rating."""

    name: ClassVar[str] = "popularity"
    title: ClassVar[str] = "Popularity"
    summary: ClassVar[str] = "ranking by the number of training ratings, for every user."
    objectives: ClassVar[tuple[str, ...]] = ("ranking",)
    role: ClassVar[str] = "blind"

    def solve(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        return ItemMeans.of(data.target, data.n_items).count.log1p(), *_nothing()


@dataclass
class ItemSourceBias(Statistic):
    """Shrunk item mean + a · the user's shrunk source bias; a by least squares on the training users."""

    name: ClassVar[str] = "item_source_bias"
    title: ClassVar[str] = "Item + bias"
    summary: ClassVar[str] = "item mean + a · the user's shrunk bias in the source domain."
    objectives: ClassVar[tuple[str, ...]] = ("rating",)
    role: ClassVar[str] = "simple"

    def solve(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        means, training = shrunk_means(data), data.training
        residual = training.values - means.without(training)[0]
        mine = data.train.statistics[:, 0][training.users]
        slope = (mine @ residual) / (mine @ mine).clamp(min=torch.finfo(mine.dtype).tiny)
        weights, constant = _nothing()
        weights[0] = slope
        return means.means, weights, constant


@dataclass
class RidgeSource(Statistic):
    """Ridge regression on the item's mean and log count, and the user's five source statistics.

    Features are standardised over the training users' ratings; the intercept is not penalised.
    """

    name: ClassVar[str] = "ridge_source"
    title: ClassVar[str] = "Ridge"
    summary: ClassVar[str] = "ridge regression on the item's mean and count and the user's source statistics."
    objectives: ClassVar[tuple[str, ...]] = ("rating",)
    role: ClassVar[str] = "simple"

    def solve(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        training, means = data.training, shrunk_means(data)
        mean, count = means.without(training)
        users = data.train.statistics[training.users]
        features = torch.cat([mean[:, None], count.log1p()[:, None], users], 1)
        centre, spread = features.mean(0), features.std(0, correction=0)
        # A feature that is constant in training says nothing: its weight becomes 0.
        spread = torch.where(spread > 0, spread, torch.inf)
        values = training.values.double()
        weights = ridge((features - centre) / spread, values - values.mean()) / spread
        items = torch.stack([means.means, means.count.log1p()], 1) @ weights[:2]
        return items, weights[2:], values.mean() - centre @ weights


def ridge(features: Tensor, values: Tensor, penalty: float = PENALTY) -> Tensor:
    """argmin_w ‖features (m, k) w − values (m,)‖² + penalty ‖w‖²: (k,)."""
    gram = features.mT @ features + penalty * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(gram, features.mT @ values)
