from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from ml.data import Ratings, Users, ratings_of
from ml.distribution import taste as module
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects
from ml.distribution.model import StarDiffusion
from ml.distribution.taste import PENALTY, Taste, fit_taste
from ml.evaluation.distribution import distribution_scores

USERS, SOURCE, TARGET, TRAINED = 500, 60, 50, 400
FAST = {"vectors": "gaussian", "epochs": 30, "diffusion": VectorDiffusion(steps=50)}


def stars(users: torch.Tensor, items: torch.Tensor, score: torch.Tensor, generator) -> Ratings:
    noisy = 3.2 + score + 0.6 * torch.randn(len(score), generator=generator)
    return Ratings(users, items, noisy.round().clamp(1, 5))


def world(affinity: float) -> tuple[TransferRatings, Ratings]:
    """Users with a leniency and a taste that are the same in both domains; the last 100 are held out.

    affinity: how much the taste moves a rating; at 0 only the style of rating carries over.
    """
    generator = torch.Generator().manual_seed(0)
    leniency = 0.5 * torch.randn(USERS, generator=generator)
    taste = torch.randn(USERS, 2, generator=generator)
    domains = []
    for items, each in ((SOURCE, 25), (TARGET, 15)):
        users = torch.arange(USERS).repeat_interleave(each)
        columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(USERS)])
        liked = torch.randn(items, 2, generator=generator)
        quality = 0.4 * torch.randn(items, generator=generator)
        score = leniency[users] + quality[columns] + affinity * (taste[users] * liked[columns]).sum(1)
        domains.append(stars(users, columns, score, generator))
    source, target = domains
    description = fit_effects(source, USERS, SOURCE, seed=0).description()
    seen = target.users < TRAINED
    data = TransferRatings(
        Ratings(target.users[seen], target.items[seen], target.values[seen]),
        USERS,
        TARGET,
        torch.arange(USERS),
        description,
        seed=0,
        source=source,
        n_source_items=SOURCE,
    )
    return data, Ratings(target.users[~seen], target.items[~seen], target.values[~seen])


def errors(model: StarDiffusion, data: TransferRatings, held_out: Ratings) -> dict[str, float]:
    p = model.predict_pairs(data.description, held_out.users, held_out.items, history=data.source)
    scores = distribution_scores(p, torch.arange(1.0, 6), held_out.values)
    mean = p.double() @ torch.arange(1.0, 6).double()
    return scores | {"rmse": (mean - held_out.values).square().mean().sqrt().item()}


@pytest.fixture(scope="module")
def planted():
    return world(0.6)


@pytest.fixture(scope="module")
def fitted(planted) -> StarDiffusion:
    return StarDiffusion(**FAST).trained(planted[0])


def test_a_planted_taste_is_found(planted, fitted):
    style = StarDiffusion(taste=False, **FAST).trained(planted[0])
    own, other = errors(fitted, *planted), errors(style, *planted)
    for name in ("rmse", "mae", "crps", "log_loss"):
        assert own[name] < 0.95 * other[name], name


def test_without_a_taste_nothing_is_lost():
    data, held_out = world(0.0)
    own = errors(StarDiffusion(**FAST).trained(data), data, held_out)
    style = errors(StarDiffusion(taste=False, **FAST).trained(data), data, held_out)
    for name in ("rmse", "crps", "log_loss"):
        assert own[name] < 1.01 * style[name], name


def residual(data: TransferRatings) -> torch.Tensor:
    return fit_effects(data.target, data.n_users, data.n_items, seed=0).residual(data.target)


def test_residuals_are_ratings_less_their_expectation(planted):
    data, _ = planted
    effects = fit_effects(data.target, data.n_users, data.n_items, seed=0)
    rating = 17
    user, item = data.target.users[rating], data.target.items[rating]
    p = (effects.basis @ (effects.intercept + effects.users[user] + effects.items[item])).softmax(0)
    expected = data.target.values[rating].double() - p @ effects.levels
    torch.testing.assert_close(effects.residual(data.target)[rating], expected)


@pytest.fixture(scope="module")
def learned(planted):
    data, _ = planted
    y = residual(data)
    return (*fit_taste(data, y), y)


def test_neighbours_are_a_kernel_ridge_on_residuals_of_each_item(planted, learned):
    """Of users who were not there by scikit-learn; of a training user by the fit without the rating."""
    data, held_out = planted
    taste, columns, y = learned
    known = taste.of(data.source, USERS)
    rows = known.rows.toarray().astype(np.float64)
    item = 7
    mine = (data.target.items == item).numpy()
    raters = data.target.users[torch.from_numpy(mine)].numpy()
    ridge = KernelRidge(alpha=PENALTY, kernel="linear").fit(rows[raters], y.numpy()[mine])
    newcomer = held_out.users[:1]
    found = taste.pairs(known, newcomer, torch.tensor([item]))[0, 0] * taste.spread[0] + taste.centre[0]
    assert found.item() == pytest.approx(ridge.predict(rows[newcomer.numpy()])[0], abs=1e-5)
    rating = np.flatnonzero(mine)[3]
    rest = raters != raters[3]
    without = KernelRidge(alpha=PENALTY, kernel="linear").fit(rows[raters[rest]], y.numpy()[mine][rest])
    own = columns[rating, 0] * taste.spread[0] + taste.centre[0]
    assert own.item() == pytest.approx(without.predict(rows[raters[[3]]])[0], abs=1e-5)


def test_raters_beyond_the_most_are_predicted_by_those_within(planted, monkeypatch):
    data, _ = planted
    monkeypatch.setattr(module, "RATERS", 40)
    taste, columns = fit_taste(data, residual(data))
    kept = np.bincount(taste.weights.indices, minlength=TARGET)
    assert kept.max() == 40
    known = taste.of(data.source, USERS)
    weights = torch.from_numpy(taste.weights.toarray())
    rows = (weights[data.target.users, data.target.items] == 0).nonzero()[:, 0]
    assert len(rows) > 100
    found = taste.pairs(known, data.target.users[rows], data.target.items[rows])[:, 0]
    torch.testing.assert_close(found, columns[rows, 0], atol=1e-4, rtol=1e-4)


def test_a_users_own_target_ratings_do_not_move_their_factors(planted, learned):
    """Columns of a training user are of a fit that has not seen them: other ratings, the same columns."""
    data, _ = planted
    _, columns, y = learned
    user = data.target.users == 3
    values = torch.where(user, 6 - data.target.values, data.target.values)
    moved = dataclasses.replace(data, target=Ratings(data.target.users, data.target.items, values))
    again = fit_taste(moved, y)
    taste = learned[0]

    def raw(taste: Taste, columns: torch.Tensor) -> torch.Tensor:
        return columns * taste.spread + taste.centre

    # The domain's mean is of all ratings, and one user's are a few of thousands.
    torch.testing.assert_close(
        raw(again[0], again[1])[user][:, 1:], raw(taste, columns)[user][:, 1:], atol=0.03, rtol=0
    )


def test_a_catalogue_is_its_pairs(planted, learned):
    data, _ = planted
    known, items = learned[0].of(data.source, USERS).take(torch.tensor([3, 450])), torch.tensor([4, 30, 31])
    found = learned[0].catalogue(known, items)
    users = torch.tensor([0, 1]).repeat_interleave(3)
    torch.testing.assert_close(found.flatten(0, 1), learned[0].pairs(known, users, items.repeat(2)))


def test_lists_are_ordered_by_the_predicted_mean(planted, fitted):
    data, _ = planted
    rows = torch.tensor([420, 421])
    history = ratings_of(data.source, rows, USERS)
    users = Users(rows, torch.full_like(rows, -1), ratings=history, description=data.description[rows])
    model = StarDiffusion(**FAST).load_state_dict(fitted.tensors())
    model.levels_ = [fitted.levels]
    items, scores = model.top(users, 5)
    every = model.scores(users, torch.arange(TARGET))
    best, order = every.sort(descending=True, dim=1)
    assert torch.equal(items, order[:, :5])
    torch.testing.assert_close(scores, best[:, :5], atol=1e-5, rtol=1e-5)


def test_a_prediction_depends_on_nobody_else_and_survives_saving(planted, fitted):
    data, held_out = planted
    together = fitted.predict_pairs(data.description, held_out.users, held_out.items, history=data.source)
    restored = StarDiffusion(**FAST).restored(fitted.tensors())
    again = restored.predict_pairs(data.description, held_out.users, held_out.items, history=data.source)
    assert torch.equal(together, again)
    user = int(held_out.users[0])
    alone = restored.predict_pairs(
        data.description[[user]],
        torch.tensor([0]),
        held_out.items[:1],
        history=ratings_of(data.source, torch.tensor([user]), USERS),
    )
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-4)


def test_a_user_without_source_ratings_has_an_average_taste(planted, fitted):
    data, _ = planted
    pair = data.description[:1], torch.tensor([0]), torch.tensor([5])
    nobody = Ratings(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))
    p = fitted.predict_pairs(*pair, history=nobody)
    assert torch.isfinite(p).all()
    torch.testing.assert_close(p.sum(1), torch.ones(1))
    known = fitted.taste_.of(nobody, 1)
    assert known.rows.nnz == 0
    assert torch.equal(known.factors, torch.zeros_like(known.factors))


def test_an_extreme_user_counts_as_one_within_reach(planted, fitted):
    data, _ = planted
    far = data.description[:1].clone()
    far[:, 0] += 1e3
    further = far.clone()
    further[:, 0] += 1e3
    pair = torch.tensor([0]), torch.tensor([5])
    assert torch.equal(fitted.predict_pairs(far, *pair), fitted.predict_pairs(further, *pair))


def test_bad_input(planted, fitted):
    data, _ = planted
    with pytest.raises(ValueError, match=r"source\.items has row \d+, its table has rows 0\.\.9"):
        dataclasses.replace(data, n_source_items=10)
    stranger = Ratings(torch.tensor([0]), torch.tensor([SOURCE]), torch.tensor([3.0]))
    with pytest.raises(ValueError, match=r"history\.items has row 60"):
        fitted.predict_pairs(data.description[:1], torch.tensor([0]), torch.tensor([5]), history=stranger)
