"""What models meet: ratings, users as the source domain knows them, and the problem of one cell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class History:
    """Liked source items of n users in compressed rows, oldest first.

    offsets: (n + 1,) int64; items: (offsets[-1],) int64 rows of the source item table.
    User i liked items[offsets[i]:offsets[i + 1]]; an empty history is legal.
    """

    offsets: Tensor
    items: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def last(self, length: int) -> tuple[Tensor, Tensor]:
        """The latest `length` items of each user, left-aligned.

        Returns items (n, length) int64, 0 where there is none, and present (n, length) bool.
        """
        counts = (self.offsets[1:] - self.offsets[:-1]).clamp(max=length)
        start = self.offsets[1:] - counts
        slots = torch.arange(length, device=self.items.device)
        present = slots < counts[:, None]
        index = torch.where(present, start[:, None] + slots, 0)
        items = self.items[index] if len(self.items) else torch.zeros_like(index)
        return torch.where(present, items, 0), present

    def take(self, users: Tensor) -> History:
        """The histories of `users` (m,) int64, in that order."""
        counts = (self.offsets[1:] - self.offsets[:-1])[users]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        within = torch.arange(int(offsets[-1]), device=counts.device) - offsets[:-1].repeat_interleave(counts)
        return History(offsets, self.items[self.offsets[users].repeat_interleave(counts) + within])


def check_rows(field: str, rows: Tensor, size: int) -> None:
    """Raise ValueError unless all `rows` are in 0..size-1."""
    outside = rows[(rows < 0) | (rows >= size)]
    if len(outside):
        raise ValueError(f"{field} has row {int(outside[0])}, its table has rows 0..{size - 1}; re-index it")


@dataclass(frozen=True)
class SourceUsers:
    """n users as the source domain knows them: all that a model may see of a cold-start user.

    factors: (n, k) float32 source user factors; history: their liked items, rows of item_factors;
    item_factors: (source items, k) float32.
    """

    factors: Tensor
    history: History
    item_factors: Tensor

    def __post_init__(self) -> None:
        if len(self.history) != len(self.factors):
            raise ValueError(f"history of {len(self.history)} users, factors of {len(self.factors)}")
        if self.factors.shape[1:] != self.item_factors.shape[1:]:
            raise ValueError(
                f"source user factors have width {self.factors.shape[1]}, "
                f"source item factors {self.item_factors.shape[1]}; train both with the same k"
            )
        check_rows("history.items", self.history.items, len(self.item_factors))

    def __len__(self) -> int:
        return len(self.factors)

    def take(self, users: Tensor) -> SourceUsers:
        return SourceUsers(self.factors[users], self.history.take(users), self.item_factors)


@dataclass(frozen=True)
class Ratings:
    """m ratings of the target domain: users (m,) int64 rows of a user table, items (m,) int64 rows of the
    target item table, values (m,) float32."""

    users: Tensor
    items: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Problem:
    """What a model may learn from in one cell: training users only, so a test rating cannot leak.

    source: the n training users; target_factors: (n, k) float32, their target user factors;
    target_items: (items, k) float32; ratings: their target ratings, users in 0..n-1;
    seed: the cell's seed, from which every draw of this replica follows. source_alone, target_alone: factors
    (n', k) of users of one domain alone, where a model may learn from them.
    """

    source: SourceUsers
    target_factors: Tensor
    target_items: Tensor
    ratings: Ratings
    seed: int
    source_alone: Tensor | None = None
    target_alone: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.source) == 0:
            raise ValueError("no training users: the split leaves none, lower beta or add overlapping users")
        if len(self.source) != len(self.target_factors):
            raise ValueError(
                f"{len(self.source)} training users have source factors, "
                f"{len(self.target_factors)} target factors"
            )
        if self.target_factors.shape[1] != self.target_items.shape[1]:
            raise ValueError(
                f"target user factors have width {self.target_factors.shape[1]}, "
                f"target item factors {self.target_items.shape[1]}; train both with the same k"
            )
        # An index out of range would read another replica's rows once the problems are stacked.
        check_rows("ratings.users", self.ratings.users, len(self.source))
        check_rows("ratings.items", self.ratings.items, len(self.target_items))

    @property
    def widths(self) -> tuple[int, int]:
        """Widths k of the source and of the target factors; biases carried along may make them differ."""
        return self.source.factors.shape[1], self.target_factors.shape[1]


def to_device(users: SourceUsers, device: torch.device | str) -> SourceUsers:
    history = History(users.history.offsets.to(device), users.history.items.to(device))
    return SourceUsers(users.factors.to(device), history, users.item_factors.to(device))
