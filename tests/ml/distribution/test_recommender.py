"""Recommending by a distribution: new users, the ranking against the exhaustive one, ratings, restoring."""

from __future__ import annotations

import dataclasses
import json
from unittest.mock import patch

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.data import Ratings
from ml.distribution import recommender as module
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects, level_basis
from ml.distribution.model import StarDiffusion
from ml.distribution.recommender import DescribedUsers, EffectsFoldIn, StarRecommender
from ml.evaluation.distribution import mean, median
from ml.recommender import Recommender

STARS = torch.arange(1.0, 6)
USERS, SOURCE_ITEMS, TARGET_ITEMS = 200, 60, 400


def domain(theta: torch.Tensor, items: int, each: int, seed: int) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    users = torch.arange(len(theta)).repeat_interleave(each)
    columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(len(theta))])
    phi = 0.5 * torch.randn(items, 4, generator=generator)
    p = ((theta[users] + phi[columns]) @ level_basis(STARS).float().T).softmax(1)
    return Ratings(users, columns, STARS[torch.multinomial(p, 1, generator=generator)[:, 0]])


@pytest.fixture(scope="module")
def source() -> Ratings:
    theta = 0.8 * torch.randn(USERS, 4, generator=torch.Generator().manual_seed(0))
    return domain(theta, SOURCE_ITEMS, 20, seed=1)


@pytest.fixture(scope="module")
def recommender(source) -> StarRecommender:
    """Target items 0 and 1 may not be recommended."""
    theta = 0.8 * torch.randn(USERS, 4, generator=torch.Generator().manual_seed(0))
    target = domain(theta, TARGET_ITEMS, 20, seed=2)
    effects = fit_effects(source, USERS, SOURCE_ITEMS, seed=0)
    data = TransferRatings(target, USERS, TARGET_ITEMS, torch.arange(USERS), effects.description(), seed=0)
    fields = [field.name for field in dataclasses.fields(EffectsFoldIn)]
    return StarRecommender(
        StarDiffusion(epochs=4, diffusion=VectorDiffusion(steps=150)).trained(data),
        EffectsFoldIn(*(getattr(effects, name) for name in fields)),
        torch.bincount(target.items, minlength=TARGET_ITEMS),
        torch.arange(2, TARGET_ITEMS),
    )


@pytest.fixture(scope="module")
def rows(source, recommender) -> torch.Tensor:
    return recommender.transfer(recommender.fold(source, USERS))


def exhaustive(recommender: StarRecommender, rows: torch.Tensor) -> torch.Tensor:
    """Mean ratings (n, allowed) by the model's own prediction."""
    n, allowed = len(rows), recommender.allowed
    users = torch.arange(n).repeat_interleave(len(allowed))
    p = recommender.model.predict_pairs(rows, users, allowed.repeat(n))
    return mean(p, STARS).view(n, -1)


def negative_log_posterior(theta: np.ndarray, fold: EffectsFoldIn, items, index) -> float:
    """Equations (1) and (2) of `ml.distribution.effects`, without the constants."""
    logits = (fold.intercept + torch.from_numpy(theta) + fold.items[items]) @ fold.basis.T
    departure = torch.from_numpy(theta) - fold.prior_map[0]
    prior = departure @ torch.linalg.inv(fold.prior_covariance) @ departure / 2
    return (prior - logits.log_softmax(1)[torch.arange(len(index)), index].sum()).item()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SOURCE_ITEMS - 1), st.integers(0, 4)), min_size=1, max_size=300))
def test_a_folded_user_is_at_the_mode_of_the_posterior(recommender, given_ratings):
    fold = recommender.fold_in
    items, index = (torch.tensor(column) for column in zip(*given_ratings, strict=True))
    found = fold(Ratings(torch.zeros_like(items), items, STARS[index]), 1)[0]
    best = scipy.optimize.minimize(
        negative_log_posterior, np.zeros(4), (fold, items, index), method="BFGS", options={"gtol": 1e-6}
    )
    at_mode = negative_log_posterior(found[:4].numpy(), fold, items, index)
    assert at_mode <= best.fun + 1e-6
    np.testing.assert_allclose(found[:4], best.x, atol=1e-3)
    assert found[4].item() == pytest.approx(np.log1p(len(items)))


def test_users_are_folded_one_by_one_or_together(source, recommender, rows):
    one = source.users == 7
    alone = recommender.fold(Ratings(torch.zeros(20).long(), source.items[one], source.values[one]), 1)
    torch.testing.assert_close(alone.description[0], rows[7])


def test_who_rated_nothing_gets_the_most_popular_items(recommender):
    nothing = Ratings(torch.ones(1).long(), torch.tensor([3]), torch.tensor([1.0]))
    users = recommender.fold(nothing, 2)
    known = recommender.known(users)
    assert known.tolist() == [False, True]
    torch.testing.assert_close(users.description[0], torch.tensor([*recommender.fold_in.prior_map[0], 0.0]))
    items, scores = recommender.top(recommender.transfer(users), known, 5)
    counts = recommender.popularity[2:]
    assert scores[0].tolist() == counts.sort(descending=True).values[:5].tolist()
    assert recommender.popularity[items[0]].tolist() == scores[0].tolist()
    assert scores[1].max() <= 5


def test_users_who_are_known_are_taken_by_row(rows):
    users = DescribedUsers(rows)
    assert len(users) == USERS
    assert torch.equal(users.take(torch.tensor([5, 2])).description, rows[[5, 2]])


def test_scores_are_the_models_means(recommender, rows):
    items, scores = recommender.top(rows[:20], torch.ones(20).bool(), 1000)
    assert items.shape == (20, TARGET_ITEMS - 2)
    assert (items.sort(1).values == recommender.allowed).all()
    expected = exhaustive(recommender, rows[:20]).gather(1, items - 2)
    torch.testing.assert_close(scores, expected.float(), atol=2e-5, rtol=0)
    assert (scores.diff(dim=1) <= 0).all()


def test_the_shortlist_agrees_with_the_exhaustive_ranking(recommender, rows):
    with patch.object(module, "FEWEST", 60), patch.object(module, "SHORTLIST", 3):
        short, _ = recommender.top(rows, torch.ones(USERS).bool(), 20)
    complete = exhaustive(recommender, rows).topk(20).indices + 2
    agreement = (short[:, :, None] == complete[:, None, :]).any(2).float().mean()
    assert agreement > 0.995


def test_the_shortlist_is_what_is_ranked(recommender, rows):
    """With as many as are asked for, the mean vector picks the items and the mixture only their order."""
    with patch.object(module, "FEWEST", 1), patch.object(module, "SHORTLIST", 1):
        short, scores = recommender.top(rows[:50], torch.ones(50).bool(), 20)
    assert (scores.diff(dim=1) <= 0).all()
    whole, _ = recommender.top(rows[:50], torch.ones(50).bool(), 20)
    assert not torch.equal(short, whole)


def test_chunks_change_nothing(recommender, rows):
    known = torch.arange(USERS) % 3 > 0
    items, scores = recommender.top(rows, known, 10)
    with patch.object(module, "BLOCK", 7), patch.object(module, "LOGITS", 1):
        chunked, same = recommender.top(rows, known, 10)
    torch.testing.assert_close(same, scores, atol=1e-5, rtol=0)
    assert (chunked == items).float().mean() > 0.99


def test_ratings_come_with_their_distribution(recommender, rows):
    items = torch.tensor([0, 9, 9, 4])
    rated = recommender.rate(rows[3], items)
    expected = recommender.model.predict_pairs(rows, torch.full((4,), 3), items)
    torch.testing.assert_close(rated.probabilities, expected)
    torch.testing.assert_close(rated.mean, mean(expected, STARS))
    assert torch.equal(rated.median, median(expected, STARS))
    assert rated.levels.tolist() == STARS.tolist()


def test_what_is_saved_recommends_the_same(recommender, rows):
    held = json.loads(json.dumps(recommender.settings()))
    restored = StarRecommender.restore(held, recommender.tensors(), recommender.model.tensors())
    assert restored.model.diffusion == recommender.model.diffusion
    items, scores = recommender.top(rows[:9], torch.ones(9).bool(), 7)
    same_items, same_scores = restored.top(rows[:9], torch.ones(9).bool(), 7)
    assert torch.equal(same_items, items)
    torch.testing.assert_close(same_scores, scores)
    new = Ratings(torch.zeros(2).long(), torch.tensor([1, 8]), torch.tensor([5.0, 2.0]))
    assert torch.equal(restored.fold(new, 1).description, recommender.fold(new, 1).description)
    assert StarRecommender.kind != Recommender.kind


def test_a_rating_that_is_no_level_is_refused(recommender):
    half = Ratings(torch.zeros(1).long(), torch.tensor([1]), torch.tensor([4.5]))
    with pytest.raises(ValueError, match=r"rating 4\.5 is none of the levels"):
        recommender.fold(half, 1)
    assert recommender.source_levels.tolist() == STARS.tolist()


def test_rows_outside_the_tables_are_refused(recommender):
    stranger = Ratings(torch.zeros(1).long(), torch.tensor([SOURCE_ITEMS]), torch.tensor([4.0]))
    with pytest.raises(ValueError, match=r"ratings.items has row 60"):
        recommender.fold(stranger, 1)
    with pytest.raises(ValueError, match="lower min_ratings"):
        dataclasses.replace(recommender, allowed=torch.tensor([], dtype=torch.int64))
