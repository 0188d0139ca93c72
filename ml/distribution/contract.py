"""Distributions over the rating levels as models of the one contract.

A distribution knows users by a row of numbers and is fitted to one cell; of several cells each has a copy.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Predicted, Ratings, Users, check_rows
from ml.evaluation.distribution import mean, median
from ml.models.contract import Model
from ml.replicas import Epoch

# What several models start from is kept of the cells that are trained together, the seeds of a task: so many,
# and so many target ratings, at most.
CELLS, RATINGS = 5, 5_000_000
RECENT: OrderedDict[bytes, tuple[int, dict[str, Any]]] = OrderedDict()


@dataclass(frozen=True)
class TransferRatings:
    """What a distribution may learn from: no target rating of a held-out user.

    target: ratings of the target domain, users in 0..n−1, of training users and of the target domain's own
    users; n_users, n_items: sizes of the target tables; source_user: (n,) int64, each target user's row in
    `description`, −1 where there is none; description: (source users, q), a row of numbers a source user;
    levels: (L,) the rating scale, or None for the values that occur; source: ratings of the source domain,
    users rows of `description`, items in 0..n_source_items−1, or None where descriptions are all there is.
    """

    target: Ratings
    n_users: int
    n_items: int
    source_user: Tensor
    description: Tensor
    seed: int
    levels: Tensor | None = None
    source: Ratings | None = None
    n_source_items: int = 0

    def __post_init__(self) -> None:
        if self.source is not None:
            check_rows("source.users", self.source.users, len(self.description))
            check_rows("source.items", self.source.items, self.n_source_items)
        if len(self.source_user) != self.n_users:
            raise ValueError(f"source_user has {len(self.source_user)} rows for {self.n_users} target users")
        check_rows("source_user", self.source_user.clamp(min=0), len(self.description))
        if not (self.source_user[self.target.users] >= 0).any():
            raise ValueError("no target rating of a user with source ratings: nothing to learn transfer from")

    def to(self, device: torch.device | str) -> TransferRatings:
        """The same on a device, but for the source ratings, which stay where they are."""
        return dataclasses.replace(
            self,
            target=self.target.to(device),
            source_user=self.source_user.to(device),
            description=self.description.to(device),
            levels=None if self.levels is None else self.levels.to(device),
        )

    @classmethod
    def of(cls, data: Data) -> TransferRatings:
        """What a cell lets a model see; it is then among those of which is kept what is made `once`."""
        sizes = data.n_users, data.n_items
        known = data.source_user, data.description, data.seed, data.levels
        cell = cls(data.target, *sizes, *known, data.source, data.n_source_items)
        RECENT[cell.digest] = RECENT.pop(cell.digest, (len(data.target), {}))
        while len(RECENT) > CELLS or (RECENT and sum(count for count, _ in RECENT.values()) > RATINGS):
            RECENT.popitem(last=False)
        return cell

    @cached_property
    def digest(self) -> bytes:
        """Of all that a model can learn from; equal cells have equal ones."""
        sizes = self.n_users, self.n_items, self.n_source_items, self.seed
        found = hashlib.blake2b(str(sizes).encode(), digest_size=16)
        columns = [self.source_user, self.description, self.levels]
        for ratings in (self.target, self.source):
            columns += [None] * 3 if ratings is None else [ratings.users, ratings.items, ratings.values]
        for column in columns:
            if column is None:
                found.update(b"none")
                continue
            found.update(f"{column.dtype}{tuple(column.shape)}".encode())
            found.update(column.cpu().contiguous().numpy())
        return found.digest()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives; of a cell that is kept, made the first time `name` is asked for. It must not
        be changed."""
        _, kept = RECENT.get(self.digest, (0, {}))
        if name not in kept:
            kept[name] = make()
        return kept[name]


class Distribution(Model):
    """A model of p(r | u, i) over the rating levels, or of its median alone.

    `trained` fits one cell and `predict_pairs` reads it; the contract's methods are the same by replica.
    """

    objectives: ClassVar[tuple[str, ...]] = ("rating",)
    binds: ClassVar[tuple[str, ...]] = ("levels_",)

    def __post_init__(self) -> None:
        self.cells_: list[Self] = []
        self.levels_: list[Tensor] = []

    @abstractmethod
    def trained(self, data: TransferRatings, device: torch.device | str = "cpu") -> Self:
        """Fit to one cell on a device; every draw follows from data.seed. Returns self."""

    @abstractmethod
    def predict_pairs(self, description: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """p(r | u, i) of m pairs, (m, L) float32, or their median (m,); users are rows of `description`."""

    @abstractmethod
    def restored(self, state: dict[str, Tensor]) -> Self:
        """Take over the tensors of one cell's `state_dict` and return self."""

    @abstractmethod
    def n_items(self) -> int:
        """Target items of the cell that it is fitted to."""

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        self.bind(data)
        self.cells_ = [dataclasses.replace(self).trained(TransferRatings.of(each), device) for each in data]
        yield Epoch(1, {})

    def bind(self, data: Sequence[Data]) -> Self:
        self.levels_ = [each.levels for each in data]
        return self

    def cell(self, replica: int = 0) -> Self:
        """The fitted model of one cell."""
        if not self.cells_:
            raise RuntimeError(f"{self.name} has no parameters yet: call fit or load_state_dict first")
        return self.cells_[replica]

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        found = self.cell(replica).predict_pairs(users.description, ratings.users, ratings.items)
        return self.predicted(found, replica)

    def predicted(self, found: Tensor, replica: int = 0) -> Predicted:
        """What `predict_pairs` gave, as every model's predictions."""
        if found.dim() == 1:
            return Predicted.points(found)
        levels = self.levels_[replica]
        return Predicted(mean(found, levels), median(found, levels), found, levels)

    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        rows = torch.arange(len(users)).repeat_interleave(len(items))
        pairs = Ratings(rows, items.repeat(len(users)), torch.zeros(len(rows)))
        return self.predict(users, pairs, replica).mean.view(len(users), len(items)).float()

    def items_of(self, replica: int = 0) -> int:
        return self.cell(replica).n_items()

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return self.cell(replica).tensors()

    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        self.cells_ = [dataclasses.replace(self).restored(state) for state in states]
        return self

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that prediction needs of one cell besides the hyper-parameters, as plain tensors on the CPU."""
