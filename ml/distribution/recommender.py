"""Top-k items and ratings by a distribution over the rating levels, for users known from the source domain.

A user is the row c_u of `Effects.description()`. One who was not in the fit of the source domain is folded
in with all else frozen: θ_u is the mode of `ml.distribution.effects`, equations (1) and (2), given the item
vectors, beside the log of the number of ratings.

Items are ranked by the mean of the mixture, equation (1) of `ml.distribution.model`. Its K samples of a whole
catalogue are too much for a page to wait for, so the mean of the samples, one vector a user, makes a
shortlist, which the mixture then ranks: SHORTLIST times as many items as are asked for, FEWEST at least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.distribution.effects import level_index, posterior_modes
from ml.distribution.model import StarDiffusion
from ml.evaluation.distribution import mean, median
from ml.models.registry import build
from ml.recommender import CatalogueRecommender, PredictedRatings

SHORTLIST, FEWEST = 10, 200
BLOCK = 1 << 12  # users whose samples are drawn at a time
LOGITS = 1 << 22  # held at a time: 16 MiB of float32
NEWTON_STEPS = 12


@dataclass(frozen=True)
class DescribedUsers:
    """n users by their rows (n, q) of `Effects.description()`."""

    description: Tensor

    def __len__(self) -> int:
        return len(self.description)

    def take(self, users: Tensor) -> DescribedUsers:
        return DescribedUsers(self.description[users])


@dataclass(frozen=True)
class EffectsFoldIn:
    """Descriptions of new users on the frozen `Effects` of the source domain, fitted with no c.

    items: (m, D), φ; intercept: (D,); levels: (L,); basis: (L, D); prior_map: (1, D) and prior_covariance:
    (D, D), of θ; all float64.
    """

    items: Tensor
    intercept: Tensor
    levels: Tensor
    basis: Tensor
    prior_map: Tensor
    prior_covariance: Tensor

    def __call__(self, ratings: Ratings, n: int) -> Tensor:
        """Descriptions (n, D + 1) float64 of `ratings`, with users in 0..n-1 and items of the source domain.

        A user without ratings gets the prior mean. Raises ValueError for rows outside the tables and ratings
        that are no levels.
        """
        check_rows("ratings.users", ratings.users, n)
        check_rows("ratings.items", ratings.items, len(self.items))
        start = self.prior_map.expand(n, -1)
        modes, _ = posterior_modes(
            ratings.users,
            ((self.intercept + self.items) @ self.basis.T)[ratings.items],
            level_index(ratings.values, self.levels),
            self.basis,
            start,
            self.prior_covariance,
            start,
            NEWTON_STEPS,
        )
        counts = torch.bincount(ratings.users, minlength=n).double()
        return torch.cat([modes, counts.log1p()[:, None]], 1)


@dataclass(frozen=True)
class StarRecommender(CatalogueRecommender):
    """A fitted StarDiffusion with what it needs to recommend; a score is the predicted mean rating."""

    kind: ClassVar[str] = "distribution"

    model: StarDiffusion
    fold_in: EffectsFoldIn
    popularity: Tensor
    allowed: Tensor

    @property
    def source_levels(self) -> Tensor:
        return self.fold_in.levels

    @property
    def strangers(self) -> str:
        return "Users without source ratings"

    def fold(self, ratings: Ratings, n: int) -> DescribedUsers:
        return DescribedUsers(self.fold_in(ratings, n))

    def known(self, users: DescribedUsers) -> Tensor:
        return users.description[:, -1] > 0

    def transfer(self, users: DescribedUsers) -> Tensor:
        """The descriptions (n, q) themselves."""
        return users.description

    def _best(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        short = min(max(SHORTLIST * k, FEWEST), len(self.allowed))
        parts = [part for block in rows.split(BLOCK) for part in self._best_of_block(block, short, k)]
        places, scores = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.allowed[places], scores

    @torch.no_grad()
    def _best_of_block(self, rows: Tensor, short: int, k: int) -> list[tuple[Tensor, Tensor]]:
        vectors = self.model.sample(rows)
        levels = len(self._state["levels"])
        users = max(1, LOGITS // (levels * max(len(self.allowed), vectors.shape[1] * short)))
        chunks = zip(rows.split(users), vectors.split(users), strict=True)
        return [self._best_of_chunk(*chunk, short, k) for chunk in chunks]

    def _best_of_chunk(self, rows: Tensor, vectors: Tensor, short: int, k: int) -> tuple[Tensor, Tensor]:
        """Places (n, k) in `allowed` and scores (n, k), best first."""
        places = torch.arange(len(self.allowed)).expand(len(rows), -1)
        if short < len(self.allowed):
            cheap = self._means(rows, vectors.mean(1, keepdim=True), self._item_rows)
            places = cheap.topk(short, sorted=False).indices
        scores, order = self._means(rows, vectors, self._item_rows[places]).topk(k)
        return places.gather(1, order), scores

    def _means(self, rows: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
        """Mean ratings (n, s) of the mixture over `vectors` (n, K, D), for item rows (s, D + 2) of all users
        or (n, s, D + 2) of each. In place, since the logits of a catalogue are the largest tensor there is.
        """
        coefficients = self._coefficients(rows, vectors)
        n, count, levels, width = coefficients.shape
        logits = (coefficients.view(n, count * levels, width) @ items.mT).view(n * count, levels, -1)
        weights = logits.sub_(logits.amax(1, keepdim=True)).exp_()
        values = self._state["levels"].to(weights)
        sums = torch.stack([values, torch.ones_like(values)]) @ weights
        return (sums[:, 0] / sums[:, 1]).view(n, count, -1).mean(1)

    def _coefficients(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """What gives the logits of equation (1) in a product with an item's row [φ_i, log count_i, 1]:
        (n, K, L, D + 2). Given the user they are affine in φ_i, so a whole catalogue is one product."""
        state = self._state
        condition = (rows.float() - state["condition.center"]) / state["condition.scale"]
        prior_mean = torch.addmm(state["prior.map"][0], condition, state["prior.map"][1:])
        levels, width = len(state["levels"]), vectors.shape[2]
        own, count, described, product = state["alignment.weight"].split(
            [width, 1, condition.shape[1], width * width], 1
        )
        interaction = state["alignment.interaction"].view(width, width, levels)
        slope = torch.einsum("nkd,bdl->nklb", vectors, interaction) + own
        slope += torch.einsum("na,lab->nlb", prior_mean, product.view(levels, width, width))[:, None]
        constant = state["alignment.bias"] + condition @ described.T
        constant = constant[:, None] + vectors @ state["alignment.user"]
        counts = count[:, 0].expand_as(constant)
        return torch.cat([slope, counts[..., None], constant[..., None]], 3)

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return self.model.tensors()

    @cached_property
    def _item_rows(self) -> Tensor:
        """[φ_i, log count_i, 1] of the allowed items: (a, D + 2)."""
        phi, counts = (self._state[name][self.allowed] for name in ("items", "item_counts"))
        return torch.cat([phi, counts[:, None], torch.ones(len(phi), 1)], 1)

    def rate(self, row: Tensor, items: Tensor) -> PredictedRatings:
        probabilities = self.model.predict_pairs(row[None], torch.zeros_like(items), items)
        levels = self._state["levels"]
        return PredictedRatings(
            mean(probabilities, levels), median(probabilities, levels), probabilities, levels
        )

    def settings(self) -> dict[str, Any]:
        return {"hyperparameters": dataclasses.asdict(self.model)}

    def tensors(self) -> dict[str, Tensor]:
        fold_in = {f"source.{field}": value for field, value in vars(self.fold_in).items()}
        return {**fold_in, "popularity": self.popularity, "allowed": self.allowed}

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weights: dict[str, Tensor]
    ) -> Self:
        fields = [field.name for field in dataclasses.fields(EffectsFoldIn)]
        return cls(
            model=build("star_diffusion", **settings["hyperparameters"]).restored(weights),
            fold_in=EffectsFoldIn(*(tensors[f"source.{field}"] for field in fields)),
            popularity=tensors["popularity"],
            allowed=tensors["allowed"],
        )
