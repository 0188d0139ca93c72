"""Matrix factorization of large rating tables: R replicas in one program, dense Adam at sparse cost.

Model (the base MF of the paper's experiments): r̂ = u·v with k factors, no biases, no regularization, mean
squared error of the batch, factors drawn from N(0, init_std²). An id that is never trained keeps its draw.

Dense Adam moves every row of a table in every step: a row whose gradient is 0 keeps gliding on its momentum.
A batch touches a few hundred rows of a million, so doing that literally costs a thousand times the work.
Lazy Adam (`torch.optim.SparseAdam`), which moves a row only in the steps that touch it, is not equivalent: it
drops the glide, and a touch then moves a row about ten times less far (1 against the sum of all ρˢ below).
`DeferredAdam` computes what dense Adam computes, but only when a row is looked at.

Let m, v be a row's moments after its last touch in step t₀, and its gradient 0 since. After j more steps
they are β₁ʲm and β₂ʲv, and step t moves the row by −lr·c(t)·m/√v with c(t) = √(1−β₂ᵗ)/(1−β₁ᵗ). With
ρ = β₁/√β₂, the way that is still ahead of the row if nobody ever touches it again is

    lr · m/√v · T(t₀),    T(t) = Σ_{s≥1} ρˢ c(t+s),    so T(t) = ρ · (c(t+1) + T(t+1)),

and the catch-up from t₀ to t₀ + j is lr · m/√v · (T(t₀) − ρʲ T(t₀+j)). In other words the row's resting
point x = p − lr · m/√v · T(t) does not change while it glides. The optimizer stores x instead of the
parameter p, and an idle row needs no work at all:

    read after step t:  p = x + lr · m/√v · T(t)                        with m, v decayed to t
    touch in step t:    x = p − lr · m/√v · (c(t) + T(t)) = p − lr · m/√v · T(t−1)/ρ       with the new m, v

The second line is Adam's own step and the new resting point in one. Adam divides by √v + e(t) rather than √v,
where e(t) = eps·√(1−β₂ᵗ). To first order in eps/√v that scales term s of the sum by 1 − e(t+s)/√(β₂ˢv), so
√v + ē(t) takes the place of √v, with ē(t) = E(t)/T(t) and E(t) = β₁/β₂ · (c(t+1)·e(t+1) + E(t+1)); in a
touch it is (c(t)·e(t) + E(t)) / (c(t) + T(t)) = √β₂·ē(t−1). What remains is of the second order. A row that
never had a gradient has m = v = 0 and stays where it is, to the bit.

Replicas lie flat below each other in one table, users then items: row r·(U+I) + u, and r·(U+I) + U + i. One
step is the concatenation of the replicas' batches, so replicas of different length need no padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ml.models.base import Epoch
from ml.training import replica_generator

# Ratings planned at a time: bounds the memory of the plan and keeps its sort in cache; no effect on results.
BLOCK = 1 << 18


@dataclass(frozen=True)
class RatingTable:
    """One replica's training ratings.

    users: (m,) int64 in [0, n_users); items: (m,) int64 in [0, n_items); values: (m,) float32, or float64 to
    train in double precision; seed: the replica's seed, from which all its draws follow.
    """

    users: Tensor
    items: Tensor
    values: Tensor
    n_users: int
    n_items: int
    seed: int

    def __len__(self) -> int:
        return len(self.values)


def merge_domains(
    source: RatingTable, target: RatingTable, user_of_source: Tensor, user_of_target: Tensor, n_users: int
) -> RatingTable:
    """The union of two domains over one user table: collective MF is MF on it.

    user_of_source (source.n_users,) and user_of_target (target.n_users,) int64 give each domain's users their
    number in [0, n_users). Target items follow the source items: item i becomes source.n_items + i.

    Raises ValueError if a user map does not fit its table, or if the seeds differ.
    """
    if source.seed != target.seed:
        raise ValueError(f"source has seed {source.seed}, target {target.seed}; merge tables of one seed")
    _check_user_map("user_of_source", user_of_source, source.n_users, n_users)
    _check_user_map("user_of_target", user_of_target, target.n_users, n_users)
    return RatingTable(
        users=torch.cat([user_of_source[source.users], user_of_target[target.users]]),
        items=torch.cat([source.items, target.items + source.n_items]),
        values=torch.cat([source.values, target.values]),
        n_users=n_users,
        n_items=source.n_items + target.n_items,
        seed=source.seed,
    )


def remaining_path(steps: int, betas: tuple[float, float] = (0.9, 0.999)) -> tuple[Tensor, Tensor]:
    """T(t), the way ahead of a gliding row after step t in units of lr·m/√v, and ē(t)/eps, for t = 0..steps.

    Two float64 tensors (steps + 1,), as defined at the head of this module. Both betas must be positive.
    """
    beta1, beta2 = betas
    rho, rho_eps = beta1 / beta2**0.5, beta1 / beta2
    path, path_eps = [0.0], [0.0]
    # ρ¹⁰⁰⁰ is below 1e-45, so starting from 0 a thousand steps beyond the last one loses nothing.
    for t in range(steps + 1000, 0, -1):
        root = (1 - beta2**t) ** 0.5
        c = root / (1 - beta1**t)
        path.append(rho * (c + path[-1]))
        path_eps.append(rho_eps * (c * root + path_eps[-1]))
    path, path_eps = torch.tensor([path, path_eps], dtype=torch.float64).flip(1)[:, : steps + 1]
    return path, path_eps / path


class DeferredAdam:
    """Adam over the rows of one table (n, k), equal to dense Adam, at the cost of the touched rows.

    Each row has its own clock, so that rows may belong to replicas with different step counts. `steps` is
    the largest step number that will occur. The arithmetic is explained at the head of this module.
    """

    def __init__(
        self,
        parameters: Tensor,
        lr: float,
        steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.betas = betas
        self.rest = parameters.clone()
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.last = torch.zeros(len(parameters), dtype=torch.int64, device=parameters.device)
        t = torch.arange(steps + 1, dtype=torch.float64)
        decay1, decay2 = betas[0] ** t, betas[1] ** t
        # What has decayed that far moves nothing, and denormal numbers would make a CPU crawl.
        self.decay1 = torch.where(decay1 < 1e-25, 0, decay1).to(parameters)
        self.decay2 = decay2.to(parameters)
        path, path_eps = remaining_path(steps, betas)
        self.path, self.eps = (lr * path).to(parameters), (eps * path_eps).to(parameters)

    def read(self, rows: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, first and second moments (m, k) of `rows` (m,) as dense Adam has them after step
        `time` (m,) int64, which must not lie before the row's last touch."""
        gap = time - self.last.index_select(0, rows)
        first = self.first.index_select(0, rows).mul_(_column(self.decay1, gap))
        second = self.second.index_select(0, rows).mul_(_column(self.decay2, gap))
        ahead = first / second.sqrt().add_(_column(self.eps, time))
        return ahead.mul_(_column(self.path, time)).add_(self.rest.index_select(0, rows)), first, second

    def touch(
        self, rows: Tensor, time: Tensor, state: tuple[Tensor, Tensor, Tensor], gradient: Tensor
    ) -> None:
        """Step `time` + 1 of Adam on distinct `rows` (m,) with `gradient` (m, k), taken at `state`, which is
        what `read(rows, time)` returned; its tensors are overwritten."""
        parameters, first, second = state
        beta1, beta2 = self.betas
        root2 = beta2**0.5
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        ahead = first / second.sqrt().add_(_column(self.eps, time), alpha=root2)
        parameters.sub_(ahead.mul_(_column(self.path, time)), alpha=root2 / beta1)
        self.rest.index_copy_(0, rows, parameters)
        self.first.index_copy_(0, rows, first)
        self.second.index_copy_(0, rows, second)
        self.last.index_copy_(0, rows, time + 1)


def _column(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index)[:, None]


@dataclass(frozen=True)
class _Step:
    """One step of all replicas. T distinct rows are touched; every rating contributes to two of them, and the
    2n contributions are sorted by the row they go to.

    rows, time: (T,) int64, the touched rows and the steps done before in their replica; starts: (T,) int64,
    each row's first contribution; own, other: (2n,) int64, the row a contribution goes to and the row it is
    multiplied with, as positions in `rows`; values, weight: (2n,), the rating and 1 / batch size.
    """

    rows: Tensor
    time: Tensor
    starts: Tensor
    own: Tensor
    other: Tensor
    values: Tensor
    weight: Tensor


def _step(adam: DeferredAdam, step: _Step) -> Tensor:
    """One Adam step on the weighted squared error; returns the errors (2n,), each rating's twice."""
    state = adam.read(step.rows, step.time)
    factors = state[0]
    product = factors.index_select(0, step.own).mul_(factors.index_select(0, step.other))
    error = product.sum(1).sub_(step.values)
    # d/du Σ w (u·v − r)² = Σ 2 w e v: a weighted sum of the other side's factors, row by row.
    gradient = embedding_bag(
        step.other, factors, step.starts, mode="sum", per_sample_weights=2 * error * step.weight
    )
    adam.touch(step.rows, step.time, state, gradient)
    return error


@dataclass
class MatrixFactorization:
    """Matrix factorization r̂ = u·v by Adam on the batch's mean squared error.

    After every epoch of `train`, and after `fit`, `user_factors_` is (R, n_users, k) and `item_factors_`
    (R, n_items, k), on the training device. `batch` counts ratings, `init_std` is the standard deviation of
    the initial factors.
    """

    k: int = 10
    epochs: int = 10
    batch: int = 256
    lr: float = 0.01
    init_std: float = 1.0

    def __post_init__(self) -> None:
        for field in ("k", "epochs", "batch"):
            if getattr(self, field) < 1:
                raise ValueError(f"mf: {field} must be at least 1, not {getattr(self, field)}")
        if self.lr <= 0:
            raise ValueError(f"mf: lr must be positive, not {self.lr}")
        if self.init_std < 0:
            raise ValueError(f"mf: init_std must not be negative, but is {self.init_std}")

    def fit(
        self, tables: Sequence[RatingTable], purpose: str, device: torch.device | str = "cpu"
    ) -> MatrixFactorization:
        """Train to the last epoch and return self."""
        for _ in self.train(tables, purpose, device):
            pass
        return self

    def train(
        self, tables: Sequence[RatingTable], purpose: str, device: torch.device | str = "cpu"
    ) -> Iterator[Epoch]:
        """Train R replicas together, yielding after each epoch {"loss": [R]}, the mean squared error of the
        epoch's ratings as each was before its step.

        A replica draws from `replica_generator(seed, purpose)` its user factors, its item factors and then
        each epoch's order; its result does not depend on the other replicas.

        Raises ValueError, naming replica and row, for an empty table, an id out of range or a value that is
        not finite, and for tables of different size.
        """
        tables = list(tables)
        _check(tables)
        generators = [replica_generator(table.seed, purpose) for table in tables]
        initial = [self._initial(t, g) for t, g in zip(tables, generators, strict=True)]
        longest = max(self._steps(table) for table in tables)
        adam = DeferredAdam(torch.cat(initial).to(device), self.lr, self.epochs * longest)
        flat = _FlatTables(tables, device)
        for number in range(1, self.epochs + 1):
            orders = [torch.randperm(len(t), generator=g) for t, g in zip(tables, generators, strict=True)]
            losses = self._epoch(adam, flat, orders, number)
            self._publish(adam, tables, number)
            yield Epoch(number, {"loss": losses})

    def _initial(self, table: RatingTable, generator: torch.Generator) -> Tensor:
        users = torch.randn(table.n_users, self.k, generator=generator)
        items = torch.randn(table.n_items, self.k, generator=generator)
        return self.init_std * torch.cat([users, items]).to(table.values.dtype)

    def _steps(self, table: RatingTable) -> int:
        return -(-len(table) // self.batch)

    @torch.no_grad()
    def _epoch(self, adam: DeferredAdam, flat: _FlatTables, orders: list[Tensor], number: int) -> list[float]:
        loss = torch.zeros(len(orders), dtype=torch.float64, device=adam.rest.device)
        block = max(1, BLOCK // (self.batch * len(orders))) * self.batch
        for begin in range(0, max(map(len, orders)), block):
            ratings = flat.take(orders, begin, block, self.batch, number)
            steps = _plan(ratings, len(adam.rest))
            errors = torch.cat([_step(adam, step) for step in steps])
            owners = torch.cat([(step.rows // flat.width).index_select(0, step.own) for step in steps])
            loss.index_add_(0, owners, errors.double().square())
        return [total / (2 * len(order)) for total, order in zip(loss.tolist(), orders, strict=True)]

    def _publish(self, adam: DeferredAdam, tables: list[RatingTable], epochs_done: int) -> None:
        n_users, width = tables[0].n_users, tables[0].n_users + tables[0].n_items
        device = adam.rest.device
        done = torch.tensor([epochs_done * self._steps(table) for table in tables], device=device)
        rows = torch.arange(len(adam.rest), device=device)
        factors = adam.read(rows, done.repeat_interleave(width))[0].view(len(tables), width, self.k)
        self.user_factors_, self.item_factors_ = factors[:, :n_users], factors[:, n_users:]


@dataclass(frozen=True)
class _Ratings:
    """n ratings of some consecutive steps: step (n,) from 0 in this block, time (n,) the steps done before in
    the replica, rows of both sides (n,) in the flat table, values and weight (n,)."""

    step: Tensor
    time: Tensor
    users: Tensor
    items: Tensor
    values: Tensor
    weight: Tensor


class _FlatTables:
    """The replicas' ratings with rows of the flat table in place of user and item numbers."""

    def __init__(self, tables: Sequence[RatingTable], device: torch.device | str) -> None:
        n_users = tables[0].n_users
        self.width = n_users + tables[0].n_items
        self.users = [t.users.to(device) + r * self.width for r, t in enumerate(tables)]
        self.items = [t.items.to(device) + r * self.width + n_users for r, t in enumerate(tables)]
        self.values = [t.values.to(device) for t in tables]

    def take(self, orders: list[Tensor], begin: int, length: int, batch: int, number: int) -> _Ratings:
        """Positions begin..begin + length of epoch `number`, all replicas one after the other."""
        parts = [self._part(r, o, begin, length, batch, number) for r, o in enumerate(orders)]
        return _Ratings(*map(torch.cat, zip(*parts, strict=True)))

    def _part(
        self, r: int, order: Tensor, begin: int, length: int, batch: int, number: int
    ) -> tuple[Tensor, ...]:
        values = self.values[r]
        chosen = order[begin : begin + length].to(values.device)
        position = torch.arange(begin, begin + len(chosen), device=values.device)
        step = position // batch
        size = (len(order) - step * batch).clamp(max=batch)
        time = step + (number - 1) * -(-len(order) // batch)
        columns = (t.index_select(0, chosen) for t in (self.users[r], self.items[r], values))
        return step - begin // batch, time, *columns, 1 / size.to(values.dtype)


def _plan(ratings: _Ratings, rows: int) -> list[_Step]:
    """Sort a block's contributions by step and row once, so that the loop over steps only slices."""
    n = len(ratings.step)
    key = torch.cat([ratings.users, ratings.items]) + ratings.step.repeat(2) * rows
    key, order = torch.sort(key, stable=True)
    touched, touch, count = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    step_of_touch = touched // rows
    touches = torch.bincount(step_of_touch)
    contributions = 2 * torch.bincount(ratings.step)

    # Positions within the step: of each contribution's row, and of the row on the rating's other side.
    first_touch = (touches.cumsum(0) - touches).index_select(0, step_of_touch)
    own = touch - first_touch.index_select(0, touch)
    by_rating = torch.empty_like(own).scatter_(0, order, own)
    of_user = order < n
    other = by_rating.index_select(0, torch.where(of_user, order + n, order - n))
    begins = count.cumsum(0) - count
    starts = begins - (contributions.cumsum(0) - contributions).index_select(0, step_of_touch)

    rating = torch.where(of_user, order, order - n)
    time = ratings.time.index_select(0, rating.index_select(0, begins))
    values, weight = (t.index_select(0, rating) for t in (ratings.values, ratings.weight))
    by_touch, by_contribution = touches.tolist(), contributions.tolist()
    slices = [t.split(by_touch) for t in (touched - step_of_touch * rows, time, starts)]
    slices += [t.split(by_contribution) for t in (own, other, values, weight)]
    return [_Step(*parts) for parts in zip(*slices, strict=True)]


def _check(tables: list[RatingTable]) -> None:
    if not tables:
        raise ValueError("mf: train needs at least one rating table")
    for replica, table in enumerate(tables):
        _check_table(replica, table)
    sizes = {(t.n_users, t.n_items, t.values.dtype) for t in tables}
    if len(sizes) > 1:
        raise ValueError(
            "mf: replicas trained together need equal n_users, n_items and value type, "
            f"got {sorted(sizes, key=str)}; train unequal ones in separate calls"
        )


def _check_table(replica: int, table: RatingTable) -> None:
    if not len(table.users) == len(table.items) == len(table.values):
        raise ValueError(
            f"mf: replica {replica} has {len(table.users)} users, {len(table.items)} items and "
            f"{len(table.values)} values; give one of each per rating"
        )
    if len(table) == 0:
        raise ValueError(f"mf: replica {replica} has no ratings; leave it out or look at its split")
    if {table.users.dtype, table.items.dtype} != {torch.int64} or not table.values.is_floating_point():
        raise ValueError(
            f"mf: replica {replica} has {table.users.dtype} users, {table.items.dtype} items and "
            f"{table.values.dtype} values; give int64 ids and float32 values"
        )
    for side, ids, size in (("user", table.users, table.n_users), ("item", table.items, table.n_items)):
        row = _first((ids < 0) | (ids >= size))
        if row is not None:
            raise ValueError(
                f"mf: replica {replica}, row {row}: {side} {int(ids[row])} is not in 0..{size - 1}; "
                f"renumber the {side}s or correct n_{side}s"
            )
    row = _first(~table.values.isfinite())
    if row is not None:
        value = float(table.values[row])
        raise ValueError(f"mf: replica {replica}, row {row}: rating {value} is not finite; drop the row")


def _check_user_map(name: str, users: Tensor, size: int, n_users: int) -> None:
    if len(users) != size:
        raise ValueError(f"{name} has {len(users)} entries, its table {size} users; give one number per user")
    row = _first((users < 0) | (users >= n_users))
    if row is not None:
        raise ValueError(
            f"{name}, row {row}: user {int(users[row])} is not in 0..{n_users - 1}; raise n_users"
        )
    if len(users.unique()) < size:
        raise ValueError(
            f"{name} gives two users the same number; number the union of the users without repeats"
        )


def _first(bad: Tensor) -> int | None:
    """Position of the first True, or None."""
    return int(bad.to(torch.uint8).argmax()) if bool(bad.any()) else None
