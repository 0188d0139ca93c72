"""What every ranker shares: the choices that it learns from, and its part of the contract.

A ranker sees which items users have chosen (rated) and no rating. It learns from a `Choices`, keeps its state
as plain tensors, and scores users by the rows of the source items that they chose, so that whoever has chosen
something can be ranked for without training.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ml.data import Data, Ratings, Users
from ml.evaluation.ranking import top_by_scores
from ml.models.contract import Model, Predicted
from ml.ranking.periods import When
from ml.replicas import Epoch, replica_generator

FOLDS = 4
CELLS = 5  # whose choices are kept: the seeds that are trained together
KEPT = 100_000_000  # choices of all of these, 8 bytes each; one cell's are kept whatever their number
HISTORY = 50  # source items of a user that are asked for as reasons

DENSE = 20  # times as many products a second as of sparse rows

State = dict[str, Tensor]
# Of rows of training users (m,) their scores (m, items), as though their own target choices were not known.
HeldOutScores = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Choices:
    """Who chose what, as 0/1 matrices. n training users, s source items, t target items.

    source (n, s), target (n, t): of the training users; source_alone (n', s): of all others of the source
    domain, held-out users included; target_alone (n'', t): of users of the target domain who are in no other.
    seed: every draw follows from it. when: they chose, where that is known.
    """

    source: csr_matrix
    target: csr_matrix
    source_alone: csr_matrix
    target_alone: csr_matrix
    seed: int
    when: When | None = None
    shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, data: Data) -> Choices:
        """Those of one cell; the same object for the same choices while it is among the CELLS asked for last,
        with KEPT choices at most: what several models of a cell start from is learned once."""
        choices = cls._of(data)
        kept = RECENT.pop(choices.digest, choices)
        RECENT[choices.digest] = kept
        while len(RECENT) > CELLS or (len(RECENT) > 1 and sum(each.nnz for each in RECENT.values()) > KEPT):
            RECENT.popitem(last=False)
        return kept

    @classmethod
    def _of(cls, data: Data) -> Choices:
        source = choice_matrix(data.source, data.n_source_users, data.n_source_items)
        target = choice_matrix(data.target, data.n_users, data.n_items)
        alone_source = np.setdiff1d(np.arange(data.n_source_users), data.train.source_rows.numpy())
        alone_target = np.setdiff1d(np.arange(data.n_users), data.train.target_rows.numpy())
        return cls(
            source[data.train.source_rows.numpy()],
            target[data.train.target_rows.numpy()],
            source[alone_source],
            target[alone_target],
            data.seed,
            When.of(data),
        )

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def matrices(self) -> tuple[csr_matrix, ...]:
        return self.source, self.target, self.source_alone, self.target_alone

    @property
    def nnz(self) -> int:
        """How many choices, of all users."""
        return sum(matrix.nnz for matrix in self.matrices)

    @cached_property
    def digest(self) -> bytes:
        """Of all that a ranker can learn from; equal choices have equal ones."""
        found = hashlib.blake2b(str(self.seed).encode(), digest_size=16)
        for matrix in self.matrices:
            found.update(str(matrix.shape).encode())
            for part in (matrix.indptr, matrix.indices):
                found.update(part)
        for array in () if self.when is None else self.when.arrays():
            found.update(array)
        return found.digest()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made the first time that `name` is asked for; it must not be changed."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    @cached_property
    def popularity(self) -> np.ndarray:
        """Users who chose each target item: (t,) float64."""
        return np.asarray(self.target.sum(0) + self.target_alone.sum(0), dtype=np.float64).ravel()

    @cached_property
    def rarity(self) -> np.ndarray:
        """log(users / those who chose it) of each source item: (s,) float32."""
        counts = np.asarray(self.source.sum(0) + self.source_alone.sum(0)).ravel()
        users = self.source.shape[0] + self.source_alone.shape[0]
        return np.log(users / counts.clip(min=1)).astype(np.float32)

    def without(self, users: np.ndarray) -> Choices:
        """As if the training users (m,) were cold: their source rows stay, their target rows do not."""
        kept = np.setdiff1d(np.arange(len(self)), users)
        return Choices(
            self.source[kept],
            self.target[kept],
            stacked(self.source_alone, self.source[users]),
            self.target_alone,
            self.seed,
        )

    def folds(self) -> np.ndarray:
        """Each training user's fold, 0..FOLDS−1: (n,)."""
        generator = replica_generator(self.seed, "folds of training users")
        return torch.randperm(len(self), generator=generator).numpy() % min(FOLDS, len(self))


@dataclass(frozen=True)
class Folds:
    """`HeldOutScores` of the states of each fold, learned without the target choices of the fold's users."""

    ranker: Ranker
    choices: Choices
    fold: np.ndarray
    states: list[State]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.choices.target.shape[1]), dtype=np.float32)
        for number, state in enumerate(self.states):
            chosen = np.flatnonzero(self.fold[rows] == number)
            if len(chosen):
                out[chosen] = self.ranker.score(state, self.choices.source[rows[chosen]])
        return out


# The choices asked for last, by digest, with what was learned of them.
RECENT: OrderedDict[bytes, Choices] = OrderedDict()
# Sparse matrices of states in memory with their transposes, by the tensor of their values.
UNPACKED = WeakTensorKeyDictionary()


def choice_matrix(ratings: Ratings, n_users: int, n_items: int) -> csr_matrix:
    """1 where a user rated an item: (n_users, n_items) float32."""
    ones = np.ones(len(ratings), dtype=np.float32)
    matrix = csr_matrix((ones, (ratings.users.numpy(), ratings.items.numpy())), shape=(n_users, n_items))
    matrix.data[:] = 1  # a pair given twice is one choice
    return matrix


def stacked(above: csr_matrix, below: csr_matrix) -> csr_matrix:
    """One matrix on top of another; scipy's own gives other types for empty ones."""
    return csr_matrix(
        (
            np.concatenate([above.data, below.data]),
            np.concatenate([above.indices, below.indices]),
            np.concatenate([above.indptr, above.indptr[-1] + below.indptr[1:]]),
        ),
        shape=(above.shape[0] + below.shape[0], above.shape[1]),
    )


def weighted(source: csr_matrix, rarity: np.ndarray) -> csr_matrix:
    return csr_matrix((source.data * rarity[source.indices], source.indices, source.indptr), source.shape)


def rare_rows(source: csr_matrix, rarity: np.ndarray) -> csr_matrix:
    """Rows weighted by rarity and normalised to length 1; an empty row stays 0."""
    rows = weighted(source, rarity)
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(1), dtype=np.float32)).ravel()
    rows.data /= np.repeat(np.where(length > 0, length, 1), np.diff(rows.indptr))
    return rows


def is_dense(rows: csr_matrix) -> bool:
    """Whether a dense product is the faster one."""
    return rows.nnz * DENSE >= rows.shape[0] * rows.shape[1]


def times(rows: csr_matrix, matrix: np.ndarray) -> np.ndarray:
    """Sparse rows (m, n) times a matrix (n, k)."""
    return (rows.toarray() if is_dense(rows) else rows) @ matrix


def product(dense: np.ndarray, sparse: csr_matrix) -> np.ndarray:
    """A dense matrix (m, n) times a sparse one (n, t)."""
    # torch turns a large matrix round by blocks, numpy column by column.
    return torch.from_numpy(sparse.T @ dense.T).T.contiguous().numpy()


def packed(name: str, matrix: csr_matrix) -> State:
    """A sparse matrix as tensors `name.…`."""
    return {
        f"{name}.values": torch.from_numpy(matrix.data.astype(np.float32)),
        f"{name}.columns": torch.from_numpy(matrix.indices.astype(np.int64)),
        f"{name}.starts": torch.from_numpy(matrix.indptr.astype(np.int64)),
        f"{name}.shape": torch.tensor(matrix.shape),
    }


def unpacked(name: str, state: State) -> csr_matrix:
    """What was `packed`; the same object for the same state, not to be changed."""
    return _unpacked(name, state)[0]


def transposed(name: str, state: State) -> csr_matrix:
    """Its transpose, by rows, so that a few of its columns are found without reading all."""
    return _unpacked(name, state)[1]


def _unpacked(name: str, state: State) -> tuple[csr_matrix, csr_matrix]:
    key = state[f"{name}.values"]
    if key not in UNPACKED:
        # A copy: the matrix must not keep alive the tensor that it is forgotten with.
        values = key.numpy().copy()
        columns, starts = (state[f"{name}.{part}"].numpy() for part in ("columns", "starts"))
        matrix = csr_matrix((values, columns, starts), shape=tuple(state[f"{name}.shape"].tolist()))
        UNPACKED[key] = matrix, matrix.T.tocsr()
    return UNPACKED[key]


def part(state: State, name: str) -> State:
    """The entries `name.…` of a state, without that prefix."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


class Ranker(Model):
    """Base of the rankers: subclasses say how they learn and how they score, for one replica at a time."""

    needs: ClassVar[tuple[str, ...]] = ("ratings",)
    objectives: ClassVar[tuple[str, ...]] = ("ranking",)
    on_device: ClassVar[bool] = False
    role: ClassVar[str] = "simple"

    def __post_init__(self) -> None:
        self.states_: list[State] = []

    @abstractmethod
    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        """The state after each epoch; once where there is a closed form. Entries `loss` are reported only."""

    @abstractmethod
    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        """Scores (m, t) float32 of all target items for users with the source rows (m, s)."""

    def held_out(self, choices: Choices, state: State, device: torch.device | str = "cpu") -> HeldOutScores:
        """By FOLDS models that have not seen the target choices of a fold's users; in closed form where a
        ranker has one. state: learned from all of `choices`."""
        fold = choices.folds()
        states = [
            last(self.learn(choices.without(np.flatnonzero(fold == number)), device))
            for number in range(fold.max() + 1)
        ]
        return Folds(self, choices, fold, states)

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        choices = [Choices.of(each) for each in data]
        for each in choices:
            if each.target.nnz == 0:
                raise ValueError(
                    f"{self.name}: no training user has a target rating; there is nothing to learn"
                )
        learning = [self.learn(each, device) for each in choices]
        for number, states in enumerate(zip(*learning, strict=True), 1):
            losses = [state.pop("loss") for state in states if "loss" in state]
            self.states_ = [
                {**state, "popularity": torch.from_numpy(each.popularity).float()}
                for state, each in zip(states, choices, strict=True)
            ]
            yield Epoch(number, {"loss": [loss.item() for loss in losses]} if losses else {})

    def rows(self, data: Data) -> int:
        return len(data.training)

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        raise TypeError(f"{self.name} ranks items and predicts no ratings; train it for ranking")

    @torch.no_grad()
    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        state = self.state(replica)
        found = torch.from_numpy(self.score(state, self.source_of(users, state)))
        found = found.masked_fill_(state["popularity"] == 0, -torch.inf)
        return found if len(items) == found.shape[1] and bool((items.diff() == 1).all()) else found[:, items]

    def score_after(self, state: State, source: csr_matrix, observed: csr_matrix) -> np.ndarray:
        """`score` once the target choices `observed` (m, t) of these users are known; a ranker that cannot
        use them scores as before."""
        return self.score(state, source)

    @torch.no_grad()
    def top_after(self, users: Users, observed: Ratings, k: int, replica: int = 0) -> tuple[Tensor, Tensor]:
        state = self.state(replica)
        source = self.source_of(users, state)
        seen = choice_matrix(observed, len(users), len(state["popularity"]))

        def scores(rows: Tensor) -> Tensor:
            found = torch.from_numpy(self.score_after(state, source[rows.numpy()], seen[rows.numpy()]))
            return found.masked_fill_(state["popularity"] == 0, -torch.inf)

        return top_by_scores(scores, len(users), len(state["popularity"]), k, observed)

    @torch.no_grad()
    def because(self, users: Users, items: Tensor, most: int = 3, replica: int = 0) -> tuple[Tensor, Tensor]:
        """The source items that speak most for each listed item: up to `most`, −1 where there are fewer, and
        what the item's score loses without them, each alone: (n, k, most).

        items: (n, k), −1 where a place is empty. Each of a user's latest HISTORY source items is left out in
        turn and the user scored again; what raises no score is no reason.
        """
        state = self.state(replica)
        source = self.source_of(users, state)
        reasons = torch.full((*items.shape, most), -1)
        losses = torch.zeros(*items.shape, most)
        for user in range(len(users)):
            history = torch.from_numpy(latest_items(users.ratings, user, HISTORY))
            listed = (items[user] >= 0).nonzero()[:, 0]
            if len(history) == 0 or len(listed) == 0:
                continue
            without = leave_one_out(source[user], history.numpy())
            scores = torch.from_numpy(self.score_of(state, without, items[user, listed].numpy()))
            loss, order = (scores[-1] - scores[:-1]).T.topk(min(most, len(history)), dim=1)
            width = loss.shape[1]
            losses[user, listed, :width] = loss.clamp(min=0)
            reasons[user, listed, :width] = torch.where(loss > 0, history[order], -1)
        return reasons, losses

    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        """`score` of the target items (k,) alone, but for a constant: (m, k) of source rows (m, s)."""
        return self.score(state, source)[:, items]

    def source_of(self, users: Users, state: State) -> csr_matrix:
        """The users' choices in the source domain (m, s), and what else `score` reads of a row."""
        if users.ratings is None:
            raise ValueError(f"{self.name} needs the users' source ratings; give Users with `ratings`")
        return choice_matrix(users.ratings, len(users), int(state["source_items"]))

    def items_of(self, replica: int = 0) -> int:
        return len(self.state(replica)["popularity"])

    def state(self, replica: int) -> State:
        if not self.states_:
            raise RuntimeError(f"{self.name} has learned nothing yet: call fit or load_state_dict first")
        return self.states_[replica]

    def state_dict(self, replica: int = 0) -> State:
        return {name: value.contiguous().clone() for name, value in self.state(replica).items()}

    def load_state_dict(self, *states: State) -> Self:
        self.states_ = [dict(state) for state in states]
        return self


def latest_items(ratings: Ratings, user: int, count: int) -> np.ndarray:
    """The latest `count` different items of a user, rows of `ratings` being oldest first."""
    items = ratings.items[ratings.users == user].numpy()[::-1]
    return items[np.sort(np.unique(items, return_index=True)[1])][:count]


def leave_one_out(row: csr_matrix, items: np.ndarray) -> csr_matrix:
    """The row (1, s) without each of `items` (h,) in turn, and last as it is: (h + 1, s)."""
    full = np.repeat(row.indices[None], len(items) + 1, 0)
    kept = np.ones(full.shape, dtype=bool)
    kept[:-1] = full[:-1] != items[:, None]
    starts = np.concatenate([[0], kept.sum(1).cumsum()])
    values = np.repeat(row.data[None], len(full), 0)[kept]
    return csr_matrix((values, full[kept], starts), shape=(len(full), row.shape[1]))


def last(states: Iterator[State]) -> State:
    for state in states:  # noqa: B007, the last one is what is wanted
        pass
    state.pop("loss", None)
    return state
