"""LACDR: both domains encoded into one small aligned space (paper section 4.1; Wang et al., SIGIR 2021).

`WideLACDR`, for the `tuned` profile, also sees users of one domain alone, with a mean loss.
"""

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


def weighted_norm(error: Tensor, weight: Tensor, dim: int = 2) -> tuple[Tensor, Tensor]:
    """weight · ‖error‖ (R, B) of each vector along `dim` of `error`, and its gradient, which is 0 at 0."""
    norm = error.square().sum(dim).sqrt_()
    # A perfect row gives 0 / tiny = 0 and not NaN.
    scale = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return weight * norm, error * scale.unsqueeze(dim)
