"""Losses of two users, small enough to be computed by hand."""

from __future__ import annotations

import torch

from ml.data import Problem, Ratings, SourceUsers
from ml.models.transfer import Batch, Stack
from tests.ml.problems import history


def loss_of(model, problem: Problem, parameters: dict[str, object], rows: list[int], **draws) -> float:
    """The model's loss on a batch of `rows` with these parameters and draws."""
    model.parameters_ = {n: torch.tensor([v]) for n, v in parameters.items()}
    stack = Stack([problem])
    model.prepare(stack)
    batch = Batch(
        torch.tensor([rows]), torch.ones(1, len(rows)), {n: torch.tensor([d]) for n, d in draws.items()}
    )
    return model.loss(stack, batch).item()


def two_users(**tables) -> Problem:
    """Two users of width 2; the first liked item 0, the second nothing; three ratings."""
    defaults = {
        "factors": [[1.0, 0.0], [0.0, 2.0]],
        "source_items": [[1.0, 1.0], [0.0, 1.0]],
        "target": [[1.0, 1.0], [2.0, 0.0]],
        "target_items": [[1.0, 0.0], [1.0, 2.0]],
        "liked": [[0], []],
    } | tables
    table = {n: torch.tensor(v) for n, v in defaults.items() if n != "liked"}
    return Problem(
        SourceUsers(table["factors"], history(*defaults["liked"]), table["source_items"]),
        table["target"],
        table["target_items"],
        Ratings(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([5.0, 1.0, 3.0])),
        seed=0,
    )
