"""Inputs of the benchmarks, all generated: linked domains of a given scale, and random problems."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ml.data import History, Problem, Ratings, SourceUsers
from ml.factorization.adam import RatingTable, merge_domains
from ml.splits import TEST, assign_roles
from ml.synthetic import Frame, ratings_frame, truth_of

LIKED_ABOVE = 3
K = 10


class LinkedDomains:
    """The synthetic video and music domains of a scale and the users they share.

    source, target: ratings in no order; source_user, target_user: (n,) rows of the shared users; people:
    numbers of the target's users in the union of both; history: liked source items of the shared users.
    """

    def __init__(self, scale: str) -> None:
        self.source, self.target = (ratings_frame(domain, scale) for domain in ("video", "music"))
        source_truth, target_truth = (truth_of(domain, scale) for domain in ("video", "music"))
        _, self.source_user, self.target_user = np.intersect1d(
            source_truth.people, target_truth.people, assume_unique=True, return_indices=True
        )
        self.people = target_truth.people
        self.n_users = len(source_truth.people), len(target_truth.people)
        self.n_items = len(source_truth.quality), len(target_truth.quality)
        self.history = self._history()

    def _history(self) -> History:
        place = _places(self.source_user, self.n_users[0])[self.source.users]
        kept = np.flatnonzero((place >= 0) & (self.source.stars > LIKED_ABOVE))
        kept = kept[np.lexsort((kept, self.source.days[kept], place[kept]))]
        counts = np.bincount(place[kept], minlength=len(self.source_user))
        offsets = np.concatenate([[0], counts.cumsum()])
        return History(torch.from_numpy(offsets), torch.from_numpy(self.source.items[kept].astype(np.int64)))

    def roles(self, beta: float, seed: int) -> np.ndarray:
        return assign_roles(len(self.source_user), beta, seed, "benchmark", validation=0)

    def source_table(self, seed: int) -> RatingTable:
        every = np.ones(len(self.source.users), dtype=bool)
        return _table(self.source, every, self.n_users[0], self.n_items[0], seed)

    def target_table(self, beta: float, seed: int) -> RatingTable:
        """The target ratings without the test users'."""
        hidden = np.zeros(self.n_users[1], dtype=bool)
        hidden[self.target_user[self.roles(beta, seed) == TEST]] = True
        return _table(self.target, ~hidden[self.target.users], self.n_users[1], self.n_items[1], seed)

    def collective_table(self, beta: float, seed: int) -> RatingTable:
        """Both domains' training ratings over one user table, in which shared users keep their source row."""
        source, target = self.source_table(seed), self.target_table(beta, seed)
        row = np.full(self.n_users[1], -1)
        row[self.target_user] = self.source_user
        row[row < 0] = self.n_users[0] + np.arange((row < 0).sum())
        union = sum(self.n_users) - len(self.source_user)
        return merge_domains(source, target, torch.arange(self.n_users[0]), torch.from_numpy(row), union)

    def problem(
        self,
        beta: float,
        seed: int,
        source: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        ratings: int | None = None,
    ) -> Problem:
        """The training users with the factors (users, items) of both domains, and some of their ratings."""
        members = np.flatnonzero(self.roles(beta, seed) != TEST)
        known = self.ratings_of(members)
        if ratings is not None:
            sample = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:ratings]
            known = Ratings(known.users[sample], known.items[sample], known.values[sample])
        return Problem(
            source=self.source_users(members, source),
            target_factors=target[0][torch.from_numpy(self.target_user[members])],
            target_items=target[1],
            ratings=known,
            seed=seed,
        )

    def test_members(self, beta: float, seed: int) -> np.ndarray:
        """The test users, as rows of the shared users."""
        return np.flatnonzero(self.roles(beta, seed) == TEST)

    def source_users(self, members: np.ndarray, source: tuple[Tensor, Tensor]) -> SourceUsers:
        rows = torch.from_numpy(self.source_user[members])
        return SourceUsers(source[0][rows], self.history.take(torch.from_numpy(members)), source[1])

    def ratings_of(self, members: np.ndarray) -> Ratings:
        """Target ratings of the shared users `members`, numbered as there."""
        place = _places(self.target_user[members], self.n_users[1])[self.target.users]
        return _ratings(self.target, place, place >= 0)

    def random_factors(self, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Normal factors (users, items) of the source and of the target."""
        generator = torch.Generator().manual_seed(seed)
        tables = [
            torch.randn(rows, K, generator=generator)
            for side in (0, 1)
            for rows in (self.n_users[side], self.n_items[side])
        ]
        return (tables[0], tables[1]), (tables[2], tables[3])


def _places(rows: np.ndarray, size: int) -> np.ndarray:
    """Where each of `size` rows stands in `rows`, -1 where it does not."""
    place = np.full(size, -1)
    place[rows] = np.arange(len(rows))
    return place


def _ratings(frame: Frame, users: np.ndarray, kept: np.ndarray) -> Ratings:
    return Ratings(
        torch.from_numpy(users[kept].astype(np.int64)),
        torch.from_numpy(frame.items[kept].astype(np.int64)),
        torch.from_numpy(frame.stars[kept].astype(np.float32)),
    )


def _table(frame: Frame, kept: np.ndarray, n_users: int, n_items: int, seed: int) -> RatingTable:
    ratings = _ratings(frame, frame.users, kept)
    return RatingTable(ratings.users, ratings.items, ratings.values, n_users, n_items, seed)


def random_problem(users: int, ratings: int, items: int, seed: int) -> Problem:
    """Normal factors, as many ratings, no liked items."""
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        SourceUsers(torch.randn(users, K, generator=generator), no_history(users), torch.zeros(1, K)),
        torch.randn(users, K, generator=generator),
        torch.randn(items, K, generator=generator),
        random_ratings(users, items, ratings, generator),
        seed,
    )


def random_ratings(users: int, items: int, ratings: int, generator: torch.Generator) -> Ratings:
    return Ratings(
        torch.randint(users, (ratings,), generator=generator),
        torch.randint(items, (ratings,), generator=generator),
        torch.randint(1, 6, (ratings,), generator=generator).float(),
    )


def no_history(users: int) -> History:
    return History(torch.zeros(users + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
