"""PTUPCDR: a meta network writes each user's own bridge (paper section 4.1; Zhu et al., WSDM 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ml.data import Problem, SourceUsers
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import bias, gather, gather_columns, linear

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
    title: ClassVar[str] = "PTUPCDR"
    summary: ClassVar[str] = "a map for each user, written by a network that reads the liked source items."
    source: ClassVar[str] = "Zhu et al., WSDM 2022"
    varied: ClassVar[tuple[str, ...]] = ("lr",)
    of_problems: ClassVar[tuple[str, ...]] = ("slots",)
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
        stack.extra["slots"] = stack.pad([items.int() for items, _ in rows])
        stack.extra["filled"] = stack.pad([present.sum(1) for _, present in rows])

    def inputs(self, stack: Stack, batch: Batch) -> dict[str, Tensor]:
        """slots: the liked items (R, length, B), whose factors are too many to be gathered ahead;
        present: as `attention` has it."""
        users, items = stack.users(batch.rows), stack.items(batch.rows)
        slot = torch.arange(self.length, device=users.device).unsqueeze(1)
        present = slot < gather(stack.extra["filled"], users, -2).unsqueeze(-2)
        return {
            "slots": gather_columns(stack.extra["slots"], users),
            "present": present.to(stack.source.dtype),
            "source": gather_columns(stack.source, users),
            "item": gather_columns(stack.target_items, items),
            "values": stack.values(batch.rows),
            "share": batch.share,
        }

    def loss(self, stack: Stack, batch: Batch) -> Tensor:
        """Mean over ratings of (û_t · v − r)² with û_t = u_sᵀ B(user)."""
        slots, present, source, item, values, share = (batch.inputs or self.inputs(stack, batch)).values()
        liked = stack.of_replicas(gather_columns(stack.source_items, slots.flatten(1)))
        moved = bridged(self.parameters_, source, liked, present)
        predicted = (moved * item).sum(1)
        return (share * (predicted - values).square()).sum(1)

    @torch.no_grad()
    def gradients(self, stack: Stack, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """By the chain rule from the error back to the attention, at half of what autograd costs.

        û_t · v is a sum over B's entries, so the bridge meets the products u_s ⊗ v without being written out.
        """
        parameters = self.parameters_
        slots, present, source, item, values, share = (batch.inputs or self.inputs(stack, batch)).values()
        liked = stack.of_replicas(gather_columns(stack.source_items, slots.flatten(1)))
        inner, weight = attention(parameters, liked, present)
        by_slot = liked.unflatten(2, present.shape[1:])
        characteristic = (by_slot * weight.unsqueeze(1)).sum(2)
        hidden = decoded(parameters, characteristic)
        products = (source.unsqueeze(2) * item.unsqueeze(1)).flatten(1, 2)
        met = parameters["bridge"].mT @ products
        offset = (parameters["bridge_bias"].unsqueeze(1) @ products).squeeze(1)
        error = (met * hidden).sum(1) + offset - values

        on_predicted = (2 * error * share).unsqueeze(1)
        on_bridge = products * on_predicted
        on_hidden = met * on_predicted * hidden.sign()
        on_characteristic = parameters["decoder"].mT @ on_hidden
        on_weight = (by_slot * on_characteristic.unsqueeze(2)).sum(1)
        # Σ weight · on_weight over the slots, by which softmax's gradient is centred.
        centre = (characteristic * on_characteristic).sum(1, keepdim=True)
        on_score = (weight * (on_weight - centre)).flatten(1).unsqueeze(1)
        # The gradient by W v + b, but for the factor w of each row.
        on_inner = inner.sign().mul_(on_score)
        score = parameters["score"].mT
        return (error.square() * share).sum(1), {
            "attention": score * (on_inner @ liked.mT),
            "attention_bias": (score * on_inner.sum(2, keepdim=True)).squeeze(2),
            "score": on_score @ inner.mT,
            "decoder": on_hidden @ characteristic.mT,
            "decoder_bias": on_hidden.sum(2),
            "bridge": on_bridge @ hidden.mT,
            "bridge_bias": on_bridge.sum(2),
        }

    def apply(self, parameters: dict[str, Tensor], users: SourceUsers) -> Tensor:
        stacked = {name: value.unsqueeze(0) for name, value in parameters.items()}
        items, present = users.history.last(self.length)
        moved = []
        for chunk in torch.arange(len(users)).split(CHUNK):
            liked = users.item_factors[items[chunk].T.flatten()].T
            columns = (users.factors[chunk].T, liked, present[chunk].T.to(liked))
            moved.append(bridged(stacked, *(c[None] for c in columns))[0].T)
        return torch.cat(moved)


def attention(parameters: dict[str, Tensor], liked: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """ReLU(W v + b) of `liked` item factors (R, k, L · B), and their weights (R, L, B).

    present: (R, L, B), 1 where a slot holds an item and 0 where the history is shorter.
    """
    inner = torch.baddbmm(parameters["attention_bias"].unsqueeze(2), parameters["attention"], liked).relu_()
    score = (parameters["score"] @ inner).view(present.shape)
    # A finite floor and not -inf: an empty history then gets weights times zero instead of NaN.
    floor = torch.finfo(score.dtype).max * (present - 1)
    return inner, (score + floor).softmax(1) * present


def decoded(parameters: dict[str, Tensor], characteristic: Tensor) -> Tensor:
    """The decoder's hidden layer (R, hidden, B) on characteristics (R, k, B)."""
    bias = parameters["decoder_bias"].unsqueeze(2)
    return torch.baddbmm(bias, parameters["decoder"], characteristic).relu_()


def bridged(parameters: dict[str, Tensor], factors: Tensor, liked: Tensor, present: Tensor) -> Tensor:
    """Source user `factors` (R, k, B) through each user's bridge: (R, k target, B)."""
    _, weight = attention(parameters, liked, present)
    characteristic = (liked.unflatten(2, present.shape[1:]) * weight.unsqueeze(1)).sum(2)
    hidden = decoded(parameters, characteristic)
    bridge = torch.baddbmm(parameters["bridge_bias"].unsqueeze(2), parameters["bridge"], hidden)
    return (bridge.unflatten(1, (factors.shape[1], -1)) * factors.unsqueeze(2)).sum(1)
