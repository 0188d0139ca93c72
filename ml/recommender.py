"""Lists and ratings of the target domain for users who are known from the source domain, by trained models.

Two models answer: one makes the lists, one says how many stars are to be expected. Either may be any model of
the contract. A user is known by the row in the source domain's table, or by source ratings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from ml.data import History, Predicted, Ratings, SourceUsers, Users
from ml.encoder import SourceEncoder
from ml.models.contract import ORDERS, Model
from ml.models.registry import build

BLOCK = 1 << 12  # users who are answered at a time
PAIRS = 1 << 18  # ratings predicted at a time
_NOTHING = Ratings(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0))
REASONS = 3  # source items that are named for a listed item
LEFT_OUT = 200  # latest ratings of a user that are left out in turn to find them


@dataclass(frozen=True)
class UserRatings:
    """Ratings of n users in compressed rows: offsets (n + 1,) int64, items (offsets[-1],) int64, values
    float32 and, where they are known and needed, times float32; each user's oldest first."""

    offsets: Tensor
    items: Tensor
    values: Tensor
    times: Tensor | None = None

    @classmethod
    def of(cls, ratings: Ratings, n: int) -> Self:
        users, order = ratings.users.sort(stable=True)
        counts = torch.bincount(users, minlength=n)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        ordered = ratings.take(order)
        return cls(offsets, ordered.items, ordered.values, ordered.times)

    def take(self, users: Tensor) -> Ratings:
        """The ratings of `users` (m,) int64, who become 0..m−1."""
        taken = History(self.offsets, torch.arange(len(self.items))).take(users)
        rows = torch.arange(len(users)).repeat_interleave(taken.offsets.diff())
        times = None if self.times is None else self.times[taken.items]
        return Ratings(rows, self.items[taken.items], self.values[taken.items], times)


@dataclass(frozen=True)
class Served:
    """A trained model, restored, with what it needs to know users.

    name: what answers call it; kind: the registry's name of it; users: all of the source domain's, but for
    their ratings.
    """

    name: str
    kind: str
    model: Model
    encoder: SourceEncoder
    users: Users

    def known(self, rows: Tensor, ratings: Ratings) -> Users:
        """Users of the source domain by row (n,) int64; `ratings` are theirs, users in 0..n−1."""
        found = self.users.take(rows)
        return replace(found, ratings=ratings) if "ratings" in self.encoder.needs else found

    def settings(self) -> dict[str, Any]:
        model = {"name": self.name, "kind": self.kind, "hyperparameters": self.model.hyperparameters()}
        return {**model, "encoder": self.encoder.settings()}

    def tensors(self) -> dict[str, Tensor]:
        parts = {
            "weights": self.model.state_dict(),
            "bound": self.model.bound(),
            "encoder": self.encoder.tensors(),
            "users": _user_tensors(self.users),
        }
        return {f"{part}/{name}": value for part, held in parts.items() for name, value in held.items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        model = build(settings["kind"], **settings["hyperparameters"])
        model.load_state_dict(_part(tensors, "weights")).load_bound(_part(tensors, "bound"))
        encoder = SourceEncoder.restore(settings["encoder"], _part(tensors, "encoder"))
        users = _users_of(_part(tensors, "users"))
        return cls(settings["name"], settings["kind"], model, encoder, users)


@dataclass(frozen=True)
class Asked:
    """n users as the models take them; stars: the same as lists where one model does both, or none stars.
    ratings: their source ratings; rated: their target ratings, items that they are not shown again; users of
    both in 0..n−1, each user's ratings oldest first."""

    lists: Users
    stars: Users
    ratings: Ratings
    rated: Ratings | None

    def __len__(self) -> int:
        return len(self.lists)

    @property
    def known(self) -> Tensor:
        """Whether there is something to go by: (n,) bool."""
        return torch.bincount(self.ratings.users, minlength=len(self)) > 0

    def take(self, users: Tensor) -> Asked:
        """The users (m,) int64, in that order."""
        if len(users) == len(self) and torch.equal(users, torch.arange(len(self))):
            return self
        lists = self.lists.take(users)
        return Asked(
            lists,
            lists if self.stars is self.lists else self.stars.take(users),
            _of_rows(self.ratings, users, len(self)),
            None if self.rated is None else _of_rows(self.rated, users, len(self)),
        )


@dataclass(frozen=True)
class Listed:
    """Lists of n users, best first. items: (n, k) int64, −1 where a list has fewer; scores, (n, k) float32;
    mean and median, (n, k) float32: the stars that are expected, within the scale, NaN where no model says;
    known: (n,) bool, the others get the most popular items, whose score is their number of ratings."""

    items: Tensor
    scores: Tensor
    mean: Tensor
    median: Tensor
    known: Tensor


@dataclass(frozen=True)
class Recommender:
    """Two models with all that they answer from.

    lists, stars: the models; stars is None where none was trained for ratings. history: source ratings of the
    source domain's users; rated: their target ratings, where they have any; popularity: (items,) int64,
    ratings of each target item in training; allowed: (a,) int64, the target items that may be listed, rising;
    scale: lowest and highest target rating.
    """

    lists: Served
    stars: Served | None
    history: UserRatings
    rated: UserRatings
    popularity: Tensor
    allowed: Tensor
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        if len(self.allowed) == 0:
            raise ValueError("no target item may be recommended: exclude fewer or lower min_ratings")

    # Users.

    def known_users(self, rows: Tensor) -> Asked:
        """Users of the source domain by row (n,) int64; −1 is a user of whom nothing is known."""
        strange, rows = rows < 0, rows.clamp(min=0)
        ratings, rated = (_without(part.take(rows), strange) for part in (self.history, self.rated))
        stars = self.lists if self.stars is None else self.stars
        lists = self.lists.known(rows, ratings)
        return Asked(
            lists,
            lists if stars is self.lists else stars.known(rows, ratings),
            ratings,
            rated,
        )

    def new_users(self, ratings: Ratings, n: int) -> Asked:
        """n users by their source `ratings`. Raises ValueError as `SourceEncoder` does."""
        lists = self.lists.encoder(ratings, n)
        other = self.stars is not None and self.stars is not self.lists
        return Asked(lists, self.stars.encoder(ratings, n) if other else lists, ratings, None)

    @property
    def source_levels(self) -> Tensor | None:
        """The values (L,) that a source rating may have; None where any on the scale will do."""
        levels = [s.encoder.levels for s in (self.lists, self.stars) if s is not None]
        return next((each for each in levels if each is not None), None)

    # Answers.

    @cached_property
    def most_popular(self) -> Tensor:
        """The allowed items by falling number of ratings, of equal ones the lower row first: (a,) int64."""
        counts = self.popularity[self.allowed]
        return self.allowed[counts.sort(descending=True, stable=True).indices]

    def check_order(self, order: str) -> None:
        """Raise ValueError where the list model cannot order lists so."""
        if order not in self.lists.model.orders:
            known = ", ".join(self.lists.model.orders)
            raise ValueError(f"list {order[:60]!r} is none that {self.lists.name} makes; it makes {known}")

    def recommend(self, asked: Asked, k: int, order: str = ORDERS[0], include_rated: bool = False) -> Listed:
        """The k best allowed items of each user, without those that the user has rated unless asked for.

        order: see `ml.models.contract.ORDERS`. Raises ValueError for an order that the model does not make.
        """
        self.check_order(order)
        blocks = torch.arange(len(asked)).split(BLOCK)
        parts = [self._block(asked.take(rows), k, order, include_rated) for rows in blocks]
        if not parts:
            nothing = torch.empty(0, k)
            return Listed(nothing.long(), nothing, nothing, nothing, asked.known)
        return Listed(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _block(self, asked: Asked, k: int, order: str, include_rated: bool) -> tuple[Tensor, ...]:
        known, exclude = asked.known, None if include_rated else asked.rated
        items = torch.full((len(asked), k), -1)
        scores = torch.full((len(asked), k), -torch.inf)
        popular = self.most_popular[:k]
        items[:, : len(popular)] = popular
        scores[:, : len(popular)] = self.popularity[popular].float()
        rows = known.nonzero()[:, 0]
        if len(rows):
            whole = len(rows) == len(asked)
            users = asked.lists if whole else asked.lists.take(rows)
            barred = exclude if whole or exclude is None else _of_rows(exclude, rows, len(asked))
            model = self.lists.model
            ask = model.top if order == ORDERS[0] else model.covering
            items[rows], scores[rows] = ask(users, k, barred, among=self.allowed)
        mean, median = self._expected(asked, items)
        return items, scores, mean, median, known

    def _expected(self, asked: Asked, items: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and median stars of lists (n, k), NaN where there is no item."""
        mean, median = torch.full(items.shape, torch.nan), torch.full(items.shape, torch.nan)
        if self.stars is None:
            return mean, median
        known = asked.known
        users, places = ((items >= 0) & known[:, None]).nonzero(as_tuple=True)
        predicted = self.rate(asked, users, items[users, places])
        mean[users, places], median[users, places] = predicted.mean.float(), predicted.median.float()
        if not known.all():
            # All of whom nothing is known have one list.
            popular = items[~known][0]
            nobody = self.new_users(_NOTHING, 1)
            predicted = self.rate(nobody, torch.zeros_like(popular), popular.clamp(min=0))
            for values, found in ((mean, predicted.mean), (median, predicted.median)):
                values[~known] = found.float().where(popular >= 0, torch.nan)
        return mean, median

    def rate(self, asked: Asked, users: Tensor, items: Tensor) -> Predicted:
        """Predicted ratings, within the scale, of pairs: users (m,) int64 in 0..n−1 and items (m,) int64.

        Raises ValueError where no model was trained for ratings.
        """
        if self.stars is None:
            raise ValueError("no model of this recommender was trained for ratings: ask for lists")
        blocks = zip(users.split(PAIRS), items.split(PAIRS), strict=True)
        parts = [
            self.stars.model.predict(asked.stars, Ratings(u, i, torch.zeros(len(u)))) for u, i in blocks
        ] or [Predicted.points(torch.empty(0))]
        first = parts[0]
        joined = Predicted(
            torch.cat([part.mean for part in parts]),
            torch.cat([part.median for part in parts]),
            None if first.probabilities is None else torch.cat([part.probabilities for part in parts]),
            first.levels,
        )
        return joined.clipped(self.scale)

    @torch.no_grad()
    def because(self, asked: Asked, user: int, items: Tensor) -> list[list[int]]:
        """Up to REASONS source items of a user's ratings that speak most for each of the target `items` (m,):
        those without which its score falls most, the user known by the other ratings alone.

        Of a long history the latest LEFT_OUT ratings are asked about.
        """
        mine = asked.ratings.users == user
        history = asked.ratings.take(mine)
        history = replace(history, users=history.users * 0)
        if len(history) == 0 or len(items) == 0:
            return [[] for _ in items]
        model, encoder = self.lists.model, self.lists.encoder
        own = model.because(encoder(history, 1), items[None], REASONS)
        if own is not None:
            return [[row for row in rows if row >= 0] for rows in own[0][0].tolist()]
        kept = len(history) - min(len(history), LEFT_OUT)
        users = encoder(without_each(history, kept), len(history) - kept + 1)
        scores = model.scores(users, items)
        said = torch.full((len(history), len(items)), -torch.inf)
        said[kept:] = scores[0] - scores[1:]
        loss, order = said.sort(dim=0, descending=True, stable=True)
        return [
            [int(history.items[row]) for row, lost in zip(rows, lose, strict=True) if lost > 0]
            for rows, lose in zip(order[:REASONS].T.tolist(), loss[:REASONS].T.tolist(), strict=True)
        ]

    # Kept apart from the cell.

    def settings(self) -> dict[str, Any]:
        """What `restore` needs besides tensors, as JSON can hold it."""
        shared = self.stars is self.lists
        stars = None if self.stars is None or shared else self.stars.settings()
        return {"lists": self.lists.settings(), "stars": stars, "shared": shared, "scale": list(self.scale)}

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs, as plain tensors."""
        held = {f"lists/{name}": value for name, value in self.lists.tensors().items()}
        if self.stars is not None and self.stars is not self.lists:
            held |= {f"stars/{name}": value for name, value in self.stars.tensors().items()}
        for part in ("history", "rated"):
            columns = vars(getattr(self, part)).items()
            held |= {f"{part}/{name}": value for name, value in columns if value is not None}
        held |= {"popularity": self.popularity, "allowed": self.allowed}
        # Tables that two parts share are written for each.
        return {name: value.clone() for name, value in held.items()}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The recommender that `settings` and `tensors` were taken from."""
        lists = Served.restore(settings["lists"], _part(tensors, "lists"))
        stars = lists if settings["shared"] else None
        if settings["stars"] is not None:
            stars = Served.restore(settings["stars"], _part(tensors, "stars"))
        low, high = settings["scale"]
        history, rated = (UserRatings(**_part(tensors, part)) for part in ("history", "rated"))
        return cls(lists, stars, history, rated, tensors["popularity"], tensors["allowed"], (low, high))


def without_each(history: Ratings, kept: int = 0) -> Ratings:
    """One user's `history` (r,) as that of r − kept + 1 users: the whole of user 0, and all but rating
    kept + j − 1 of user j."""
    rows = torch.arange(len(history))
    users = torch.arange(len(history) - kept + 1)
    present = rows != (users + kept - 1)[:, None]
    present[0] = True
    of, which = present.nonzero(as_tuple=True)
    return replace(history.take(which), users=of)


def _without(ratings: Ratings, users: Tensor) -> Ratings:
    """The ratings of all but `users` (n,) bool."""
    return ratings.take(~users[ratings.users])


def _of_rows(ratings: Ratings, rows: Tensor, n: int) -> Ratings:
    return UserRatings.of(ratings, n).take(rows)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _user_tensors(users: Users) -> dict[str, Tensor]:
    plain = {name: getattr(users, name) for name in _COLUMNS}
    held = {name: value for name, value in plain.items() if value is not None}
    if users.factors is None:
        return held
    history = users.factors.history
    held |= {"factors": users.factors.factors, "item_factors": users.factors.item_factors}
    return {**held, "liked.offsets": history.offsets, "liked.items": history.items}


_COLUMNS: Sequence[str] = ("source_rows", "target_rows", "statistics", "description")


def _users_of(held: Mapping[str, Tensor]) -> Users:
    factors = None
    if "factors" in held:
        liked = History(held["liked.offsets"], held["liked.items"])
        factors = SourceUsers(held["factors"], liked, held["item_factors"])
    return Users(factors=factors, **{name: held[name] for name in _COLUMNS if name in held})
