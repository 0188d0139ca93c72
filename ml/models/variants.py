"""The baselines with what their originals got wrong put right, for the `tuned` profile.

EMCDR as ridge regression in closed form and as the multilayer perceptron of its paper; SSCDR whose random
items are never liked ones; LACDR whose autoencoders also see users of one domain alone, with a mean loss.
PTUPCDR needs no variant: ours orders histories by time and masks the padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.data import Problem, SourceUsers
from ml.models.lacdr import LACDR, weighted_norm
from ml.models.sscdr import SSCDR
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import Epoch, bias, dense, linear, weighted_mean

REDRAWS = 10  # a user who liked nearly all that anybody liked keeps a liked item after so many


@dataclass
class RidgeEMCDR(TransferModel):
    """û_t = W u_s with W = argmin Σ_u ‖W u_s − u_t‖² + penalty ‖W‖², solved exactly: one epoch, no draws."""

    name: ClassVar[str] = "emcdr_ridge"
    title: ClassVar[str] = "EMCDR, ridge"
    summary: ClassVar[str] = "the linear map of EMCDR by ridge regression, solved exactly."
    source: ClassVar[str] = "Man et al., IJCAI 2017, linear map"
    epochs: int = 1
    penalty: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty < 0 or self.epochs != 1:
            raise ValueError(f"{self.name}: penalty must not be negative and epochs must be 1")

    def train(self, problems: Sequence[Problem], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        """Solve each problem; yields once."""
        maps = [self._solve(problem) for problem in problems]
        if not maps:
            raise ValueError("train needs at least one problem")
        self.parameters_ = {"map": torch.stack(maps).to(device)}
        losses = [
            (p.source.factors @ w.T - p.target_factors).square().mean().item()
            for p, w in zip(problems, maps, strict=True)
        ]
        yield Epoch(1, {"loss": losses})

    def _solve(self, problem: Problem) -> Tensor:
        source, target = problem.source.factors.double(), problem.target_factors.double()
        gram = source.T @ source + self.penalty * torch.eye(source.shape[1], dtype=torch.float64)
        # Without a penalty and with fewer users than factors the least-norm solution is taken.
        return torch.linalg.lstsq(gram, source.T @ target, driver="gelsd").solution.T.float()

    def training_rows(self, problem: Problem) -> int:
        return len(problem.source)

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        return {"map": self._solve(problem)}

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        error = stack.gather(stack.source, batch.rows) @ self.parameters_["map"].mT
        error = error - stack.gather(stack.target, batch.rows)
        return weighted_mean(error.square().mean(2), batch.weight)

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["map"].T


@dataclass
class PerceptronEMCDR(TransferModel):
    """û_t = W₂ tanh(W₁ u_s + b₁) + b₂ with 2k hidden units, fitted by the mean squared error to u_t."""

    name: ClassVar[str] = "emcdr_mlp"
    title: ClassVar[str] = "EMCDR, perceptron"
    summary: ClassVar[str] = "the multilayer perceptron that EMCDR's authors prefer to the linear map."
    source: ClassVar[str] = "Man et al., IJCAI 2017, section 3.2"
    batch: int = 64
    lr: float = 0.003

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        hidden = 2 * source
        return {
            "hidden": linear(hidden, source, generator),
            "hidden_bias": bias(hidden, source, generator),
            "output": linear(target, hidden, generator),
            "output_bias": bias(target, hidden, generator),
        }

    def training_rows(self, problem: Problem) -> int:
        return len(problem.source)

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        error = self._map(self.parameters_, stack.gather(stack.source, batch.rows))
        error = error - stack.gather(stack.target, batch.rows)
        return weighted_mean(error.square().mean(2), batch.weight)

    @staticmethod
    def _map(parameters: dict[str, Tensor], source: Tensor) -> Tensor:
        hidden = dense(source, parameters["hidden"], parameters["hidden_bias"]).tanh()
        return dense(hidden, parameters["output"], parameters["output_bias"])

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return self._map({k: v[None] for k, v in parameters.items()}, users.factors[None])[0]


@dataclass
class RejectingSSCDR(SSCDR):
    """SSCDR whose random item i⁻ is drawn again while the user liked it, and anew in every epoch."""

    name: ClassVar[str] = "sscdr_rejecting"
    title: ClassVar[str] = "SSCDR, rejecting"
    summary: ClassVar[str] = "SSCDR whose random items are never ones that the user liked."

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        draws = super().draws(problem, rows, generator)
        history, users = problem.source.history, problem.ratings.users[rows]
        if len(history.items) == 0:
            return draws
        counts = history.offsets.diff()
        liked = torch.repeat_interleave(torch.arange(len(counts)), counts) * len(problem.source.item_factors)
        liked = (liked + history.items).unique()
        negative = draws["negative"].clone()
        for _ in range(REDRAWS):
            wrong = torch.isin(users * len(problem.source.item_factors) + negative, liked)
            if not wrong.any():
                break
            fresh = torch.randint(len(history.items), (int(wrong.sum()),), generator=generator)
            negative[wrong] = history.items[fresh]
        return draws | {"negative": negative}


@dataclass
class WideLACDR(LACDR):
    """LACDR whose reconstructions are also learned on users of one domain alone, as many as there are rows in
    the batch, drawn anew in every epoch; the loss is the mean over rows."""

    name: ClassVar[str] = "lacdr_wide"
    title: ClassVar[str] = "LACDR, wide"
    summary: ClassVar[str] = "LACDR whose autoencoders also learn from users of one domain alone."

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            side: torch.randint(len(table), (len(rows),), generator=generator)
            for side, table in _everyone(problem).items()
        }

    def prepare(self, stack: Stack) -> None:
        tables = [_everyone(problem) for problem in stack.problems]
        for side in ("source", "target"):
            stack.extra[f"{side}_everyone"] = stack.pad([table[side] for table in tables])

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, gradients = super().gradients(stack, batch)
        for side in ("source", "target"):
            vectors = stack.gather(stack.extra[f"{side}_everyone"], batch.draws[side])
            encoder, decoder = (self.parameters_[f"{side}_{part}"] for part in ("encoder", "decoder"))
            codes = vectors @ encoder.mT
            missed, on_error = weighted_norm(codes @ decoder.mT - vectors, batch.weight)
            total = total + missed.sum(1)
            gradients[f"{side}_decoder"] = gradients[f"{side}_decoder"] + on_error.mT @ codes
            gradients[f"{side}_encoder"] = gradients[f"{side}_encoder"] + (on_error @ decoder).mT @ vectors
        rows = batch.weight.sum(1).clamp(min=1).view(-1, 1, 1)
        return total, {name: gradient / rows for name, gradient in gradients.items()}


def _everyone(problem: Problem) -> dict[str, Tensor]:
    """Factors of users whose vectors are known in a domain: the training users, and those in it alone."""
    source, target = problem.source.factors, problem.target_factors
    alone = {"source": problem.source_alone, "target": problem.target_alone}
    return {
        side: table if alone[side] is None else torch.cat([table, alone[side]])
        for side, table in (("source", source), ("target", target))
    }
