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
        # The liked factors of a user side by side: one row to gather in place of `length`.
        stack.extra["liked"] = stack.gather(stack.source_items, stack.pad([items for items, _ in rows]))
        stack.extra["present"] = stack.pad([present for _, present in rows])

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        return self.gradients(stack, batch)[0]

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (R,) and its gradients in closed form, at half of what autograd costs.

        û_t · v is a sum over B's entries, so the bridge meets the products u_s ⊗ v without being written out.
        """
        parameters = self.parameters_
        users = stack.gather(stack.users, batch.rows)
        liked, present = (stack.gather(stack.extra[name], users) for name in ("liked", "present"))
        inner, weight = attention(parameters, liked, present)
        characteristic = (weight.unsqueeze(2) @ liked).squeeze(2)
        hidden = dense(characteristic, parameters["decoder"], parameters["decoder_bias"]).relu_()
        products = self._products(stack, batch, users)
        met = products @ parameters["bridge"]
        offset = (products @ parameters["bridge_bias"].unsqueeze(2)).squeeze(2)
        error = (met * hidden).sum(2) + offset - stack.gather(stack.values, batch.rows)

        rows = batch.weight.sum(1, keepdim=True).clamp(min=1)
        on_predicted = (2 * error * batch.weight / rows).unsqueeze(2)
        on_bridge = products * on_predicted
        on_hidden = met * on_predicted * (hidden > 0)
        on_characteristic = on_hidden @ parameters["decoder"]
        on_weight = (liked @ on_characteristic.unsqueeze(3)).squeeze(3)
        on_score = weight * (on_weight - (weight * on_weight).sum(2, keepdim=True))
        on_score = on_score.flatten(1).unsqueeze(2)
        on_inner = (on_score * parameters["score"]).mul_(inner > 0)
        return weighted_mean(error.square(), batch.weight), {
            "attention": on_inner.mT @ liked.flatten(1, 2),
            "attention_bias": on_inner.sum(1),
            "score": on_score.mT @ inner,
            "decoder": on_hidden.mT @ characteristic,
            "decoder_bias": on_hidden.sum(1),
            "bridge": on_bridge.mT @ hidden,
            "bridge_bias": on_bridge.sum(1),
        }

    def _products(self, stack: Stack, batch: Batch, users: Tensor) -> Tensor:
        """u_s ⊗ v of each row, row-major as the bridge: (R, B, source width · target width)."""
        items = stack.gather(stack.target_items, stack.gather(stack.items, batch.rows))
        return (stack.gather(stack.source, users).unsqueeze(3) * items.unsqueeze(2)).flatten(2)

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


def attention(parameters: dict[str, Tensor], liked: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """ReLU(W v + b) (R, B · L, k) of `liked` item factors (R, B, L, k), and their weights (R, B, L)."""
    inner = liked.flatten(1, 2) @ parameters["attention"].mT
    inner.add_(parameters["attention_bias"].unsqueeze(1)).relu_()
    score = (inner @ parameters["score"].mT).view(present.shape)
    # A finite floor and not -inf: an empty history then gets weights times zero instead of NaN.
    floor = torch.finfo(score.dtype).min
    return inner, score.masked_fill(~present, floor).softmax(2) * present


def bridged(parameters: dict[str, Tensor], factors: Tensor, liked: Tensor, present: Tensor) -> Tensor:
    """Source user `factors` (R, B, k) through each user's bridge: (R, B, k target)."""
    _, weight = attention(parameters, liked, present)
    characteristic = (weight.unsqueeze(2) @ liked).squeeze(2)
    hidden = dense(characteristic, parameters["decoder"], parameters["decoder_bias"]).relu()
    bridge = dense(hidden, parameters["bridge"], parameters["bridge_bias"])
    bridge = bridge.unflatten(2, (factors.shape[2], -1))
    return (factors.unsqueeze(2) @ bridge).squeeze(2)
