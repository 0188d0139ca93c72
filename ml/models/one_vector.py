"""Controls that give every user the same target vector, whatever their source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Problem, Users
from ml.models.contract import VectorModel, with_offset, with_one
from ml.models.statistics import ridge
from ml.replicas import Epoch


class OneVector(VectorModel):
    """û_t = w for every user."""

    needs: ClassVar[tuple[str, ...]] = ("factors",)
    role: ClassVar[str] = "blind"
    on_device: ClassVar[bool] = False
    binds: ClassVar[tuple[str, ...]] = ("items_",)

    def __post_init__(self) -> None:
        self.vectors_: list[Tensor] = []
        self.items_: list[Tensor] = []

    @abstractmethod
    def solve(self, problem: Problem) -> Tensor:
        """w (k,) float32."""

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        self.bind(data)
        self.vectors_ = [with_one(self.solve(each.problem)[None], each.offset)[0] for each in data]
        yield Epoch(1, {})

    def bind(self, data: Sequence[Data]) -> Self:
        self.items_ = [with_offset(each.problem.target_items, each.offset) for each in data]
        return self

    def rows(self, data: Data) -> int:
        return len(data.problem.ratings)

    def vectors(self, users: Users, replica: int = 0) -> Tensor:
        return self.vectors_[replica].repeat(len(users), 1)

    def items(self, replica: int = 0) -> Tensor:
        return self.items_[replica]

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {"vector": self.vectors_[replica].clone()}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        self.vectors_ = [state["vector"] for state in states]
        return self


@dataclass
class MeanTargetVector(OneVector):
    """The mean of the training users' target factors."""

    name: ClassVar[str] = "mean_target_vector"
    title: ClassVar[str] = "Mean vector"
    summary: ClassVar[str] = "the mean of the training users' target vectors, for every user."

    def solve(self, problem: Problem) -> Tensor:
        return problem.target_factors.mean(0)


@dataclass
class SharedVector(OneVector):
    """The one vector that fits the training users' ratings best: ridge on the items' factors."""

    name: ClassVar[str] = "shared_vector"
    title: ClassVar[str] = "Shared vector"
    summary: ClassVar[str] = "the one vector that fits the training users' ratings best, for every user."

    def solve(self, problem: Problem) -> Tensor:
        items = problem.target_items[problem.ratings.items].double()
        return ridge(items, problem.ratings.values.double()).float()
