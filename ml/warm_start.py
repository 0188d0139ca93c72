"""Warm start: fine-tuning user factors on the first ratings of cold-start users (paper section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ml.data import Ratings
from ml.replicas import EpochPlan, ReplicaAdam, gather, replica_generator


@torch.no_grad()
def fine_tune(
    users: Sequence[Tensor],
    items: Sequence[Tensor],
    ratings: Sequence[Ratings],
    seeds: Sequence[int],
    *,
    epochs: int = 10,
    batch: int = 256,
    lr: float = 0.01,
) -> Iterator[list[Tensor]]:
    """Yield the user factors of R replicas [(n_r, k)] after each epoch of Adam on squared error.

    users: (n_r, k) float32, where fine-tuning starts, such as a transfer model's output; items: (items, k),
    held fixed, all replicas of one size; ratings: what is known of these users, users in 0..n_r - 1.
    Raises ValueError where a replica has no rating to tune on.
    """
    generators = [replica_generator(seed, "warm_start") for seed in seeds]
    table, item_table = pad_sequence(list(users), batch_first=True), torch.stack(list(items))
    who, what, values = (
        pad_sequence([getattr(r, field) for r in ratings], batch_first=True)
        for field in ("users", "items", "values")
    )
    optimizer = ReplicaAdam([table], lr)
    offset = torch.arange(len(users))[:, None] * table.shape[1]
    for _ in range(epochs):
        plan = EpochPlan.draw([len(r) for r in ratings], batch, generators)
        for step in range(plan.steps):
            rows, weight = plan.rows[:, step], plan.weight[:, step]
            user, item = who.gather(1, rows), what.gather(1, rows)
            v = gather(item_table, item)
            error = (gather(table, user) * v).sum(-1) - values.gather(1, rows)
            slope = 2 * error * weight / weight.sum(1, keepdim=True).clamp(min=1)
            gradient = torch.zeros_like(table)
            gradient.flatten(0, 1).index_add_(
                0, (user + offset).flatten(), (slope[..., None] * v).flatten(0, 1)
            )
            optimizer.update([gradient], weight.any(1))
        yield [table[r, : len(u)].clone() for r, u in enumerate(users)]
