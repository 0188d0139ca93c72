"""Lists of the star model: a shortlist, ordered by the mixture, against the exhaustive order."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.data import Ratings, Users
from ml.distribution import model as module
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects, level_basis
from ml.distribution.fold_in import EffectsFoldIn
from ml.distribution.model import StarDiffusion
from ml.evaluation.distribution import mean

STARS = torch.arange(1.0, 6)
USERS, SOURCE_ITEMS, TARGET_ITEMS = 200, 60, 400
AMONG = torch.arange(2, TARGET_ITEMS)  # target items 0 and 1 may not be listed


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
def fold(source) -> EffectsFoldIn:
    effects = fit_effects(source, USERS, SOURCE_ITEMS, seed=0)
    names = ("items", "intercept", "levels", "basis", "prior_map", "prior_covariance")
    return EffectsFoldIn(*(getattr(effects, name) for name in names))


@pytest.fixture(scope="module")
def users(source, fold) -> Users:
    rows = torch.arange(USERS)
    return Users(rows, torch.full_like(rows, -1), description=fold(source, USERS))


@pytest.fixture(scope="module")
def model(users) -> StarDiffusion:
    theta = 0.8 * torch.randn(USERS, 4, generator=torch.Generator().manual_seed(0))
    target = domain(theta, TARGET_ITEMS, 20, seed=2)
    data = TransferRatings(target, USERS, TARGET_ITEMS, torch.arange(USERS), users.description, seed=0)
    trained = StarDiffusion(epochs=4, diffusion=VectorDiffusion(steps=150)).trained(data)
    return StarDiffusion().load_state_dict(trained.tensors())


def exhaustive(model: StarDiffusion, users: Users) -> torch.Tensor:
    """Mean ratings (n, items) by the model's own prediction."""
    rows = torch.arange(len(users)).repeat_interleave(TARGET_ITEMS)
    items = torch.arange(TARGET_ITEMS).repeat(len(users))
    return mean(model.cell().predict_pairs(users.description, rows, items), STARS).view(len(users), -1)


def test_scores_are_the_models_means(model, users):
    few = users.take(torch.arange(20))
    items, scores = model.top(few, TARGET_ITEMS - 2, among=AMONG)
    assert (items.sort(1).values == AMONG).all()
    torch.testing.assert_close(scores, exhaustive(model, few).gather(1, items).float(), atol=2e-5, rtol=0)
    assert (scores.diff(dim=1) <= 0).all()


def test_a_list_is_as_long_as_was_asked_for(model, users):
    few = users.take(torch.arange(3))
    items, scores = model.top(few, 450, among=AMONG)
    assert items.shape == scores.shape == (3, 450)
    assert (items[:, 398:] == -1).all()
    assert scores[:, 398:].isneginf().all()
    assert model.top(users.take(torch.arange(0)), 5)[0].shape == (0, 5)


def test_the_shortlist_agrees_with_the_exhaustive_order(model, users):
    with patch.object(module, "FEWEST", 60), patch.object(module, "SHORTLIST", 3):
        short, _ = model.top(users, 20)
    complete = exhaustive(model, users).topk(20).indices
    agreement = (short[:, :, None] == complete[:, None, :]).any(2).float().mean()
    assert agreement > 0.995


def test_the_shortlist_is_what_is_ordered(model, users):
    """With as many as are asked for, the mean vector picks the items and the mixture only their order."""
    with patch.object(module, "FEWEST", 1), patch.object(module, "SHORTLIST", 1):
        short, scores = model.top(users, 20)
    assert (scores.diff(dim=1) <= 0).all()
    assert not torch.equal(short, model.top(users, 20)[0])


@pytest.mark.parametrize("fewest", [1, 200])
def test_what_is_excluded_for_a_user_is_not_listed_to_them(model, users, fewest):
    few = users.take(torch.tensor([3, 8, 5]))
    best, _ = model.top(few, 10, among=AMONG)
    barred = Ratings(torch.tensor([2, 0, 0, 1]), torch.tensor([*best[2, :1], *best[0, :2], 0]), torch.ones(4))
    with patch.object(module, "FEWEST", fewest):
        items, scores = model.top(few, 8, barred, among=AMONG)
    assert items.tolist() == [best[0, 2:].tolist(), best[1, :8].tolist(), best[2, 1:9].tolist()]
    assert scores.isfinite().all()


def test_chunks_change_nothing(model, users):
    barred = Ratings(torch.arange(USERS), torch.arange(USERS), torch.ones(USERS))
    items, scores = model.top(users, 10, barred)
    with patch.object(module, "BLOCK", 7), patch.object(module, "LOGITS", 1):
        chunked, same = model.top(users, 10, barred)
    torch.testing.assert_close(same, scores, atol=1e-5, rtol=0)
    assert (chunked == items).float().mean() > 0.99


def negative_log_posterior(theta: np.ndarray, fold: EffectsFoldIn, items, index) -> float:
    """Equations (1) and (2) of `ml.distribution.effects`, without the constants."""
    logits = (fold.intercept + torch.from_numpy(theta) + fold.items[items]) @ fold.basis.T
    departure = torch.from_numpy(theta) - fold.prior_map[0]
    prior = departure @ torch.linalg.inv(fold.prior_covariance) @ departure / 2
    return (prior - logits.log_softmax(1)[torch.arange(len(index)), index].sum()).item()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SOURCE_ITEMS - 1), st.integers(0, 4)), min_size=1, max_size=300))
def test_a_folded_user_is_at_the_mode_of_the_posterior(fold, given_ratings):
    items, index = (torch.tensor(column) for column in zip(*given_ratings, strict=True))
    found = fold(Ratings(torch.zeros_like(items), items, STARS[index]), 1)[0]
    best = scipy.optimize.minimize(
        negative_log_posterior, np.zeros(4), (fold, items, index), method="BFGS", options={"gtol": 1e-6}
    )
    at_mode = negative_log_posterior(found[:4].numpy(), fold, items, index)
    assert at_mode <= best.fun + 1e-6
    np.testing.assert_allclose(found[:4], best.x, atol=1e-3)
    assert found[4].item() == pytest.approx(np.log1p(len(items)))


def test_users_are_folded_one_by_one_or_together(source, fold, users):
    one = source.users == 7
    alone = fold(Ratings(torch.zeros(20).long(), source.items[one], source.values[one]), 1)
    torch.testing.assert_close(alone[0], users.description[7])
    nothing = Ratings(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0))
    torch.testing.assert_close(fold(nothing, 1)[0], torch.tensor([*fold.prior_map[0], 0.0]).double())
