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
from ml.replicas import gather_columns, linear


@dataclass
class LACDR(TransferModel):
    """û_t = D_t E_s u_s with encoders E (latent, k) and decoders D (k, latent), all linear without bias.

    Loss of a rating's user: ‖D_s E_s u_s − u_s‖ + ‖D_t E_t u_t − u_t‖ + 2 ‖E_s u_s − E_t u_t‖, norms not
    squared, summed over the batch.
    """

    summed: ClassVar[bool] = True
    name: ClassVar[str] = "lacdr"
    title: ClassVar[str] = "LACDR"
    summary: ClassVar[str] = "linear autoencoders of both domains whose small codes of a user are aligned."
    source: ClassVar[str] = "Wang et al., SIGIR 2021"
    varied: ClassVar[tuple[str, ...]] = ("lr",)
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

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        users = stack.users(batch.rows)
        return {"source": gather_columns(stack.source, users), "target": gather_columns(stack.target, users)}

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """Σ ‖D_s E_s u_s − u_s‖ + ‖D_t E_t u_t − u_t‖ + 2 ‖E_s u_s − E_t u_t‖."""
        source, target = (batch.inputs or self.inputs(stack, batch)).values()
        missed = self.missed("source", source) + self.missed("target", target)
        apart = (self.encoded("source", source) - self.encoded("target", target)).norm(dim=1)
        return (batch.weight * (missed + 2 * apart)).sum(1)

    def missed(self, side: str, vectors: Tensor) -> Tensor:
        """‖D E x − x‖ of columns x (R, k, B): (R, B)."""
        return (self.decoded(side, self.encoded(side, vectors)) - vectors).norm(dim=1)

    def encoded(self, side: str, vectors: Tensor) -> Tensor:
        """E x of columns x (R, k, B): (R, latent, B)."""
        return self.parameters_[f"{side}_encoder"] @ vectors

    def decoded(self, side: str, codes: Tensor) -> Tensor:
        """D z of codes z (R, latent, B): (R, k, B)."""
        return self.parameters_[f"{side}_decoder"] @ codes

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """∂‖e‖/∂e = e / ‖e‖, 0 at 0: by either matrix by e = D E x − x, by E also by the codes' distance."""
        vectors = batch.inputs or self.inputs(stack, batch)
        codes = {side: self.encoded(side, columns) for side, columns in vectors.items()}
        apart, between = weighted_norm(codes["source"] - codes["target"], 2 * batch.weight)
        total, gradients = apart.sum(1), {}
        for side, on_code in (("source", between), ("target", -between)):
            decoder = self.parameters_[f"{side}_decoder"]
            error = torch.baddbmm(vectors[side], decoder, codes[side], beta=-1)
            missed, on_error = weighted_norm(error, batch.weight)
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

    summed: ClassVar[bool] = False
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

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """LACDR's, with ‖D E x − x‖ of the drawn users x of either domain, as a mean over rows."""
        total = super().loss(stack, batch)
        for side, vectors in self._drawn(stack, batch).items():
            total = total + (batch.weight * self.missed(side, vectors)).sum(1)
        return total / batch.weight.sum(1).clamp(min=1)

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As LACDR's, with the same derivative of a reconstruction for the drawn users."""
        total, gradients = super().gradients(stack, batch)
        for side, vectors in self._drawn(stack, batch).items():
            codes = self.encoded(side, vectors)
            missed, on_error = weighted_norm(self.decoded(side, codes) - vectors, batch.weight)
            total = total + missed.sum(1)
            on_code = self.parameters_[f"{side}_decoder"].mT @ on_error
            gradients[f"{side}_decoder"] += on_error @ codes.mT
            gradients[f"{side}_encoder"] += on_code @ vectors.mT
        rows = batch.weight.sum(1).clamp(min=1)
        return total / rows, {name: gradient / rows.view(-1, 1, 1) for name, gradient in gradients.items()}

    @staticmethod
    def _drawn(stack: Stack, batch: Batch) -> dict[str, Tensor]:
        """The drawn users of either domain as columns (R, k, B)."""
        return {
            side: gather_columns(stack.extra[f"{side}_everyone"], batch.draws[side], stack.owner)
            for side in ("source", "target")
        }


def _everyone(problem: Problem) -> dict[str, Tensor]:
    """Factors of users whose vectors are known in a domain: the training users, and those in it alone."""
    source, target = problem.source.factors, problem.target_factors
    alone = {"source": problem.source_alone, "target": problem.target_alone}
    return {
        side: table if alone[side] is None else torch.cat([table, alone[side]])
        for side, table in (("source", source), ("target", target))
    }


def weighted_norm(error: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight · ‖error‖ (R, B) of the columns of `error` (R, k, B), and its gradient, which is 0 at 0."""
    norm = error.square().sum(1).sqrt_()
    # A perfect column gives 0 / tiny = 0 and not NaN.
    scale = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return weight * norm, error * scale.unsqueeze(1)
