"""LACDR: both domains encoded into one small aligned space (paper section 4.1; Wang et al., SIGIR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.data import Problem, SourceUsers
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import ReplicaAdam, linear


@dataclass
class LACDR(TransferModel):
    """û_t = D_t E_s u_s with encoders E (latent, k) and decoders D (k, latent), all linear without bias.

    Loss of a rating's user: ‖D_s E_s u_s − u_s‖ + ‖D_t E_t u_t − u_t‖ + 2 ‖E_s u_s − E_t u_t‖, norms not
    squared, summed over the batch.
    """

    name: ClassVar[str] = "lacdr"
    title: ClassVar[str] = "LACDR"
    summary: ClassVar[str] = "linear autoencoders of both domains whose small codes of a user are aligned."
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

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        users = stack.gather(stack.users, batch.rows, -2)
        return {"source": stack.columns(stack.source, users), "target": stack.columns(stack.target, users)}

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) and its gradients in closed form: autograd costs more than the step itself."""
        vectors = batch.inputs or self.inputs(stack, batch)
        codes = {side: self.parameters_[f"{side}_encoder"] @ columns for side, columns in vectors.items()}
        apart, between = weighted_norm(codes["source"] - codes["target"], 2 * batch.weight, 1)
        total, gradients = apart.sum(1), {}
        for side, on_code in (("source", between), ("target", -between)):
            decoder = self.parameters_[f"{side}_decoder"]
            error = torch.baddbmm(vectors[side], decoder, codes[side], beta=-1)
            missed, on_error = weighted_norm(error, batch.weight, 1)
            total = total + missed.sum(1)
            gradients[f"{side}_decoder"] = on_error @ codes[side].mT
            gradients[f"{side}_encoder"] = torch.baddbmm(on_code, decoder.mT, on_error) @ vectors[side].mT
        return total, gradients

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["source_encoder"].T @ parameters["target_decoder"].T


def weighted_norm(error: Tensor, weight: Tensor, dim: int = 2) -> tuple[Tensor, Tensor]:
    """weight · ‖error‖ (R, B) of each vector along `dim` of `error`, and its gradient, which is 0 at 0."""
    norm = error.square().sum(dim).sqrt_()
    # A perfect row gives 0 / tiny = 0 and not NaN.
    scale = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return weight * norm, error * scale.unsqueeze(dim)
