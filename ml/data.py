"""What models meet: ratings, users as the source domain knows them, and the problem of one cell."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

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
    """m ratings of a domain: users (m,) int64 rows of a user table, items (m,) int64 rows of the item table,
    values (m,) float32; times (m,) float32 in days, of a domain where every rating has one and for a model
    that needs `times`. Where they are read to learn from, ids may be int32, and columns shared: who counts in
    them or multiplies them widens them first."""

    users: Tensor
    items: Tensor
    values: Tensor
    times: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> Ratings:
        times = None if self.times is None else self.times.to(device)
        return Ratings(self.users.to(device), self.items.to(device), self.values.to(device), times)

    def take(self, rows: Tensor) -> Ratings:
        """The ratings at `rows`, int64 places or a bool for each."""
        times = None if self.times is None else self.times[rows]
        return Ratings(self.users[rows], self.items[rows], self.values[rows], times)


@dataclass(frozen=True)
class Problem:
    """What a model may learn from in one cell: training users only, so a test rating cannot leak.

    source: the n training users; target_factors: (n, k) float32, their target user factors;
    target_items: (items, k) float32; ratings: their target ratings, users in 0..n-1, whose ids may be int32;
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


@dataclass(frozen=True)
class Users:
    """n users as the source domain knows them: all that a model may see of a cold-start user. What a model
    does not need is None.

    source_rows, target_rows: (n,) int64, their rows in either domain's user table, −1 for a user who is not
    in it; the target's tell nothing of a cold-start user, whose target ratings no model has seen.
    factors: their source factors and liked items (needs `factors`). ratings: their source ratings, users in
    0..n−1 (needs `ratings`); statistics: (n, 5) float64, `ml.models.statistics.source_statistics` (the same).
    description: (n, q) float64, `Effects.description()` of the source domain (needs `effects`) or
    `star_description` (needs `stars`). purpose: names the draws of whatever is random about them.
    """

    source_rows: Tensor
    target_rows: Tensor
    factors: SourceUsers | None = None
    ratings: Ratings | None = None
    statistics: Tensor | None = None
    description: Tensor | None = None
    purpose: str = ""

    def __len__(self) -> int:
        return len(self.source_rows)

    def take(self, users: Tensor) -> Users:
        """The users (m,) int64, in that order."""

        def rows(table: Tensor | None) -> Tensor | None:
            return None if table is None else table[users]

        return Users(
            self.source_rows[users],
            self.target_rows[users],
            None if self.factors is None else self.factors.take(users),
            None if self.ratings is None else ratings_of(self.ratings, users, len(self)),
            rows(self.statistics),
            rows(self.description),
            self.purpose,
        )


def ratings_of(ratings: Ratings, users: Tensor, n: int) -> Ratings:
    """The ratings of `users` (m,) int64 out of 0..n−1, renumbered to their places, each user's in order."""
    rising = bool((ratings.users[1:] >= ratings.users[:-1]).all())
    order = None if rising else ratings.users.argsort(stable=True)
    counts = torch.bincount(ratings.users, minlength=n)
    starts = counts.cumsum(0) - counts
    mine = counts[users]
    place = torch.arange(len(users)).repeat_interleave(mine)
    within = torch.arange(int(mine.sum())) - (mine.cumsum(0) - mine).repeat_interleave(mine)
    rows = starts[users].repeat_interleave(mine) + within
    return replace(ratings.take(rows if order is None else order[rows]), users=place)


@dataclass(frozen=True)
class HeldOut:
    """Users whose target ratings are hidden from training, and those ratings (users in 0..n−1)."""

    users: Users
    ratings: Ratings

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Predicted:
    """Predictions of m ratings: mean (m,), for squared errors; median (m,), for absolute ones; probabilities
    (m, L) of the levels (L,), where there are any."""

    mean: Tensor
    median: Tensor
    probabilities: Tensor | None = None
    levels: Tensor | None = None

    @classmethod
    def points(cls, values: Tensor) -> Predicted:
        """Of a model that says one number (m,)."""
        return cls(values, values)

    def clipped(self, scale: tuple[float, float] | None) -> Predicted:
        """With mean and median within the scale, where one is given."""
        if scale is None:
            return self
        return replace(self, mean=self.mean.clamp(*scale), median=self.median.clamp(*scale))


@dataclass(frozen=True)
class Data:
    """What a model may learn from in one cell: no target rating of a held-out user, but for those of
    `validation`, by which simple predictors choose how far means are shrunk.

    seed: every draw follows from it. source, target: ratings of either domain with users and items as rows of
    its tables; of sizes n_source_users, n_source_items, n_users, n_items. train: the overlapping users who
    may be learned from, both of whose rows are known; training: their target ratings, users in 0..n−1;
    source_user: (n_users,) int64, each target user's row in the source domain, −1 where there is none.
    scale, source_scale: lowest and highest rating.

    Then what only some models need: source_table, target_table (`RatingTable`: for ranking with negatives);
    problem, offset (needs `factors`: the training users' factors, and (items,) float32 of biased ones);
    target_factors: user and item factors whose dot product is the rating, and their `curve`: the metrics of
    each epoch (needs `target_factors`); description: (source users, q) (needs `effects` or `stars`);
    levels: (L,) the target's rating levels; model: another model of the profile, trained on this cell (needs
    `model`).
    """

    seed: int
    source: Ratings
    target: Ratings
    n_source_users: int
    n_source_items: int
    n_users: int
    n_items: int
    train: Users
    training: Ratings
    source_user: Tensor
    validation: HeldOut | None = None
    scale: tuple[float, float] = (1.0, 5.0)
    source_scale: tuple[float, float] = (1.0, 5.0)
    purpose: str = ""
    source_table: Any = None
    target_table: Any = None
    problem: Problem | None = None
    offset: Tensor | None = None
    target_factors: tuple[Tensor, Tensor] | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    description: Tensor | None = None
    levels: Tensor | None = None
    model: Any = None
