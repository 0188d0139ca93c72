"""One cold-start problem of two DataFrames, as each model takes it: `Data`, users, an encoder of new ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ml.cold_start import ColdStart
from ml.data import Data, HeldOut, Problem, Ratings, SourceUsers, Users, ratings_of
from ml.distribution.discriminative import star_description
from ml.distribution.effects import Effects, fit_effects, rating_levels
from ml.distribution.fold_in import EffectsFoldIn
from ml.encoder import ItemStatistics, SourceEncoder, liked
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.fold_in import FoldIn
from ml.frames import Domain
from ml.models.statistics import source_statistics
from ml.splits import TRAIN, VALIDATION

KNOWN = ("ratings", "times", "stars", "effects", "factors")


@dataclass(frozen=True)
class Prepared:
    """source, target: the domains; known: who may be learned from; seed: every draw follows from it;
    factorization: of both domains, for models of the paper."""

    source: Domain
    target: Domain
    known: ColdStart
    seed: int
    factorization: MatrixFactorization = field(default_factory=MatrixFactorization)

    def data(self, needs: Collection[str]) -> Data:
        """What a model with these `needs` may learn from. Raises ValueError for a need that frames cannot
        meet."""
        beyond = sorted(set(needs) - set(KNOWN))
        if beyond:
            raise ValueError(f"a model that needs {beyond[0]} is trained by the pipeline alone")
        known, source = self.known, self.source.ratings
        train = known.members(TRAIN)
        return Data(
            seed=self.seed,
            source=source.tensors(),
            target=known.target.tensors(known.training_rows()),
            n_source_users=source.n_users,
            n_source_items=source.n_items,
            n_users=known.target.n_users,
            n_items=known.target.n_items,
            train=self.users(needs, train, "train"),
            training=known.target_ratings(train),
            source_user=known.source_user(),
            validation=self.held_out(needs, VALIDATION, "validation"),
            scale=self.target.scale,
            source_scale=self.source.scale,
            purpose="frames",
            problem=self._problem() if "factors" in needs else None,
            description=self._description(needs),
            levels=self._target_levels if {"stars", "effects"} & set(needs) else None,
        )

    def held_out(self, needs: Collection[str], role: int, purpose: str) -> HeldOut | None:
        """The users of a role and their target ratings; None where there are none."""
        members = self.known.members(role)
        if not len(members):
            return None
        return HeldOut(self.users(needs, members, purpose), self.known.target_ratings(members))

    def users(self, needs: Collection[str], members: np.ndarray, purpose: str = "") -> Users:
        """The overlapping users `members` (n,), as far as `needs` go."""
        rows = torch.from_numpy(self.known.source_rows[members])
        every = self.everyone(needs).take(rows)
        ratings = None
        if "ratings" in needs:
            ratings = ratings_of(self.source.ratings.tensors(), rows, self.source.ratings.n_users)
        target = torch.from_numpy(self.known.target_rows[members])
        return Users(
            rows, target, every.factors, ratings, every.statistics, every.description, purpose=purpose
        )

    def everyone(self, needs: Collection[str]) -> Users:
        """All source users, but for their ratings."""
        rows = torch.arange(self.source.ratings.n_users)
        return Users(
            rows,
            torch.full_like(rows, -1),
            factors=self._source_users if "factors" in needs else None,
            statistics=self._statistics if "ratings" in needs else None,
            description=self._description(needs),
        )

    def encoder(self, needs: Collection[str]) -> SourceEncoder:
        """What turns source ratings into users as a model with these `needs` takes them."""
        ratings, n_items = self.source.ratings.tensors(), self.source.ratings.n_items
        statistics = effects = factors = None
        if {"ratings", "stars"} & set(needs):
            levels = self._source_levels if "stars" in needs else None
            statistics = ItemStatistics.of(ratings, n_items, levels)
        if "effects" in needs:
            held = self._effects
            effects = EffectsFoldIn(
                held.items, held.intercept, held.levels, held.basis, held.prior_map, held.prior_covariance
            )
        if "factors" in needs:
            factors = FoldIn.of(*self._source_factors, ratings)
        return SourceEncoder(
            tuple(sorted(needs)), n_items, self.source.scale, self._middle, factors, statistics, effects
        )

    @property
    def _middle(self) -> float:
        """A rating above it counts as liked."""
        return sum(self.source.scale) / 2

    @cached_property
    def _statistics(self) -> Tensor:
        ratings = self.source.ratings
        return source_statistics(ratings.tensors(), ratings.n_users, ratings.n_items, self.source.scale)

    @cached_property
    def _source_levels(self) -> Tensor:
        return rating_levels(torch.from_numpy(self.source.ratings.values))

    @cached_property
    def _target_levels(self) -> Tensor:
        return rating_levels(torch.from_numpy(self.target.ratings.values))

    @cached_property
    def _effects(self) -> Effects:
        ratings = self.source.ratings
        return fit_effects(
            ratings.tensors(), ratings.n_users, ratings.n_items, self.seed, levels=self._source_levels
        )

    def _description(self, needs: Collection[str]) -> Tensor | None:
        if "effects" in needs:
            return self._effects.description()
        return self._stars if "stars" in needs else None

    @cached_property
    def _stars(self) -> Tensor:
        ratings = self.source.ratings
        return star_description(ratings.tensors(), ratings.n_users, ratings.n_items, self._source_levels)

    # Factors, of the paper's matrix factorization.

    @cached_property
    def _source_factors(self) -> tuple[Tensor, Tensor]:
        ratings = self.source.ratings
        return self._factors(ratings.tensors(), ratings.n_users, ratings.n_items, "source")

    @cached_property
    def _target_factors(self) -> tuple[Tensor, Tensor]:
        ratings = self.known.target
        trained = ratings.tensors(self.known.training_rows())
        return self._factors(trained, ratings.n_users, ratings.n_items, "target")

    def _factors(self, ratings: Ratings, n_users: int, n_items: int, purpose: str) -> tuple[Tensor, Tensor]:
        table = RatingTable(ratings.users, ratings.items, ratings.values, n_users, n_items, self.seed)
        trained = self.factorization.fit([table], f"frames/{purpose}")
        return trained.user_factors_[0].clone(), trained.item_factors_[0].clone()

    @cached_property
    def _source_users(self) -> SourceUsers:
        ratings = self.source.ratings
        users, items = self._source_factors
        return SourceUsers(users, liked(ratings.tensors(), ratings.n_users, self._middle), items)

    def _problem(self) -> Problem:
        train = self.known.members(TRAIN)
        users, items = self._target_factors
        return Problem(
            source=self._source_users.take(torch.from_numpy(self.known.source_rows[train])),
            target_factors=users[torch.from_numpy(self.known.target_rows[train])],
            target_items=items,
            ratings=self.known.target_ratings(train),
            seed=self.seed,
        )
