"""Top-k items and ratings of the target domain for users who have only been seen in the source domain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ml.evaluation.ranking import top_k
from ml.fold_in import FoldIn
from ml.models.base import History, Ratings, SourceUsers, TransferModel


@dataclass(frozen=True)
class Recommender:
    """A trained transfer model with what it needs to recommend.

    model: holds one replica; fold_in: for users who were not in the source training; target_items: (items, k)
    float32; popularity: (items,) int64, ratings of each target item in training; allowed: (a,) int64, the
    target items that may be recommended, rising; liked_above: a source rating above it counts as liked.
    """

    model: TransferModel
    fold_in: FoldIn
    target_items: Tensor
    popularity: Tensor
    allowed: Tensor
    liked_above: float

    def __post_init__(self) -> None:
        if len(self.allowed) == 0:
            raise ValueError("no target item may be recommended: exclude fewer or lower min_ratings")

    @cached_property
    def allowed_items(self) -> Tensor:
        """Factors (a, k) of the allowed items."""
        return self.target_items[self.allowed]

    @cached_property
    def most_popular(self) -> Tensor:
        """The allowed items by falling number of ratings, of equal ones the lower row first: (a,) int64."""
        counts = self.popularity[self.allowed]
        return self.allowed[counts.sort(descending=True, stable=True).indices]

    def fold(self, ratings: Ratings, n: int) -> SourceUsers:
        """n new users by their source `ratings` (users in 0..n-1, each user's oldest first)."""
        liked = ratings.values > self.liked_above
        users, order = ratings.users[liked].sort(stable=True)
        history = history_of(users, ratings.items[liked][order], n)
        return SourceUsers(self.fold_in(ratings, n), history, self.fold_in.item_factors)

    def transfer(self, users: SourceUsers) -> Tensor:
        """Target factors (n, k) of `users`."""
        return self.model.transfer([users])[0]

    def top(self, factors: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best allowed items of each user, best first: items (n, k') int64 and scores (n, k') float32
        with k' = min(k, allowed items).

        factors: (n, width) target factors; known: (n,) bool, whether the user has a history to go by. Others
        get the most popular items, scored by their number of ratings.
        """
        k = min(k, len(self.allowed))
        places, scores = top_k(factors, self.allowed_items.to(factors.device), k)
        items, scores = self.allowed[places.cpu()], scores.cpu()
        popular = self.most_popular[:k]
        items[~known], scores[~known] = popular, self.popularity[popular].float()
        return items, scores


def history_of(users: Tensor, items: Tensor, n: int) -> History:
    """Histories of n users from rows (m,) sorted by user, each user's in order."""
    counts = torch.bincount(users, minlength=n)
    return History(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), items)
