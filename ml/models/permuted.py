"""A trained model under users who are mixed up: one that makes use of the source must get worse by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Predicted, Ratings, Users
from ml.models.contract import Model
from ml.replicas import Epoch, replica_generator


@dataclass
class Permuted(Model):
    """The model `of` the profile, where each held-out user has the source of another."""

    name: ClassVar[str] = "permuted_source"
    title: ClassVar[str] = "Permuted"
    summary: ClassVar[str] = (
        "a trained model with the sources of test users mixed up; worse if the source helps."
    )
    needs: ClassVar[tuple[str, ...]] = ("model",)
    role: ClassVar[str] = "probe"
    on_device: ClassVar[bool] = False
    serves: ClassVar[str] = ""
    of: str = "diffcdr"

    def __post_init__(self) -> None:
        self.models_: list[Model] = []
        self.seeds_: list[int] = []

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        self.bind(data)
        yield Epoch(1, {})

    def bind(self, data: Sequence[Data]) -> Self:
        self.models_, self.seeds_ = [each.model for each in data], [each.seed for each in data]
        return self

    def _mixed(self, users: Users, replica: int) -> Users:
        return users.take(shuffled(len(users), self.seeds_[replica], users.purpose))

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        return self.models_[replica].predict(self._mixed(users, replica), ratings)

    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        return self.models_[replica].scores(self._mixed(users, replica), items)

    def top(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.models_[replica].top(self._mixed(users, replica), k, exclude, among=among)

    def items_of(self, replica: int = 0) -> int:
        return self.models_[replica].items_of()

    def rows(self, data: Data) -> int:
        return 0

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        return self


def shuffled(n: int, seed: int, purpose: str) -> Tensor:
    """A permutation (n,) int64 of n users in which nobody keeps their place, but for one user alone."""
    order = torch.randperm(n, generator=replica_generator(seed, f"permuted/{purpose}"))
    other = torch.empty_like(order)
    # Along one cycle through all users nobody stays where they are.
    other[order] = order.roll(1)
    return other
