"""What a user's source ratings say of single target items, beyond how the user rates: taste, in four columns.

The neighbours' column is a ridge regression of every target item on the source items, on residuals and in its
dual form: y_ui is what the effects leave of a training user's rating (`ml.distribution.effects`), x_u the
user's source residuals r − o_j − b_u, each weighted by the item's rarity, log(users / count), and the row
divided by the root of its squared length and the mean one, so that a short history is believed less. Of the
training users U_i who have rated item i,

    m_ui = x_u X_iᵀ a_i,   a_i = (X_i X_iᵀ + λ I)⁻¹ y_i,   λ = PENALTY                             (1)

and without u's own rating m_ui = y_ui − a_ui / [(X_i X_iᵀ + λ I)⁻¹]_uu, exactly.

The other three are a collective factorization's: p_u·q_i, b_u and o_i, with one user table over both domains
(`ml.factorization.biased`). It sees what (1) does not, that target items go together. For a training user
they come from the one of FOLDS fits that has not seen the target ratings of the user's fold.

All four are standardized over the training ratings as they are there, without the rating that they are to
predict; a model learns what they are worth from that, which is nothing where taste does not carry over.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.distribution.contract import TransferRatings
from ml.factorization.adam import RatingTable
from ml.factorization.biased import BiasedFactorization, BiasedFactors
from ml.fold_in import BY_VALUE, NOTHING, FoldIn
from ml.replicas import replica_generator

COLUMNS = 4  # m_ui, p_u·q_i, b_u, o_i
PENALTY = 3.0  # λ, beside rows of length 1 at most
RATERS = 2048  # training users that an item's regression rests on at most, those with most source ratings
FOLDS = 4
WIDTH, SWEEPS = 8, 8
FACTOR_PENALTY, BIAS_PENALTY = 12.0, 3.0
BLOCK = 256  # users who are compared with the training users at a time


@dataclass(frozen=True)
class KnownTaste:
    """Users by their source ratings: rows, x_u of (1) as a sparse (n, s); factors (n, k + 1), [p_u, b_u]."""

    rows: csr_matrix
    factors: Tensor

    def __len__(self) -> int:
        return len(self.factors)

    def take(self, users: Tensor) -> KnownTaste:
        return KnownTaste(self.rows[users.numpy()], self.factors[users])


@dataclass(frozen=True)
class Taste:
    """What was learned, s source and t target items, n training users; tensors on the CPU.

    level, rarity: (s,) float64, o_j and the weight of a source item; length: (), the mean squared length of
    weighted rows. raters: Xᵀ (s, n) and weights: a (n, t), sparse.
    source_items (s, k + 1) and source_offset (s,), target_items (t, k + 1) and target_offset (t,): of the
    collective factorization. centre, spread: (4,), of the columns in training.
    """

    level: Tensor
    rarity: Tensor
    length: Tensor
    raters: csr_matrix
    weights: csr_matrix
    source_items: Tensor
    source_offset: Tensor
    target_items: Tensor
    target_offset: Tensor
    centre: Tensor
    spread: Tensor

    def of(self, ratings: Ratings, n: int) -> KnownTaste:
        """n users by their source `ratings`, users in 0..n−1. Raises ValueError for rows outside it."""
        check_rows("history.users", ratings.users, n)
        check_rows("history.items", ratings.items, len(self.level))
        rows = _shortened(_residual_rows(ratings, n, self.level, self.rarity), float(self.length))
        return KnownTaste(rows, fold_in(self.source_items, self.source_offset)(ratings, n))

    def pairs(self, known: KnownTaste, users: Tensor, items: Tensor) -> Tensor:
        """The standardized columns (m, 4) float32 of m pairs; users are rows of `known`."""
        neighbours = torch.empty(len(users))
        block = users // BLOCK
        for number in block.unique().tolist():
            mine = block == number
            near = (known.rows[number * BLOCK : (number + 1) * BLOCK] @ self.raters).toarray()
            neighbours[mine] = self._neighbours_of(near, users[mine] - number * BLOCK, items[mine])
        person, item = known.factors[users], self.target_items[items]
        product, bias = (person[:, :-1] * item[:, :-1]).sum(1), person[:, -1]
        return self.standardized(torch.stack([neighbours, product, bias, self.target_offset[items]], 1))

    def catalogue(self, known: KnownTaste, items: Tensor) -> Tensor:
        """The standardized columns (n, a, 4) of every user and each of the target items (a,)."""
        neighbours = torch.cat(
            [
                self._neighbours(known.rows[begin : begin + BLOCK])[:, items]
                for begin in range(0, len(known), BLOCK)
            ]
        )
        product = known.factors[:, :-1] @ self.target_items[items, :-1].T
        bias, offset = known.factors[:, -1:].expand_as(product), self.target_offset[items].expand_as(product)
        return self.standardized(torch.stack([neighbours, product, bias, offset], 2))

    @cached_property
    def _weights_by_item(self) -> csr_matrix:
        return self.weights.T.tocsr()

    def _neighbours_of(self, near: np.ndarray, users: Tensor, items: Tensor) -> Tensor:
        """m of p pairs, from x_u Xᵀ (n, raters) of their users."""
        weights = self._weights_by_item[items.numpy()]
        pair = np.arange(len(items)).repeat(np.diff(weights.indptr))
        products = near[users.numpy()[pair], weights.indices] * weights.data
        return torch.from_numpy(np.bincount(pair, products, len(items))).float()

    def _neighbours(self, rows: csr_matrix) -> Tensor:
        """m of rows (n, s) and all target items (n, t), equation (1)."""
        near = (rows @ self.raters).toarray()
        return torch.from_numpy(np.ascontiguousarray((self.weights.T @ near.T).T, dtype=np.float32))

    def standardized(self, columns: Tensor) -> Tensor:
        return (columns.float() - self.centre) / self.spread

    def tensors(self) -> dict[str, Tensor]:
        held: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            held |= {field.name: value} if isinstance(value, Tensor) else _packed(field.name, value)
        return held

    @classmethod
    def restored(cls, held: dict[str, Tensor]) -> Self:
        """Of what `tensors` gave."""
        sparse = {name: _unpacked(name, held) for name in ("raters", "weights")}
        return cls(**{f.name: sparse[f.name] if f.name in sparse else held[f.name] for f in fields(cls)})


def fit_taste(data: TransferRatings, residual: Tensor) -> tuple[Taste, Tensor]:
    """The taste of one cell, and the standardized columns (m, 4) float32 of the ratings of users with a
    source row, in the order of `data.target`, each as though it and what it taught were not known.

    residual: (ratings,), y of each rating of `data.target`. Everything is on the CPU.
    """
    kept = data.source_user[data.target.users] >= 0
    users, items = data.source_user[data.target.users[kept]], data.target.items[kept]
    level = _source_level(data)
    count = torch.bincount(data.source.items, minlength=data.n_source_items).double()
    rarity = (len(data.description) / count.clamp(min=1)).log()
    people, places = users.unique(return_inverse=True)
    every = _residual_rows(data.source, len(data.description), level, rarity)[people.numpy()]
    squared = np.asarray(every.multiply(every).sum(1)).ravel()
    length = float(squared[squared > 0].mean()) if (squared > 0).any() else 1.0
    rows = _shortened(every, length)
    weights, neighbours = _regressions(
        rows, places.numpy(), items.numpy(), residual[kept].numpy(), data.n_items
    )
    factors, others = _collective(data, users, items)
    columns = torch.cat([torch.from_numpy(neighbours).float()[:, None], others], 1)
    spread = columns.std(0, correction=0)
    s = data.n_source_items
    taste = Taste(
        level,
        rarity,
        torch.tensor(length, dtype=torch.float64),
        rows.T.tocsr(),
        weights,
        factors.items[:s].clone(),
        factors.offset[:s].clone(),
        factors.items[s:].clone(),
        factors.offset[s:].clone(),
        columns.mean(0),
        # A column that is constant in training says nothing, in prediction neither.
        torch.where(spread > 1e-6, spread, torch.inf),
    )
    return taste, taste.standardized(columns)


def _source_level(data: TransferRatings) -> Tensor:
    """o_j (s,) float64: the mean and the bias of each source item beside the users' biases."""
    table = RatingTable(
        data.source.users,
        data.source.items,
        data.source.values,
        len(data.description),
        data.n_source_items,
        data.seed,
    )
    biases = BiasedFactorization(k=0, sweeps=SWEEPS, bias_penalty=BIAS_PENALTY).fit(table, "taste level")
    return biases.item_offset_.double()


def _residual_rows(ratings: Ratings, n: int, level: Tensor, rarity: Tensor) -> csr_matrix:
    """Weighted residuals (n, s) of the users' source ratings; of a pair given twice the sum."""
    residual = ratings.values.double() - level[ratings.items]
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, ratings.users, residual)
    bias = total / (torch.bincount(ratings.users, minlength=n) + BIAS_PENALTY)
    weighted = (residual - bias[ratings.users]) * rarity[ratings.items]
    pairs = ratings.users.numpy(), ratings.items.numpy()
    return csr_matrix((weighted.numpy(), pairs), shape=(n, len(level)))


def _shortened(rows: csr_matrix, length: float) -> csr_matrix:
    """Rows divided by the root of their squared length and `length`, float32."""
    squared = np.asarray(rows.multiply(rows).sum(1)).ravel()
    data = rows.data / np.repeat(np.sqrt(squared + length), np.diff(rows.indptr))
    return csr_matrix((data.astype(np.float32), rows.indices, rows.indptr), rows.shape)


def _regressions(
    rows: csr_matrix, places: np.ndarray, items: np.ndarray, y: np.ndarray, n_items: int
) -> tuple[csr_matrix, np.ndarray]:
    """a (n, t) of (1), and m (m,) of each rating without itself. places, items, y: (m,), the rating's row of
    `rows`, its item and its residual."""
    duals, held_out = np.zeros(len(y)), np.zeros(len(y))
    history = np.diff(rows.indptr)
    # By item, and of each item those with most source ratings first.
    order = np.lexsort((-history[places], items))
    ends = np.searchsorted(items[order], np.arange(n_items + 1))
    for begin, end in pairwise(ends.tolist()):
        if begin == end:
            continue
        mine, rest = np.split(order[begin:end], [RATERS])
        near = rows[places[mine]]
        gram = (near @ near.T).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += PENALTY
        inverse = np.linalg.inv(gram)
        duals[mine] = inverse @ y[mine]
        held_out[mine] = y[mine] - duals[mine] / inverse.diagonal()
        if len(rest):
            held_out[rest] = rows[places[rest]] @ (near.T @ duals[mine])
    weights = csr_matrix((duals.astype(np.float32), (places, items)), shape=(rows.shape[0], n_items))
    weights.eliminate_zeros()
    return weights, held_out


def _collective(data: TransferRatings, users: Tensor, items: Tensor) -> tuple[BiasedFactors, Tensor]:
    """Factors of all ratings, source items first; and [p_u·q_i, b_u, o_i] (m, 3) of the ratings of source
    `users` on target `items`, each from the fit that has not seen the user's target ratings."""
    table, ours, offset = _both_domains(data)
    n = len(data.description)
    fold = torch.randperm(n, generator=replica_generator(data.seed, "folds of taste")) % FOLDS
    of_row = torch.cat([fold, torch.full((table.n_users - n,), -1)])[table.users]
    mean, first = offset[ours][0], data.n_source_items
    # Where a fold holds all target ratings there are, nothing is known but their mean.
    columns = torch.tensor([0.0, 0.0, mean]).repeat(len(users), 1)
    for number in range(FOLDS):
        mine, seen = fold[users] == number, ~(ours & (of_row == number))
        if not mine.any() or not (seen & ours).any():
            continue
        fitted = _factorized(table, seen, offset)
        person, rows = fitted.users[users[mine]], items[mine] + first
        product = (person[:, :-1] * fitted.items[rows, :-1]).sum(1)
        columns[mine] = torch.stack([product, person[:, -1], fitted.offset[rows] + mean], 1)
    whole = _factorized(table, torch.ones_like(ours), offset)
    level = torch.where(torch.arange(table.n_items) < first, offset[~ours][0], mean)
    return BiasedFactors(whole.users, whole.items, whole.offset + level), columns


def _both_domains(data: TransferRatings) -> tuple[RatingTable, Tensor, Tensor]:
    """The ratings of both domains over one user table, which of them are the target's (m,) bool, and the mean
    of its domain for each (m,)."""
    n = len(data.description)
    row = data.source_user.clone()
    alone = row < 0
    row[alone] = n + torch.arange(int(alone.sum()))
    source, target = data.source, data.target
    ours = torch.cat([torch.zeros(len(source), dtype=torch.bool), torch.ones(len(target), dtype=torch.bool)])
    table = RatingTable(
        torch.cat([source.users, row[target.users]]),
        torch.cat([source.items, target.items + data.n_source_items]),
        torch.cat([source.values, target.values]),
        n + int(alone.sum()),
        data.n_source_items + data.n_items,
        data.seed,
    )
    return table, ours, torch.where(ours, target.values.mean(), source.values.mean())


def _factorized(table: RatingTable, rows: Tensor, offset: Tensor) -> BiasedFactors:
    part = RatingTable(
        table.users[rows], table.items[rows], table.values[rows], table.n_users, table.n_items, table.seed
    )
    trainer = BiasedFactorization(WIDTH, FACTOR_PENALTY, BIAS_PENALTY, SWEEPS)
    return trainer.fit(part, "taste", offset=offset[rows]).factors


def fold_in(items: Tensor, offset: Tensor) -> FoldIn:
    """The factorization's last solve, of users by their source ratings alone."""
    width = items.shape[1]
    penalties = torch.tensor([FACTOR_PENALTY] * (width - 1) + [BIAS_PENALTY], dtype=torch.float64)
    zeros, ones = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    noise = torch.ones((), dtype=torch.float64)
    return FoldIn(items, offset, zeros, penalties.diag(), NOTHING, noise, zeros, ones, BY_VALUE)


def _packed(name: str, matrix: csr_matrix) -> dict[str, Tensor]:
    return {
        f"{name}.values": torch.from_numpy(matrix.data),
        f"{name}.columns": torch.from_numpy(matrix.indices.astype(np.int64)),
        f"{name}.starts": torch.from_numpy(matrix.indptr.astype(np.int64)),
        f"{name}.shape": torch.tensor(matrix.shape),
    }


def _unpacked(name: str, held: dict[str, Tensor]) -> csr_matrix:
    parts = (held[f"{name}.{part}"].numpy() for part in ("values", "columns", "starts"))
    return csr_matrix(tuple(parts), shape=tuple(held[f"{name}.shape"].tolist()))
