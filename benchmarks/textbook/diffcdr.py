"""DiffCDR (section 3 and Algorithm 1): DIM and ALM as modules, one Adam, the solver on every row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from benchmarks.textbook import solver
from benchmarks.textbook.training import Script, batches
from ml.data import Problem, Ratings


class DIM(nn.Module):
    """The score network: time and condition are added to the input of three linear layers."""

    def __init__(self, k: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.time = nn.Linear(hidden, k)
        self.condition = nn.Linear(k, k)
        self.layer1 = nn.Linear(k, hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.layer3 = nn.Linear(hidden, k)

    def embedding(self, label: Tensor) -> Tensor:
        half = self.hidden // 2
        exponent = torch.arange(half, device=label.device) / (half - 1)
        phase = label[:, None] * 10000.0 ** (-exponent)
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=1)

    def forward(self, x: Tensor, label: Tensor, source: Tensor, keep: Tensor) -> Tensor:
        z = x + self.time(self.embedding(label)) + keep[:, None] * self.condition(source)
        return self.layer3(self.layer2(self.layer1(z)))


class DiffCDR(nn.Module):
    def __init__(self, k: int = 10, hidden: int = 128, guidance: float = 0.1, nfe: int = 30) -> None:
        super().__init__()
        self.dim = DIM(k, hidden)
        self.alignment = nn.Linear(k, k, bias=False)
        self.guidance, self.nfe = guidance, nfe

    @torch.no_grad()
    def transport(self, source: Tensor) -> Tensor:
        """DIM's output (n, k) for source user vectors (n, k): two network passes at each evaluation."""
        shown, hidden = source.new_ones(len(source)), source.new_zeros(len(source))

        def noise(x: Tensor, t: Tensor) -> Tensor:
            label = (1000 * (t - 1 / 1000).clamp(min=0)).to(x.dtype).expand(len(x))
            free = self.dim(x, label, source, hidden)
            return free + self.guidance * (self.dim(x, label, source, shown) - free)

        return solver.sample(noise, source, self.nfe)

    def forward(self, source: Tensor) -> Tensor:
        return self.alignment(self.transport(source))


def build(initial: dict[str, Tensor], device: str = "cpu") -> DiffCDR:
    model = DiffCDR(len(initial["condition.bias"]), len(initial["layer1.bias"])).to(device)
    model.load_state_dict({name_of(name): value for name, value in initial.items()})
    return model


def name_of(ours: str) -> str:
    return ours if ours.startswith("alignment") else f"dim.{ours}"


def train(
    problem: Problem, script: Script, batch: int, lr: float, task_weight: float = 0.1, device: str = "cpu"
) -> DiffCDR:
    model = build(script.initial, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for order, draws in script.epochs:
        train_epoch(model, optimizer, problem, order, draws, batch, task_weight)
    return model


def train_epoch(
    model: DiffCDR,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    order: Tensor,
    draws: dict[str, Tensor],
    batch: int,
    task_weight: float,
) -> None:
    device = model.alignment.weight.device
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().to(device)
    tables = [problem.source.factors, problem.target_factors, problem.target_items]
    source_users, target_users, target_items = (nn.Embedding.from_pretrained(t).to(device) for t in tables)
    ratings = problem.ratings
    for rows, drawn in batches([ratings.users, ratings.items, ratings.values], batch, order, draws):
        users, items, values = (row.to(device) for row in rows)
        time, noise, keep = (drawn[name].to(device) for name in ("time", "noise", "mask"))
        source, target = source_users(users), target_users(users)

        level = kept[time][:, None]
        noisy = level.sqrt() * target + (1 - level).sqrt() * noise
        loss = functional.smooth_l1_loss(model.dim(noisy, time.float(), source, keep), noise)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.dim.parameters(), 1.0)
        optimizer.step()

        aligned = model(source)
        predicted = (aligned * target_items(items)).sum(1)
        loss = functional.smooth_l1_loss(aligned, target)
        loss = loss + task_weight * functional.mse_loss(predicted, values)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.alignment.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def predict(
    model: DiffCDR, source_factors: Tensor, item_factors: Tensor, ratings: Ratings, batch: int
) -> Tensor:
    """Predictions (m,), solving for the user of every rating row, as the paper counts test samples."""
    device = model.alignment.weight.device
    source_users, target_items = (
        nn.Embedding.from_pretrained(t).to(device) for t in (source_factors, item_factors)
    )
    parts = []
    for users, items in zip(ratings.users.split(batch), ratings.items.split(batch), strict=True):
        aligned = model(source_users(users.to(device)))
        parts.append((aligned * target_items(items.to(device))).sum(1))
    return torch.cat(parts).cpu()
