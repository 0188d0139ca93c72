"""A fabricated recommender at the size of a large shop, to time answers by: weights as training would leave
them in number and kind, made by chance, so that its lists mean nothing.

64,443 target items, 50,000 source items, 13,000 training users whose choices the lists are made from, and
30,000 users of the source domain who may be asked for; ratings with times. Lists by `choice_diffusion`, stars
by `star_diffusion`, which is trained for a moment on ratings drawn by chance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from assets.serving.bundle import Bundle
from ml.data import Ratings, Users
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects
from ml.distribution.fold_in import EffectsFoldIn
from ml.distribution.model import StarDiffusion
from ml.encoder import ItemStatistics, SourceEncoder
from ml.ranking.blend import DeepBlend, periods_of
from ml.ranking.choices import ChoiceDiffusion
from ml.ranking.neighbourhood import UserNeighbourhood
from ml.ranking.periods import BANDS, PERIODS, When
from ml.ranking.ranker import Choices, State, last, packed, rare_rows, weighted
from ml.recommender import Recommender, Served, UserRatings

TARGET_ITEMS, SOURCE_ITEMS, TRAINING_USERS, USERS = 64_443, 50_000, 13_000, 30_000
MEAN_HISTORY, LONGEST_HISTORY = 18, 400
KEPT = 4096  # training users that a regression rests on
STARS = torch.arange(1.0, 6)
SCALE = 1.0, 5.0
TASTED = 2_000  # users whose target ratings the stars are trained on
HIDDEN = 16
DAYS = 4_000  # over which ratings are spread


def large() -> Bundle:
    """The fabricated recommender, the same each time."""
    generator = torch.Generator().manual_seed(0)
    draw = np.random.default_rng(0)
    source, target = _choices(draw, USERS, SOURCE_ITEMS), _choices(draw, TRAINING_USERS, TARGET_ITEMS)
    choices = Choices(
        source[:TRAINING_USERS],
        target,
        source[TRAINING_USERS:],
        csr_matrix((1, TARGET_ITEMS), dtype=np.float32),
        0,
        _when(target, draw),
    )
    lists = ChoiceDiffusion().load_state_dict(_lists(choices, generator))
    rated, known = _ratings(source, draw), _ratings(target[:TASTED], draw)
    effects = fit_effects(rated, USERS, SOURCE_ITEMS, seed=0)
    description, every = effects.description(), torch.arange(USERS)
    nobody = torch.full_like(every, -1)
    shared = torch.arange(TASTED)
    transfer = TransferRatings(
        known, TASTED, TARGET_ITEMS, shared, description, 0, source=rated, n_source_items=SOURCE_ITEMS
    )
    trained = StarDiffusion(epochs=1, diffusion=VectorDiffusion(steps=40)).trained(transfer)
    stars = StarDiffusion().load_state_dict(trained.tensors())
    stars.levels_ = [STARS.double()]
    parts = ("items", "intercept", "levels", "basis", "prior_map", "prior_covariance")
    fold_in = EffectsFoldIn(*(getattr(effects, name) for name in parts))
    statistics = ItemStatistics.of(rated, SOURCE_ITEMS)
    by_stars = SourceEncoder(
        tuple(StarDiffusion.needs), SOURCE_ITEMS, SCALE, 3.0, statistics=statistics, effects=fold_in
    )
    by_choices = SourceEncoder(tuple(ChoiceDiffusion.needs), SOURCE_ITEMS, SCALE, 3.0, statistics=statistics)
    times = draw.random(len(rated)) * DAYS
    times = times[np.lexsort((times, rated.users.numpy()))]  # each user's oldest first
    history = UserRatings.of(replace(rated, times=torch.from_numpy(times).float()), USERS)
    recommender = Recommender(
        Served("choice_diffusion", "choice_diffusion", lists, by_choices, Users(every, nobody)),
        Served(
            "star_diffusion", "star_diffusion", stars, by_stars, Users(every, nobody, description=description)
        ),
        history=history,
        rated=UserRatings.of(_ratings(target, draw), USERS),
        popularity=torch.from_numpy(choices.popularity).long(),
        allowed=torch.from_numpy(np.flatnonzero(choices.popularity)),
        scale=SCALE,
    )
    ids = (_names("user", USERS), _names("source", SOURCE_ITEMS), _names("target", TARGET_ITEMS))
    return Bundle("fabricated", "fabricated", recommender, *ids, SCALE)


def _names(kind: str, count: int) -> np.ndarray:
    return np.array([f"{kind}-{number}" for number in range(count)], dtype=object)


def _choices(draw: np.random.Generator, users: int, items: int) -> csr_matrix:
    """Choices of items whose popularity is lognormal, by histories of geometric length."""
    popularity = draw.lognormal(0, 1.4, items)
    shares = np.cumsum(popularity / popularity.sum())
    lengths = np.minimum(5 + draw.geometric(1 / (MEAN_HISTORY - 5), users), LONGEST_HISTORY)
    rows = [np.unique(np.searchsorted(shares, draw.random(n)).clip(max=items - 1)) for n in lengths]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    columns = np.concatenate(rows).astype(np.int32)
    return csr_matrix((np.ones(len(columns), dtype=np.float32), columns, starts), shape=(users, items))


def _when(target: csr_matrix, draw: np.random.Generator) -> When:
    """Choices at any time alike; of the training users, whom nobody asks for, nothing else."""
    periods = draw.integers(0, PERIODS, target.nnz)
    counts = csr_matrix((target.data, (periods, target.indices)), shape=(PERIODS, TARGET_ITEMS))
    edges = np.linspace(0, DAYS, PERIODS - 1).astype(np.float32)
    nobody = csr_matrix((0, PERIODS), dtype=np.float32)
    return When(edges, counts, nobody, csr_matrix((0, TARGET_ITEMS), dtype=np.int64))


def _ratings(choices: csr_matrix, draw: np.random.Generator) -> Ratings:
    users = torch.arange(choices.shape[0]).repeat_interleave(torch.from_numpy(np.diff(choices.indptr)).long())
    stars = torch.from_numpy(draw.integers(1, 6, choices.nnz).astype(np.float32))
    return Ratings(users, torch.from_numpy(choices.indices).long(), stars)


def _lists(choices: Choices, generator: torch.Generator) -> State:
    """A state of `ChoiceDiffusion` with `DeepBlend` in it."""

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    popularity = torch.from_numpy(choices.popularity).float()
    state = {"source_items": torch.tensor(SOURCE_ITEMS), "popularity": popularity, **periods_of(choices)}
    parts = {
        "neighbourhood": last(UserNeighbourhood().learn(choices)),
        "regression": _regression(choices, weighted(choices.source[:KEPT], choices.rarity), generator),
        "even_regression": _regression(choices, rare_rows(choices.source[:KEPT], choices.rarity), generator),
        "autoencoder": {
            "source_items": torch.tensor(SOURCE_ITEMS),
            "rarity": torch.from_numpy(choices.rarity),
            "offset": (popularity + 0.5).log(),
            "encoder": normal(SOURCE_ITEMS, 64, scale=0.05),
            "hidden": torch.zeros(64),
            "decoder": normal(64, TARGET_ITEMS, scale=0.01),
            "output": torch.zeros(TARGET_ITEMS),
        },
    }
    for name in ("als", "sure_als"):
        parts[name] = {
            "source_items": torch.tensor(SOURCE_ITEMS),
            "source_vectors": normal(SOURCE_ITEMS, 32, scale=0.1),
            "target_vectors": normal(TARGET_ITEMS, 32, scale=0.1),
            "gram": torch.eye(32, dtype=torch.float64) * 1000,
        }
    if set(parts) != set(DeepBlend.PARTS):
        raise ValueError(f"the blend's parts are {', '.join(DeepBlend.PARTS)} now: fabricate those")
    state |= {f"{name}.{key}": value for name, held in parts.items() for key, value in held.items()}
    # As `Blend` has them: columns of no part, each part's score, and the logarithm of all but one.
    n_parts = len(parts)
    plain = n_parts + 2 + len(BANDS)
    width = plain + (n_parts - 1)
    state |= {
        "blend.scale": torch.ones(plain),
        "blend.centre": torch.zeros(width),
        "blend.spread": torch.ones(width),
        "logit.weights": normal(width, scale=0.1),
        "logit.inner": normal(width, HIDDEN, scale=0.2),
        "logit.bias": torch.zeros(HIDDEN),
        "logit.outer": normal(HIDDEN, scale=0.1),
        "choices": torch.tensor(3.0),
        "seed": torch.tensor(0),
    }
    model = ChoiceDiffusion(diffusion_steps=5)
    state |= model._axes(state)
    state["items"] = model._items(state, state["als.target_vectors"])
    columns, width = 33, model.width + 1
    fitted = model._diffusion().fit(
        normal(2, 500, width, scale=1.0), normal(500, columns, scale=1.0), choices.seed
    )
    state |= {
        "condition.centre": torch.zeros(columns),
        "condition.spread": torch.ones(columns),
        "prior.map": normal(columns + 1, width, scale=0.01),
        "prior.factor": torch.eye(width) * 0.1,
        "map": torch.eye(width),
    }
    return state | {f"diffusion.{name}": value for name, value in fitted.items()}


def _regression(choices: Choices, rows: csr_matrix, generator: torch.Generator) -> State:
    return {
        "source_items": torch.tensor(SOURCE_ITEMS),
        "rarity": torch.from_numpy(choices.rarity),
        "kept": torch.arange(KEPT),
        "inverse": torch.eye(KEPT) * 0.01 + torch.rand(KEPT, KEPT, generator=generator) * 1e-5,
        **packed("source", rows),
        **packed("target", choices.target[:KEPT]),
    }
