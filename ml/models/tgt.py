"""TGT: the target domain's matrix factorization alone (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Users
from ml.models.contract import VectorModel
from ml.replicas import Epoch


@dataclass
class TGT(VectorModel):
    """û_t is the user's own row of the target factors: of a cold-start user, one that was never trained."""

    name: ClassVar[str] = "tgt"
    title: ClassVar[str] = "TGT"
    summary: ClassVar[str] = (
        "the target domain's matrix factorization alone; a cold-start user's vector was never trained."
    )
    needs: ClassVar[tuple[str, ...]] = ("target_factors",)
    role: ClassVar[str] = "blind"
    serves: ClassVar[str] = "known"
    on_device: ClassVar[bool] = False
    binds: ClassVar[tuple[str, ...]] = ("users_", "items_")

    def __post_init__(self) -> None:
        self.users_: list[Tensor] = []
        self.items_: list[Tensor] = []
        self.epochs_ = 1

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        """Nothing is left to train: the epochs are those of the factorization, as they were measured then."""
        self.bind(data)
        self.epochs_ = len(data[0].curve)
        return self._measured(data)

    @staticmethod
    def _measured(data: Sequence[Data]) -> Iterator[Epoch]:
        for rows in zip(*(each.curve for each in data), strict=True):
            measured = [{name: v for name, v in row.items() if name not in ("epoch", "loss")} for row in rows]
            yield Epoch(int(rows[0]["epoch"]), {"loss": [row["loss"] for row in rows]}, measured)

    def bind(self, data: Sequence[Data]) -> Self:
        factors = [each.target_factors for each in data]
        self.users_, self.items_ = ([each[i] for each in factors] for i in (0, 1))
        return self

    def vectors(self, users: Users, replica: int = 0) -> Tensor:
        return self.users_[replica][users.target_rows]

    def items(self, replica: int = 0) -> Tensor:
        return self.items_[replica]

    @property
    def total_epochs(self) -> int:
        return self.epochs_

    def rows(self, data: Data) -> int:
        return 0

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        return self
