"""DiffCDR for choices: a diffusion over a user's taste whose samples give a distribution over choices.

    source choices ─ iALS fold-in ─► c_u ─ diffusion from noise ─► θ_u⁽¹⁾ … θ_u⁽ᴷ⁾ ─ alignment ─► p(i | u)

    p(i | u) = 1/K Σ_k softmax_i(o_i(u) − v_iᵀ M S Mᵀ v_i / 2 + v_i · M θ_u⁽ᵏ⁾)                       (1)

over the user's candidates. o: the utilities of the blend of all rankers (`ml.ranking.blend`), what is known
of the user beforehand; v: the leading columns of the item's iALS vector and its log popularity, so θ says in
which direction of taste, and how far from the beaten track, this user departs from that; the quadratic term
keeps an item with a long vector from gaining by the spread of θ alone. Item vectors hold
the choices that they came from, so a training user meets those of a fold that has not seen them, turned by an
orthogonal Procrustes rotation into the axes of the whole.

1. Taste: posterior draws of θ_u given the training users' choices among their candidates, with offsets that
   have not seen those choices, and the Gaussian N(Aᵀ[1, c_u], S) that they follow.
2. DIM (`ml.distribution.diffusion`): p(θ_u | c_u), trained on posterior draws, sampled from noise.
3. ALM, the alignment of samples with choices (the paper, section 3.2): o's layers and M by the likelihood of
   the mixture (1), the samples drawn as for a cold user.

The order by (1) is one order, whatever the samples; what only they give is `lists(kind="coverage")`, items
chosen so that as many samples as possible have a wanted one, and Bayes' rule after the first choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ml.data import Ratings, Users
from ml.descent import Adam
from ml.distribution.diffusion import VectorDiffusion, normal_points
from ml.ranking.blend import (
    Candidates,
    DeepBlend,
    TimedRanker,
    beyond_candidates,
    choice_loss,
    choices_and_times,
    present,
    utility,
)
from ml.ranking.ranker import Choices, HeldOutScores, State, choice_matrix, part
from ml.replicas import replica_generator

VECTORS = ("diffusion", "gaussian", "mean")
OFFSETS = ("blend", "popularity", "none")
KINDS = ("probability", "coverage")
BLOCK = 512  # users whose samples are held at a time
NEWTON_STEPS, DRAWS = 5, 6
RIDGE = 30.0  # on the standardized columns of c_u
OBSERVED_SAMPLES = 512  # that first choices are weighed by
FEW_SAMPLES = 16  # for reasons, which compare scores by the same draws


@dataclass(frozen=True)
class Training(Candidates):
    """The training users who chose one of their candidates: vectors (n, c, D), v of the candidates, and
    condition (n, q), both of models that have not seen those choices."""

    vectors: Tensor
    condition: Tensor

    def take(self, users: Tensor) -> Training:
        return Training(*(value[users] for value in vars(self).values()))


@dataclass
class ChoiceDiffusion(TimedRanker):
    """width: columns of the items' vectors; spread: deviation of a taste before
    any choice; vectors: where θ comes from, for ablation the `gaussian` of step
    1 or its `mean`; offset: o in (1), for ablation log `popularity` or `none`; samples: K; train_samples: of
    a step of the alignment; steps, batch, lr: Adam's on the alignment; penalty: of its squared distance
    from the start beside the sum of the users' losses; diffusion_steps, diffusion_hidden: those of the
    network.
    """

    name: ClassVar[str] = "choice_diffusion"
    title: ClassVar[str] = "DiffCDR for choices"
    summary: ClassVar[str] = "Draws tastes by diffusion, and lists what they would choose on average."
    source: ClassVar[str] = "DiffCDR, with the likelihood of choices as its task loss"
    warms_by: ClassVar[str] = "choices"
    on_device: ClassVar[bool] = True
    role: ClassVar[str] = "learned"
    scored_by: ClassVar[str] = "probability"
    orders: ClassVar[tuple[str, ...]] = ("probability", "coverage")
    PARTS: ClassVar = DeepBlend.PARTS
    BASE: ClassVar[str] = "als"  # the part whose vectors describe users and items

    width: int = 8
    spread: float = 0.1
    vectors: str = "diffusion"
    offset: str = "blend"
    samples: int = 64
    train_samples: int = 16
    steps: int = 200
    batch: int = 128
    lr: float = 3e-3
    penalty: float = 30.0
    diffusion_steps: int = 800
    diffusion_hidden: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("vectors", VECTORS), ("offset", OFFSETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    # What is learned.

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        state, candidates, held_out = DeepBlend().learn_with_candidates(choices, device)
        state = dict(state)
        state["choices"] = candidates.chosen.sum(1).mean()
        state["seed"] = torch.tensor(choices.seed)
        state |= self._axes(state)
        state["items"] = self._items(state, state[f"{self.BASE}.target_vectors"])
        items, described = self._unseen(state, choices, candidates.items, held_out[self.BASE])
        state["condition.centre"] = described.mean(0)
        state["condition.spread"] = described.std(0, correction=0).clamp(min=1e-6)
        known = candidates.chosen.sum(1) > 0
        seen = Training(
            candidates.items[known],
            candidates.features[known],
            candidates.chosen[known],
            items[known],
            self._standardized(state, described)[known],
        )
        offset = self._offset(state, seen, part(state, "logit"))
        taste, draws = fit_taste(offset, seen.vectors, seen.chosen, seen.condition, self.spread, choices.seed)
        state |= taste
        if self.vectors == "diffusion":
            parameters = self._diffusion().fit(draws, seen.condition, choices.seed)
            state |= {f"diffusion.{name}": value for name, value in parameters.items()}
        state |= self._align(state, seen, choices.seed)
        yield {name: value.contiguous() for name, value in state.items()}

    def _diffusion(self) -> VectorDiffusion:
        return VectorDiffusion(hidden=self.diffusion_hidden, steps=self.diffusion_steps)

    def _axes(self, state: State) -> State:
        """Centre (r + 1,) and axes (r + 1, D) of the items' columns [iALS vector, log popularity]: the
        leading directions of the vectors and the last column, each of mean square 1.

        Means are over choices, not over items: most of a long tail lies at 0, and measured by it the vectors
        of what is chosen would be many times too long.
        """
        share = state["popularity"] / state["popularity"].sum()
        columns = self._columns(state, state[f"{self.BASE}.target_vectors"])
        centre = share @ columns
        rank = columns.shape[1] - 1
        apart = share.sqrt()[:, None] * (columns - centre)
        directions = torch.linalg.svd(apart[:, :rank], full_matrices=False)[2]
        axes = torch.block_diag(directions[: self.width].T, torch.ones(1, 1))
        spread = (apart @ axes).square().sum(0).sqrt()
        return {"centre": centre, "axes": torch.where(spread > 1e-6, axes / spread.clamp(min=1e-6), 0.0)}

    def _columns(self, state: State, vectors: Tensor) -> Tensor:
        return torch.cat([vectors, (state["popularity"] + 0.5).log()[:, None]], 1)

    def _items(self, state: State, vectors: Tensor) -> Tensor:
        """v (t, D) from iALS vectors (t, r); 0 for an item without a choice."""
        items = (self._columns(state, vectors) - state["centre"]) @ state["axes"]
        return torch.where(state["popularity"][:, None] > 0, items, 0.0)

    def _unseen(
        self, state: State, choices: Choices, items: Tensor, folds: HeldOutScores
    ) -> tuple[Tensor, Tensor]:
        """v (n, c, D) of the training users' candidates and descriptions (n, r + 1), by the folds that have
        not seen the users' choices."""
        whole = base_items(part(state, self.BASE))
        vectors = torch.empty(*items.shape, state["axes"].shape[1])
        described = torch.empty(len(items), len(state["axes"]))
        for number, mine in enumerate(folds.states):
            users = torch.from_numpy(np.flatnonzero(folds.fold == number))
            left, _, right = torch.linalg.svd(base_items(mine).T @ whole)
            rotation = left @ right
            vectors[users] = self._items(state, mine["target_vectors"] @ rotation)[items[users]]
            described[users] = self._description(mine, choices.source[users.numpy()], rotation)
        return vectors, described

    def _description(self, base: State, source: csr_matrix, rotation: Tensor | None = None) -> Tensor:
        """iALS vector and log history (m, r + 1) of source rows (m, s)."""
        vectors = torch.from_numpy(self.PARTS[self.BASE].vectors(base, source))
        length = torch.from_numpy(np.diff(source.indptr)).float().log1p()
        return torch.cat([vectors if rotation is None else vectors @ rotation, length[:, None]], 1)

    def _condition(self, state: State, source: csr_matrix) -> Tensor:
        choices, _ = choices_and_times(state, source)
        return self._standardized(state, self._description(part(state, self.BASE), choices))

    def _standardized(self, state: State, described: Tensor) -> Tensor:
        return (described - state["condition.centre"]) / state["condition.spread"]

    def _offset(self, state: State, candidates: Candidates, layers: State) -> Tensor:
        """o (n, c)."""
        if self.offset == "blend":
            return utility(layers, candidates.features)
        if self.offset == "popularity":
            return (state["popularity"] + 0.5).log()[candidates.items]
        return torch.zeros(candidates.items.shape)

    def _align(self, state: State, seen: Training, seed: int) -> State:
        """Equation (1) by the likelihood of the mixture."""
        start = {"map": torch.eye(seen.vectors.shape[2])}
        if self.offset == "blend":
            start |= {f"logit.{name}": value for name, value in part(state, "logit").items()}
        moving = {name: value.clone().requires_grad_() for name, value in start.items()}
        # More than a step uses, so that an alignment cannot settle on the few vectors it is shown.
        tastes = self._vectors(state, seen.condition, 4 * self.train_samples)
        optimizer = Adam(moving, self.lr, self.steps, 0.02)
        generator = replica_generator(seed, "alignment of choices")
        for _ in range(self.steps):
            rows = torch.randint(len(seen.items), (self.batch,), generator=generator)
            picked = torch.randperm(tastes.shape[1], generator=generator)[: self.train_samples]
            shown = seen.take(rows)
            logp = self._log_probabilities(state | moving, shown, shown.vectors, tastes[rows][:, picked])
            loss = choice_loss(mixed(logp), shown.chosen)
            moved = sum((moving[name] - start[name]).square().sum() for name in start)
            # As the blend's prior: the less of a mean over users, the more they are.
            optimizer.descend(loss + self.penalty / len(seen.items) * moved)
        return {name: value.detach() for name, value in moving.items()}

    # What is predicted.

    def _vectors(self, state: State, condition: Tensor, count: int) -> Tensor:
        """θ (n, K, D)."""
        mean = torch.cat([torch.ones(len(condition), 1), condition], 1) @ state["prior.map"]
        if self.vectors == "mean":
            return mean[:, None]
        noise = normal_points(count, len(state["prior.factor"]), int(state["seed"]))
        white = noise.expand(len(condition), -1, -1)
        if self.vectors == "diffusion":
            white = self._diffusion().sample(part(state, "diffusion"), condition, noise)
        return mean[:, None] + white @ state["prior.factor"].T

    def _log_probabilities(
        self, state: State, candidates: Candidates, items: Tensor, tastes: Tensor
    ) -> Tensor:
        """log of each sample's softmax (n, K, c), from v (n, c, D) and θ (n, K, D)."""
        return self._utilities(state, candidates, items, tastes).log_softmax(2)

    def _utilities(self, state: State, candidates: Candidates, items: Tensor, tastes: Tensor) -> Tensor:
        items = items @ state["map"]
        offset = self._offset(state, candidates, part(state, "logit"))
        if self.vectors != "mean":
            offset = offset - (items @ state["prior.factor"]).square().sum(2) / 2
        return torch.baddbmm(offset[:, None], tastes, items.mT)

    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        """log p(i | u) of candidates, equation (1); other items follow, by popularity."""
        return self._score(state, source)

    def score_after(self, state: State, source: csr_matrix, observed: csr_matrix) -> np.ndarray:
        """With o of the parts that know `observed`, and the samples weighed by its likelihood."""
        return self._score(state, source, observed, observed)

    @torch.no_grad()
    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        """(1) without its normalisation."""
        candidates = DeepBlend().of_items(state, source, items)
        count = min(self.samples, FEW_SAMPLES)
        tastes = self._vectors(state, self._condition(state, source), count)
        return mixed(self._utilities(state, candidates, state["items"][candidates.items], tastes)).numpy()

    @torch.no_grad()
    def _score(
        self,
        state: State,
        source: csr_matrix,
        also: csr_matrix | None = None,
        observed: csr_matrix | None = None,
    ) -> np.ndarray:
        candidates, logp, weights = self._samples(state, source, also, observed)
        marginal = (logp + weights.log()[:, :, None]).logsumexp(1)
        return beyond_candidates(candidates.items, marginal, state["popularity"]).numpy()

    def _samples(
        self,
        state: State,
        source: csr_matrix,
        also: csr_matrix | None = None,
        observed: csr_matrix | None = None,
    ) -> tuple[Candidates, Tensor, Tensor]:
        """Candidates, log softmax of each sample (n, K, c) and the samples' weights (n, K)."""
        candidates = DeepBlend().candidates(state, source, also, observed)
        count = self.samples if observed is None else max(self.samples, OBSERVED_SAMPLES)
        tastes = self._vectors(state, self._condition(state, source), count)
        logp = self._log_probabilities(state, candidates, state["items"][candidates.items], tastes)
        if observed is None:
            return candidates, logp, torch.full(logp.shape[:2], 1 / logp.shape[1])
        seen = present(observed, candidates.items)
        return candidates, logp, (logp @ seen[:, :, None])[:, :, 0].softmax(1)

    def top(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As every model's, scored by p(i | u) in place of its logarithm."""
        items, scores = super().top(users, k, exclude, replica, among)
        return items, scores.exp()

    def covering(
        self,
        users: Users,
        k: int,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.lists(users, k, "coverage", exclude=exclude, replica=replica, among=among)

    @torch.no_grad()
    def lists(
        self,
        users: Users,
        k: int = 20,
        kind: str = "probability",
        observed: Ratings | None = None,
        exclude: Ratings | None = None,
        replica: int = 0,
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """k items of each user, best first, −1 where there are fewer, and p(i | u) of each: (n, k).

        kind: `probability`, the order of (1); `coverage`, each item the one that adds most to the expected
        share of samples with a wanted item, which is submodular, so that this greedy choice reaches at least
        1 − 1/e of the best (Nemhauser et al., 1978). A sample wants item i with 1 − (1 − p_i)ᶜ, c the mean
        number of choices of a training user. observed: first choices of these users in the target domain; the
        samples are weighed by their likelihood. exclude: items that are not to be listed; observed ones never
        are. among: items (a,) int64 that may be; all where not given.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        state = self.state(replica)
        source = self.source_of(users, state)
        hidden = [
            choice_matrix(r, len(users), len(state["popularity"]))
            for r in (observed, exclude)
            if r is not None
        ]
        parts = []
        for begin in range(0, len(users), BLOCK):
            rows = slice(begin, begin + BLOCK)
            seen = None if observed is None else hidden[0][rows]
            parts.append(self._lists(state, source[rows], k, kind, seen, [h[rows] for h in hidden], among))
        return torch.cat([items for items, _ in parts]), torch.cat([p for _, p in parts])

    def _lists(
        self,
        state: State,
        source: csr_matrix,
        k: int,
        kind: str,
        observed: csr_matrix | None,
        hidden: list[csr_matrix],
        among: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        candidates, logp, weights = self._samples(state, source, observed, observed)
        p = logp.exp()
        free = torch.ones(candidates.items.shape, dtype=torch.bool)
        for matrix in hidden:
            free &= present(matrix, candidates.items) == 0
        if among is not None:
            free &= torch.isin(candidates.items, among)
        lacking, k = max(0, k - free.shape[1]), min(k, free.shape[1])
        marginal = (weights[:, None] @ p)[:, 0]
        if kind == "probability":
            order = marginal.masked_fill(~free, -1).topk(k, dim=1).indices
        else:
            order = greedy_cover(1 - (1 - p).pow(state["choices"]), weights, free, k)
        allowed = free.gather(1, order)
        items = torch.where(allowed, candidates.items.gather(1, order), -1)
        p = torch.where(allowed, marginal.gather(1, order), 0.0)
        pad = torch.nn.functional.pad
        return pad(items, (0, lacking), value=-1), pad(p, (0, lacking))


def base_items(state: State) -> Tensor:
    """iALS vectors of the items of both domains (s + t, r)."""
    return torch.cat([state["source_vectors"], state["target_vectors"]])


def mixed(logp: Tensor) -> Tensor:
    """log of the mean over samples, (n, K, c) to (n, c)."""
    return logp.logsumexp(1) - math.log(logp.shape[1])


def greedy_cover(wanted: Tensor, weights: Tensor, free: Tensor, k: int) -> Tensor:
    """Places (n, k) of `free` (n, c) items, each the one that adds most to Σ_k w_k (1 − Π_i (1 − q_ki)).

    wanted: q (n, K, c), the probability that a sample wants an item; weights: (n, K).
    """
    missed = weights.clone()
    left = free.clone()
    out = []
    for _ in range(k):
        gain = (missed[:, None] @ wanted)[:, 0].masked_fill(~left, -1)
        best = gain.argmax(1)
        out.append(best)
        missed = missed * (1 - wanted.gather(2, best[:, None, None].expand(-1, wanted.shape[1], 1))[:, :, 0])
        left[torch.arange(len(best)), best] = False
    return torch.stack(out, 1)


def fit_taste(
    offset: Tensor, items: Tensor, chosen: Tensor, condition: Tensor, spread: float, seed: int
) -> tuple[State, Tensor]:
    """The Gaussian N(Aᵀ[1, c], S) that the tastes of the training users follow, and draws (DRAWS, n, D) of
    them, whitened by it.

    A user's draws are from the Laplace approximation of θ's posterior, with θ ~ N(0, spread² I) and choices
    `chosen` (n, c) by softmax(offset − spread² ‖v‖²/2 + v·θ): the mean over θ of each item's weight is then
    that of the offset alone. offset: (n, c); items: v (n, c, D); condition: (n, q).
    """
    n, _, width = items.shape
    offset = offset - spread**2 / 2 * items.square().sum(2)
    modes = torch.zeros(n, width, dtype=torch.float64)
    prior = torch.eye(width, dtype=torch.float64) / spread**2
    for _ in range(NEWTON_STEPS):
        gradient, curvature = slopes(offset, items, chosen, modes.float())
        gradient, hessian = gradient.double() - modes @ prior, curvature.double() + prior
        modes = modes + torch.linalg.solve(hessian, gradient[:, :, None])[:, :, 0].clamp(-1, 1)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian))
    noise = torch.randn(DRAWS, n, width, 1, dtype=torch.float64, generator=replica_generator(seed, "taste"))
    draws = modes + (factor @ noise)[..., 0]
    design = torch.cat([torch.ones(n, 1), condition], 1).double()
    ridge = RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    ridge[0, 0] = 0
    prior_map = torch.linalg.solve(design.T @ design + ridge, design.T @ modes)
    apart = draws - design @ prior_map
    covariance = torch.einsum("snd,sne->de", apart, apart) / (DRAWS * n)
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, apart.flatten(0, 1).T, upper=False).T.view_as(apart)
    return {"prior.map": prior_map.float(), "prior.factor": factor.float()}, white.float()


def slopes(offset: Tensor, items: Tensor, chosen: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (n, D) and negative Hessian (n, D, D) of Σ_i chosen_i log softmax(offset + items x)_i in x."""
    p = torch.baddbmm(offset[:, :, None], items, x[:, :, None])[:, :, 0].softmax(1)
    number = chosen.sum(1)
    mean = (p[:, None] @ items)[:, 0]
    second = (items * p[:, :, None]).mT @ items
    curvature = number[:, None, None] * (second - mean[:, :, None] * mean[:, None])
    return (chosen[:, None] @ items)[:, 0] - number[:, None] * mean, curvature
