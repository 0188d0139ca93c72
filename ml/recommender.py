"""Top-k items and ratings of the target domain for users who have only been seen in the source domain.

What every recommender does, and the one whose model transfers user factors; that of a distribution over
ratings is in `ml.distribution.recommender`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ml.data import History, Ratings, SourceUsers
from ml.evaluation.ranking import top_k
from ml.fold_in import FoldIn
from ml.models.registry import build
from ml.models.transfer import TransferModel


@dataclass(frozen=True)
class PredictedRatings:
    """Predictions of m ratings: mean (m,), not clipped to the scale; of a model of distributions also the
    median (m,) and the probabilities (m, L) of the levels (L,)."""

    mean: Tensor
    median: Tensor | None = None
    probabilities: Tensor | None = None
    levels: Tensor | None = None


class CatalogueRecommender(ABC):
    """What recommends items of the target domain.

    Users come as the source domain knows them, an object with a length and `take(rows)`; `transfer` turns
    them into rows of numbers (n, width), which are all that need be kept of them.

    kind: its name in a registered model; popularity: (items,) int64, ratings of each target item in training;
    allowed: (a,) int64, the target items that may be recommended, rising.
    """

    kind: ClassVar[str]
    popularity: Tensor
    allowed: Tensor

    def __post_init__(self) -> None:
        if len(self.allowed) == 0:
            raise ValueError("no target item may be recommended: exclude fewer or lower min_ratings")

    @cached_property
    def most_popular(self) -> Tensor:
        """The allowed items by falling number of ratings, of equal ones the lower row first: (a,) int64."""
        counts = self.popularity[self.allowed]
        return self.allowed[counts.sort(descending=True, stable=True).indices]

    @property
    @abstractmethod
    def source_levels(self) -> Tensor | None:
        """The values (L,) that a source rating may have; None where any on the scale will do."""

    @property
    @abstractmethod
    def strangers(self) -> str:
        """Which users have nothing to go by, as a model card says it."""

    @abstractmethod
    def fold(self, ratings: Ratings, n: int) -> Any:
        """n new users by their source `ratings` (users in 0..n-1, each user's oldest first)."""

    @abstractmethod
    def known(self, users: Any) -> Tensor:
        """Whether there is something to go by: (n,) bool."""

    @abstractmethod
    def transfer(self, users: Any) -> Tensor:
        """Rows (n, width) that `top` and `rate` read."""

    def top(self, rows: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best allowed items of each user, best first: items (n, k') int64 and scores (n, k') float32
        with k' = min(k, allowed items).

        rows: (n, width), from `transfer`; known: (n,) bool, whether there is something to go by. Others get
        the most popular items, scored by their number of ratings.
        """
        popular = self.most_popular[:k]
        items = popular.repeat(len(rows), 1)
        scores = self.popularity[items].float()
        if known.any():
            items[known], scores[known] = self._best(rows[known], len(popular))
        return items, scores

    @abstractmethod
    def _best(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`top` of users who are all known, on the CPU, for k of at most the allowed items."""

    @abstractmethod
    def rate(self, row: Tensor, items: Tensor) -> PredictedRatings:
        """Predicted ratings of one user, row (width,), for target items (m,) int64."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restore` needs besides tensors, as JSON can hold it."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs besides the model's own `state_dict`."""

    @classmethod
    @abstractmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: dict[str, Tensor]
    ) -> Self:
        """The recommender that `settings`, `tensors` and its model's `state_dict` were taken from."""


@dataclass(frozen=True)
class Recommender(CatalogueRecommender):
    """A trained transfer model with what it needs to recommend by the product of user and item factors.

    model: holds one replica; fold_in: for users who were not in the source training; target_items: (items, k)
    float32; liked_above: a source rating above it counts as liked.
    """

    kind: ClassVar[str] = "factors"

    model: TransferModel
    fold_in: FoldIn
    target_items: Tensor
    popularity: Tensor
    allowed: Tensor
    liked_above: float

    @property
    def source_levels(self) -> None:
        return None

    @property
    def strangers(self) -> str:
        return f"Users without a source rating above {self.liked_above:g}"

    @cached_property
    def allowed_items(self) -> Tensor:
        """Factors (a, k) of the allowed items."""
        return self.target_items[self.allowed]

    def fold(self, ratings: Ratings, n: int) -> SourceUsers:
        liked = ratings.values > self.liked_above
        users, order = ratings.users[liked].sort(stable=True)
        history = history_of(users, ratings.items[liked][order], n)
        return SourceUsers(self.fold_in(ratings, n), history, self.fold_in.item_factors)

    def known(self, users: SourceUsers) -> Tensor:
        return users.history.offsets.diff() > 0

    def transfer(self, users: SourceUsers) -> Tensor:
        """Target factors (n, k) of `users`."""
        return self.model.transfer([users])[0]

    def _best(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        places, scores = top_k(rows, self.allowed_items.to(rows.device), k)
        return self.allowed[places.cpu()], scores.cpu()

    def rate(self, row: Tensor, items: Tensor) -> PredictedRatings:
        return PredictedRatings(self.target_items[items] @ row)

    def settings(self) -> dict[str, Any]:
        model = {"model": self.model.name, "hyperparameters": self.model.hyperparameters()}
        return {**model, "liked_above": self.liked_above}

    def tensors(self) -> dict[str, Tensor]:
        return {
            "source_items": self.fold_in.item_factors,
            "prior_mean": self.fold_in.mean,
            "prior_covariance": self.fold_in.covariance,
            "noise": torch.tensor(self.fold_in.noise, dtype=torch.float64),
            "target_items": self.target_items,
            "popularity": self.popularity,
            "allowed": self.allowed,
        }

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: dict[str, Tensor]
    ) -> Self:
        model = build(settings["model"], **settings["hyperparameters"])
        prior = (tensors[name] for name in ("source_items", "prior_mean", "prior_covariance"))
        return cls(
            model=model.load_state_dict(weights),
            fold_in=FoldIn(*prior, tensors["noise"].item()),
            target_items=tensors["target_items"],
            popularity=tensors["popularity"],
            allowed=tensors["allowed"],
            liked_above=settings["liked_above"],
        )


def history_of(users: Tensor, items: Tensor, n: int) -> History:
    """Histories of n users from rows (m,) sorted by user, each user's in order."""
    counts = torch.bincount(users, minlength=n)
    return History(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), items)
