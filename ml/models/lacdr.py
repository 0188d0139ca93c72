"""LACDR: both domains encoded into one small aligned space (paper section 4.1; Wang et al., SIGIR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.models.base import Batch, Problem, SourceUsers, Stack, TransferModel, linear
from ml.training import ReplicaAdam


@dataclass
class LACDR(TransferModel):
    """û_t = D_t E_s u_s with encoders E (latent, k) and decoders D (k, latent), all linear without bias.

    Loss of a rating's user: ‖D_s E_s u_s − u_s‖ + ‖D_t E_t u_t − u_t‖ + 2 ‖E_s u_s − E_t u_t‖, norms not
    squared, summed over the batch.
    """

    name: ClassVar[str] = "lacdr"
    source: ClassVar[str] = "Wang et al., SIGIR 2021"
    batch: int = 64
    lr: float = 0.001
    latent: int = 4

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {
            "source_encoder": linear(self.latent, source, generator),
            "source_decoder": linear(source, self.latent, generator),
            "target_encoder": linear(self.latent, target, generator),
            "target_decoder": linear(target, self.latent, generator),
        }

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        users = stack.gather(stack.users, batch.rows)
        source, target = stack.gather(stack.source, users), stack.gather(stack.target, users)
        source_code = source @ self.parameters_["source_encoder"].mT
        target_code = target @ self.parameters_["target_encoder"].mT
        # vector_norm's gradient at zero is zero, so a perfect reconstruction gives no NaN.
        loss = (
            torch.linalg.vector_norm(source_code @ self.parameters_["source_decoder"].mT - source, dim=2)
            + torch.linalg.vector_norm(target_code @ self.parameters_["target_decoder"].mT - target, dim=2)
            + 2 * torch.linalg.vector_norm(source_code - target_code, dim=2)
        )
        return (loss * batch.weight).sum(1)

    def step(self, stack: Stack, batch: Batch, optimizer: ReplicaAdam) -> dict[str, Tensor]:
        """As the base's step; the reported loss is the mean of a row, comparable across batch sizes."""
        total = super().step(stack, batch, optimizer)["loss"]
        return {"loss": total / batch.weight.sum(1).clamp(min=1)}

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["source_encoder"].T @ parameters["target_decoder"].T
