"""A cold-start problem: the ratings of two domains, the users of both, and whose target ratings are hidden.

Here alone held-out target ratings are kept out of training: all that may be learned from starts from `roles`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ml.data import Ratings
from ml.splits import TRAIN

BLOCK = 1 << 22


@dataclass(frozen=True)
class DomainRatings:
    """A domain's ratings as arrays: users, items (m,) int32, values (m,) float32, sorted by user; times (m,)
    float32 in days, where every rating has one and they are asked for.

    12 bytes a rating without times, held once for all seeds and β: what a cell may not see is left out by its
    rows.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    n_users: int
    n_items: int
    times: np.ndarray | None = None

    def tensors(self, rows: np.ndarray | slice = slice(None)) -> Ratings:
        """The ratings, or those `rows` of them, with int64 ids: a copy, 20 bytes a rating."""
        users, items = (torch.from_numpy(x[rows]).long() for x in (self.users, self.items))
        times = None if self.times is None else torch.from_numpy(self.times[rows])
        return Ratings(users, items, torch.from_numpy(self.values[rows]), times)

    def narrow(self, kept: np.ndarray | None = None) -> Ratings:
        """The ratings themselves with int32 ids, to be read alone; or a copy of those `kept` (m,) bool, 12
        bytes a rating."""
        columns = [self.users, self.items, self.values]
        if self.times is not None:
            columns.append(self.times)
        if kept is not None:
            rows = rows_of(kept)
            columns = [column[rows] for column in columns]
        return Ratings(*map(torch.from_numpy, columns))

    def of_users(self, keep: np.ndarray) -> np.ndarray:
        """Rows of the users that `keep` (n_users,) bool marks: (m,) bool."""
        return keep[self.users]


@dataclass(frozen=True)
class ColdStart:
    """source_rows, target_rows: (n,) int64, the overlapping users' rows in either domain; roles: (n,) int8,
    indices into `ml.splits.ROLES`. `members` below are places (k,) among these n."""

    source: DomainRatings
    target: DomainRatings
    source_rows: np.ndarray
    target_rows: np.ndarray
    roles: np.ndarray

    def members(self, role: int) -> np.ndarray:
        """The users of a role, rising."""
        return np.flatnonzero(self.roles == role)

    def training_rows(self) -> np.ndarray:
        """Which target ratings may be learned from: (m,) bool; those of users of the target alone are."""
        hidden = np.zeros(self.target.n_users, dtype=bool)
        hidden[hidden_users(self.target_rows, self.roles)] = True
        return ~self.target.of_users(hidden)

    def places(self, members: np.ndarray) -> np.ndarray:
        """Where each target user (n_users,) int32 stands among `members`, −1 where not at all."""
        place = np.full(self.target.n_users, -1, dtype=np.int32)
        place[self.target_rows[members]] = np.arange(len(members), dtype=np.int32)
        return place

    def rows_of(self, members: np.ndarray) -> np.ndarray:
        """Which target ratings (r,) int32 are those of `members`."""
        return rows_of(self.target.of_users(self.places(members) >= 0))

    def target_ratings(self, members: np.ndarray, wide: bool = True) -> Ratings:
        """Target ratings of `members`, who become users 0..k−1; not wide: with int32 ids, 12 bytes each."""
        place, target, rows = self.places(members), self.target, self.rows_of(members)
        users, items = (torch.from_numpy(x) for x in (place[target.users[rows]], target.items[rows]))
        if wide:
            users, items = users.long(), items.long()
        return Ratings(users, items, torch.from_numpy(target.values[rows]))

    def source_user(self) -> Tensor:
        """Each target user's row in the source domain: (target users,) int64, −1 where there is none."""
        rows = torch.full((self.target.n_users,), -1)
        rows[torch.from_numpy(self.target_rows)] = torch.from_numpy(self.source_rows)
        return rows


def hidden_users(target_rows: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Which target users (h,) none of whose target ratings may be learned from."""
    return target_rows[roles != TRAIN]


def rows_of(kept: np.ndarray) -> np.ndarray:
    """Where `kept` (m,) bool is true: rising, int32; without int64 positions of all in between."""
    rows, begin = np.empty(np.count_nonzero(kept), dtype=np.int32), 0
    for start in range(0, len(kept), BLOCK):
        found = np.flatnonzero(kept[start : start + BLOCK])
        rows[begin : begin + len(found)] = found + start
        begin += len(found)
    return rows
