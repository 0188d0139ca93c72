"""Users who were not in training, as models take them: from their source ratings, on frozen tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ml.data import History, Ratings, SourceUsers, Users, check_rows
from ml.distribution.discriminative import level_counts, overall_shares, star_description
from ml.distribution.effects import level_index
from ml.distribution.fold_in import EffectsFoldIn
from ml.fold_in import FoldIn
from ml.models.statistics import ItemMeans, source_statistics


@dataclass(frozen=True)
class ItemStatistics:
    """Of the source domain's own ratings: means (items,), the items' shrunk means; and, where users are
    described by stars, levels (L,) and shares (L,) of them; all float64."""

    means: Tensor
    levels: Tensor
    shares: Tensor

    @classmethod
    def of(cls, ratings: Ratings, n_items: int, levels: Tensor | None = None) -> Self:
        """Raises ValueError without ratings, or for one that is no level where there are levels."""
        means, nothing = ItemMeans.of(ratings, n_items).means, torch.zeros(0, dtype=torch.float64)
        if levels is None:
            return cls(means, nothing, nothing)
        index = level_index(ratings.values, levels)
        return cls(means, levels, overall_shares(level_counts(index * 0, index, 1, len(levels))))


@dataclass(frozen=True)
class SourceEncoder:
    """Turns source ratings into `Users`, as far as a model `needs` to know them.

    n_items: source items; scale: lowest and highest source rating; liked_above: a rating above it counts as
    liked. factors, statistics, effects: the frozen tables of what is needed, None of what is not.
    """

    needs: tuple[str, ...]
    n_items: int
    scale: tuple[float, float]
    liked_above: float
    factors: FoldIn | None = None
    statistics: ItemStatistics | None = None
    effects: EffectsFoldIn | None = None

    @property
    def levels(self) -> Tensor | None:
        """The values (L,) that a rating may have; None where any on the scale will do."""
        if self.effects is not None:
            return self.effects.levels
        return self.statistics.levels if "stars" in self.needs else None

    def __call__(self, ratings: Ratings, n: int) -> Users:
        """n users by `ratings`: users in 0..n−1, items rows of the source's, each user's oldest first.

        Raises ValueError for rows outside the tables and, where there are levels, for a rating that is none.
        """
        check_rows("ratings.users", ratings.users, n)
        check_rows("ratings.items", ratings.items, self.n_items)
        nowhere = torch.full((n,), -1)
        with_ratings = "ratings" in self.needs
        return Users(
            nowhere,
            nowhere,
            factors=self._factors(ratings, n),
            ratings=ratings if with_ratings else None,
            statistics=self._statistics(ratings, n) if with_ratings else None,
            description=self._description(ratings, n),
        )

    def _factors(self, ratings: Ratings, n: int) -> SourceUsers | None:
        if self.factors is None:
            return None
        history = liked(ratings, n, self.liked_above)
        return SourceUsers(self.factors(ratings, n), history, self.factors.standardized_items)

    def _statistics(self, ratings: Ratings, n: int) -> Tensor:
        return source_statistics(ratings, n, self.n_items, self.scale, self.statistics.means)

    def _description(self, ratings: Ratings, n: int) -> Tensor | None:
        if self.effects is not None:
            return self.effects(ratings, n)
        if "stars" not in self.needs:
            return None
        held = self.statistics
        return star_description(ratings, n, self.n_items, held.levels, held.means, held.shares)

    def settings(self) -> dict[str, Any]:
        """What `restore` needs besides tensors, as JSON can hold it."""
        plain = ("n_items", "scale", "liked_above")
        return {"needs": list(self.needs), **{name: getattr(self, name) for name in plain}}

    def tensors(self) -> dict[str, Tensor]:
        """The frozen tables as plain tensors, named `table.field`."""
        tables = {name: getattr(self, name) for name in TABLES}
        return {
            f"{name}.{field}": value
            for name, table in tables.items()
            if table is not None
            for field, value in vars(table).items()
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The encoder that `settings` and `tensors` were taken from."""
        tables = {
            name: kind(*(tensors[f"{name}.{field.name}"] for field in dataclasses.fields(kind)))
            for name, kind in TABLES.items()
            if any(each.startswith(f"{name}.") for each in tensors)
        }
        low, high = settings["scale"]
        return cls(
            tuple(settings["needs"]), settings["n_items"], (low, high), settings["liked_above"], **tables
        )


TABLES = {"factors": FoldIn, "statistics": ItemStatistics, "effects": EffectsFoldIn}


def liked(ratings: Ratings, n: int, above: float) -> History:
    """What n users liked, in the order of `ratings`."""
    chosen = ratings.values > above
    users, order = ratings.users[chosen].sort(stable=True)
    return history_of(users, ratings.items[chosen][order], n)


def history_of(users: Tensor, items: Tensor, n: int) -> History:
    """Histories of n users from rows (m,) sorted by user, each user's in order."""
    counts = torch.bincount(users, minlength=n)
    return History(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), items)
