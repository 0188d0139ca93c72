"""The one contract: everything that predicts meets it, from the global mean to DiffCDR.

A model is a dataclass of hyper-parameters. `fit` yields after each epoch and may be asked for predictions
between two of them; what has a closed form yields once. The training loop, the evaluation, the tables and the
server know nothing else of a model: what it needs, what it can be trained for and what readers call it are
facts of its class.

Replicas: `fit` takes the data of R cells (seeds of one task and β) and may train them as one program. What is
asked of a fitted model names its replica.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Data, Predicted, Ratings, Users
from ml.evaluation.ranking import named, placed, top_by_scores, top_k
from ml.evaluation.ratings import predict
from ml.replicas import Epoch

# What a model may need of a cell, see `Data`: another name there is refused.
NEEDS = ("ratings", "times", "factors", "target_factors", "effects", "stars", "model")
# How a model stands in a comparison: `blind` knows nothing of the user, `simple` has statistics of the source
# alone, `learned` is trained, `probe` shows something of another model and is never used.
ROLES = ("blind", "simple", "learned", "probe")
# By falling score, item by item; or as a set that as many samples of the user as can be find something in.
ORDERS = ("probability", "coverage")


class Model(ABC):
    """What predicts ratings and scores items of the target domain for users known from the source domain."""

    name: ClassVar[str]
    title: ClassVar[str]  # what tables call it
    summary: ClassVar[str]  # one sentence for people
    source: ClassVar[str] = ""  # where it comes from
    needs: ClassVar[tuple[str, ...]] = ("ratings",)
    objectives: ClassVar[tuple[str, ...]] = ("rating", "ranking")
    role: ClassVar[str] = "learned"
    # Settings that a profile's factorizations and this model share: `factors` where they start from those.
    settings_from: ClassVar[str] = ""
    # How first target ratings change what is predicted without training: `samples` of the user's vector are
    # weighted by them; lists are made anew after first `choices`, see `top_after`.
    warms_by: ClassVar[str] = ""
    # Whom it can answer for once trained: `anyone` with source ratings, `known` users of the source table
    # alone, or nobody ("").
    serves: ClassVar[str] = "anyone"
    # Whether `fit` computes on the device that it is given: a GPU is wasted on what does not.
    on_device: ClassVar[bool] = True
    # What its scores are to a reader: a `probability`, or a `score` that only orders.
    scored_by: ClassVar[str] = "score"
    # How its lists can be ordered, see `ORDERS`; `coverage` needs `covering`.
    orders: ClassVar[tuple[str, ...]] = ("probability",)
    # Hyper-parameters in which the replicas of one training may differ: numbers that change no shape and no
    # draw. `fit` of a model that has some takes `variants`, the values of each replica.
    varied: ClassVar[tuple[str, ...]] = ()
    # Names of the attributes that `bind` sets: lists of tensors, one a replica.
    binds: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        """Train on R cells together, yielding after each epoch."""

    def give_up(self, replicas: Collection[int]) -> None:  # noqa: B027 - most have no use for it
        """From the next epoch on nothing will be asked of these replicas: a model may go on without them. The
        others keep their numbers."""

    @abstractmethod
    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        """Predictions of `ratings` (their values are not read), whose users are rows of `users`."""

    @abstractmethod
    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        """Scores (n, m) float32 by which the target `items` (m,) int64 are ranked for n users; higher is
        better."""

    @abstractmethod
    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        """One replica's parameters as plain tensors on the CPU; empty where `bind` gives all there is."""

    @abstractmethod
    def load_state_dict(self, *states: dict[str, Tensor]) -> Self:
        """Take over the parameters of one or more replicas and return self."""

    def bind(self, data: Sequence[Data]) -> Self:
        """Give a restored model what it reads of its cells beside its own parameters; returns self."""
        return self

    def bound(self, replica: int = 0) -> dict[str, Tensor]:
        """What `bind` gave, as plain tensors: with it a model needs its cell no more."""
        return {name: getattr(self, name)[replica] for name in self.binds}

    def load_bound(self, *bound: dict[str, Tensor]) -> Self:
        """Take over what `bound` gave of one or more replicas, in place of `bind`, and return self."""
        for name in self.binds:
            setattr(self, name, [each[name] for each in bound])
        return self

    @property
    def total_epochs(self) -> int:
        """How often `fit` yields."""
        return 1

    def rows(self, data: Data) -> int:
        """Training rows of one epoch, for throughput: one a target rating that may be learned from, unless a
        model says otherwise."""
        return len(data.target)

    def top(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k best items of each user but those that `exclude` names for them, best first: items (n, k)
        int64, −1 where there are fewer, and scores (n, k) float32. Of equal scores the lower item comes
        first. Only items of `among` (a,) int64, rising, are listed, where it is given."""
        count = self.items_of(replica)
        items = torch.arange(count) if among is None else among
        found, scores = top_by_scores(
            lambda rows: self.scores(users.take(rows), items, replica),
            len(users),
            len(items),
            k,
            placed(exclude, among, count),
        )
        return named(found, among), scores

    def top_after(self, users: Users, observed: Ratings, k: int, replica: int = 0) -> tuple[Tensor, Tensor]:
        """`top` once the first target ratings `observed` of these users are known, which are not listed
        again. A model that makes nothing of them orders the others as before."""
        return self.top(users, k, observed, replica)

    def covering(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `top`, a list that is best as a set. Raises LookupError for a model that makes none."""
        raise LookupError(f"{self.name} makes no lists by coverage; ask for lists by probability")

    def because(
        self, users: Users, items: Tensor, most: int = 3, replica: int = 0
    ) -> tuple[Tensor, Tensor] | None:
        """The source items that speak most for each of `items` (n, k): up to `most`, −1 where there are
        fewer, and what the item's score loses without them, (n, k, most) each; for less than encoding users
        without each of their ratings takes. None where that is the only way."""
        return None

    @abstractmethod
    def items_of(self, replica: int = 0) -> int:
        """Number of target items."""

    def expected(self, ratings: Ratings, n_users: int, replica: int = 0) -> dict[str, float] | None:
        """Metrics in closed form, where they need no evaluation; None for all but the random ranker."""
        return None

    def own_metrics(self, users: Users, ratings: Ratings, replica: int = 0) -> dict[str, float]:
        """What only this model can say of held-out ratings, beside the metrics that all are judged by."""
        return {}

    def hyperparameters(self) -> dict[str, object]:
        """Every hyper-parameter with its value; those of a nested dataclass as `outer.inner`."""
        flat: dict[str, object] = {}
        for name, value in dataclasses.asdict(self).items():
            flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        return flat


class VectorModel(Model):
    """A model whose prediction is a user vector times an item vector: r̂ = u·v.

    Its user vectors can be fine-tuned on first ratings and compared with true ones.
    """

    @abstractmethod
    def vectors(self, users: Users, replica: int = 0) -> Tensor:
        """Target user vectors (n, k) float32 of `users`, on the CPU."""

    @abstractmethod
    def items(self, replica: int = 0) -> Tensor:
        """Item vectors (items, k) float32 that they meet in a dot product."""

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        return Predicted.points(predict(self.vectors(users, replica), self.items(replica), ratings))

    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        return self.vectors(users, replica) @ self.items(replica)[items].T

    def top(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        items = self.items(replica)
        listed = items if among is None else items[among]
        found, scores = top_k(self.vectors(users, replica), listed, k, placed(exclude, among, len(items)))
        return named(found, among), scores

    def items_of(self, replica: int = 0) -> int:
        return len(self.items(replica))


def with_offset(items: Tensor, offset: Tensor | None) -> Tensor:
    """Item vectors (items, k) with their offset (items,) as a last column, where there is one."""
    return items if offset is None else torch.cat([items, offset[:, None]], 1)


def with_one(users: Tensor, offset: Tensor | None) -> Tensor:
    """User vectors (n, k) with a last column of ones, which meets the items' offset, where there is one."""
    return users if offset is None else torch.cat([users, users.new_ones(len(users), 1)], 1)
