"""EMCDR: one linear map shared by all users (paper section 4.1; Man et al., IJCAI 2017, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.models.base import Batch, Problem, SourceUsers, Stack, TransferModel, linear


@dataclass
class EMCDR(TransferModel):
    """û_t = W u_s with W (k, k), fitted by the mean squared error to u_t.

    Every training user counts once, however many ratings it has.
    """

    name: ClassVar[str] = "emcdr"
    source: ClassVar[str] = "Man et al., IJCAI 2017"
    batch: int = 64

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {"map": linear(target, source, generator)}

    def rows(self, problem: Problem) -> int:
        return len(problem.source)

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        return self.gradients(stack, batch)[0]

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) and its gradient in closed form: autograd costs more than the step itself."""
        source = stack.gather(stack.source, batch.rows)
        error = source @ self.parameters_["map"].mT - stack.gather(stack.target, batch.rows)
        rows = batch.weight.sum(1).clamp(min=1) * error.shape[2]
        weighted = error * batch.weight.unsqueeze(2)
        loss = (weighted * error).sum((1, 2)) / rows
        return loss, {"map": (weighted.mT @ source) * (2 / rows).view(-1, 1, 1)}

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["map"].T
