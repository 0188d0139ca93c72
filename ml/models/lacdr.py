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
        return self.gradients(stack, batch)[0]

    def step(self, stack: Stack, batch: Batch, optimizer: ReplicaAdam) -> dict[str, Tensor]:
        """As the base's step; the reported loss is the mean of a row, comparable across batch sizes."""
        total, gradients = self.gradients(stack, batch)
        optimizer.update([gradients[name] for name in self.parameters_], batch.weight.any(1))
        return {"loss": total / batch.weight.sum(1).clamp(min=1)}

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) and its gradients in closed form: autograd costs more than the step itself."""
        users = stack.gather(stack.users, batch.rows)
        tables = {"source": stack.source, "target": stack.target}
        vectors = {side: stack.gather(table, users) for side, table in tables.items()}
        codes = {side: rows @ self.parameters_[f"{side}_encoder"].mT for side, rows in vectors.items()}
        apart, between = weighted_norm(codes["source"] - codes["target"], 2 * batch.weight)
        total, gradients = apart.sum(1), {}
        for side, on_code in (("source", between), ("target", -between)):
            decoder = self.parameters_[f"{side}_decoder"]
            missed, on_error = weighted_norm(codes[side] @ decoder.mT - vectors[side], batch.weight)
            total = total + missed.sum(1)
            gradients[f"{side}_decoder"] = on_error.mT @ codes[side]
            gradients[f"{side}_encoder"] = torch.baddbmm(on_code, on_error, decoder).mT @ vectors[side]
        return total, gradients

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["source_encoder"].T @ parameters["target_decoder"].T


def weighted_norm(error: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight · ‖error‖ (R, B) of each row of `error` (R, B, n), and its gradient, which is 0 at 0."""
    norm = torch.linalg.vector_norm(error, dim=2)
    # A perfect row gives 0 / tiny = 0 and not NaN.
    scale = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return weight * norm, error * scale.unsqueeze(2)
