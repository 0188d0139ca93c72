"""DiffCDR (the paper, section 3): a diffusion module DIM maps the user, an alignment module ALM corrects it.

DIM solves the diffusion ODE from the source user vector, guided by it; ALM is a k x k matrix without bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ml.data import Problem, SourceUsers
from ml.diffusion import affine, network
from ml.diffusion.schedule import TRAINING_STEPS, training_levels
from ml.diffusion.solver import SOLVERS, plan
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import ReplicaAdam, gather, linear, replica_generator

CHOICES = {
    "solver": SOLVERS,
    "activation": tuple(network.ACTIVATIONS),
    "start": ("source", "noise"),
    "alignment_loss": ("smooth_l1", "l2"),
    "parts": ("dat", "da", "at"),
}
# The draws and inputs that DIM's loss alone reads.
OF_DIM = ("noise", "mask", "x", "embedding", "condition", "share")


class Optimizers(NamedTuple):
    """One Adam a part. Two equal one Adam over both that skips parameters without a gradient, as torch's
    does: either way a step of one part moves neither the other part nor its moments."""

    dim: ReplicaAdam | None
    alignment: ReplicaAdam


@dataclass
class DiffCDR(TransferModel):
    """û_t = ALM(DIM(u_s)), with one training row a rating of a training user.

    guidance: s of Equation 3; nfe, solver: the DPM-Solver; task_weight: λ of Equation 7; mask: share of rows
    trained without condition; start: x_T is u_s, or Gaussian noise; parts (section 4.3): `dat` everything,
    `da` without ratings and with the squared alignment loss, `at` without DIM, so û_t = ALM(u_s); clip:
    largest gradient norm of a part and replica.

    With start = noise the noise of a transfer is drawn afresh from the problem's seed in every call, so equal
    calls give equal results, and a user's result depends on its place among the users of the call.
    """

    buffers: ClassVar[tuple[str, ...]] = ("seed", "guidance")
    # DIM's loss contains neither λ nor s, so that all replicas of a problem would train the same DIM.
    varied: ClassVar[tuple[str, ...]] = ("guidance", "task_weight")
    of_problems: ClassVar[tuple[str, ...]] = (*network.NAMES, *OF_DIM)
    name: ClassVar[str] = "diffcdr"
    title: ClassVar[str] = "DiffCDR"
    summary: ClassVar[str] = "a diffusion model guided by the source factors, then an alignment with ratings."
    source: ClassVar[str] = "Xuan, Diffusion Cross-domain Recommendation, 2024"
    lr: float = 1e-3
    hidden: int = 128
    guidance: float = 0.1
    nfe: int = 30
    solver: str = "fast"
    task_weight: float = 0.1
    mask: float = 0.1
    activation: str = "none"
    start: str = "source"
    alignment_loss: str = "smooth_l1"
    parts: str = "dat"
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{self.name}: {field} must be one of {', '.join(choices)}, not {getattr(self, field)!r}"
                )
        if self.hidden < 4 or self.hidden % 2:
            raise ValueError(f"{self.name}: hidden must be even and at least 4, not {self.hidden}")
        if not 0 <= self.mask <= 1:
            raise ValueError(f"{self.name}: mask must lie in [0, 1], not {self.mask}")
        if self.task_weight < 0:
            raise ValueError(f"{self.name}: task_weight must not be negative, got {self.task_weight}")
        if self.clip <= 0:
            raise ValueError(f"{self.name}: clip must be positive, not {self.clip}")

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        q, k = problem.widths
        if self.parts != "at" and self.start == "source" and q != k:
            raise ValueError(
                f"{self.name} starts from source factors of width {q} and ends at target factors of width "
                f"{k}; train both with the same k, or set start to noise"
            )
        alignment = {"alignment.weight": linear(k, q if self.parts == "at" else k, generator)}
        if self.parts == "at":
            return alignment
        return alignment | network.initial(k, q, self.hidden, generator)

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Time steps, antithetic pairs (t, 999 − t) of neighbouring rows; noise, mask and a noisy x_T."""
        if self.parts == "at":
            return {}
        count, k = len(rows), problem.target_factors.shape[1]
        half = torch.randint(TRAINING_STEPS, (-(-count // 2),), generator=generator)
        draws = {
            "time": torch.stack([half, TRAINING_STEPS - 1 - half], 1).flatten()[:count],
            "noise": torch.randn(count, k, generator=generator),
            "mask": (torch.rand(count, generator=generator) >= self.mask).float(),
        }
        if self.start == "noise":
            draws["start"] = torch.randn(count, k, generator=generator)
        return draws

    def initial_buffers(self, problem: Problem) -> dict[str, Tensor]:
        """The seed of a noisy start: a restored model draws the same noise."""
        noisy = self.start == "noise" and self.parts != "at"
        return {"seed": torch.tensor(problem.seed)} if noisy else {}

    def prepare(self, stack: Stack) -> None:
        if self.variants_:
            self.buffers_["guidance"] = self.each("guidance").squeeze(1)
        if self.parts == "at":
            return
        signal, level = training_levels()
        embedding = network.time_embedding(torch.arange(TRAINING_STEPS), self.hidden)
        tables = {"signal": signal[:, None], "level": level[:, None], "embedding": embedding}
        for name, table in tables.items():
            stack.extra[name] = table.to(stack.source)

    @property
    def dim(self) -> dict[str, Tensor]:
        """The parameters that DIM's loss trains; none without a DIM."""
        return {name: self.parameters_[name] for name in network.NAMES if name in self.parameters_}

    def optimizer(self) -> Optimizers:
        alignment = ReplicaAdam([self.parameters_["alignment.weight"]], self.lr, max_norm=self.clip)
        if self.parts == "at":
            return Optimizers(None, alignment)
        return Optimizers(ReplicaAdam(list(self.dim.values()), self.lr, max_norm=self.clip), alignment)

    def keep(self, optimizer: Optimizers, rows: Tensor) -> None:
        optimizer.alignment.keep(rows, [self.parameters_["alignment.weight"]])

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        """x: x_t = √ᾱ_t u_t + √(1 − ᾱ_t) ε (Equation 5), (P, B, k); embedding: τ(t), (P, B, hidden).

        condition and share are DIM's, source and counts ALM's: the same, once a problem and once a replica.
        """
        users = stack.users(batch.rows)
        source, target = (gather(table, users, -2) for table in (stack.source, stack.target))
        share = batch.share
        inputs = {"source": source, "target": target, "counts": share, "condition": source, "share": share}
        if self.parts != "da":
            items = stack.items(batch.rows)
            inputs["item"] = gather(stack.target_items, items, -2)
            inputs["value"] = stack.values(batch.rows)
        if self.parts != "at":
            signal, level, embedding = (
                torch.nn.functional.embedding(batch.draws["time"], stack.extra[name])
                for name in ("signal", "level", "embedding")
            )
            inputs["x"] = signal * target + level * batch.draws["noise"]
            inputs["embedding"] = embedding
        return inputs

    def step(self, stack: Stack, batch: Batch, optimizer: Optimizers) -> dict[str, Tensor]:
        """A step of DIM, then a step of ALM on the output of the DIM just updated (Algorithm 1)."""
        inputs, losses = batch.inputs or self.inputs(stack, batch), {}
        if optimizer.dim is not None:
            loss, gradients = self.dim_gradients(inputs, batch.draws)
            losses["dim"] = stack.of_replicas(loss)
            optimizer.dim.update(list(gradients.values()), inputs["share"].any(1))
        moved = self.moved_rows(stack, inputs, batch.draws)
        alignment, gradient = self.alignment_gradient(inputs, moved)
        optimizer.alignment.update([gradient], batch.weight.any(1))
        return losses | alignment

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """DIM's loss plus ALM's (R,), as Algorithm 1 descends them one after the other: DIM's output is held
        fixed in ALM's."""
        inputs = batch.inputs or self.inputs(stack, batch)
        moved = self.moved_rows(stack, inputs, batch.draws)
        loss = self._alignment_loss(inputs, moved)
        return loss if self.parts == "at" else loss + stack.of_replicas(self._dim_loss(inputs, batch.draws))

    def _dim_loss(self, inputs: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        """Mean over ratings of smooth L1 between the noise ε and ε(x_t, m·c), the network's plain masked
        prediction (section 3.3)."""
        x, embedding, condition = (inputs[name] for name in ("x", "embedding", "condition"))
        predicted = network.noise(self.dim, x, embedding, condition, draws["mask"], self.activation)
        missed = torch.nn.functional.smooth_l1_loss(predicted, draws["noise"], reduction="none").mean(2)
        return (inputs["share"] * missed).sum(1)

    def _alignment_loss(self, inputs: dict[str, Tensor], moved: Tensor) -> Tensor:
        """Mean over ratings of ℓ(û_t, u_t) + λ (r − û_t·v)² with û_t = W · DIM(u_s) (Equation 7).

        ℓ is smooth L1 or the squared error, a mean over factors; `moved` is DIM's output.
        """
        functional = torch.nn.functional
        distance = functional.mse_loss if self._squared else functional.smooth_l1_loss
        aligned = moved @ self.parameters_["alignment.weight"].mT
        missed = distance(aligned, inputs["target"], reduction="none").mean(2)
        if self.parts != "da":
            residual = inputs["value"] - (aligned * inputs["item"]).sum(2)
            missed = missed + self.each("task_weight") * residual.square()
        return (inputs["counts"] * missed).sum(1)

    @property
    def _squared(self) -> bool:
        return self.alignment_loss == "l2" or self.parts == "da"

    def dim_gradients(
        self, inputs: dict[str, Tensor], draws: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """DIM's loss (R,) and its gradients by name, as in `dim`; by hand where the network is affine."""
        if self.activation != "none":
            loss = self._dim_loss(inputs, draws)
            gradients = torch.autograd.grad(loss.sum(), list(self.dim.values()))
            return loss.detach(), dict(zip(self.dim, gradients, strict=True))
        with torch.no_grad():
            x, embedding, condition = (inputs[name] for name in ("x", "embedding", "condition"))
            predicted, trace = affine.forward(self.dim, x, embedding, condition, draws["mask"])
            value, slope = smooth_l1(predicted - draws["noise"])
            gradients = affine.backward(self.dim, trace, slope * row_scale(inputs["share"], slope))
            loss = (value.mean(2) * inputs["share"]).sum(1)
            return loss, {name: gradients[name] for name in self.dim}

    @torch.no_grad()
    def alignment_gradient(
        self, inputs: dict[str, Tensor], moved: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The two terms (R,) of ALM's loss on DIM's output `moved`, and the loss's gradient, by hand."""
        aligned, share = moved @ self.parameters_["alignment.weight"].mT, inputs["counts"]
        value, slope = (squared_error if self._squared else smooth_l1)(aligned - inputs["target"])
        losses = {"alignment": (value.mean(2) * share).sum(1)}
        if self.parts != "da":
            residual = (aligned * inputs["item"]).sum(2) - inputs["value"]
            losses["task"] = (residual.square() * share).sum(1)
            # Times k, for `row_scale` divides by it and the task loss is no mean over the width.
            weight = 2 * slope.shape[2] * self.each("task_weight")
            slope = slope + (weight * residual)[..., None] * inputs["item"]
        return losses, (slope * row_scale(share, slope)).mT @ moved

    def moved_rows(self, stack: Stack, inputs: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        """What ALM is given for the rows of a batch: DIM's output (R, B, k), without a gradient."""
        if self.parts == "at":
            return inputs["source"]
        start = draws.get("start", inputs["source"])
        return self._transport(self.dim | self.buffers_, start, inputs["source"], stack.of_replicas)

    @torch.no_grad()
    def _transport(
        self,
        parameters: dict[str, Tensor],
        x: Tensor,
        c: Tensor,
        spread: Callable[[Tensor], Tensor] = lambda each: each,
    ) -> Tensor:
        guidance = parameters["guidance"].view(-1, 1, 1) if "guidance" in parameters else self.guidance
        dim, course = {name: parameters[name] for name in network.NAMES}, plan(self.nfe, self.solver)
        return affine.transport(dim, course, guidance, self.activation, x, c, spread)

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return self._moved(parameters, users) @ parameters["alignment.weight"].T

    def dim_output(self, users: Sequence[SourceUsers], draw: int = 0) -> list[Tensor]:
        """What ALM is given, [(n_r, k)] of each replica's `users`, on the CPU: DIM's output, u_s without DIM.

        draw: which noise to start from where start = noise; `transfer` starts from draw 0.
        """
        if len(users) != self.replicas:
            raise ValueError(f"{self.name} holds {self.replicas} replicas, got users for {len(users)}")
        return [self._moved(self.state_dict(r), u, draw) for r, u in enumerate(users)]

    def _moved(self, parameters: dict[str, Tensor], users: SourceUsers, draw: int = 0) -> Tensor:
        """What ALM is given: DIM's output (n, k) by one replica's parameters."""
        source = users.factors
        if self.parts == "at":
            return source
        start = source
        if self.start == "noise":
            generator = replica_generator(int(parameters["seed"]), f"{self.name} transfer {draw}")
            width = len(parameters["layer3.bias"])
            start = torch.randn(len(source), width, generator=generator).to(source)
        batched = {name: value[None] for name, value in parameters.items()}
        return self._transport(batched, start[None], source[None])[0]


def smooth_l1(error: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 with β = 1 of each `error`, and its slope: the error clipped to ±1."""
    slope = error.clamp(-1, 1)
    return slope * (error - slope / 2), slope


def squared_error(error: Tensor) -> tuple[Tensor, Tensor]:
    """The square of each `error`, and its slope."""
    return error.square(), 2 * error


def row_scale(share: Tensor, values: Tensor) -> Tensor:
    """(R, B, 1): what each entry of `values` (R, B, k) counts in the mean over rows, by share, and width."""
    return (share / values.shape[2])[..., None]
