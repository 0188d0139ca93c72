"""CMF: collective matrix factorization, one user table for both domains (paper section 4.1).

Source users keep their rows; target users that are not in the source follow them. Target items follow the
source's. It is fitted to the ratings themselves, with the draws of a factorization named `cmf/<task>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Users
from ml.factorization.adam import MatrixFactorization, RatingTable, merge_domains
from ml.factorization.biased import BiasedFactorization, BiasedFactors
from ml.models.contract import VectorModel
from ml.replicas import Epoch


def collective_table(data: Data) -> RatingTable:
    """Both domains' training ratings over one user table, the users who are in both by their source rows."""
    rows = data.source_user.clone()
    alone = rows < 0
    rows[alone] = data.n_source_users + torch.arange(int(alone.sum()))
    return merge_domains(
        data.source_table,
        data.target_table,
        torch.arange(data.n_source_users),
        rows,
        data.n_source_users + int(alone.sum()),
    )


class Collective(VectorModel):
    """What both CMFs share: a user vector is the row of the collective table, which is the source row."""

    serves: ClassVar[str] = "known"

    def __post_init__(self) -> None:
        self.users_: list[Tensor] = []
        self.items_: list[Tensor] = []

    def vectors(self, users: Users, replica: int = 0) -> Tensor:
        return self.users_[replica][users.source_rows]

    def items(self, replica: int = 0) -> Tensor:
        return self.items_[replica]

    def rows(self, data: Data) -> int:
        return len(data.source_table) + len(data.target_table)

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {"users": self.users_[replica].clone(), "items": self.items_[replica].clone()}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        self.users_, self.items_ = ([state[name] for state in states] for name in ("users", "items"))
        return self


@dataclass
class CMF(Collective):
    """r̂ = u·v by the paper's factorization, unweighted over the union of both domains."""

    name: ClassVar[str] = "cmf"
    title: ClassVar[str] = "CMF"
    summary: ClassVar[str] = "collective matrix factorization: one user vector for both domains."
    source: ClassVar[str] = "Singh and Gordon, KDD 2008"
    needs: ClassVar[tuple[str, ...]] = ("ratings",)
    settings_from: ClassVar[str] = "factors"
    k: int = 10
    epochs: int = 10
    batch: int = 256
    lr: float = 0.01
    init_std: float = 1.0

    @property
    def total_epochs(self) -> int:
        return self.epochs

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        trainer = MatrixFactorization(**self.hyperparameters())
        purpose = f"cmf/{data[0].purpose}"
        for epoch in trainer.train([collective_table(each) for each in data], purpose, device):
            self.users_ = [trainer.user_factors_[r].cpu() for r in range(len(data))]
            self.items_ = [
                trainer.item_factors_[r].cpu()[each.n_source_items :] for r, each in enumerate(data)
            ]
            yield epoch


@dataclass
class BiasedCMF(Collective):
    """r̂ = μ + b_u + b_i + u·v with a penalty, by alternating least squares; `source_weight` is what a source
    rating counts beside a target rating. The offset is the item vectors' last column."""

    name: ClassVar[str] = "cmf_biased"
    title: ClassVar[str] = "CMF"
    summary: ClassVar[str] = "collective matrix factorization with biases, penalties and a weight per domain."
    source: ClassVar[str] = "Singh and Gordon, KDD 2008"
    needs: ClassVar[tuple[str, ...]] = ("ratings",)
    on_device: ClassVar[bool] = False
    objectives: ClassVar[tuple[str, ...]] = ("rating",)
    k: int = 8
    sweeps: int = 12
    penalty: float = 12.0
    bias_penalty: float = 3.0
    source_weight: float = 1.0

    @property
    def total_epochs(self) -> int:
        return self.sweeps

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        fits = [self._sweeps(each) for each in data]
        for epochs in zip(*fits, strict=True):
            self.users_, self.items_ = ([factors[i] for _, *factors in epochs] for i in (0, 1))
            losses = {"loss": [epoch.losses["loss"][0] for epoch, *_ in epochs]}
            yield Epoch(epochs[0][0].number, losses)

    def _sweeps(self, data: Data) -> Iterator[tuple[Epoch, Tensor, Tensor]]:
        table = collective_table(data)
        ours = table.items >= data.n_source_items
        weight = torch.where(ours, 1.0, self.source_weight)
        # Each domain's own mean, or the item biases would have to make up for it.
        means = [table.values[side].mean() for side in (~ours, ours)]
        trainer = BiasedFactorization(
            k=self.k, sweeps=self.sweeps, penalty=self.penalty, bias_penalty=self.bias_penalty
        )
        offset = torch.where(ours, means[1], means[0])
        for epoch in trainer.train(table, f"cmf/{data.purpose}", weight, offset):
            own_offset = trainer.item_offset_ + means[1]
            factors = BiasedFactors(trainer.user_factors_, trainer.item_factors_, own_offset)
            users, items = factors.joined()
            yield epoch, users, items[data.n_source_items :]
