"""The base models: two embedding tables, a DataLoader of TensorDataset, and Adam over whole tables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.textbook.training import Script, batches
from ml.factorization.adam import RatingTable


class MatrixFactorization(nn.Module):
    def __init__(self, users: Tensor, items: Tensor) -> None:
        super().__init__()
        self.users = nn.Embedding.from_pretrained(users, freeze=False)
        self.items = nn.Embedding.from_pretrained(items, freeze=False)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.users(users) * self.items(items)).sum(1)


def train(
    table: RatingTable,
    script: Script,
    batch: int,
    lr: float = 0.01,
    device: str = "cpu",
    after_epoch: Callable[[MatrixFactorization], None] = lambda model: None,
) -> MatrixFactorization:
    """Train from the initial `users` and `items` of the script, whose epochs have no draws."""
    model = MatrixFactorization(script.initial["users"].clone(), script.initial["items"].clone()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for order, draws in script.epochs:
        for rows, _ in batches([table.users, table.items, table.values], batch, order, draws):
            users, items, values = (row.to(device) for row in rows)
            loss = functional.mse_loss(model(users, items), values)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after_epoch(model)
    return model
