"""DiffCDR that gives a distribution over ratings for a cold-start user.

    source ratings ─ effects ─► c_u ─ diffusion from noise ─► θ_u⁽¹⁾ … θ_u⁽ᴷ⁾ ─ alignment ─► p(r | u, i)

1. Effects (`ml.distribution.effects`): in either domain, a vector of D numbers a user and an item that shift
   the distribution over the rating levels. c_u is the source vector with the log of the ratings it rests on.
2. DIM (`ml.distribution.diffusion`): p(θ_u | c_u), trained on posterior draws of the training users' target
   vectors, sampled from noise.
3. ALM, the alignment of samples with ratings (the paper, section 3.2, Equation 7 with the task loss alone):

       p(r | u, i) = 1/K Σ_k softmax(b + W x_ui + (G + H φ_i)ᵀ θ_u⁽ᵏ⁾)_r,    x_ui = [φ_i, log count_i, c_u]    (1)

   started at equation (1) of `effects` and fitted to the training users' ratings by the likelihood of the
   *mixture*, the samples drawn as for a cold-start user and φ_i without the user's own rating.

The mean of (1) is the prediction for RMSE, its median for MAE. The samples are of the user, not of the rating:
they also give the joint distribution of all of a user's ratings, and, weighted by the likelihood of the first
ratings seen, the predictions for the rest without training.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.distribution.diffusion import VectorDiffusion, normal_points
from ml.distribution.effects import (
    Effects,
    fit_effects,
    items_without_own_rating,
    level_index,
    standardized,
)
from ml.models.base import Ratings, check_rows
from ml.training import replica_generator

CHUNK = 1 << 14  # ratings predicted at a time, each with K x L numbers


@dataclass(frozen=True)
class TransferRatings:
    """What the model may learn from: no target rating of a held-out user.

    target: ratings of the target domain, users in 0..n−1, of training users and of users of the target domain
    alone; n_users, n_items: the target tables; source_user: (n,) int64, the row of each target user in
    `description`, −1 where there is none; description: (source users, q), `Effects.description()` of the
    source domain; levels: (L,) the rating scale, or None for the values that occur.
    """

    target: Ratings
    n_users: int
    n_items: int
    source_user: Tensor
    description: Tensor
    seed: int
    levels: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.source_user) != self.n_users:
            raise ValueError(f"source_user has {len(self.source_user)} rows for {self.n_users} target users")
        check_rows("source_user", self.source_user.clamp(min=0), len(self.description))
        if not (self.source_user[self.target.users] >= 0).any():
            raise ValueError("no target rating of a user with source ratings: nothing to learn transfer from")


@dataclass
class StarDiffusion:
    """epochs, batch, lr: Adam's on the alignment; penalty: its L2 weight, in ratings; train_samples: vectors a
    rating is averaged over in training; samples: K in prediction; diffusion: the model of the vectors."""

    epochs: int = 6
    batch: int = 1024
    lr: float = 3e-3
    penalty: float = 20.0
    train_samples: int = 16
    samples: int = 64
    prior: str = "diffusion"
    diffusion: VectorDiffusion = field(default_factory=VectorDiffusion)

    def fit(self, data: TransferRatings) -> StarDiffusion:
        known = data.source_user >= 0
        rows = data.source_user[known]
        description = data.description.double()
        rated = torch.bincount(data.target.users, minlength=data.n_users) > 0
        reference = description[data.source_user[known & rated]]
        center, scale = reference.mean(0), reference.std(0, correction=0).clamp(min=1e-9)
        condition = torch.zeros(data.n_users, description.shape[1], dtype=torch.float64)
        condition[known] = (description[rows] - center) / scale
        effects = fit_effects(
            data.target, data.n_users, data.n_items, data.seed, description=condition, levels=data.levels
        )
        self.state_ = {
            "condition.center": center.float(),
            "condition.scale": scale.float(),
            "levels": effects.levels,
            "prior.map": effects.prior_map.float(),
            "prior.factor": torch.linalg.cholesky(effects.prior_covariance).float(),
            "items": effects.items.float(),
            "item_counts": standardized(effects.item_counts.log1p()).float(),
            "seed": torch.tensor(data.seed),
        }
        self._fit_diffusion(effects, condition, known & rated)
        self._fit_alignment(effects, data, condition)
        return self

    def _fit_diffusion(self, effects: Effects, condition: Tensor, users: Tensor) -> None:
        if self.prior != "diffusion":
            return
        factor = torch.linalg.cholesky(effects.prior_covariance)
        residual = effects.draws[:, users] - effects.prior_mean[users]
        whitened = torch.linalg.solve_triangular(factor, residual.mT, upper=False).mT
        parameters = self.diffusion.fit(
            whitened.float(), condition[users].float(), int(self.state_["seed"])
        )
        self.state_ |= {f"diffusion.{name}": value for name, value in parameters.items()}

    def _fit_alignment(self, effects: Effects, data: TransferRatings, condition: Tensor) -> None:
        kept = data.source_user[data.target.users] >= 0
        items = items_without_own_rating(effects, data.target)[kept].float()
        users, rows = data.target.users[kept], data.target.items[kept]
        index = level_index(data.target.values[kept], effects.levels)
        distinct, users = users.unique(return_inverse=True)
        c = condition[distinct].float()
        theta = self._vectors(c, 4 * self.train_samples)
        features = torch.cat([items, self.state_["item_counts"][rows, None], c[users]], 1)
        alignment = initial_alignment(effects, features.shape[1])
        started = {name: value.clone() for name, value in alignment.items()}
        for value in alignment.values():
            value.requires_grad_()
        optimizer = torch.optim.Adam(alignment.values(), lr=self.lr)
        steps = self.epochs * -(-len(users) // self.batch)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
        generator = replica_generator(data.seed, "alignment")
        for _ in range(self.epochs):
            for batch in torch.randperm(len(users), generator=generator).split(self.batch):
                picked = torch.randperm(theta.shape[1], generator=generator)[: self.train_samples]
                samples = theta[users[batch]][:, picked]
                logp = log_probabilities(alignment, features[batch], items[batch], samples)
                loss = -mixture(logp)[torch.arange(len(batch)), index[batch]].mean()
                moved = sum((alignment[k] - started[k]).square().sum() for k in started)
                optimizer.zero_grad()
                (loss + self.penalty / 2 / len(users) * moved).backward()
                optimizer.step()
                schedule.step()
        self.state_ |= {f"alignment.{name}": value.detach() for name, value in alignment.items()}

    def _vectors(self, condition: Tensor, count: int) -> Tensor:
        """Samples of θ (n, count, D) for standardized conditions (n, q)."""
        state = self.state_
        design = torch.cat([torch.ones(len(condition), 1), condition], 1)
        noise = normal_points(count, len(state["prior.factor"]), int(state["seed"]))
        if self.prior == "mean":
            return (design @ state["prior.map"])[:, None].expand(-1, 1 if count == 1 else count, -1)
        if self.prior == "gaussian":
            return (design @ state["prior.map"])[:, None] + noise @ state["prior.factor"].T
        x = self.diffusion.sample(self._part("diffusion"), condition, noise)
        return (design @ state["prior.map"])[:, None] + x @ state["prior.factor"].T

    def _part(self, name: str) -> dict[str, Tensor]:
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.state_.items() if k.startswith(prefix)}

    def condition(self, description: Tensor) -> Tensor:
        return (description.float() - self.state_["condition.center"]) / self.state_["condition.scale"]

    def sample(self, description: Tensor, count: int | None = None) -> Tensor:
        """Target user vectors (n, K, D) float32 of users described by (n, q)."""
        return self._vectors(self.condition(description), count or self.samples)

    @torch.no_grad()
    def _log_probabilities(self, description: Tensor, vectors: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """log p(· | θ_u⁽ᵏ⁾, i) of m pairs: (m, K, L)."""
        phi = self.state_["items"][items]
        c = self.condition(description)[users]
        features = torch.cat([phi, self.state_["item_counts"][items, None], c], 1)
        return log_probabilities(self._part("alignment"), features, phi, vectors[users])

    def predict(
        self,
        description: Tensor,
        users: Tensor,
        items: Tensor,
        observed: Ratings | None = None,
        samples: int | None = None,
    ) -> Tensor:
        """p(r | u, i) of m pairs, equation (1): (m, L) float32.

        description: (n, q), `Effects.description()` of the users' source rows; users (m,) int64 in 0..n−1,
        items (m,) int64. observed: first target ratings of these users; the samples are then weighted by their
        likelihood, which is Bayes' rule with the samples as the prior. samples: K, the model's own by default.
        """
        check_rows("users", users, len(description))
        check_rows("items", items, len(self.state_["items"]))
        vectors = self.sample(description, samples)
        weights = torch.zeros(vectors.shape[:2])
        if observed is not None:
            weights = self._joint(description, vectors, observed).log_softmax(1)
            weights = weights + math.log(vectors.shape[1])
        parts = zip(users.split(CHUNK), items.split(CHUNK), strict=True)
        return torch.cat(
            [
                mixture(self._log_probabilities(description, vectors, u, i) + weights[u, :, None]).exp()
                for u, i in parts
            ]
        )

    def joint_log_likelihood(
        self, description: Tensor, ratings: Ratings, samples: int | None = None
    ) -> Tensor:
        """log of the probability of all of each user's ratings together: (n,) float32.

        log 1/K Σ_k Π_r p(r | θ⁽ᵏ⁾): at least what multiplying `predict` would give where a user's ratings
        hang together; 0 for a user without ratings.
        """
        joint = self._joint(description, self.sample(description, samples), ratings)
        return joint.logsumexp(1) - math.log(joint.shape[1])

    def _joint(self, description: Tensor, vectors: Tensor, ratings: Ratings) -> Tensor:
        """log Π_r p(r | θ⁽ᵏ⁾) of each user and sample: (n, K)."""
        total = torch.zeros(vectors.shape[:2])
        parts = zip(*(x.split(CHUNK) for x in (ratings.users, ratings.items, ratings.values)), strict=True)
        for users, items, values in parts:
            index = level_index(values, self.state_["levels"])
            logp = self._log_probabilities(description, vectors, users, items)
            total.index_add_(0, users, logp[torch.arange(len(index)), :, index])
        return total


def initial_alignment(effects: Effects, features: int) -> dict[str, Tensor]:
    """Equation (1) of `effects` as an alignment: b, W = [Q, 0, 0], G = Q, H = 0."""
    basis = effects.basis.float()
    levels, width = basis.shape
    weight = torch.zeros(levels, features)
    weight[:, :width] = basis
    return {
        "bias": basis @ effects.intercept.float(),
        "weight": weight,
        "user": basis.T.clone(),
        "interaction": torch.zeros(width, width * levels),
    }


def log_probabilities(
    alignment: dict[str, Tensor], features: Tensor, items: Tensor, vectors: Tensor
) -> Tensor:
    """Equation (1) of each sample: (m, K, L) from features (m, f), φ (m, D) and θ (m, K, D)."""
    base = torch.addmm(alignment["bias"], features, alignment["weight"].T)
    by_item = (items @ alignment["interaction"]).view(len(items), *alignment["user"].shape)
    return torch.baddbmm(base[:, None], vectors, alignment["user"] + by_item).log_softmax(2)


def mixture(log_probabilities: Tensor) -> Tensor:
    """log of the mean over samples, (m, K, L) to (m, L)."""
    return log_probabilities.logsumexp(1) - math.log(log_probabilities.shape[1])
