"""EMCDR: one map shared by all users (paper section 4.1; Man et al., IJCAI 2017, section 3.2).

The paper's baseline is linear and trained in steps. For the `tuned` profile there are the same map by ridge
regression in closed form, and the multilayer perceptron that EMCDR's own paper prefers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.data import Problem, SourceUsers
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import Epoch, bias, dense, gather, gather_columns, linear, weighted_mean


@dataclass
class EMCDR(TransferModel):
    """û_t = W u_s with W (k, k), fitted by the mean squared error to u_t.

    Every training user counts once, however many ratings it has.
    """

    name: ClassVar[str] = "emcdr"
    title: ClassVar[str] = "EMCDR"
    summary: ClassVar[str] = "one linear map from source to target factors, the same for all users."
    source: ClassVar[str] = "Man et al., IJCAI 2017"
    varied: ClassVar[tuple[str, ...]] = ("lr",)
    batch: int = 64

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {"map": linear(target, source, generator)}

    def training_rows(self, problem: Problem) -> int:
        return len(problem.source)

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        source, target = (gather_columns(table, batch.rows) for table in (stack.source, stack.target))
        return {"source": source, "target": target, "share": batch.share.unsqueeze(-2) / target.shape[-2]}

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean over users and factors of (W u_s − u_t)²."""
        source, target, share = (batch.inputs or self.inputs(stack, batch)).values()
        mapped = self.parameters_["map"] @ source
        return (share * (mapped - target).square()).sum((1, 2))

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """∂/∂W = 2 Σ share (W u_s − u_t) u_sᵀ."""
        source, target, share = (batch.inputs or self.inputs(stack, batch)).values()
        error = torch.baddbmm(target, self.parameters_["map"], source, beta=-1)
        shared = error * share
        return (shared * error).sum((1, 2)), {"map": 2 * shared @ source.mT}

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["map"].T


@dataclass
class RidgeEMCDR(EMCDR):
    """û_t = W u_s with W = argmin Σ_u ‖W u_s − u_t‖² + penalty ‖W‖², solved exactly: one epoch, no draws."""

    name: ClassVar[str] = "emcdr_ridge"
    title: ClassVar[str] = "EMCDR, ridge"
    summary: ClassVar[str] = "the linear map of EMCDR by ridge regression, solved exactly."
    source: ClassVar[str] = "Man et al., IJCAI 2017, linear map"
    varied: ClassVar[tuple[str, ...]] = ()
    epochs: int = 1
    penalty: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty < 0 or self.epochs != 1:
            raise ValueError(f"{self.name}: penalty must not be negative and epochs must be 1")

    def train(
        self,
        problems: Sequence[Problem],
        device: torch.device | str = "cpu",
        variants: Sequence[Mapping[str, object]] = (),
    ) -> Iterator[Epoch]:
        """Solve each problem; yields once."""
        maps = [self._solve(problem) for problem in problems]
        if not maps:
            raise ValueError("train needs at least one problem")
        self.load_state_dict(*({"map": each.to(device)} for each in maps))
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


@dataclass
class PerceptronEMCDR(TransferModel):
    """û_t = W₂ tanh(W₁ u_s + b₁) + b₂ with 2k hidden units, fitted by the mean squared error to u_t."""

    name: ClassVar[str] = "emcdr_mlp"
    title: ClassVar[str] = "EMCDR, perceptron"
    summary: ClassVar[str] = "the multilayer perceptron that EMCDR's authors prefer to the linear map."
    source: ClassVar[str] = "Man et al., IJCAI 2017, section 3.2"
    varied: ClassVar[tuple[str, ...]] = ("lr",)
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

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        return {
            "source": gather(stack.source, batch.rows, -2),
            "target": gather(stack.target, batch.rows, -2),
        }

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        source, target = (batch.inputs or self.inputs(stack, batch)).values()
        error = self._map(self.parameters_, source) - target
        return weighted_mean(error.square().mean(2), batch.weight)

    @staticmethod
    def _map(parameters: dict[str, Tensor], source: Tensor) -> Tensor:
        hidden = dense(source, parameters["hidden"], parameters["hidden_bias"]).tanh()
        return dense(hidden, parameters["output"], parameters["output_bias"])

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return self._map({k: v[None] for k, v in parameters.items()}, users.factors[None])[0]
