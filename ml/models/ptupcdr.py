"""PTUPCDR: a meta network writes each user's own bridge (paper section 4.1; Zhu et al., WSDM 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.models.base import (
    Batch,
    Problem,
    SourceUsers,
    Stack,
    TransferModel,
    bias,
    dense,
    linear,
    weighted_mean,
)

CHUNK = 8192  # users per pass of `apply`: their gathered histories take 20 MB at k = 10, length 20


@dataclass
class PTUPCDR(TransferModel):
    """û_t = u_sᵀ B(user), with a bridge B (k source, k target) written from the user's liked source items.

    The characteristic p of a user is the attention-weighted sum of its last `length` liked items, with
    weights softmax(wᵀ ReLU(W v_i + b)) over the items present, and zero for an empty history. A decoder of
    one hidden ReLU layer turns p into B, row-major: B[a, b] carries source factor a into target factor b.
    Only this meta network learns, by the mean squared error of û_t · v_item to the rating.
    """

    name: ClassVar[str] = "ptupcdr"
    source: ClassVar[str] = "Zhu et al., WSDM 2022"
    length: int = 20
    hidden: int = 50

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
        source, target = problem.widths
        return {
            "attention": linear(source, source, generator),
            "attention_bias": bias(source, source, generator),
            "score": linear(1, source, generator),
            "decoder": linear(self.hidden, source, generator),
            "decoder_bias": bias(self.hidden, source, generator),
            "bridge": linear(source * target, self.hidden, generator),
            "bridge_bias": bias(source * target, self.hidden, generator),
        }

    def prepare(self, stack: Stack) -> None:
        rows = [p.source.history.last(self.length) for p in stack.problems]
        stack.extra["history"] = stack.pad([items for items, _ in rows])
        stack.extra["present"] = stack.pad([present for _, present in rows])

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        users = stack.gather(stack.users, batch.rows)
        liked = stack.gather(stack.source_items, stack.gather(stack.extra["history"], users))
        present = stack.gather(stack.extra["present"], users)
        moved = bridged(self.parameters_, stack.gather(stack.source, users), liked, present)
        predicted = (moved * stack.gather(stack.target_items, stack.gather(stack.items, batch.rows))).sum(2)
        error = predicted - stack.gather(stack.values, batch.rows)
        return weighted_mean(error.square(), batch.weight)

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        stacked = {name: value.unsqueeze(0) for name, value in parameters.items()}
        chunks = zip(
            *(t.split(CHUNK) for t in (users.factors, *users.history.last(self.length))), strict=True
        )
        moved = [
            bridged(stacked, factors[None], users.item_factors[items][None], present[None])[0]
            for factors, items, present in chunks
        ]
        return torch.cat(moved)


def attended(parameters: dict[str, Tensor], liked: Tensor, present: Tensor) -> Tensor:
    """The characteristic (R, B, k) of users whose `liked` item factors (R, B, L, k) count where `present`."""
    hidden = dense(liked.flatten(1, 2), parameters["attention"], parameters["attention_bias"]).relu()
    score = (hidden @ parameters["score"].mT).view(present.shape)
    # A finite floor and not -inf: an empty history then gets weights times zero instead of NaN.
    floor = torch.finfo(score.dtype).min
    weight = score.masked_fill(~present, floor).softmax(2) * present
    return (weight.unsqueeze(2) @ liked).squeeze(2)


def bridged(parameters: dict[str, Tensor], factors: Tensor, liked: Tensor, present: Tensor) -> Tensor:
    """Source user `factors` (R, B, k) through each user's bridge: (R, B, k target)."""
    characteristic = attended(parameters, liked, present)
    hidden = dense(characteristic, parameters["decoder"], parameters["decoder_bias"]).relu()
    bridge = dense(hidden, parameters["bridge"], parameters["bridge_bias"])
    bridge = bridge.unflatten(2, (factors.shape[2], -1))
    return (factors.unsqueeze(2) @ bridge).squeeze(2)
