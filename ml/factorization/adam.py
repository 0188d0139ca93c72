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

Kept of a row are x, m / (1−β₁) and √(v / (1−β₂)), the root so that a step takes only one. A touch in step t
first decays both: m = β₁·m(t−1) and √v = √β₂·√v(t−1). By these the way ahead p − x after step t−1 is

    lr · m / (√v + √β₂·ē(t−1)) · T(t−1)/ρ

and by the m, v with the new gradient the same expression is p − x of the second line above. So a touch adds
it to x, which is p, takes the gradient there, and subtracts it.

Replicas lie flat below each other in one table, users, items and one row of filling: with W = U + I + 1, user
u of replica r is row r·W + u and item i is r·W + U + i. Ratings of 0 of the filling by itself, which change
nothing, make the last batch of an epoch as long as the others. So a step is one block (2 sides, replicas,
batch), in which what differs by replica only is the same along long runs of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from ml.replicas import Epoch, permutation, replica_generator

# Ratings planned at a time: bounds the memory of the plan; no effect on results.
BLOCK = 1 << 18
# The lower half of a stamp.
_POSITION = (1 << 32) - 1


@dataclass(frozen=True)
class RatingTable:
    """One replica's training ratings.

    users: (m,) int32 or int64 in [0, n_users); items: (m,), alike, in [0, n_items); values: (m,) float32, or
    float64 to train in double precision; seed: the replica's seed, from which all its draws follow.
    rows: (r,) int32 or int64, which of the m ratings are trained on; all where it is None. Replicas that name
    rows share their columns: with int32 a rating costs 12 bytes once, and 8 a replica, for its row and its
    place in an epoch's order. negatives: (m,) int32, for each of the m ratings an item that its user has not
    rated, −1 where there is none; those of the trained ratings follow these, rated 0.
    """

    users: Tensor
    items: Tensor
    values: Tensor
    n_users: int
    n_items: int
    seed: int
    rows: Tensor | None = None
    negatives: Tensor | None = None

    def __len__(self) -> int:
        if self.negatives is None:
            return self._rated
        return self._rated + (self._rated if self._drawn is None else len(self._drawn))

    def flat(self, wide: bool = True) -> RatingTable:
        """What is trained on and nothing else, negatives as ratings of 0: a copy where it is not that yet;
        with int64 ids, or as they are."""
        users, items, values = self.users, self.items, self.values
        if self.rows is not None or self.negatives is not None:
            rows, negative = self.places(torch.arange(len(self)))
            users, items, values = users[rows], items[rows], values[rows]
            if negative is not None:
                items = torch.where(negative, self.negatives[rows], items)
                values = values.masked_fill(negative, 0)
        if wide:
            users, items = users.long(), items.long()
        return replace(self, users=users, items=items, values=values, rows=None, negatives=None)

    def places(self, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of what is trained on, numbers `chosen` (c,): the ratings (c,) out of m that they are or were drawn
        for, and which are negatives (c,) bool, None where there are none."""
        negative = None
        if self.negatives is not None:
            negative = chosen >= self._rated
            behind = (chosen - self._rated).clamp(min=0)
            behind = behind if self._drawn is None else self._drawn[behind].to(chosen.dtype)
            chosen = torch.where(negative, behind, chosen)
        return (chosen if self.rows is None else self.rows.index_select(0, chosen)), negative

    @property
    def _rated(self) -> int:
        return len(self.values if self.rows is None else self.rows)

    @cached_property
    def _drawn(self) -> Tensor | None:
        """Which of the trained ratings have a negative, int32; None where all do."""
        drawn = (self.negatives if self.rows is None else self.negatives[self.rows]) >= 0
        return None if drawn.all() else drawn.nonzero()[:, 0].int()


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
    source, target = source.flat(), target.flat()
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


@dataclass(frozen=True)
class Touch:
    """What is known of a step before it is taken, by `DeferredAdam.plan`, for c rows of shape (*m).

    rows: (c,) int64, which may repeat; first: (c,) int64, the position of the one among the repeats of a row
    that stands for all; again: (d,) int64, the positions of the others; decay1, root_decay2: (c,), β₁ʲ and
    √β₂ʲ since the row's last touch; eps, pace: √β₂·ē and ρ / (lr·T) of the way ahead, in the units of the
    moments kept, with as many dimensions as (*m, k).
    """

    shape: torch.Size
    rows: Tensor
    first: Tensor
    again: Tensor
    decay1: Tensor
    root_decay2: Tensor
    eps: Tensor
    pace: Tensor


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
        beta1, beta2 = betas
        self.rest = parameters.clone()
        self.first = torch.zeros_like(parameters)
        self.root_second = torch.zeros_like(parameters)
        # Of a row's last touch: the step number, times 2³², and the row's position in the step.
        self.stamps = torch.zeros(len(parameters), dtype=torch.int64, device=parameters.device)
        t = torch.arange(steps + 2, dtype=torch.float64)
        decay1 = beta1**t
        # What has decayed that far moves nothing, and denormal numbers would make a CPU crawl.
        self.decay1 = torch.where(decay1 < 1e-25, 0, decay1).to(parameters)
        self.root_decay2 = (beta2 ** (t / 2)).to(parameters)
        path, path_eps = remaining_path(steps, betas)
        root2, unit2 = beta2**0.5, (1 - beta2) ** 0.5
        self.pace = (beta1 / root2 * unit2 / (lr * (1 - beta1) * path)).to(parameters)
        self.eps = (eps * root2 / unit2 * path_eps).to(parameters)

    def read(self, rows: Tensor, time: Tensor) -> Tensor:
        """Parameters (*m, k) of `rows` (*m) int64 as dense Adam has them after step `time` int64, which
        broadcasts to (*m) and must not lie before the row's last touch, planned ones included."""
        gap = time + 1 - (self.stamps[rows] >> 32)
        first = self.decay1[gap][..., None] * self.first[rows]
        root_second = self.root_decay2[gap][..., None] * self.root_second[rows]
        return self.rest[rows] + first / _pace(root_second, *self._at(time))

    def plan(self, rows: Tensor, time: Tensor) -> list[Touch]:
        """S steps to be taken by `touch` in this order: `rows` (S, *m) int64 and the numbers of steps done
        before each, `time` int64, which broadcasts to it."""
        shape, rows = rows.shape[1:], rows.flatten(1)
        clock = ((time + 1) << 32).expand(-1, *shape).flatten(1)
        stamps = clock + torch.arange(rows.shape[1], device=rows.device)
        before, after = torch.empty_like(rows), torch.empty_like(rows)
        for step, stamp, old, new in zip(rows, stamps, before, after, strict=True):
            torch.index_select(self.stamps, 0, step, out=old)
            # Of the repeats of a row any may be left; it is their first.
            self.stamps.scatter_(0, step, stamp)
            torch.index_select(self.stamps, 0, step, out=new)
        gap = torch.sub(clock, before, out=before).add_(_POSITION).bitwise_right_shift_(32).view(-1)
        step, again = (after != stamps).nonzero(as_tuple=True)
        columns = (
            rows,
            after.bitwise_and_(_POSITION),
            again.split(torch.bincount(step, minlength=len(rows)).tolist()),
            self.decay1.index_select(0, gap).view_as(rows),
            self.root_decay2.index_select(0, gap).view_as(rows),
            *self._at(time),
        )
        return [Touch(shape, *parts) for parts in zip(*columns, strict=True)]

    def touch(self, touch: Touch, gradient: Callable[[Tensor], Tensor]) -> None:
        """One step of Adam. `gradient` gets the parameters (*m, k) and returns as many gradients, which are
        summed over the repeats of a row. Both tensors are overwritten later."""
        rows, shape = touch.rows, (*touch.shape, -1)
        rest = self.rest.index_select(0, rows).view(shape)
        first = _gather(self.first, rows, touch.decay1).view(shape)
        root_second = _gather(self.root_second, rows, touch.root_decay2).view(shape)
        rest.addcdiv_(first, _pace(root_second, touch.eps, touch.pace))
        slope = _sum_repeats(gradient(rest).flatten(0, -2), touch).view(shape)
        first.add_(slope)
        root_second.square_().addcmul_(slope, slope).sqrt_()
        rest.addcdiv_(first, _pace(root_second, touch.eps, touch.pace), value=-1)
        self.rest.index_copy_(0, rows, rest.flatten(0, -2))
        self.first.index_copy_(0, rows, first.flatten(0, -2))
        self.root_second.index_copy_(0, rows, root_second.flatten(0, -2))

    def _at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.eps[time][..., None], self.pace[time][..., None]


def _gather(table: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """`table[rows] * scale[:, None]` in one pass, as bags of one row each."""
    each = torch.arange(len(rows), device=rows.device)
    return embedding_bag(rows, table, each, mode="sum", per_sample_weights=scale)


def _pace(root_second: Tensor, eps: Tensor, pace: Tensor) -> Tensor:
    """What m is divided by to give the way ahead of a row."""
    return (root_second + eps).mul_(pace)


def _sum_repeats(slope: Tensor, touch: Touch) -> Tensor:
    """Give every repeat of a row the sum of all: the order in which they are stored is then of no matter."""
    firsts = touch.first.index_select(0, touch.again)
    slope.index_put_((firsts,), slope.index_select(0, touch.again), accumulate=True)
    return slope.index_select(0, touch.first)


@dataclass(frozen=True)
class _Step:
    """One step of R replicas, each with a batch of B ratings of which some may be mere filling.

    touch: user rows and item rows (2, R, B); values: (R, B); weight: (R, 1), 2 / ratings in the batch.
    """

    touch: Touch
    values: Tensor
    weight: Tensor


def _step(adam: DeferredAdam, step: _Step) -> Tensor:
    """One Adam step on the mean squared error of each replica's batch; returns the errors (R, B)."""
    errors = torch.empty_like(step.values)

    def gradient(factors: Tensor) -> Tensor:
        torch.sub(torch.linalg.vecdot(factors[0], factors[1]), step.values, out=errors)
        # d/du Σ w (u·v − r)² / 2 = Σ w e v
        return factors.flip(0).mul_((errors * step.weight)[..., None])

    adam.touch(step.touch, gradient)
    return errors


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
        flat = _FlatTables(tables, self.batch, device)
        for number in range(1, self.epochs + 1):
            orders = [permutation(len(t), g) for t, g in zip(tables, generators, strict=True)]
            losses = self._epoch(adam, flat, orders, number)
            self._publish(adam, tables, number)
            yield Epoch(number, {"loss": losses})

    def _initial(self, table: RatingTable, generator: torch.Generator) -> Tensor:
        users = torch.randn(table.n_users, self.k, generator=generator)
        items = torch.randn(table.n_items, self.k, generator=generator)
        return pad(self.init_std * torch.cat([users, items]).to(table.values.dtype), (0, 0, 0, 1))

    def _steps(self, table: RatingTable) -> int:
        return -(-len(table) // self.batch)

    @torch.no_grad()
    def _epoch(self, adam: DeferredAdam, flat: _FlatTables, orders: list[Tensor], number: int) -> list[float]:
        loss = torch.zeros(len(orders), dtype=torch.float64, device=adam.rest.device)
        for begin, end in flat.blocks():
            active = [r for r, steps in enumerate(flat.steps) if steps > begin]
            steps = flat.plan(adam, active, orders, begin, end, number)
            errors = torch.stack([_step(adam, step) for step in steps])
            loss[active] += errors.double().square().sum((0, 2))
        return [total / len(order) for total, order in zip(loss.tolist(), orders, strict=True)]

    def _publish(self, adam: DeferredAdam, tables: list[RatingTable], epochs_done: int) -> None:
        n_users, width = tables[0].n_users, tables[0].n_users + tables[0].n_items
        device = adam.rest.device
        done = torch.tensor([epochs_done * self._steps(table) for table in tables], device=device)
        rows = torch.arange(len(adam.rest), device=device).view(len(tables), width + 1)
        factors = adam.read(rows[:, :width], done[:, None])
        self.user_factors_, self.item_factors_ = factors[:, :n_users], factors[:, n_users:]


class _FlatTables:
    """The replicas' ratings, whose users and items become rows of the flat table when a step needs them.

    A last batch that is short is filled with ratings of the row of filling by itself.
    """

    def __init__(self, tables: Sequence[RatingTable], batch: int, device: torch.device | str) -> None:
        self.n_users, self.width = tables[0].n_users, tables[0].n_users + tables[0].n_items
        self.sizes = [len(t) for t in tables]
        self.batch = batch = min(batch, max(self.sizes))
        self.steps = [-(-size // batch) for size in self.sizes]
        # Columns that replicas share are moved once.
        columns = {id(x): x for t in tables for x in _columns(t)}
        moved = {key: x.to(device) for key, x in columns.items()}
        self.columns = [[moved[id(x)] for x in _columns(t)] for t in tables]
        self.tables = tables

    def blocks(self) -> list[tuple[int, int]]:
        """Begin and end of runs of steps in which the same replicas take part."""
        stride = max(1, BLOCK // (self.batch * len(self.steps)))
        bounds = sorted({*range(0, max(self.steps), stride), *self.steps})
        return list(pairwise(bounds))

    def plan(
        self, adam: DeferredAdam, active: list[int], orders: list[Tensor], begin: int, end: int, number: int
    ) -> list[_Step]:
        """Steps begin..end of epoch `number` of the `active` replicas."""
        parts = [self._take(r, orders[r], begin, end) for r in active]
        rows = torch.stack([p[0] for p in parts], 2)
        values = torch.stack([p[1] for p in parts], 1)
        device = values.device
        step = torch.arange(begin, end, device=device)[:, None]
        sizes, steps = (torch.tensor([c[r] for r in active], device=device) for c in (self.sizes, self.steps))
        weight = 2 / (sizes - step * self.batch).clamp(max=self.batch).to(values.dtype)
        time = step + (number - 1) * steps
        touches = adam.plan(rows, time[:, None, :, None])
        return [_Step(*each) for each in zip(touches, values, weight[..., None], strict=True)]

    def _take(self, r: int, order: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows (steps, 2, B) and values (steps, B) of the replica's steps begin..end."""
        chosen = order[begin * self.batch : end * self.batch]
        filling = (0, (end - begin) * self.batch - len(chosen))
        chosen, negative = self.tables[r].places(chosen)
        users, items, values, *drawn = (x.index_select(0, chosen.to(x.device)) for x in self.columns[r])
        if negative is not None:
            negative = negative.to(items.device)
            items, values = torch.where(negative, drawn[0], items), values.masked_fill(negative, 0)
        rows = torch.stack([pad(x.long(), filling, value=self.width) for x in (users, items + self.n_users)])
        rows = (rows + r * (self.width + 1)).view(2, -1, self.batch)
        return rows.transpose(0, 1), pad(values, filling).view(-1, self.batch)


def _columns(table: RatingTable) -> tuple[Tensor, ...]:
    """Users, items, values and, where there are any, negatives."""
    columns = table.users, table.items, table.values
    return columns if table.negatives is None else (*columns, table.negatives)


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
    widths = {table.users.dtype, table.items.dtype} <= {torch.int32, torch.int64}
    if not widths or not table.values.is_floating_point():
        raise ValueError(
            f"mf: replica {replica} has {table.users.dtype} users, {table.items.dtype} items and "
            f"{table.values.dtype} values; give int32 or int64 ids and float32 values"
        )
    columns = [("user", table.users, table.n_users), ("item", table.items, table.n_items)]
    if table.rows is not None:
        columns.append(("row", table.rows, len(table.values)))
    if table.negatives is not None:
        columns.append(("negative", table.negatives.clamp(min=0), table.n_items))
    for side, ids, size in columns:
        low, high = map(int, ids.aminmax())
        if low < 0 or high >= size:
            row = _first((ids < 0) | (ids >= size))
            raise ValueError(
                f"mf: replica {replica}, row {row}: {side} {int(ids[row])} is not in 0..{size - 1}; "
                f"renumber the {side}s or correct n_{side}s"
            )
    if not bool(table.values.sum().isfinite()):
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
