"""The uniformly random ranker: its expectation is known, so nothing is trained and nothing simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Predicted, Ratings, Users
from ml.evaluation.ranking import random_expectation
from ml.models.contract import Model
from ml.replicas import Epoch, replica_generator


@dataclass
class Random(Model):
    """Orders the items uniformly at random; judged by the closed-form expectation."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    summary: ClassVar[str] = "the closed-form expectation of a uniformly random ranker; nothing is trained."
    needs: ClassVar[tuple[str, ...]] = ("ratings",)
    objectives: ClassVar[tuple[str, ...]] = ("ranking",)
    role: ClassVar[str] = "blind"
    on_device: ClassVar[bool] = False
    serves: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.items_: list[int] = []
        self.seeds_: list[int] = []

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        self.items_, self.seeds_ = [each.n_items for each in data], [each.seed for each in data]
        yield Epoch(1, {})

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        raise ValueError("the random ranker predicts no ratings; give it `objectives: [ranking]`")

    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        generator = replica_generator(self.seeds_[replica], f"random {users.purpose}")
        return torch.rand(len(users), self.items_[replica], generator=generator)[:, items]

    def expected(self, ratings: Ratings, n_users: int, replica: int = 0) -> dict[str, float]:
        metrics = random_expectation(self.items_[replica], torch.bincount(ratings.users, minlength=n_users))
        return {name: value for name, value in metrics.items() if "@" in name}

    def items_of(self, replica: int = 0) -> int:
        return self.items_[replica]

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {"items": torch.tensor(self.items_[replica]), "seed": torch.tensor(self.seeds_[replica])}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        self.items_, self.seeds_ = ([int(s[name]) for s in states] for name in ("items", "seed"))
        return self
