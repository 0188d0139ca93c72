"""EMCDR, SSCDR, LACDR and PTUPCDR (section 4.1): one module each, trained over a DataLoader with Adam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.textbook.training import Script, batches, load
from ml.data import Problem, SourceUsers


class Baseline(nn.Module, ABC):
    """A map of source users. NAMES: the module's name of each of our parameters."""

    NAMES: ClassVar[dict[str, str]]

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        tables = {
            "source_users": problem.source.factors,
            "source_items": problem.source.item_factors,
            "target_users": problem.target_factors,
            "target_items": problem.target_items,
        }
        for name, table in tables.items():
            # A buffer, not a child module: the tables are no parameters of the map.
            self.register_buffer(name, table, persistent=False)

    def columns(self, problem: Problem) -> list[Tensor]:
        return [problem.ratings.users, problem.ratings.items, problem.ratings.values]

    @abstractmethod
    def loss(self, rows: list[Tensor], draws: dict[str, Tensor]) -> Tensor:
        """Loss of a batch, a scalar."""

    @abstractmethod
    def transfer(self, users: SourceUsers) -> Tensor:
        """Target user factors (n, k)."""


class EMCDR(Baseline):
    NAMES: ClassVar[dict[str, str]] = {"map": "map.weight"}

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.map = nn.Linear(*problem.widths, bias=False)

    def columns(self, problem: Problem) -> list[Tensor]:
        return [torch.arange(len(problem.source))]

    def loss(self, rows: list[Tensor], draws: dict[str, Tensor]) -> Tensor:
        (users,) = rows
        return functional.mse_loss(self.map(self.source_users[users]), self.target_users[users])

    def transfer(self, users: SourceUsers) -> Tensor:
        return self.map(users.factors)


class SSCDR(Baseline):
    NAMES: ClassVar[dict[str, str]] = {"map": "map.weight", "bias": "map.bias"}

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.map = nn.Linear(*problem.widths)

    def loss(self, rows: list[Tensor], draws: dict[str, Tensor]) -> Tensor:
        users, _, _ = rows
        target = self.target_users[users]
        supervised = ((self.map(self.source_users[users]) - target) ** 2).sum(1)
        near = ((self.map(self.source_items[draws["positive"]]) - target) ** 2).sum(1)
        far = ((self.map(self.source_items[draws["negative"]]) - target) ** 2).sum(1)
        return (supervised + draws["liked"] * functional.relu(1 + near - far)).mean()

    def transfer(self, users: SourceUsers) -> Tensor:
        return self.map(users.factors)


class LACDR(Baseline):
    NAMES: ClassVar[dict[str, str]] = {
        f"{side}_{part}": f"{side}_{part}.weight"
        for side in ("source", "target")
        for part in ("encoder", "decoder")
    }

    def __init__(self, problem: Problem, latent: int = 4) -> None:
        super().__init__(problem)
        source, target = problem.widths
        self.source_encoder = nn.Linear(source, latent, bias=False)
        self.source_decoder = nn.Linear(latent, source, bias=False)
        self.target_encoder = nn.Linear(target, latent, bias=False)
        self.target_decoder = nn.Linear(latent, target, bias=False)

    def loss(self, rows: list[Tensor], draws: dict[str, Tensor]) -> Tensor:
        users, _, _ = rows
        source, target = self.source_users[users], self.target_users[users]
        source_code, target_code = self.source_encoder(source), self.target_encoder(target)
        source_error = torch.norm(self.source_decoder(source_code) - source, dim=1)
        target_error = torch.norm(self.target_decoder(target_code) - target, dim=1)
        return (source_error + target_error + 2 * torch.norm(source_code - target_code, dim=1)).sum()

    def transfer(self, users: SourceUsers) -> Tensor:
        return self.target_decoder(self.source_encoder(users.factors))


class PTUPCDR(Baseline):
    NAMES: ClassVar[dict[str, str]] = {
        "attention": "attention.0.weight",
        "attention_bias": "attention.0.bias",
        "score": "attention.2.weight",
        "decoder": "decoder.0.weight",
        "decoder_bias": "decoder.0.bias",
        "bridge": "decoder.2.weight",
        "bridge_bias": "decoder.2.bias",
    }

    def __init__(self, problem: Problem, hidden: int = 50, length: int = 20) -> None:
        super().__init__(problem)
        source, target = problem.widths
        self.length = length
        self.attention = nn.Sequential(nn.Linear(source, source), nn.ReLU(), nn.Linear(source, 1, bias=False))
        self.decoder = nn.Sequential(nn.Linear(source, hidden), nn.ReLU(), nn.Linear(hidden, source * target))
        history, present = problem.source.history.last(length)
        self.register_buffer("history", history, persistent=False)
        self.register_buffer("present", present, persistent=False)

    def bridged(self, factors: Tensor, liked: Tensor, present: Tensor) -> Tensor:
        score = self.attention(liked).squeeze(2).masked_fill(~present, -1e8)
        weight = torch.softmax(score, dim=1) * present
        characteristic = (weight[:, :, None] * liked).sum(1)
        bridge = self.decoder(characteristic).view(len(factors), factors.shape[1], -1)
        return torch.bmm(factors[:, None], bridge).squeeze(1)

    def loss(self, rows: list[Tensor], draws: dict[str, Tensor]) -> Tensor:
        users, items, values = rows
        liked = self.source_items[self.history[users]]
        moved = self.bridged(self.source_users[users], liked, self.present[users])
        return functional.mse_loss((moved * self.target_items[items]).sum(1), values)

    def transfer(self, users: SourceUsers) -> Tensor:
        history, present = users.history.last(self.length)
        return self.bridged(users.factors, users.item_factors[history], present)


BASELINES: dict[str, type[Baseline]] = {"emcdr": EMCDR, "sscdr": SSCDR, "lacdr": LACDR, "ptupcdr": PTUPCDR}


def train(
    name: str, problem: Problem, script: Script, batch: int, lr: float, device: str = "cpu"
) -> Baseline:
    model = BASELINES[name](problem).to(device)
    load(model, model.NAMES, script.initial)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for order, draws in script.epochs:
        train_epoch(model, optimizer, problem, order, draws, batch)
    return model


def train_epoch(
    model: Baseline,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    order: Tensor,
    draws: dict[str, Tensor],
    batch: int,
) -> None:
    device = model.source_users.device
    for rows, drawn in batches(model.columns(problem), batch, order, draws):
        loss = model.loss([row.to(device) for row in rows], {n: d.to(device) for n, d in drawn.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
