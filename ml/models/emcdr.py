"""EMCDR: one linear map shared by all users (paper section 4.1; Man et al., IJCAI 2017, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.data import Problem, SourceUsers
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import linear


@dataclass
class EMCDR(TransferModel):
    """û_t = W u_s with W (k, k), fitted by the mean squared error to u_t.

    Every training user counts once, however many ratings it has.
    """

    name: ClassVar[str] = "emcdr"
    title: ClassVar[str] = "EMCDR"
    summary: ClassVar[str] = "one linear map from source to target factors, the same for all users."
    source: ClassVar[str] = "Man et al., IJCAI 2017"
    batch: int = 64

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {"map": linear(target, source, generator)}

    def training_rows(self, problem: Problem) -> int:
        return len(problem.source)

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        return self.gradients(stack, batch)[0]

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        source, target = (stack.columns(table, batch.rows) for table in (stack.source, stack.target))
        return {"source": source, "target": target, "share": batch.share.unsqueeze(-2) / target.shape[-2]}

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) and its gradient in closed form: autograd costs more than the step itself."""
        source, target, share = (batch.inputs or self.inputs(stack, batch)).values()
        error = torch.baddbmm(target, self.parameters_["map"], source, beta=-1)
        shared = error * share
        return (shared * error).sum((1, 2)), {"map": 2 * shared @ source.mT}

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["map"].T
