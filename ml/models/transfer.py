"""What every transfer model shares: a vector model that learns to map source user factors to target ones.

A model turns users of the source domain into user factors of the target domain. Everything after it
(metrics, ranking, figures, recommendations) uses those factors and the target item factors, so a new
model is one subclass of `TransferModel` and one line in the registry.

Replica axis. R replicas (seeds, or cells of a task, each under one or several settings) are trained as one
batched tensor program: every parameter has shape (R, ...), every batch (R, B, ...). What a replica draws
comes from the generator of its problem, ahead of the loop, so its result does not depend on which replicas
were trained beside it. Replicas of one problem share its tables, its batches and its draws.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Problem, Ratings, SourceUsers, Users, to_device
from ml.models.contract import VectorModel
from ml.replicas import Epoch, EpochPlan, ReplicaAdam, replica_generator

BLOCK = 8192  # training rows gathered at once: what a step reads of them stays in the processor's cache


@dataclass(frozen=True)
class Batch:
    """One training step of R replicas. `rows` (R, B) int64 counts into each problem's rows; `weight` (R, B)
    float32 is 0 where a short replica is padded; `draws` are the model's own random numbers (R, B, ...);
    `inputs` is what the model's `inputs` found of these rows, where the training loop has asked it.

    A block of S steps has all of this with a leading axis S.
    """

    rows: Tensor
    weight: Tensor
    draws: dict[str, Tensor]
    inputs: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> Tensor:
        """What each row counts in the mean over its batch: as `weight`."""
        return self.weight / self.weight.sum(-1, keepdim=True).clamp(min=1)

    def steps(self) -> list[Batch]:
        """The steps of a block."""
        draws, inputs = ({n: t.unbind() for n, t in d.items()} for d in (self.draws, self.inputs))
        return [
            Batch(
                rows, weight, {n: d[step] for n, d in draws.items()}, {n: i[step] for n, i in inputs.items()}
            )
            for step, (rows, weight) in enumerate(zip(self.rows, self.weight, strict=True))
        ]


class Stack:
    """The P problems of R replicas side by side, short tables padded with zeros: one gather serves all.

    source, target: (P, n, k); target_items: (P, items, k); source_items: (P, source items, k). A table that
    no model reads is never stacked; ratings, the longest ones, are read where they are. owner: (R,) int64,
    the problem of each replica.
    """

    def __init__(self, problems: Sequence[Problem], device: torch.device | str = "cpu") -> None:
        """problems: one a replica; what is given several times is stacked once."""
        different = {id(problem): problem for problem in problems}
        places = {key: place for place, key in enumerate(different)}
        self.problems, self.device = list(different.values()), device
        self.owner = torch.tensor([places[id(problem)] for problem in problems], device=device)
        self.extra: dict[str, Tensor] = {}

    def of_replicas(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """What is there once a problem along `axis`, once a replica."""
        if len(self.problems) == 1:
            return tensor.expand(*tensor.shape[:axis], len(self.owner), *tensor.shape[axis + 1 :])
        if torch.equal(self.owner, torch.arange(len(self.problems), device=self.owner.device)):
            return tensor
        return tensor.index_select(axis, self.owner)

    @cached_property
    def source(self) -> Tensor:
        return self.pad([p.source.factors for p in self.problems])

    @cached_property
    def target(self) -> Tensor:
        return self.pad([p.target_factors for p in self.problems])

    @cached_property
    def target_items(self) -> Tensor:
        return self.pad([p.target_items for p in self.problems])

    @cached_property
    def source_items(self) -> Tensor:
        return self.pad([p.source.item_factors for p in self.problems])

    @cached_property
    def ratings(self) -> list[Ratings]:
        return [problem.ratings.to(self.device) for problem in self.problems]

    def users(self, rows: Tensor) -> Tensor:
        """Of the ratings at `rows` (..., P, B) of each problem: alike, int64."""
        return self._column("users", rows).long()

    def items(self, rows: Tensor) -> Tensor:
        """As `users`."""
        return self._column("items", rows).long()

    def values(self, rows: Tensor) -> Tensor:
        """As `users`, float32."""
        return self._column("values", rows)

    def _column(self, name: str, rows: Tensor) -> Tensor:
        parts = zip(self.ratings, rows.unbind(-2), strict=True)
        return torch.stack([getattr(ratings, name)[where] for ratings, where in parts], -2)

    def pad(self, tables: list[Tensor]) -> Tensor:
        """One table (n_p, ...) of each problem as (P, max n_p, ...), zero where padded."""
        return torch.nn.utils.rnn.pad_sequence(tables, batch_first=True).to(self.device)


@dataclass
class TransferModel(VectorModel):
    """Base of the transfer models: a dataclass of hyper-parameters that meets the contract by user vectors.

    Subclasses say what their parameters, rows, draws, loss and map are; the loop over epochs and batches,
    the replica axis and the optimizer are here. `fit` and `vectors` are the contract's and know cells;
    `train` and `transfer` do the same with nothing but factors.
    """

    needs: ClassVar[tuple[str, ...]] = ("factors",)
    binds: ClassVar[tuple[str, ...]] = ("items_",)
    summed: ClassVar[bool] = False  # whether the loss of a batch is the sum over its rows, not their mean
    buffers: ClassVar[tuple[str, ...]] = ()  # names of what a replica's state has beside its parameters
    # Names of parameters, draws and inputs that replicas of one problem have in common: the axis R is then P.
    of_problems: ClassVar[tuple[str, ...]] = ()
    epochs: int = 10
    batch: int = 128
    lr: float = 0.01

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(field.default) is int and value < 1:
                raise ValueError(f"{self.name}: {field.name} must be at least 1, not {value}")
        if self.lr <= 0:
            raise ValueError(f"{self.name}: lr must be positive, not {self.lr}")
        self.parameters_: dict[str, Tensor] = {}
        self.buffers_: dict[str, Tensor] = {}
        self.items_: list[Tensor] = []
        self.variants_: list[Self] = []
        self.each_: dict[str, Tensor] = {}  # what they vary, (R, 1)
        # The rows along R and P that are left of each replica, by its number.
        self.rows_: dict[int, tuple[int, int]] = {}
        self.given_up_: set[int] = set()

    # What a model is.

    @abstractmethod
    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters of one replica, without the replica axis."""

    @abstractmethod
    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """Loss of each replica on a batch: (R,). The formula, which autograd can differentiate."""

    @abstractmethod
    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        """Target user factors (n, k) of `users` by one replica's state (no replica axis)."""

    def initial_buffers(self, problem: Problem) -> dict[str, Tensor]:
        """What one replica's state has beside its parameters, under the names in `buffers`: it is stored and
        restored with them and never trained."""
        return {}

    def training_rows(self, problem: Problem) -> int:
        """Training rows of a problem: one a rating, unless a model says otherwise."""
        return len(problem.ratings)

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One replica's random numbers of an epoch: entries (n, ...) for its shuffled `rows` (n,)."""
        return {}

    def prepare(self, stack: Stack) -> None:
        """Put what the loss needs besides the stacked tables into `stack.extra`; no parameter is touched."""

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        """What a step reads of its rows, whatever the parameters: entries (P, ...), of which the loop makes
        (R, ...). What a step reads of a stacked table itself it gathers by `stack.owner`.

        The training loop asks once for a block of steps, whose tensors have a leading axis; entries then too.
        """
        return {}

    # The contract.

    def fit(
        self,
        data: Sequence[Data],
        device: torch.device | str = "cpu",
        variants: Sequence[Mapping[str, object]] = (),
    ) -> Iterator[Epoch]:
        self.bind(data)
        yield from self.train([d.problem for d in data], device, variants)

    def give_up(self, replicas: Collection[int]) -> None:
        self.given_up_ |= set(replicas)

    def bind(self, data: Sequence[Data]) -> Self:
        """Take the target item factors of each cell, the offset of biased ones their last column."""
        self.items_ = [
            d.problem.target_items
            if d.offset is None
            else torch.cat([d.problem.target_items, d.offset[:, None]], 1)
            for d in data
        ]
        return self

    @property
    def total_epochs(self) -> int:
        return self.epochs

    def rows(self, data: Data) -> int:
        return self.training_rows(data.problem)

    def vectors(self, users: Users, replica: int = 0) -> Tensor:
        moved = self._transferred(users.factors, replica)
        if moved.shape[1] == self.items(replica).shape[1]:
            return moved
        # Ones meet the offsets of the items.
        return torch.cat([moved, moved.new_ones(len(moved), 1)], 1)

    def items(self, replica: int = 0) -> Tensor:
        if not self.items_:
            raise RuntimeError(f"{self.name} has no item factors yet: call fit or bind first")
        return self.items_[replica]

    # What all models share.

    def step(self, stack: Stack, batch: Batch, optimizer: ReplicaAdam) -> dict[str, Tensor]:
        """One optimizer step; returns the losses (R,) by name."""
        loss, gradients = self.gradients(stack, batch)
        optimizer.update([gradients[name] for name in self.parameters_], batch.weight.any(1))
        return {"loss": loss}

    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) of a batch and its gradients by name: those of `loss`.

        A model may override this by what autograd would find, derived by hand: for small models autograd
        costs more than the step itself.
        """
        loss = self.loss(stack, batch)
        gradients = torch.autograd.grad(loss.sum(), list(self.parameters_.values()))
        return loss.detach(), dict(zip(self.parameters_, gradients, strict=True))

    def train(
        self,
        problems: Sequence[Problem],
        device: torch.device | str = "cpu",
        variants: Sequence[Mapping[str, object]] = (),
    ) -> Iterator[Epoch]:
        """Train R replicas together, yielding after each epoch.

        problems: one a replica; variants: hyper-parameters of each replica, of those in `varied`, where they
        are not this model's. A replica becomes what a model built with its values and trained alone becomes.
        Raises ValueError for another number of variants, another name or a value out of range.
        """
        problems = list(problems)
        if not problems:
            raise ValueError("train needs at least one problem")
        if variants and len(variants) != len(problems):
            raise ValueError(
                f"{self.name}: {len(problems)} problems for {len(variants)} variants; give one for each"
            )
        self.variants_ = [self._variant(r, values) for r, values in enumerate(variants)]
        stack = Stack(problems, device)
        generators = [replica_generator(p.seed, self.name) for p in stack.problems]
        self.begin(stack.problems, generators, device)
        self._spread(stack)
        self.prepare(stack)
        optimizer = self.optimizer()
        for number in range(1, self.epochs + 1):
            yield Epoch(number, self._epoch(stack, generators, optimizer))
            if self.given_up_ & set(self.rows_):
                self._drop(stack, optimizer)

    def _variant(self, replica: int, values: Mapping[str, object]) -> Self:
        unknown = set(values) - set(self.varied)
        if unknown:
            raise ValueError(
                f"{self.name}: variant {replica} sets {', '.join(sorted(unknown))}; "
                f"replicas may differ in {' and '.join(self.varied)} only"
            )
        return dataclasses.replace(self, **values)

    def begin(
        self,
        problems: Sequence[Problem],
        generators: Sequence[torch.Generator],
        device: torch.device | str = "cpu",
    ) -> None:
        """Set the state of one replica a problem as training begins."""
        initial = [self.initial(p, g) for p, g in zip(problems, generators, strict=True)]
        self.parameters_ = {
            name: value.to(device).requires_grad_() for name, value in stacked(initial).items()
        }
        self.buffers_ = {
            name: value.to(device)
            for name, value in stacked([self.initial_buffers(p) for p in problems]).items()
        }
        self.each_ = {}
        self._number(range(len(problems)))

    def _number(self, owner: Iterable[int]) -> None:
        """All replicas are there, each with its problem's place along P."""
        self.rows_, self.given_up_ = {r: (r, place) for r, place in enumerate(owner)}, set()

    def _spread(self, stack: Stack) -> None:
        """From one replica a problem to all: they begin alike."""
        self._select(stack.owner)
        self._number(stack.owner.tolist())
        for name in self.varied if self.variants_ else ():
            values = [getattr(variant, name) for variant in self.variants_]
            self.each_[name] = self._first.new_tensor(values).unsqueeze(1)

    def _select(self, rows: Tensor) -> None:
        """Replicas are those at `rows` (R,) of now."""
        self.parameters_ = {
            name: value if name in self.of_problems else value.detach()[rows].requires_grad_()
            for name, value in self.parameters_.items()
        }
        self.buffers_, self.each_ = (
            {name: value[rows] for name, value in table.items()} for table in (self.buffers_, self.each_)
        )

    def _drop(self, stack: Stack, optimizer) -> None:
        """Go on without the replicas that were given up."""
        left = [r for r in self.rows_ if r not in self.given_up_]
        rows = torch.tensor([self.rows_[r][0] for r in left], dtype=torch.int64, device=stack.owner.device)
        self._select(rows)
        self.rows_ = {r: (row, self.rows_[r][1]) for row, r in enumerate(left)}
        stack.owner = stack.owner[rows]
        self.keep(optimizer, rows)

    def each(self, name: str) -> float | Tensor:
        """A hyper-parameter of `varied`: one number, or where there are variants one a replica (R, 1)."""
        return self.each_.get(name, getattr(self, name))

    def optimizer(self) -> ReplicaAdam:
        return ReplicaAdam(list(self.parameters_.values()), self.rates())

    def keep(self, optimizer: ReplicaAdam, rows: Tensor) -> None:
        """Go on with the replicas at `rows` (r,) alone, which are those of `parameters_` now."""
        optimizer.keep(rows, list(self.parameters_.values()))

    def rates(self) -> float | list[float]:
        """The learning rate, of each replica where they have variants."""
        return [variant.lr for variant in self.variants_] or self.lr

    def _epoch(self, stack: Stack, generators: list[torch.Generator], optimizer) -> dict[str, list[float]]:
        total, sums = 0, {}
        for plan in EpochPlan.parts([self.training_rows(p) for p in stack.problems], self.batch, generators):
            for name, part in self._part(stack, plan, generators, optimizer).items():
                sums[name] = sums.get(name, 0) + part
            total = total + stack.of_replicas(plan.weight.sum((1, 2)).to(stack.owner.device))
        return {name: self._numbered((part / total).tolist()) for name, part in sums.items()}

    def _numbered(self, values: list[float]) -> list[float]:
        """By number of the replica, NaN of one that was given up."""
        count = max(len(self.variants_), max(self.rows_) + 1)
        return [values[self.rows_[r][0]] if r in self.rows_ else math.nan for r in range(count)]

    def _part(
        self, stack: Stack, plan: EpochPlan, generators: list[torch.Generator], optimizer
    ) -> dict[str, Tensor]:
        """The steps of a plan; the losses by name, summed over its rows (R,)."""
        draws = plan.spread(
            [
                self.draws(p, order, g)
                for p, order, g in zip(stack.problems, plan.orders, generators, strict=True)
            ]
        )
        plan, draws = plan.to(stack.source.device), {k: v.to(stack.source.device) for k, v in draws.items()}
        losses: dict[str, Tensor] = {}
        steps = (batch for block in self._blocks(stack, plan, draws) for batch in block.steps())
        for place, batch in enumerate(steps):
            for name, loss in self.step(stack, batch, optimizer).items():
                # In one table: a small tensor kept of each step, between large ones that come and go, can
                # keep the allocator from using their place again, which is gigabytes an epoch.
                if name not in losses:
                    losses[name] = loss.new_empty(len(loss), plan.steps)
                losses[name][:, place] = loss
        rows = stack.of_replicas(plan.weight.sum(2))
        counted = torch.ones_like(rows) if self.summed else rows
        return {name: (each * counted).sum(1) for name, each in losses.items()}

    def _blocks(self, stack: Stack, plan: EpochPlan, draws: dict[str, Tensor]) -> Iterator[Batch]:
        """The steps of an epoch, as many at once as have BLOCK rows."""
        size = max(1, BLOCK // plan.weight[:, 0].numel())

        def block(tensor: Tensor, start: int) -> Tensor:
            return tensor[:, start : start + size].transpose(0, 1).contiguous()

        for start in range(0, plan.steps, size):
            drawn = {name: block(draw, start) for name, draw in draws.items()}
            batch = Batch(block(plan.rows, start), block(plan.weight, start), drawn)
            yield self._of_replicas(stack, dataclasses.replace(batch, inputs=self.inputs(stack, batch)))

    def _of_replicas(self, stack: Stack, block: Batch) -> Batch:
        """A block with an entry a problem as one with an entry a replica, but for `of_problems`."""
        draws, inputs = (
            {n: t if n in self.of_problems else stack.of_replicas(t, 1) for n, t in tensors.items()}
            for tensors in (block.draws, block.inputs)
        )
        return Batch(stack.of_replicas(block.rows, 1), stack.of_replicas(block.weight, 1), draws, inputs)

    def trained(self, problems: Sequence[Problem], device: torch.device | str = "cpu") -> Self:
        """Train to the last epoch and return self."""
        for _ in self.train(problems, device):
            pass
        return self

    def transfer(self, users: Sequence[SourceUsers]) -> list[Tensor]:
        """Target user factors [(n_r, k)] of each replica's `users`, on the CPU."""
        if len(users) != self.replicas:
            raise ValueError(f"{self.name} holds {self.replicas} replicas, got users for {len(users)}")
        return [self._transferred(u, r) for r, u in enumerate(users)]

    @torch.no_grad()
    def _transferred(self, users: SourceUsers, replica: int) -> Tensor:
        device = self._device
        state = {name: value.to(device) for name, value in self.state_dict(replica).items()}
        return self.apply(state, to_device(users, device)).cpu()

    @property
    def _device(self) -> torch.device:
        """Where the model was trained; the CPU for a restored one."""
        return self._first.device

    @property
    def replicas(self) -> int:
        """How many are left."""
        return len(self.rows_) or len(self._first)

    @property
    def _first(self) -> Tensor:
        if not self.parameters_:
            raise RuntimeError(f"{self.name} has no parameters yet: call fit or load_state_dict first")
        return next(iter(self.parameters_.values()))

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        """One replica's parameters and buffers without the replica axis, on the CPU."""
        if replica not in self.rows_:
            raise IndexError(f"{self.name} holds {self.replicas} replicas, there is no number {replica}")
        row, problem = self.rows_[replica]
        state = self.parameters_ | self.buffers_
        own = {name: value[problem if name in self.of_problems else row] for name, value in state.items()}
        return {name: value.detach().cpu().clone() for name, value in own.items()}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        names = set(states[0])
        for state in states[1:]:
            if set(state) != names:
                raise ValueError(f"{self.name}: replicas disagree on parameters: {names ^ set(state)}")
        together = stacked(states)
        self.buffers_ = {name: value for name, value in together.items() if name in self.buffers}
        self.parameters_ = {name: value for name, value in together.items() if name not in self.buffers}
        self._number(range(len(states)))
        return self


def stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """States of single replicas as one with a leading axis of replicas."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
