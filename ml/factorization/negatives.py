"""Negatives: items that a user has not rated, drawn to train the ranking models (paper section 5.1).

The paper adds "the same negative samples to each model" and says no more. Here every rating gets
`per_positive` of them, uniform over the items its user has not rated, with label 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data import check_rows


@dataclass(frozen=True)
class Negatives:
    """Drawn pairs: users (s,) and items (s,) int64, and rows (s,) int64, the rating each was drawn for."""

    users: Tensor
    items: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def by_rating(self, m: int) -> Tensor:
        """The item that was drawn for each of m ratings: (m,) int32, −1 for one that got none.

        4 bytes a rating, for a seed that holds them beside the ratings of all (`RatingTable.negatives`).
        Raises ValueError where a rating got several.
        """
        if len(self.rows) != len(self.rows.unique_consecutive()):
            raise ValueError("several negatives were drawn for a rating; draw one for each")
        drawn = torch.full((m,), -1, dtype=torch.int32)
        drawn[self.rows] = self.items.int()
        return drawn


def sample_negatives(
    users: Tensor, items: Tensor, n_items: int, per_positive: int = 1, *, generator: torch.Generator
) -> Negatives:
    """For each of m ratings, `per_positive` items uniform over those that its user has not rated.

    users, items: (m,) int32 or int64 on the CPU, items in [0, n_items). The result is ordered by rating.
    Within a user no item is drawn twice before all unrated items are drawn once: distinct, if there are
    enough. A user who rated all items gets none.

    Draw once for all ratings of a domain and a seed, then all models see the same ones. What is passed counts
    as rated, and its item is never a negative of its user. So where a user has both ratings to learn from and
    hidden ones, as in warm start, pass the former alone.
    Raises ValueError on lengths that differ, no ratings, per_positive < 1, or ids out of range.
    """
    _check(users, items, n_items, per_positive)
    users, items = users.long(), items.long()
    observed = (users * n_items + items).unique()
    owner = observed // n_items
    rated = torch.bincount(owner)
    unrated = n_items - rated
    rows = torch.arange(len(users)).repeat_interleave(per_positive)
    rows = rows[unrated[users[rows]] > 0]
    who = users[rows]
    number = _numbers(who, unrated, generator)

    # The i-th rated item a_i of a user has a_i − i unrated ones below it, so the j-th unrated item is j plus
    # how many i have a_i − i ≤ j. Keyed by user, these counts stay sorted.
    first = rated.cumsum(0) - rated
    below = observed - (torch.arange(len(observed)) - first[owner])
    passed = torch.searchsorted(below, who * n_items + number, right=True) - first[who]
    return Negatives(who, number + passed, rows)


def _numbers(who: Tensor, unrated: Tensor, generator: torch.Generator) -> Tensor:
    """For each slot of user who (s,) a number in [0, unrated[who]): uniform, and distinct within a user as
    long as there are unrated items left."""
    slots = torch.bincount(who, minlength=len(unrated))
    # Redrawing ends soon while at most half of a user's items are taken; else the items are shuffled.
    crowded = 2 * slots > unrated
    numbers = torch.empty_like(who)
    shuffled = crowded[who]
    numbers[shuffled] = _shuffled_numbers(who[shuffled], unrated, generator)
    numbers[~shuffled] = _redrawn_numbers(who[~shuffled], unrated, generator)
    return numbers


def _shuffled_numbers(who: Tensor, unrated: Tensor, generator: torch.Generator) -> Tensor:
    """The slots of each user run through a random order of all the user's numbers, again and again."""
    users, inverse = who.unique(return_inverse=True)
    sizes = unrated[users]
    owner = torch.arange(len(users)).repeat_interleave(sizes)
    order = torch.randperm(len(owner), generator=generator)
    order = order[owner[order].argsort(stable=True)]
    first = sizes.cumsum(0) - sizes
    turn = _turns(inverse) % sizes[inverse]
    return order[first[inverse] + turn] - first[inverse]


def _turns(groups: Tensor) -> Tensor:
    """How many earlier elements are of the same group, for each of `groups` (s,) int64."""
    ordered, order = groups.sort(stable=True)
    turns = torch.empty_like(groups)
    turns[order] = torch.arange(len(groups)) - torch.searchsorted(ordered, ordered)
    return turns


def _redrawn_numbers(who: Tensor, unrated: Tensor, generator: torch.Generator) -> Tensor:
    """Independent draws, those that repeat another of their user drawn again until none does."""
    numbers = _draw(unrated[who], generator)
    stride = int(unrated.max())
    slots = torch.arange(len(who))
    while len(slots):
        keys, order = (who[slots] * stride + numbers[slots]).sort(stable=True)
        repeats = slots[order[1:][keys[1:] == keys[:-1]]].sort().values
        numbers[repeats] = _draw(unrated[who[repeats]], generator)
        changed = torch.zeros(len(unrated), dtype=torch.bool)
        changed[who[repeats]] = True
        slots = slots[changed[who[slots]]]
    return numbers


def _draw(bounds: Tensor, generator: torch.Generator) -> Tensor:
    """Integers uniform in [0, bounds), by the remainder of 62 random bits: the bias is below 1e-9."""
    return torch.randint(1 << 62, bounds.shape, generator=generator) % bounds


def _check(users: Tensor, items: Tensor, n_items: int, per_positive: int) -> None:
    if users.shape != items.shape or users.dim() != 1:
        raise ValueError(f"users {tuple(users.shape)} and items {tuple(items.shape)} must be (m,) alike")
    if len(users) == 0:
        raise ValueError("no ratings to draw negatives for: the table is empty, look at its split")
    if per_positive < 1:
        raise ValueError(f"per_positive must be at least 1, not {per_positive}")
    if int(users.min()) < 0:
        raise ValueError(f"users has row {int(users.min())}; number users from 0")
    check_rows("items", items, n_items)
