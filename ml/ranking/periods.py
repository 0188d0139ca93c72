"""What was popular in the target domain when a user chose in the source domain.

Time is cut into periods with equally many training choices of the target domain. With π_u the shares of user
u's source choices in the periods, N (periods, items) the target choices of each period, and p_i an item's
share of all of them:

    x_h(u, i) = log( (Σ_b π_ub (K_h N)_bi / (K_h N 1)_b + A p_i) / (1 + A) p_i )                     (1)

K_h are kernels 1 / (1 + (d / h)²) of the distance d between periods, h of BANDS. It is 0 where an item was
chosen as often in u's times as at any other. Of a training user the own choices are left out of N and p.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ml.data import Data, Ratings

PERIODS = 400
BANDS = (1 / 200, 1 / 50, 1 / 12)  # h, in shares of all target choices
A = 0.01
TINY = 1e-9


@dataclass(frozen=True)
class When:
    """Of n training users, s source and t target items, when they were chosen.

    edges: (PERIODS − 1,) float32, days between the periods; counts: (PERIODS, t), target choices of all who
    may be learned from; active: (n, PERIODS), `shares` of the users; own: (n, t) int16, 1 + the period in
    which the user chose the item, 0 where not at all.
    """

    edges: np.ndarray
    counts: csr_matrix
    active: csr_matrix
    own: csr_matrix

    @classmethod
    def of(cls, data: Data) -> Self | None:
        """None where a domain has no times, or the model does not need them."""
        target, known = data.target, data.train.ratings
        if target.times is None or known is None or known.times is None or len(target) == 0:
            return None
        cuts = np.linspace(0, 1, PERIODS + 1)[1:-1]
        edges = np.quantile(target.times.numpy(), cuts).astype(np.float32)
        users, items = (ids.numpy().astype(np.int64) for ids in (target.users, target.items))
        period = periods(target.times, edges)
        # A pair given twice is one choice.
        once = np.unique(users * data.n_items + items, return_index=True)[1]
        users, items, period = users[once], items[once], period[once]
        ones = np.ones(len(items), dtype=np.float32)
        place = np.full(data.n_users, -1)
        place[data.train.target_rows.numpy()] = np.arange(len(data.train))
        mine = place[users] >= 0
        return cls(
            edges,
            csr_matrix((ones, (period, items)), shape=(PERIODS, data.n_items)),
            shares(known, len(data.train), edges),
            csr_matrix(
                ((period[mine] + 1).astype(np.int16), (place[users[mine]], items[mine])),
                shape=(len(data.train), data.n_items),
            ),
        )

    def arrays(self) -> list[np.ndarray]:
        """All that it consists of."""
        return [self.edges, *(a for m in (self.counts, self.active, self.own) for a in (m.indices, m.data))]


def periods(times: Tensor, edges: np.ndarray) -> np.ndarray:
    """The period of each time (m,) int64; where several are empty of others, the middle one."""
    found = times.numpy()
    return (np.searchsorted(edges, found, "left") + np.searchsorted(edges, found, "right")) // 2


def shares(ratings: Ratings, n: int, edges: np.ndarray) -> csr_matrix:
    """Share of each user's choices in each period (n, PERIODS) float32; no entry where no time is known."""
    if ratings.times is None:
        return csr_matrix((n, PERIODS), dtype=np.float32)
    users = ratings.users.numpy()
    part = 1 / np.bincount(users, minlength=n).clip(1).astype(np.float32)
    return csr_matrix((part[users], (users, periods(ratings.times, edges))), shape=(n, PERIODS))


def timely(
    active: csr_matrix, by_item: csr_matrix, totals: np.ndarray, share: Tensor, own: Tensor | None = None
) -> Tensor:
    """(1) of every item for users with the shares `active` (m, PERIODS): (m, k, BANDS), 0 of a user without.

    by_item: (k, PERIODS), N of k items; totals: (PERIODS,), N 1 of all items; share: (k,), p. own: (m, k), as
    `When.own`, of training users whose choices are in N.
    """
    columns = []
    for mass in _masses(active, totals):
        near = torch.from_numpy(by_item @ mass.T).T
        usual = share.expand(near.shape)
        if own is not None:
            # A choice of one's own is one of N, in its period, and one of the choices that p is the share of.
            mine = torch.from_numpy(mass).gather(1, (own - 1).clamp(min=0))
            near = torch.where(own > 0, near - mine, near)
            usual = torch.where(own > 0, usual - 1 / float(totals.sum()), usual)
        columns.append(_beside(near.clamp(min=0), usual.clamp(min=0)))
    return _of_known(active, columns)


def timely_of(
    active: csr_matrix, by_item: csr_matrix, totals: np.ndarray, share: Tensor, items: Tensor
) -> Tensor:
    """`timely` of each user's own `items` (m, c) int64: (m, c, BANDS), of a few of all items at once."""
    rows = by_item[items.numpy().ravel()]
    pair = np.arange(items.numel()).repeat(np.diff(rows.indptr))
    place = pair // items.shape[1], rows.indices
    columns = []
    for mass in _masses(active, totals):
        near = np.bincount(pair, rows.data * mass[place], items.numel())
        columns.append(_beside(torch.from_numpy(near).float().view(items.shape), share[items]))
    return _of_known(active, columns)


def _masses(active: csr_matrix, totals: np.ndarray) -> list[np.ndarray]:
    """Σ_b π_ub K_h / (K_h N 1)_b of each of BANDS: (m, PERIODS)."""
    return [active @ _over(band, totals.tobytes()) for band in BANDS]


def _beside(near: Tensor, usual: Tensor) -> Tensor:
    return ((near + A * usual + TINY) / ((1 + A) * usual + TINY)).log()


def _of_known(active: csr_matrix, columns: list[Tensor]) -> Tensor:
    known = torch.from_numpy(np.diff(active.indptr) > 0)
    return torch.where(known[:, None, None], torch.stack(columns, 2), 0.0)


@lru_cache(maxsize=16)
def _over(band: float, totals: bytes) -> np.ndarray:
    """K_h, each row over the choices that it reaches: (PERIODS, PERIODS) float32."""
    each = np.frombuffer(totals, dtype=np.float64)
    number = np.arange(PERIODS)
    kernel = 1 / (1 + ((number[:, None] - number) / (band * PERIODS)) ** 2)
    return (kernel / (kernel @ each)[:, None]).astype(np.float32)
