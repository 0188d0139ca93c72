"""What every replica-batched training loop needs: generators, epoch plans, gathering, and Adam by replica."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PART = 1 << 20  # rows of a replica whose draws are held at a time


def replica_generator(seed: int, purpose: str) -> torch.Generator:
    """The CPU generator of one replica for one purpose; two purposes never share a stream."""
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training reports: its number from 1 and the mean loss of each replica (R,).

    measured: the metrics of each replica by side and name, such as `test_rmse`, where they are known already.
    """

    number: int
    losses: dict[str, list[float]]
    measured: list[dict[str, float]] | None = None


def permutation(size: int, generator: torch.Generator) -> Tensor:
    """A random order (size,) of 0..size−1, int32 where that is wide enough; the same in either width."""
    narrow = size < 1 << 31
    return torch.randperm(size, generator=generator, dtype=torch.int32 if narrow else torch.int64)


@dataclass(frozen=True)
class EpochPlan:
    """The order of one epoch for R replicas: rows (R, steps, B) int64, weight (R, steps, B) float32.

    A replica with fewer rows than the longest is padded with row 0 at weight 0.
    """

    orders: list[Tensor]
    rows: Tensor
    weight: Tensor

    @property
    def steps(self) -> int:
        return self.rows.shape[1]

    @classmethod
    def draw(cls, counts: Sequence[int], batch: int, generators: Sequence[torch.Generator]) -> EpochPlan:
        """Shuffle `counts[r]` rows of each replica by its own generator."""
        return next(cls.parts(counts, batch, generators, max(counts)))

    @classmethod
    def parts(
        cls,
        counts: Sequence[int],
        batch: int,
        generators: Sequence[torch.Generator],
        most: int = PART,
    ) -> Iterator[EpochPlan]:
        """The epoch of `draw` in runs of steps with at most `most` rows a replica, or one step: what is drawn
        beside the rows then takes no more memory in a larger epoch."""
        if min(counts) < 1:
            raise ValueError(f"every replica needs at least one training row, got {list(counts)}")
        orders = [permutation(n, g) for n, g in zip(counts, generators, strict=True)]
        size = -(-most // batch) * batch
        for begin in range(0, max(counts), size):
            yield cls._of([order[begin : begin + size].long() for order in orders], batch)

    @classmethod
    def _of(cls, orders: list[Tensor], batch: int) -> EpochPlan:
        steps = -(-max(map(len, orders)) // batch)
        rows = torch.zeros(len(orders), steps * batch, dtype=torch.int64)
        weight = torch.zeros(len(orders), steps * batch)
        for r, order in enumerate(orders):
            rows[r, : len(order)] = order
            weight[r, : len(order)] = 1
        shape = (len(orders), steps, batch)
        return cls(orders, rows.view(shape), weight.view(shape))

    def spread(self, draws: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Lay each replica's per-row draws (n_r, ...) out as (R, steps, B, ...), zero where padded."""
        replicas, steps, batch = self.rows.shape
        out = {}
        for name, first in draws[0].items():
            full = torch.zeros(replicas, steps * batch, *first.shape[1:], dtype=first.dtype)
            for r, draw in enumerate(draws):
                full[r, : len(draw[name])] = draw[name]
            out[name] = full.view(replicas, steps, batch, *first.shape[1:])
        return out

    def to(self, device: torch.device | str) -> EpochPlan:
        return EpochPlan(self.orders, self.rows.to(device), self.weight.to(device))


class ReplicaAdam:
    """Adam over parameters (R, ...) in which each replica counts its own steps, and may have its own rate.

    Equals R torch.optim.Adam instances: a replica that is not active in a step keeps its parameters, its
    moments and its step count. Gradients are clipped to `max_norm` per replica where it is given.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float | Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_norm: float | None = None,
    ) -> None:
        self.max_norm = max_norm
        self._hold(parameters)
        self.first, self.second = torch.zeros_like(self.gradient), torch.zeros_like(self.gradient)
        like, replicas = self.gradient, len(self.gradient)
        self.steps = torch.zeros(replicas, dtype=torch.int64, device=like.device)
        rates = [lr] * replicas if isinstance(lr, float | int) else list(lr)
        # The tables of all rates one below the other, and where each replica's begins.
        different = list(dict.fromkeys(rates))
        self.rates = torch.cat([adam_rates(each, betas, eps, like.dtype, like.device) for each in different])
        self.last = len(self.rates) // len(different) - 1
        self.begin = torch.tensor([different.index(rate) for rate in rates], device=like.device)
        self.begin *= self.last + 1

    def _hold(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        # One row of moments a replica: the arithmetic runs once a step, not once a parameter.
        replicas, like = len(self.parameters[0]), self.parameters[0]
        sizes = [p[0].numel() for p in self.parameters]
        self.gradient, self.change = like.new_zeros(2, replicas, sum(sizes))
        self.gradients, self.changes = (
            [part.view_as(p) for part, p in zip(row.split(sizes, 1), self.parameters, strict=True)]
            for row in (self.gradient, self.change)
        )

    def keep(self, replicas: Tensor, parameters: Sequence[Tensor]) -> None:
        """Go on with the `replicas` (r,) alone, whose parameters are now `parameters` (r, ...)."""
        self._hold(parameters)
        self.first, self.second, self.steps, self.begin = (
            table[replicas] for table in (self.first, self.second, self.steps, self.begin)
        )

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], active: Tensor) -> None:
        """Move the `active` (R,) replicas' parameters by `gradients`, one for each parameter."""
        torch._foreach_copy_(self.gradients, gradients)
        gradient = self.gradient
        if self.max_norm is not None:
            gradient = clip_by_replica(gradient, self.max_norm)
        self.steps += active
        row = self.steps.clamp(max=self.last).add_(self.begin).mul_(active)
        rate1, rate2, scale, floor = self.rates.index_select(0, row).unbind(1)
        self.first.lerp_(gradient, rate1)
        self.second.lerp_(gradient.square(), rate2)
        torch.div(self.first, self.second.sqrt().mul_(scale).add_(floor), out=self.change)
        torch._foreach_sub_(self.parameters, self.changes)


@lru_cache(maxsize=8)
def adam_rates(
    lr: float, betas: tuple[float, float], eps: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What Adam's step t multiplies with, in row t: 1 − β₁, 1 − β₂, s_t and f_t (rows, 4, 1).

    A parameter moves by m / (s_t √v + f_t), which is torch's lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε).
    Row 0 moves nothing, not even the moments. In the last row the corrections have become 1.
    """
    last = math.ceil(max(math.log(torch.finfo(dtype).eps / 4) / math.log(beta) for beta in betas))
    # In float64: 1 − 0.999 loses five digits in float32.
    step = torch.arange(last + 1, dtype=torch.float64)
    first, second = (1 - beta**step for beta in betas)
    rates = [torch.full_like(step, 1 - beta) for beta in betas]
    table = torch.stack([*rates, first / second.sqrt() / lr, eps * first / lr], 1)
    table[0] = torch.tensor([0, 0, 0, torch.inf])
    return table[..., None].to(device, dtype)


def clip_by_replica(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale the rows of `gradient` (R, n) to a norm of at most `max_norm`, as clip_grad_norm_ does."""
    norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1)


def gather(table: Tensor, index: Tensor, axis: int = 0, owner: Tensor | None = None) -> Tensor:
    """Rows `index` (R, ...) of each replica's `table` (R, n, ...): (R, ..., *table.shape[2:]).

    axis: which one of `index` is R; owner: (R,) int64, which of fewer tables each replica reads.
    """
    replicas, rows = table.shape[:2]
    inner = [1] * (index.dim() - 1 - axis % index.dim())
    owner = torch.arange(replicas, device=table.device) if owner is None else owner
    offset = owner.view(-1, *inner) * rows
    return (
        table.flatten(0, 1).index_select(0, (index + offset).flatten()).view(*index.shape, *table.shape[2:])
    )


def gather_columns(table: Tensor, index: Tensor, owner: Tensor | None = None) -> Tensor:
    """Rows `index` (..., R, B) of each replica's `table` (R, n, k) as columns: (..., R, k, B).

    A batch is longer than a row: what runs along it uses the processor's whole width. owner: as in `gather`.
    """
    return gather(table, index, -2, owner).mT.contiguous()


def linear(out_features: int, in_features: int, generator: torch.Generator) -> Tensor:
    """A weight (out, in) drawn uniformly from ±1/√in, as torch.nn.Linear draws it."""
    bound = in_features**-0.5
    return torch.empty(out_features, in_features).uniform_(-bound, bound, generator=generator)


def bias(out_features: int, in_features: int, generator: torch.Generator) -> Tensor:
    """A bias (out,) drawn uniformly from ±1/√in, as torch.nn.Linear draws it."""
    bound = in_features**-0.5
    return torch.empty(out_features).uniform_(-bound, bound, generator=generator)


def dense(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each replica's affine layer: inputs (R, B, in), weight (R, out, in), bias (R, out) to (R, B, out)."""
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Mean of `loss` (R, B) over the rows with weight, per replica: (R,); 0 for a replica with none."""
    return (loss * weight).sum(1) / weight.sum(1).clamp(min=1)
