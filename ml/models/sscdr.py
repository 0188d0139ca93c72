"""SSCDR: a supervised map with a ranking term on source items (paper section 4.1; Kang et al., CIKM 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.models.base import (
    Batch,
    History,
    Problem,
    SourceUsers,
    Stack,
    TransferModel,
    bias,
    dense,
    linear,
    weighted_mean,
)


@dataclass
class SSCDR(TransferModel):
    """û_t = f(u_s) = W u_s + b, fitted by ‖f(u_s) − u_t‖² plus, for users with liked items,
    max(0, margin + ‖f(i⁺) − u_t‖² − ‖f(i⁻) − u_t‖²).

    The map also carries source items over: one that the user liked (i⁺) must land nearer to the user's
    target vector than one drawn from all training users' liked items (i⁻). Mean over a batch of ratings.
    """

    name: ClassVar[str] = "sscdr"
    source: ClassVar[str] = "Kang et al., CIKM 2019"
    batch: int = 64
    margin: float = 1.0

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {"map": linear(target, source, generator), "bias": bias(target, source, generator)}

    def draws(self, problem: Problem, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return liked_pairs(problem.source.history, problem.ratings.users[rows], generator)

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        return self.gradients(stack, batch)[0]

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) and its gradients in closed form: autograd costs more than the step itself."""
        users = stack.gather(stack.users, batch.rows)
        positive = stack.gather(stack.source_items, batch.draws["positive"])
        negative = stack.gather(stack.source_items, batch.draws["negative"])
        inputs = torch.cat([stack.gather(stack.source, users), positive, negative], 1)
        mapped = dense(inputs, self.parameters_["map"], self.parameters_["bias"])
        error = mapped.unflatten(1, (3, -1)) - stack.gather(stack.target, users).unsqueeze(1)
        user, near, far = error.square().sum(3).unbind(1)
        ranking = batch.draws["liked"] * (self.margin + near - far).relu()
        loss = weighted_mean(user + ranking, batch.weight)
        # The user, i⁺ where the hinge is open, and i⁻ there with the other sign.
        one = 2 * batch.weight / batch.weight.sum(1, keepdim=True).clamp(min=1)
        opened = torch.where(ranking > 0, one, 0)
        on_mapped = (error * torch.stack([one, opened, -opened], 1).unsqueeze(3)).flatten(1, 2)
        return loss, {"map": on_mapped.mT @ inputs, "bias": on_mapped.sum(1)}

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        return users.factors @ parameters["map"].T + parameters["bias"]


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
