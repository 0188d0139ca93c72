"""Negatives: items that a user has not rated, drawn to train the ranking models (paper section 5.1).

The paper adds "the same negative samples to each model" and says no more. Here every rating gets
`per_positive` of them, uniform over the items its user has not rated, with label 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ml.data import check_rows

PART = 1 << 20  # ratings worked on at a time: bounds the memory, no effect on results


@dataclass(frozen=True)
class Negatives:
    """Drawn pairs: users (s,) as in the ratings, items (s,) and rows (s,) int32, the rating each was drawn
    for."""

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
        drawn[self.rows] = self.items
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
    parts = _parts(users)
    rated = sum(
        torch.bincount(_observed(users, items, n_items, part) // n_items, minlength=int(users.max()) + 1)
        for part in parts
    )
    unrated = n_items - rated
    rows = torch.arange(len(users), dtype=torch.int32).repeat_interleave(per_positive)
    rows = rows[(unrated > 0)[users[rows]]]
    who = users[rows]
    number = _numbers(who, unrated, generator)

    # The i-th rated item a_i of a user has a_i − i unrated ones below it, so the j-th unrated item is j plus
    # how many i have a_i − i ≤ j. Keyed by user, these counts stay sorted.
    for part in parts:
        observed = _observed(users, items, n_items, part)
        owner = observed // n_items
        first = torch.searchsorted(owner, torch.arange(int(owner[0]), int(owner[-1]) + 1))
        below = observed - (torch.arange(len(observed)) - first[owner - owner[0]])
        begin, end = torch.searchsorted(rows, rows.new_tensor([part.start, part.stop])).tolist()
        mine = who[begin:end].long()
        keys = mine * n_items + number[begin:end]
        passed = torch.searchsorted(below, keys, right=True) - first[mine - owner[0]]
        number[begin:end] += passed.int()
    return Negatives(who, number, rows)


def _parts(users: Tensor) -> list[slice]:
    """Ratings that are worked on at a time, about PART of them, each user's in one; all where they are not
    sorted by user."""
    if not bool((users[1:] >= users[:-1]).all()):
        return [slice(0, len(users))]
    starts = torch.searchsorted(users, users[::PART].contiguous()).unique().tolist()
    return [slice(*bounds) for bounds in pairwise([*starts, len(users)])]


def _observed(users: Tensor, items: Tensor, n_items: int, part: slice) -> Tensor:
    """Keys user · n_items + item of the rated pairs, rising, each once: int64."""
    return (users[part].long() * n_items + items[part]).unique()


def _numbers(who: Tensor, unrated: Tensor, generator: torch.Generator) -> Tensor:
    """For each slot of user who (s,) a number in [0, unrated[who]), int32: uniform, and distinct within a
    user as long as there are unrated items left."""
    slots = torch.bincount(who, minlength=len(unrated))
    # Redrawing ends soon while at most half of a user's items are taken; else the items are shuffled.
    crowded = 2 * slots > unrated
    numbers = torch.empty(len(who), dtype=torch.int32)
    shuffled = crowded[who]
    numbers[shuffled] = _shuffled_numbers(who[shuffled].long(), unrated, generator).int()
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
    """Independent draws, those that repeat another of their user drawn again until none does: int32."""
    numbers = torch.empty(len(who), dtype=torch.int32)
    for part, users in zip(numbers.split(PART), who.split(PART), strict=True):
        part.copy_(_draw(unrated[users], generator))
    stride = int(unrated.max())

    def repeats(slots: Tensor | slice) -> Tensor:
        keys, order = (who[slots].long() * stride + numbers[slots]).sort(stable=True)
        return order[1:][keys[1:] == keys[:-1]]

    found = torch.cat([part.start + repeats(part) for part in _parts(who)]) if len(who) else who.long()
    while len(found):
        found = found.sort().values
        numbers[found] = _draw(unrated[who[found]], generator).int()
        changed = torch.zeros(len(unrated), dtype=torch.bool)
        changed[who[found]] = True
        slots = changed[who].nonzero()[:, 0]
        found = slots[repeats(slots)]
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
