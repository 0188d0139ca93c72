"""Biased, regularised matrix factorization by alternating least squares, and what is handed on of it.

Model:      r̂ = o + μ + b_u + b_i + p_u·q_i, with o a known offset of the rating (0 unless given)
Minimises   Σ w (r − r̂)² + penalty (Σ ‖p_u‖² + Σ ‖q_i‖²) + bias_penalty (Σ b_u² + Σ b_i²)

over b, p and q; μ is the weighted mean of r − o. The model is that of Koren, Bell and Volinsky, "Matrix
factorization techniques for recommender systems" (2009), equations 4 and 5, solved by alternating least
squares as they describe it: with one side fixed, each row of the other is a ridge regression. Bias and factor
of a row are solved together, x_u = [p_u, b_u] on the design [q_i, 1] with the target r − o − μ − b_i, so
every half-sweep is an exact minimisation and the objective never rises.

What the penalties mean. A bias is shrunk as by `bias_penalty` ratings that equal the expectation, on any
scale. The penalty of p and q together is 2 · penalty times the nuclear norm of the matrix p_u·q_i (Srebro,
Rennie and Jaakkola, "Maximum-margin matrix factorization", 2004): a direction in which the residuals'
singular value is below `penalty` becomes 0. So `penalty` has the unit of a rating, and what suits a table
grows with the root of the number of ratings that its largest rows have.

What a transfer model maps is the user's vector with the bias, k + 1 numbers, hence the layout: user factors
[p_u, b_u], item factors [q_i, 1], item offset μ + b_i. Users are solved last, so a user's vector is the ridge
solution on the final items, as it would be for a new user with the same ratings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ml.data import check_rows
from ml.factorization.adam import RatingTable
from ml.replicas import Epoch, permutation, replica_generator

# Ratings whose designs are held at a time, 8 (k + 1) bytes each: fits a cache, no effect on results. A row
# with more of them is held whole. All that is held of the others is 8 bytes a side, and as many as the table.
CHUNK = 1 << 14
# A column that moves predictions by less than this share of what the widest does is what is left of a factor
# under a strong penalty.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class BiasedFactors:
    """r̂ = users · items + offset: users (n, k + 1), items (m, k + 1), offset (m,), all float32."""

    users: Tensor
    items: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        if self.users.shape[1:] != self.items.shape[1:] or len(self.items) != len(self.offset):
            raise ValueError(
                f"users {tuple(self.users.shape)}, items {tuple(self.items.shape)} and offset "
                f"{tuple(self.offset.shape)} do not fit; take all three from one factorization"
            )

    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """r̂ (p,) of the pairs of `users` (p,) and `items` (p,), int64 rows."""
        return (self.users[users] * self.items[items]).sum(1) + self.offset[items]

    def joined(self) -> tuple[Tensor, Tensor]:
        """Users (n, k + 2) = [users, 1] and items (m, k + 2) = [items, offset]: r̂ as a plain dot product."""
        ones = self.users.new_ones(len(self.users), 1)
        return torch.cat([self.users, ones], 1), torch.cat([self.items, self.offset[:, None]], 1)


def centre_and_scale(factors: BiasedFactors, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (k + 1,) float64 of the user columns over the users `rows` (r,) int64.

    The deviation counts as 1 in a column that is constant or NEGLIGIBLE, by deviation times the items' root
    mean square: blown up to the width of the others, it would ask a model for what no rating depends on.

    Raises ValueError without rows, and for a row outside the table.
    """
    if len(rows) == 0:
        raise ValueError("rows is empty: give at least one user to standardise over")
    check_rows("rows", rows, len(factors.users))
    chosen = factors.users[rows].double()
    # Counted from a row: the rounding of a mean would make a constant column vary.
    moved = chosen - chosen[0]
    scale = moved.std(0, correction=0)
    effect = scale * factors.items.double().square().mean(0).sqrt()
    return chosen[0] + moved.mean(0), torch.where(effect > NEGLIGIBLE * effect.max(), scale, 1.0)


def standardize(factors: BiasedFactors, rows: Tensor) -> BiasedFactors:
    """The same predictions from users with mean 0 and deviation 1 in each column over `rows` (r,) int64.

    Users (x − c) / s, items s·v and offset + v·c, with c and s of `centre_and_scale`; raises what it raises.
    """
    centre, scale = centre_and_scale(factors, rows)
    items = factors.items.double()
    return BiasedFactors(
        users=((factors.users.double() - centre) / scale).to(factors.users.dtype),
        items=(items * scale).to(factors.items.dtype),
        offset=(factors.offset.double() + items @ centre).to(factors.offset.dtype),
    )


@dataclass
class BiasedFactorization:
    """Biased matrix factorization by alternating least squares; k = 0 fits the biases alone.

    k: width of p and q; penalty, bias_penalty: as in the objective at the head of this module; sweeps: solves
    of either side; init_std: standard deviation of the users' first p.

    After every sweep of `train`, and after `fit`: `user_factors_` (n_users, k + 1) = [p_u, b_u],
    `item_factors_` (n_items, k + 1) = [q_i, 1], `item_offset_` (n_items,) = μ + b_i, all float32, so that
    r̂ = user · item + item offset (+ the rating's own offset, where one was given). A user without ratings, or
    with weights of 0 alone, has p = 0 and b = 0; an item without has q = 0 and the offset μ.
    """

    k: int = 8
    penalty: float = 12.0
    bias_penalty: float = 3.0
    sweeps: int = 12
    init_std: float = 0.1

    def __post_init__(self) -> None:
        for field, least in (("k", 0), ("sweeps", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"biased mf: {field} must be at least {least}, not {getattr(self, field)}")
        for field in ("penalty", "bias_penalty", "init_std"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(
                    f"biased mf: {field} must be positive and finite, not {getattr(self, field)}"
                )

    def fit(
        self,
        table: RatingTable,
        purpose: str,
        weight: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> BiasedFactorization:
        """Train to the last sweep and return self."""
        for _ in self.train(table, purpose, weight, offset):
            pass
        return self

    def train(
        self,
        table: RatingTable,
        purpose: str,
        weight: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Iterator[Epoch]:
        """Solve items, then users, and yield {"loss": [weighted mean squared error]} after each such sweep.

        weight (m,): of each rating, at least 0, by default 1; a weight of 2 is the rating given twice.
        offset (m,): what is known of each rating beforehand, by default 0. Draws the users' first p from
        `replica_generator(table.seed, purpose)`. Computes in float64.

        Raises ValueError, naming the row, for an empty table, an id out of range, a value, weight or offset
        that is not finite and a negative weight, for weights that are all 0 and for lengths that do not fit.
        """
        table = table.flat(wide=False)
        _check(table, weight, offset)
        mean, total = _mean(table.values, weight, offset)
        columns = _Columns(table.values, weight, offset)
        by_item = _chunks(table.items, table.users, columns, table.n_items, self.k)
        by_user = _chunks(table.users, table.items, columns, table.n_users, self.k)
        ridge = torch.tensor([self.penalty] * self.k + [self.bias_penalty], dtype=torch.float64).diag()
        users = self._initial(table, purpose)
        for number in range(1, self.sweeps + 1):
            items, _ = _solve(by_item, users, mean, ridge, table.n_items)
            users, error = _solve(by_user, items, mean, ridge, table.n_users)
            self._publish(users, items, mean)
            yield Epoch(number, {"loss": [error / total]})

    @property
    def factors(self) -> BiasedFactors:
        return BiasedFactors(self.user_factors_, self.item_factors_, self.item_offset_)

    def _initial(self, table: RatingTable, purpose: str) -> Tensor:
        generator = replica_generator(table.seed, purpose)
        factors = torch.randn(table.n_users, self.k, generator=generator, dtype=torch.float64)
        return torch.cat([self.init_std * factors, factors.new_zeros(table.n_users, 1)], 1)

    def _publish(self, users: Tensor, items: Tensor, mean: Tensor) -> None:
        self.user_factors_ = users.float()
        self.item_offset_ = (mean + items[:, -1]).float()
        self.item_factors_ = torch.cat([items[:, :-1], torch.ones(len(items), 1)], 1).float()


def choose(
    table: RatingTable,
    purpose: str,
    settings: Sequence[Mapping[str, object]],
    share: float = 0.1,
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The one of `settings` (fields of BiasedFactorization) with the lowest RMSE on held-out ratings, the
    first of equals; and every one of them with its "rmse".

    Held out is `share` of the ratings, drawn from `replica_generator(table.seed, f"{purpose}/held out")`; all
    others are trained on. Refit the chosen one on all ratings.

    Raises ValueError without settings, for an unknown field, a share that leaves nothing to judge or to train
    on, and as `train` does.
    """
    names = {field.name for field in fields(BiasedFactorization)}
    for setting in settings:
        if unknown := set(setting) - names:
            raise ValueError(f"settings has unknown {sorted(unknown)}; known: {sorted(names)}")
    if not settings:
        raise ValueError("settings is empty: name at least one to choose from")
    table = table.flat(wide=False)
    _check(table, None, None)
    test, train = _held_out(table, purpose, share)
    kept = replace(table, rows=train)
    tried = []
    for setting in settings:
        factors = BiasedFactorization(**setting).fit(kept, purpose).factors
        error = factors.predict(table.users[test], table.items[test]) - table.values[test]
        tried.append({**setting, "rmse": error.double().square().mean().sqrt().item()})
    best = min(range(len(tried)), key=lambda i: tried[i]["rmse"])
    return dict(settings[best]), tried


def _held_out(table: RatingTable, purpose: str, share: float) -> tuple[Tensor, Tensor]:
    """Positions of the ratings to judge by (p,) and of all others in rising order (m − p,)."""
    count = round(share * len(table))
    if not 0 < count < len(table):
        raise ValueError(
            f"share {share} holds out {count} of {len(table)} ratings; "
            "both held-out and training ratings are needed"
        )
    generator = replica_generator(table.seed, f"{purpose}/held out")
    test, train = permutation(len(table), generator).tensor_split([count])
    return test, train.sort().values


@dataclass(frozen=True)
class _Columns:
    """Of ratings, of any shape alike: values; weight, None where all are 1; offset, None where all are 0."""

    values: Tensor
    weight: Tensor | None
    offset: Tensor | None

    def at(self, ratings: Tensor) -> _Columns:
        return _Columns(*(None if x is None else x[ratings] for x in vars(self).values()))

    def residuals(self) -> Tensor:
        """Values less what is known of them, float64."""
        return self.values.double() if self.offset is None else self.values.double() - self.offset.double()


def _mean(values: Tensor, weight: Tensor | None, offset: Tensor | None) -> tuple[Tensor, float]:
    """The weighted mean (), float64, of values less offsets, and the sum of the weights."""
    weight = torch.ones(len(values), dtype=torch.float64) if weight is None else weight.double()
    total = weight.sum()
    return (weight @ _Columns(values, None, offset).residuals()) / total, total.item()


@dataclass(frozen=True)
class _Chunk:
    """Rows of like length that are solved together: rows (B,) int64; counts (B,) of their ratings; and of
    these, padded to the longest, other (B, L) rows of the other side, and columns."""

    rows: Tensor
    counts: Tensor
    other: Tensor
    columns: _Columns

    @property
    def present(self) -> Tensor:
        """(B, L) bool, False where padded."""
        return torch.arange(self.other.shape[1]) < self.counts[:, None]


def _chunks(own: Tensor, other: Tensor, columns: _Columns, n: int, k: int) -> list[_Chunk]:
    """The ratings by row `own` in 0..n-1, longest rows first; a row without ratings is in no chunk."""
    order = own.argsort(stable=True)
    counts = torch.bincount(own, minlength=n)
    starts = counts.cumsum(0) - counts
    by_length = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    chunks, begin = [], 0
    while begin < len(by_length):
        longest = int(counts[by_length[begin]])
        # A short row's matrix of normal equations is larger than its design.
        rows = by_length[begin : begin + max(1, CHUNK // max(longest, k + 1))]
        slots = torch.arange(longest)
        present = slots < counts[rows, None]
        ratings = order[torch.where(present, starts[rows, None] + slots, 0)]
        chunks.append(_Chunk(rows, counts[rows], other[ratings], columns.at(ratings)))
        begin += len(rows)
    return chunks


def _solve(chunks: list[_Chunk], other: Tensor, mean: Tensor, ridge: Tensor, n: int) -> tuple[Tensor, float]:
    """Each row's [factor, bias] (n, k + 1) given the other side's, 0 where it is in no chunk; and Σ w e²."""
    solved, error = other.new_zeros(n, other.shape[1]), 0.0
    # Beside the design stands the target: one product has the matrix, the right side and the squares.
    wide = torch.cat([other[:, :-1], other.new_ones(len(other), 1), -mean - other[:, -1:]], 1)
    for chunk in chunks:
        present, weight = chunk.present, chunk.columns.weight
        both = wide.index_select(0, chunk.other.flatten()).view(*present.shape, -1)
        both[..., -1] += chunk.columns.residuals()
        both.mul_(present[..., None])
        products = (both if weight is None else both * weight[..., None]).mT @ both
        right = products[:, :-1, -1:]
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(products[:, :-1, :-1] + ridge))
        solved[chunk.rows] = solution[..., 0]
        # At the solution x of (A + ridge) x = right, where it is the squares − 2 x·right + x·A x.
        error += (products[:, -1, -1].sum() - (solution * (right + ridge @ solution)).sum()).item()
    return solved, error


def _check(table: RatingTable, weight: Tensor | None, offset: Tensor | None) -> None:
    if len(table) == 0:
        raise ValueError("biased mf: the table has no ratings; look at its split")
    columns = {
        "users": table.users,
        "items": table.items,
        "values": table.values,
        **({} if weight is None else {"weight": weight}),
        **({} if offset is None else {"offset": offset}),
    }
    for name, column in columns.items():
        if column.shape != table.values.shape:
            raise ValueError(
                f"biased mf: {name} has shape {tuple(column.shape)}, "
                f"values {tuple(table.values.shape)}; give one of each per rating"
            )
    check_rows("users", table.users, table.n_users)
    check_rows("items", table.items, table.n_items)
    for name in list(columns)[2:]:
        row = (~columns[name].isfinite()).nonzero()[:1, 0].tolist()
        if row:
            raise ValueError(f"biased mf: {name} of row {row[0]} is not finite; drop the row")
    if weight is None:
        return
    negative = (weight < 0).nonzero()[:1, 0].tolist()
    if negative:
        raise ValueError(f"biased mf: weight of row {negative[0]} is negative; give weights of at least 0")
    if not weight.any():
        raise ValueError("biased mf: weight is 0 for every rating; give at least one a weight")
