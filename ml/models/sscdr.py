"""SSCDR: a supervised map with a ranking term on source items (paper section 4.1; Kang et al., CIKM 2019).

`RejectingSSCDR`, for the `tuned` profile, is the same with random items that are never liked ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.data import History, Problem, SourceUsers
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import bias, gather_columns, linear

REDRAWS = 10  # a user who liked nearly all that anybody liked keeps a liked item after so many


@dataclass
class SSCDR(TransferModel):
    """û_t = f(u_s) = W u_s + b, fitted by ‖f(u_s) − u_t‖² plus, for users with liked items,
    max(0, margin + ‖f(i⁺) − u_t‖² − ‖f(i⁻) − u_t‖²).

    The map also carries source items over: one that the user liked (i⁺) must land nearer to the user's
    target vector than one drawn from all training users' liked items (i⁻). Mean over a batch of ratings.
    """

    name: ClassVar[str] = "sscdr"
    title: ClassVar[str] = "SSCDR"
    summary: ClassVar[str] = (
        "an affine map that also brings liked source items nearer to the user than others."
    )
    source: ClassVar[str] = "Kang et al., CIKM 2019"
    varied: ClassVar[tuple[str, ...]] = ("lr", "margin")
    batch: int = 64
    margin: float = 1.0

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {"map": linear(target, source, generator), "bias": bias(target, source, generator)}

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return liked_pairs(problem.source.history, problem.ratings.users[rows].long(), generator)

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        """vectors: what is mapped, (R, k source, 3 B): users, then i⁺, then i⁻."""
        users = stack.users(batch.rows)
        items = [gather_columns(stack.source_items, batch.draws[name]) for name in ("positive", "negative")]
        return {
            "vectors": torch.cat([gather_columns(stack.source, users), *items], -1),
            "target": gather_columns(stack.target, users),
            "liked": batch.draws["liked"],
            "share": batch.share,
        }

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean over ratings of ‖f(u_s) − u_t‖² + liked · max(0, margin + ‖f(i⁺) − u_t‖² − ‖f(i⁻) − u_t‖²)."""
        vectors, target, liked, share = (batch.inputs or self.inputs(stack, batch)).values()
        mapped = self.parameters_["map"] @ vectors + self.parameters_["bias"].unsqueeze(2)
        user, near, far = ((f - target).square().sum(1) for f in mapped.chunk(3, 2))
        ranking = liked * (self.each("margin") + near - far).relu()
        return (share * (user + ranking)).sum(1)

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """∂/∂f(u_s) = 2 share (f(u_s) − u_t); where the hinge is open, the same by f(i⁺) and its negative by
        f(i⁻); by W and b through f(x) = W x + b."""
        vectors, target, liked, share = (batch.inputs or self.inputs(stack, batch)).values()
        mapped = torch.baddbmm(self.parameters_["bias"].unsqueeze(2), self.parameters_["map"], vectors)
        error = mapped.unflatten(2, (3, -1)) - target.unsqueeze(2)
        user, near, far = error.square().sum(1).unbind(1)
        ranking = liked * (self.each("margin") + near - far).relu_()
        # The user, i⁺ where the hinge is open, and i⁻ there with the other sign.
        opened = share * ranking.sign()
        on_mapped = (error * torch.stack([share, opened, -opened], 1).unsqueeze(1)).flatten(2).mul_(2)
        loss = ((user + ranking) * share).sum(1)
        return loss, {"map": on_mapped @ vectors.mT, "bias": on_mapped.sum(2)}

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["map"].T + parameters["bias"]


@dataclass
class RejectingSSCDR(SSCDR):
    """SSCDR whose random item i⁻ is drawn again while the user liked it, and anew in every epoch."""

    name: ClassVar[str] = "sscdr_rejecting"
    title: ClassVar[str] = "SSCDR, rejecting"
    summary: ClassVar[str] = "SSCDR whose random items are never ones that the user liked."

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        draws = super().draws(problem, rows, generator)
        history, users = problem.source.history, problem.ratings.users[rows].long()
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


def liked_pairs(history: History, users: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A liked and a random source item for each of `users` (n,) int64.

    Returns positive (n,) int64, uniform over the user's liked items; negative (n,) int64, uniform over all
    liked items of `history`, one as often as it was liked; liked (n,) float32, 1 where the user has any
    liked item and 0 where the pair is meaningless.
    """
    count = (history.offsets[1:] - history.offsets[:-1])[users]
    within = (torch.rand(len(users), generator=generator, dtype=torch.float64) * count).long()
    anywhere = torch.randint(max(len(history.items), 1), (len(users),), generator=generator)
    liked = count > 0
    if not liked.any():
        nothing = torch.zeros_like(users)
        return {"positive": nothing, "negative": nothing, "liked": liked.float()}
    place = torch.where(liked, history.offsets[users] + within, 0)
    return {"positive": history.items[place], "negative": history.items[anywhere], "liked": liked.float()}
