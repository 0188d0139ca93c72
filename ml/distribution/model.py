"""DiffCDR that gives a distribution over ratings for a cold-start user.

    source ratings ─ effects ─► c_u ─ diffusion from noise ─► θ_u⁽¹⁾ … θ_u⁽ᴷ⁾ ─ alignment ─► p(r | u, i)

1. Effects (`ml.distribution.effects`): in either domain, a vector of D numbers a user and an item that shift
   the distribution over the rating levels. c_u is the source vector with the log of the ratings it rests on.
2. DIM (`ml.distribution.diffusion`): p(θ_u | c_u), trained on posterior draws of the training users' target
   vectors, sampled from noise.
3. ALM, the alignment of samples with ratings (the paper, section 3.2, Equation 7 with the task loss alone):

       p(r | u, i) = 1/K Σ_k softmax(b + W x_ui + (G + H φ_i)ᵀ θ_u⁽ᵏ⁾)_r                               (1)
       x_ui = [φ_i, log count_i, c_u, m_u ⊗ φ_i, t_ui],    m_u the prior mean of θ_u

   t_ui (`ml.distribution.taste`): what the user's source ratings say of this very item. The vectors hold how
   a user rates, the columns what the user likes; in training they are without the rating to be predicted.
   Started at equation (1) of `effects` and fitted to the training users' ratings by the likelihood of the
   *mixture*, the samples drawn as for a cold-start user and φ_i without the user's own rating.

The mean of (1) is the prediction for RMSE, its median for MAE. The samples are of the user, not of the
rating: they also give the joint distribution of all of a user's ratings, and, weighted by the likelihood of
the first ratings seen, the predictions for the rest without training.

Lists are ordered by the mean of (1). The K samples of a whole catalogue are too much for a page to wait for,
so the mean of the samples, one vector a user, makes a shortlist, which (1) then orders: SHORTLIST times as
many items as are asked for, FEWEST at least.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from ml.data import Predicted, Ratings, Users, check_rows
from ml.descent import Adam
from ml.distribution.contract import Distribution, TransferRatings
from ml.distribution.diffusion import VectorDiffusion, normal_points
from ml.distribution.effects import (
    Effects,
    fit_effects,
    items_without_own_rating,
    level_index,
    standardized,
)
from ml.distribution.taste import COLUMNS, KnownTaste, Taste, fit_taste
from ml.evaluation.ranking import placed
from ml.replicas import replica_generator

VECTORS = ("diffusion", "gaussian", "mean")
CHUNK = 1 << 14  # ratings predicted at a time, each with K x L numbers
SHORTLIST, FEWEST = 10, 200
BLOCK = 1 << 12  # users whose samples are drawn at a time for lists
# A condition counts as no further than so many standard deviations from the training users' mean: the prior's
# map is linear, and beyond there are too few of them to say that it still holds.
REACH = 4.0
LOGITS = 1 << 22  # held at a time for lists: 16 MiB of float32


@dataclass
class StarDiffusion(Distribution):
    """epochs, batch, lr: Adam's on the alignment; penalty: L2 weight on its distance from the start, in
    ratings; train_samples: vectors that a rating is averaged over in training; samples: K in prediction;
    diffusion: the model of the vectors; vectors: where they come from, the diffusion, or for ablation the
    `gaussian` prior N(m_c, C Cᵀ) that it starts from, or the prior's `mean` alone; taste: whether t_ui is
    used, where source ratings are given.
    """

    name: ClassVar[str] = "star_diffusion"
    title: ClassVar[str] = "DiffCDR for stars"
    summary: ClassVar[str] = (
        "a distribution over ratings from diffusion samples of the user's vector "
        "(`ml/distribution/model.py`, docs/tuned.md)."
    )
    needs: ClassVar[tuple[str, ...]] = ("effects", "ratings")
    warms_by: ClassVar[str] = "samples"
    epochs: int = 6
    batch: int = 1024
    lr: float = 3e-3
    penalty: float = 20.0
    train_samples: int = 16
    samples: int = 64
    vectors: str = "diffusion"
    taste: bool = True
    diffusion: VectorDiffusion = field(default_factory=VectorDiffusion)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors not in VECTORS:
            raise ValueError(f"vectors must be one of {', '.join(VECTORS)}, not {self.vectors!r}")
        self.state_: dict[str, Tensor] = {}
        self.taste_: Taste | None = None

    def trained(self, data: TransferRatings, device: torch.device | str = "cpu") -> Self:
        """Fit effects, diffusion and alignment on `device`; every draw follows from data.seed, on the CPU.
        Returns self, which then predicts there."""
        data = data.to(device)
        known = data.source_user >= 0
        trained = known & (torch.bincount(data.target.users, minlength=data.n_users) > 0)
        described = data.description.double()[data.source_user[trained]]
        center, scale = described.mean(0), described.std(0, correction=0)
        # A column that is constant in training says nothing, in prediction neither.
        scale = torch.where(scale > 1e-9, scale, torch.inf)
        # A user without source ratings is given the average description.
        condition = (data.description.double()[data.source_user] - center) / scale * known[:, None]
        condition = condition.clamp(-REACH, REACH)
        # The ablations of a cell start from the same.
        keep_draws = self.vectors == "diffusion"
        effects = data.once(
            f"effects on {device}, draws {keep_draws}",
            partial(
                fit_effects,
                data.target,
                data.n_users,
                data.n_items,
                data.seed,
                condition,
                data.levels,
                keep_draws=keep_draws,
                device=device,
            ),
        )
        self.state_ = {
            "seed": torch.tensor(data.seed),
            "levels": effects.levels,
            "condition.center": center.float(),
            "condition.scale": scale.float(),
            "prior.map": effects.prior_map.float(),
            "prior.factor": torch.linalg.cholesky(effects.prior_covariance).float(),
            "items": effects.items.float(),
            "item_counts": standardized(effects.item_counts.log1p()).float(),
        }
        if self.vectors == "diffusion":
            parameters = self._fit_diffusion(effects, condition, trained)
            self.state_ |= {f"diffusion.{name}": value for name, value in parameters.items()}
        columns = self._fit_taste(effects, data)
        alignment = self._fit_alignment(effects, data, condition.float(), columns)
        self.state_ |= {f"alignment.{name}": value for name, value in alignment.items()}
        # As they will be stored: in another layout products round otherwise, and a restored model differs.
        self.state_ = {name: value.contiguous() for name, value in self.state_.items()}
        return self

    def _fit_diffusion(self, effects: Effects, condition: Tensor, users: Tensor) -> dict[str, Tensor]:
        factor = torch.linalg.cholesky(effects.prior_covariance)
        mean = effects.prior_mean[users]
        # One draw at a time: in float64 all of them are many times what is kept.
        whitened = [
            torch.linalg.solve_triangular(factor, (draw[users] - mean).T, upper=False).T.float()
            for draw in effects.draws
        ]
        return self.diffusion.fit(torch.stack(whitened), condition[users].float(), int(self.state_["seed"]))

    def _fit_taste(self, effects: Effects, data: TransferRatings) -> Tensor:
        """t_ui (m, 4) of the ratings of users with a source, as if they were not known; (m, 0) without."""
        if not self.taste or data.source is None:
            self.taste_ = None
            rows = int((data.source_user[data.target.users] >= 0).sum())
            return effects.items.new_zeros(rows, 0).float()
        cpu = dataclasses.replace(data.to("cpu"), source=data.source.to("cpu"))
        self.taste_, columns = data.once(
            f"taste by effects on {effects.items.device}",
            lambda: fit_taste(cpu, effects.residual(data.target).cpu()),
        )
        return columns.to(effects.items.device)

    def _fit_alignment(
        self, effects: Effects, data: TransferRatings, condition: Tensor, taste: Tensor
    ) -> dict[str, Tensor]:
        """Equation (1) by the likelihood of the mixture, on the ratings of users with a source."""
        kept = data.source_user[data.target.users] >= 0
        phi = items_without_own_rating(effects, data.target)[kept].float()
        people, users = data.target.users[kept].unique(return_inverse=True)
        index = level_index(data.target.values[kept], effects.levels)
        # More than a step uses, so that an alignment cannot settle on the few vectors it is shown.
        vectors = self._vectors(condition[people], 4 * self.train_samples)
        features = self._features(phi, data.target.items[kept], condition[people][users], taste)
        start = initial_alignment(effects, features.shape[1])
        alignment = {name: value.clone().requires_grad_() for name, value in start.items()}
        steps = self.epochs * math.ceil(len(users) / self.batch)
        optimizer = Adam(alignment, self.lr, steps, 0.02)
        generator = replica_generator(data.seed, "alignment")
        for _ in range(self.epochs):
            order = torch.randperm(len(users), generator=generator).to(users.device)
            for rows in order.split(self.batch):
                picked = torch.randperm(vectors.shape[1], generator=generator)[: self.train_samples]
                shown = vectors[users[rows]][:, picked.to(users.device)]
                logp = mixture(log_probabilities(alignment, features[rows], phi[rows], shown))
                moved = sum((alignment[name] - start[name]).square().sum() for name in start)
                loss = self.penalty / 2 / len(users) * moved - logp.gather(1, index[rows, None]).mean()
                optimizer.descend(loss)
        return {name: value.detach() for name, value in alignment.items()}

    def _features(self, phi: Tensor, items: Tensor, condition: Tensor, taste: Tensor) -> Tensor:
        """x_ui (m, D + 1 + q + D² + c), with c columns of taste."""
        product = (self._prior_mean(condition)[:, :, None] * phi[:, None, :]).flatten(1)
        return torch.cat([phi, self.state_["item_counts"][items, None], condition, product, taste], 1)

    def _prior_mean(self, condition: Tensor) -> Tensor:
        """m_u (n, D) of standardized conditions (n, q)."""
        prior = self.state_["prior.map"]
        return torch.addmm(prior[0], condition, prior[1:])

    def _vectors(self, condition: Tensor, count: int) -> Tensor:
        """θ of users with standardized conditions (n, q): (n, count, D), or (n, 1, D) for the mean."""
        mean, factor = self._prior_mean(condition)[:, None], self.state_["prior.factor"]
        if self.vectors == "mean":
            return mean
        points = normal_points(count, len(factor), int(self.state_["seed"])).to(factor)
        x = points.expand(len(condition), -1, -1)
        if self.vectors == "diffusion":
            x = self.diffusion.sample(self._part("diffusion"), condition, points)
        return mean + x @ factor.T

    def _part(self, name: str) -> dict[str, Tensor]:
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.state_.items() if k.startswith(prefix)}

    def _condition(self, description: Tensor) -> Tensor:
        if not self.state_:
            raise RuntimeError("StarDiffusion has no parameters yet: fit it or load its state first")
        center, scale = self.state_["condition.center"], self.state_["condition.scale"]
        if description.shape[1:] != center.shape:
            raise ValueError(
                f"users are described by {description.shape[1]} numbers, trained on {len(center)}; "
                "give the rows of the source domain's Effects.description()"
            )
        return ((description.float().to(center.device) - center) / scale).clamp(-REACH, REACH)

    def _known(self, description: Tensor, history: Ratings | None) -> Known:
        condition = self._condition(description)
        if self.taste_ is None or history is None:
            return Known(condition, None)
        return Known(condition, self.taste_.of(history.to("cpu"), len(condition)))

    def _taste_columns(self, known: Known, users: Tensor, items: Tensor) -> Tensor:
        """t_ui (m, c) of pairs; of users whose source ratings are not given the mean, 0."""
        if self.taste_ is None or known.taste is None:
            columns = 0 if self.taste_ is None else COLUMNS
            return known.condition.new_zeros(len(users), columns)
        return self.taste_.pairs(known.taste, users.cpu(), items.cpu()).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where it predicts: where it was fitted, or the CPU once restored."""
        return self.state_["levels"].device

    @property
    def levels(self) -> Tensor:
        """The rating levels (L,) float64, on the CPU."""
        return self.state_["levels"].cpu()

    @torch.no_grad()
    def sample(self, description: Tensor, samples: int | None = None) -> Tensor:
        """Target user vectors θ (n, K, D) float32 of users described by (n, q)."""
        return self._sample(self._condition(description), samples).cpu()

    def _sample(self, condition: Tensor, samples: int | None) -> Tensor:
        return self._vectors(condition, samples or self.samples)

    @torch.no_grad()
    def log_probabilities(
        self, description: Tensor, vectors: Tensor, ratings: Ratings, history: Ratings | None = None
    ) -> Tensor:
        """log p(· | θ_u⁽ᵏ⁾, i) of m ratings' users and items: (m, K, L), for vectors θ (n, K, D) of the users
        described by (n, q) with the source ratings `history`; the ratings' values are not read."""
        users, items = (x.to(self.device) for x in (ratings.users, ratings.items))
        known = self._known(description, history)
        return self._log_probabilities(known, vectors.to(self.device), users, items).cpu()

    def _log_probabilities(self, known: Known, vectors: Tensor, users: Tensor, items: Tensor) -> Tensor:
        phi = self.state_["items"][items]
        taste = self._taste_columns(known, users, items)
        features = self._features(phi, items, known.condition[users], taste)
        return log_probabilities(self._part("alignment"), features, phi, vectors[users])

    @torch.no_grad()
    def predict_pairs(
        self,
        description: Tensor,
        users: Tensor,
        items: Tensor,
        observed: Ratings | None = None,
        samples: int | None = None,
        history: Ratings | None = None,
    ) -> Tensor:
        """p(r | u, i) of m pairs, equation (1): (m, L) float32.

        description: (n, q), `Effects.description()` of the users' source rows; users (m,) int64 in 0..n−1,
        items (m,) int64. observed: first target ratings of these users; the samples are then weighted by
        their likelihood, which is Bayes' rule with the samples as the prior. samples: K, the model's own by
        default; some 500 where several ratings are observed. history: source ratings of these users; without
        them their taste counts as the average.
        Raises ValueError for rows outside the tables or descriptions of another width, RuntimeError before
        `fit`.
        """
        known = self._known(description, history)
        vectors = self._sample(known.condition, samples)
        check_rows("users", users, len(description))
        check_rows("items", items, len(self.state_["items"]))
        users, items = users.to(self.device), items.to(self.device)
        weights = vectors.new_zeros(vectors.shape[:2])
        if observed is not None:
            weights = self._joint(known, vectors, observed).log_softmax(1)
            weights = weights + math.log(vectors.shape[1])
        parts = zip(users.split(CHUNK), items.split(CHUNK), strict=True)
        return torch.cat(
            [
                mixture(self._log_probabilities(known, vectors, u, i) + weights[u, :, None]).exp()
                for u, i in parts
            ]
        ).cpu()

    @torch.no_grad()
    def joint_log_likelihood(
        self,
        description: Tensor,
        ratings: Ratings,
        samples: int | None = None,
        history: Ratings | None = None,
    ) -> Tensor:
        """log of the probability of all of each user's ratings together: (n,) float32.

        log 1/K Σ_k Π_r p(r | θ⁽ᵏ⁾): at least what multiplying `predict_pairs` would give where a user's
        ratings hang together; 0 for a user without ratings.
        """
        known = self._known(description, history)
        joint = self._joint(known, self._sample(known.condition, samples), ratings)
        return joint.logsumexp(1).cpu() - math.log(joint.shape[1])

    def _joint(self, known: Known, vectors: Tensor, ratings: Ratings) -> Tensor:
        """log Π_r p(r | θ⁽ᵏ⁾) of each user and sample: (n, K)."""
        ratings = ratings.to(self.device)
        total = vectors.new_zeros(vectors.shape[:2])
        parts = zip(*(x.split(CHUNK) for x in (ratings.users, ratings.items, ratings.values)), strict=True)
        for users, items, values in parts:
            index = level_index(values, self.state_["levels"])
            logp = self._log_probabilities(known, vectors, users, items)
            total.index_add_(0, users, logp[torch.arange(len(index), device=index.device), :, index])
        return total

    @torch.no_grad()
    def top(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        cell = self.cell(replica)
        among = torch.arange(cell.n_items()) if among is None else among
        barred = Barred(placed(exclude, among, cell.n_items()), len(users))
        short = min(max(SHORTLIST * k, FEWEST), len(among))
        if len(users) == 0:
            return torch.empty(0, k, dtype=torch.int64), torch.empty(0, k)
        parts = [
            part
            for rows in torch.arange(len(users)).split(BLOCK)
            for part in cell._top(users.take(rows), int(rows[0]), among.to(cell.device), barred, short, k)
        ]
        places, scores = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return torch.where(scores > -torch.inf, among[places], -1), scores

    def _top(
        self, asked: Users, first: int, among: Tensor, barred: Barred, short: int, k: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Places in `among` and scores, (n, k) each, of a few users at a time, from user `first` on."""
        items = self._item_rows(among)
        known = self._known(asked.description, asked.ratings)
        vectors = self._sample(known.condition, None)
        levels = len(self.state_["levels"])
        users = max(1, LOGITS // (levels * max(len(among), vectors.shape[1] * short)))
        for rows in torch.arange(len(asked)).split(users):
            mine, theta = known.take(rows), vectors[rows]
            taste = self._taste_catalogue(mine, among)
            cheap = self._means(mine.condition, theta.mean(1, keepdim=True), items, taste)
            barred.bar(cheap, first + int(rows[0]))
            # In order, so that of equal scores the lower item comes first.
            places = cheap.topk(short, sorted=False).indices.sort(1).values
            listed = places[:, :, None].expand(-1, -1, taste.shape[2])
            means = self._means(mine.condition, theta, items[places], taste.gather(1, listed))
            means[cheap.gather(1, places) == -torch.inf] = -torch.inf
            scores, order = means.sort(dim=1, descending=True, stable=True)
            lacking = max(0, k - short)
            yield (
                torch.nn.functional.pad(places.gather(1, order)[:, :k], (0, lacking)),
                torch.nn.functional.pad(scores[:, :k], (0, lacking), value=-torch.inf),
            )

    def _taste_catalogue(self, known: Known, items: Tensor) -> Tensor:
        """t_ui (n, a, c) of users and each of the `items` (a,)."""
        if self.taste_ is None or known.taste is None:
            columns = 0 if self.taste_ is None else COLUMNS
            return known.condition.new_zeros(len(known.condition), len(items), columns)
        return self.taste_.catalogue(known.taste, items.cpu()).to(self.device)

    def _means(self, condition: Tensor, vectors: Tensor, items: Tensor, taste: Tensor) -> Tensor:
        """Mean ratings (n, s) of the mixture over `vectors` (n, K, D), for item rows (s, D + 2) of all users
        or (n, s, D + 2) of each, and t_ui (n, s, c). In place, since the logits of a catalogue are the
        largest tensor there is.
        """
        coefficients = self._coefficients(condition, vectors)
        n, count, levels, width = coefficients.shape
        logits = (coefficients.view(n, count * levels, width) @ items.mT).view(n, count, levels, -1)
        if taste.shape[2]:
            weight = self.state_["alignment.weight"][:, -taste.shape[2] :]
            logits += (weight @ taste.mT)[:, None]
        logits = logits.view(n * count, levels, -1)
        weights = logits.sub_(logits.amax(1, keepdim=True)).exp_()
        values = self.state_["levels"].to(weights)
        sums = torch.stack([values, torch.ones_like(values)]) @ weights
        return (sums[:, 0] / sums[:, 1]).view(n, count, -1).mean(1)

    def _coefficients(self, condition: Tensor, vectors: Tensor) -> Tensor:
        """What gives the logits of equation (1) in a product with an item's row [φ_i, log count_i, 1]:
        (n, K, L, D + 2). Given the user they are affine in φ_i but for t_ui, so a whole catalogue is one
        product."""
        alignment = self._part("alignment")
        levels, width = len(self.state_["levels"]), vectors.shape[2]
        style = alignment["weight"][:, : width + 1 + condition.shape[1] + width * width]
        own, count, described, product = style.split([width, 1, condition.shape[1], width * width], 1)
        interaction = alignment["interaction"].view(width, width, levels)
        slope = torch.einsum("nkd,bdl->nklb", vectors, interaction) + own
        means = self._prior_mean(condition)
        slope += torch.einsum("na,lab->nlb", means, product.view(levels, width, width))[:, None]
        constant = (alignment["bias"] + condition @ described.T)[:, None] + vectors @ alignment["user"]
        counts = count[:, 0].expand_as(constant)
        return torch.cat([slope, counts[..., None], constant[..., None]], 3)

    def _item_rows(self, items: Tensor) -> Tensor:
        """[φ_i, log count_i, 1] of `items` (a,): (a, D + 2)."""
        phi, counts = (self.state_[name][items] for name in ("items", "item_counts"))
        return torch.cat([phi, counts[:, None], torch.ones_like(counts)[:, None]], 1)

    def own_metrics(self, users: Users, ratings: Ratings, replica: int = 0) -> dict[str, float]:
        """The joint log-likelihood of each user's ratings together, per rating."""
        joint = self.cell(replica).joint_log_likelihood(users.description, ratings, history=users.ratings)
        return {"joint_log_likelihood": joint.sum().item() / len(ratings)}

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        found = self.cell(replica).predict_pairs(
            users.description, ratings.users, ratings.items, history=users.ratings
        )
        return self.predicted(found, replica)

    def n_items(self) -> int:
        return len(self.state_["items"])

    def tensors(self) -> dict[str, Tensor]:
        taste = {} if self.taste_ is None else self.taste_.tensors()
        held = self.state_ | {f"taste.{name}": value for name, value in taste.items()}
        return {name: value.cpu().clone() for name, value in held.items()}

    def restored(self, state: dict[str, Tensor]) -> Self:
        self.state_ = {name: value for name, value in state.items() if not name.startswith("taste.")}
        taste = {
            name.removeprefix("taste."): value for name, value in state.items() if name.startswith("taste.")
        }
        self.taste_ = Taste.restored(taste) if taste else None
        return self


@dataclass(frozen=True)
class Known:
    """n users: their standardized conditions (n, q), and their taste, where source ratings are given."""

    condition: Tensor
    taste: KnownTaste | None

    def take(self, users: Tensor) -> Known:
        return Known(self.condition[users], None if self.taste is None else self.taste.take(users))


class Barred:
    """What may not be listed: ratings of n users, found by user."""

    def __init__(self, ratings: Ratings | None, n: int) -> None:
        self._ratings = ratings
        if ratings is not None:
            users, order = ratings.users.sort(stable=True)
            self._users, self._items = users, ratings.items[order]
            self._ends = torch.searchsorted(users, torch.arange(n + 1))

    def bar(self, scores: Tensor, first: int) -> None:
        """Set to −inf, in place, what users first..first + n − 1 may not be listed in scores (n, items)."""
        if self._ratings is not None:
            mine = slice(int(self._ends[first]), int(self._ends[first + len(scores)]))
            rows, items = self._users[mine] - first, self._items[mine]
            scores[rows.to(scores.device), items.to(scores.device)] = -torch.inf


def initial_alignment(effects: Effects, features: int) -> dict[str, Tensor]:
    """Equation (1) of `effects` as an alignment: b, W = [Q, 0, 0], G = Q, H = 0."""
    basis = effects.basis.float()
    levels, width = basis.shape
    weight = basis.new_zeros(levels, features)
    weight[:, :width] = basis
    return {
        "bias": basis @ effects.intercept.float(),
        "weight": weight,
        "user": basis.T.clone(),
        "interaction": basis.new_zeros(width, width * levels),
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
