"""The controls on star histograms against closed forms on small cases, scikit-learn and planted data."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch.testing import assert_close

from ml.data import Ratings
from ml.distribution.contract import TransferRatings
from ml.distribution.discriminative import (
    ItemStars,
    StarBoosting,
    StarLogit,
    features,
    overall_shares,
    pair_features,
    shrunk_shares,
    star_description,
    training_rows,
    trees_of,
    trees_sum,
)
from ml.evaluation.distribution import crps, log_loss
from ml.models.registry import build
from ml.models.statistics import SHRINKAGE

STARS = torch.arange(1.0, 6)


def ratings(*rows) -> Ratings:
    users, items, values = zip(*rows, strict=True)
    return Ratings(torch.tensor(users), torch.tensor(items), torch.tensor(values, dtype=torch.float32))


def rated(kindness: torch.Tensor, items: int, each: int, seed: int, levels=STARS) -> Ratings:
    """Ratings of users who find `kindness` (n,) in everything; more than half give the best."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.arange(len(kindness)).repeat_interleave(each)
    columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(len(kindness))])
    appeal = 0.5 * torch.randn(items, generator=generator)
    steps = torch.linspace(-1, 1, len(levels)) * (1 + kindness[users] + appeal[columns])[:, None]
    return Ratings(
        users, columns, levels[torch.multinomial((2 * steps).softmax(1), 1, generator=generator)[:, 0]]
    )


def taken(all_ratings: Ratings, kept: torch.Tensor) -> Ratings:
    return Ratings(all_ratings.users[kept], all_ratings.items[kept], all_ratings.values[kept])


@pytest.fixture(scope="module")
def world() -> tuple[TransferRatings, Ratings]:
    """400 users as kind in both domains. Of the target's, the first 50 have no source ratings and the last
    150 are held out."""
    kindness = 0.9 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    source, target = rated(kindness, 80, 25, seed=1), rated(kindness, 60, 12, seed=2)
    some = torch.rand(len(source), generator=torch.Generator().manual_seed(3)) < 0.6
    known = torch.arange(400)
    data = TransferRatings(
        taken(target, target.users < 250),
        n_users=400,
        n_items=60,
        source_user=torch.where(known < 50, -1, known),
        description=star_description(taken(source, some), 400, 80, STARS),
        seed=0,
    )
    return data, taken(target, target.users >= 250)


@pytest.fixture(scope="module")
def logit(world) -> StarLogit:
    return StarLogit().trained(world[0])


@pytest.fixture(scope="module")
def stars(world) -> ItemStars:
    return ItemStars().trained(world[0])


@pytest.fixture(scope="module")
def boosting(world) -> StarBoosting:
    return StarBoosting().trained(world[0])


def predicted(model, world) -> torch.Tensor:
    data, held_out = world
    return model.predict_pairs(data.description, held_out.users, held_out.items)


def shuffled(data: TransferRatings) -> TransferRatings:
    order = torch.randperm(len(data.description), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(data, description=data.description[order])


def test_a_users_description_by_hand():
    # User 0: 5, 1, 2 on items of their own; user 1: 4; user 2 has no rating. The mean of all is 3.
    source = ratings((0, 0, 5.0), (0, 1, 1.0), (0, 2, 2.0), (1, 3, 4.0))
    description = star_description(source, 3, 4, STARS)
    domain = torch.tensor([2, 2, 1, 2, 2], dtype=torch.float64) / 9
    shares = (torch.tensor([1, 1, 0, 0, 1]) + SHRINKAGE * domain) / (3 + SHRINKAGE)
    bias = sum(value - (value + 15) / 6 for value in (5, 1, 2)) / 8
    assert description[0, :3].tolist() == pytest.approx([bias, np.std([5, 1, 2]), math.log(4)])
    assert_close(description[0, 3:], torch.cat([shares, shares.log()]))
    assert description[2, :3].tolist() == [0, 0, 0]
    assert_close(description[2, 3:], torch.cat([domain, domain.log()]))


def test_the_features_by_hand():
    description = torch.tensor([[0.5, 1.0, 2.0, 0.4, 0.6, math.log(0.4), math.log(0.6)]], dtype=torch.float64)
    overall = torch.tensor([0.2, 0.8], dtype=torch.float64)
    found = features(
        torch.tensor([[3.0, 2.0]]).double(), overall, torch.tensor([1.0, 5.0]).double(), description
    )
    shares = [(3 + SHRINKAGE * 0.2) / (5 + SHRINKAGE), (2 + SHRINKAGE * 0.8) / (5 + SHRINKAGE)]
    deviation = shares[0] + 5 * shares[1] - (0.2 + 5 * 0.8)
    expected = [*shares, *np.log(shares), math.log(6), *description[0].tolist(), 2 * deviation, 2 * 0.5]
    assert found[0].tolist() == pytest.approx(expected)


def test_a_rating_is_left_out_of_its_own_items_histogram():
    # Item 0: 5 by user 0 and 3 by user 1, who alone rated item 1. User 2 has no source ratings.
    target = ratings((0, 0, 5.0), (1, 0, 3.0), (1, 1, 1.0), (2, 0, 3.0))
    source = ratings((0, 0, 5.0), (1, 0, 1.0), (1, 1, 2.0))
    description = star_description(source, 2, 2, STARS)
    data = TransferRatings(target, 3, 2, torch.tensor([0, 1, -1]), description, seed=0, levels=STARS)
    domain, x, index = training_rows(data)
    assert index.tolist() == [4, 2, 0]
    overall = torch.tensor([2, 1, 3, 1, 2], dtype=torch.float64) / 9
    others = torch.tensor([[0, 0, 2, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).double()
    count = others.sum(1, keepdim=True)
    expected = torch.cat([(others + SHRINKAGE * overall) / (count + SHRINKAGE), (count + 1).log()], 1)
    expected = (expected - expected.mean(0)) / expected.std(0, correction=0).clamp(min=1e-9)
    assert_close(x[:, [0, 1, 2, 3, 4, 10]], expected, atol=1e-6, rtol=0)
    # In prediction nothing is left out.
    assert domain["counts"].tolist() == [[0, 0, 2, 0, 1], [1, 0, 0, 0, 0]]


def test_training_rows_are_what_prediction_would_see_without_the_rating(world):
    data, _ = world
    domain, x, index = training_rows(data)
    rows = (data.source_user[data.target.users] >= 0).nonzero()[:, 0]
    assert len(x) == len(rows) == 200 * 12
    for place in (0, 700, 2399):
        user, item = data.target.users[rows[place]], data.target.items[rows[place]]
        counts = domain["counts"].clone()
        counts[item, index[place]] -= 1
        alone = pair_features(
            domain | {"counts": counts}, data.description, data.source_user[user, None], item[None]
        )
        assert_close(alone[0], x[place])


def test_users_are_known_by_their_source_row(world):
    data, _ = world
    place = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    moved = torch.where(data.source_user >= 0, place[data.source_user], -1)
    elsewhere = dataclasses.replace(data, source_user=moved, description=data.description[place.argsort()])
    assert torch.equal(training_rows(elsewhere)[1], training_rows(data)[1])


def test_features_are_standardized_and_constants_say_nothing(world):
    data, held_out = world
    data = dataclasses.replace(data, description=data.description.clone())
    data.description[:250, 4] = 0.1  # constant for those trained on alone
    domain, x, _ = training_rows(data)
    constant = 2 * 5 + 1 + 4
    varying = torch.arange(x.shape[1]) != constant
    assert_close(x.mean(0), torch.zeros(x.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(x.std(0, correction=0)[varying], torch.ones(x.shape[1] - 1, dtype=torch.float64))
    found = pair_features(domain, data.description, held_out.users, held_out.items)
    assert (found[:, constant] == 0).all()


def test_item_stars_by_hand():
    """Item 0: 5, 3 and 3, one of them by user 2, who has no source ratings; item 1: 1; item 2: nothing."""
    target = ratings((0, 0, 5.0), (1, 0, 3.0), (1, 1, 1.0), (2, 0, 3.0))
    source_user = torch.tensor([0, 1, -1])
    data = TransferRatings(target, 3, 3, source_user, torch.zeros(2, 4), seed=0, levels=STARS)
    overall = torch.tensor([2, 1, 3, 1, 2], dtype=torch.float64) / 9
    expected = torch.stack(
        [
            (torch.tensor([0, 0, 2, 0, 1]) + SHRINKAGE * overall) / (3 + SHRINKAGE),
            (torch.tensor([1, 0, 0, 0, 0]) + SHRINKAGE * overall) / (1 + SHRINKAGE),
            overall,
        ]
    )
    found = (
        ItemStars()
        .trained(data)
        .predict_pairs(data.description, torch.tensor([1, 0, 0]), torch.tensor([2, 0, 1]))
    )
    assert_close(found, expected[[2, 0, 1]].float())


def test_item_stars_give_all_users_the_same(world, stars):
    data, held_out = world
    other = torch.randint(400, (len(held_out),), generator=torch.Generator().manual_seed(0))
    own = predicted(stars, world)
    assert torch.equal(own, stars.predict_pairs(data.description, other, held_out.items))
    assert torch.equal(own, stars.predict_pairs(0 * data.description[:, :2], held_out.users, held_out.items))
    assert torch.equal(own, predicted(ItemStars().trained(shuffled(data)), world))


def test_item_stars_beat_the_marginal_distribution(world, stars):
    data, held_out = world
    counts = torch.stack([(data.target.values == star).sum() for star in STARS])
    marginal = (counts / counts.sum()).expand(len(held_out), 5)
    for score in (crps, log_loss):
        own, blind = (score(p, STARS, held_out.values).mean() for p in (predicted(stars, world), marginal))
        assert own < blind


def test_the_state_restores_item_stars(world, stars):
    state = stars.tensors()
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in state.values())
    assert torch.equal(predicted(ItemStars().restored(state), world), predicted(stars, world))


def test_item_stars_are_known_by_name_and_have_no_settings():
    model = build("item_stars")
    assert isinstance(model, ItemStars)
    assert model.hyperparameters() == {}
    with pytest.raises(ValueError, match="item_stars: unknown hyper-parameter 'penalty'; known: none"):
        build("item_stars", penalty=1.0)


@pytest.mark.parametrize("levels", [STARS, torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0, 10.0])])
def test_the_logit_is_scikit_learns(levels):
    kindness = 0.9 * torch.randn(60, generator=torch.Generator().manual_seed(0))
    source, target = rated(kindness, 20, 10, seed=1), rated(kindness, 20, 10, seed=2, levels=levels)
    description = star_description(source, 60, 20, STARS)
    data = TransferRatings(target, 60, 20, torch.arange(60), description, seed=0)
    domain, x, index = training_rows(data)
    reference = LogisticRegression(C=0.05, max_iter=1000).fit(x.numpy(), index.numpy())
    pairs = torch.arange(60), torch.arange(60) % 20
    expected = reference.predict_proba(pair_features(domain, description, *pairs).numpy())
    found = StarLogit(penalty=20.0).trained(data).predict_pairs(description, *pairs)
    assert found.dtype == torch.float32
    assert_close(found.double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert_close(found.sum(1), torch.ones(60))


def test_the_logit_is_at_the_minimum_that_it_states(world, logit):
    data, _ = world
    _, x, index = training_rows(data)
    weight, bias = (logit.tensors()[name].requires_grad_() for name in ("weight", "bias"))
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, index, reduction="sum")
    (loss + 20.0 / 2 * weight.square().sum()).backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-3 * len(x)


def test_a_level_that_no_training_row_has(world):
    """Users without source ratings gave the level 2, and nobody 3: each has its share, the rest the logit."""
    data, held_out = world
    target, trained = data.target, data.source_user[data.target.users] >= 0
    values = torch.where(target.values == 3, 4.0, target.values)
    values = torch.where(trained & (values == 2), 1.0, values)
    twos = (values == 2).sum().item()
    assert twos > 0
    data = dataclasses.replace(data, target=dataclasses.replace(target, values=values), levels=STARS)
    model = StarLogit().trained(data)
    p = model.predict_pairs(data.description, held_out.users, held_out.items).double()
    share = torch.tensor([twos + 1, 1.0], dtype=torch.float64) / (len(values) + 5)
    assert_close(p[:, [1, 2]], share.expand(len(p), 2), atol=1e-7, rtol=0)
    domain, x, index = training_rows(data)
    reference = LogisticRegression(C=0.05, max_iter=1000).fit(x.numpy(), index.numpy())
    x = pair_features(domain, data.description, held_out.users, held_out.items)
    expected = (1 - share.sum()) * torch.from_numpy(reference.predict_proba(x.numpy()))
    assert_close(p[:, [0, 3, 4]], expected, atol=1e-6, rtol=0)
    assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_state_restores_the_logit_without_scikit_learn(world, logit, monkeypatch):
    state = logit.tensors()
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in state.values())
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    restored = StarLogit().restored(state)
    assert_close(predicted(restored, world), predicted(logit, world), atol=1e-7, rtol=0)


@pytest.mark.parametrize("model", ["stars", "logit", "boosting"])
def test_each_prediction_stands_alone(world, model, request):
    data, held_out = world
    model = request.getfixturevalue(model)
    user, item = held_out.users[600], held_out.items[600]
    alone = model.predict_pairs(data.description[user, None], torch.tensor([0]), item[None])
    assert_close(alone[0], predicted(model, world)[600])


def test_the_logit_beats_the_marginal_distribution_and_one_without_a_source(world, logit):
    data, held_out = world
    shares = overall_shares(torch.stack([(data.target.values == star).sum() for star in STARS])[None])
    blind = shuffled(data)
    own = predicted(logit, world)
    marginal = shares.expand(len(held_out), 5)
    other = predicted(StarLogit().trained(blind), (blind, held_out))
    for score in (crps, log_loss):
        mean = [score(p, STARS, held_out.values).mean() for p in (own, other, marginal)]
        assert mean[0] < 0.95 * mean[1] < 0.95 * mean[2]


def test_boosting_beats_the_global_median_and_one_without_a_source(world, boosting):
    data, held_out = world
    blind = shuffled(data)
    median = data.target.values.median()
    assert median == 5  # where the absolute error of trees gets stuck
    guesses = (
        predicted(boosting, world),
        predicted(StarBoosting().trained(blind), (blind, held_out)),
        median,
    )
    own, other, constant = ((guess - held_out.values).abs().mean() for guess in guesses)
    assert own < 0.95 * constant
    assert own < 0.95 * other


@pytest.mark.parametrize("lr", [0.1, 3.0])  # 3 leaves the scale
def test_boosting_predicts_levels_however_they_are_spaced(lr):
    levels = torch.tensor([-3.0, 0.5, 10.0])
    kindness = 0.9 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    source, target = rated(kindness, 20, 10, seed=1), rated(kindness, 20, 10, seed=2, levels=levels)
    description = star_description(source, 100, 20, STARS)
    data = TransferRatings(target, 100, 20, torch.arange(100), description, seed=0)
    model = StarBoosting(lr=lr).trained(data)
    found = model.predict_pairs(description, target.users, target.items)
    assert found.dtype == torch.float32
    assert found.shape == (len(target),)
    assert len(found.unique()) > 1
    assert torch.isin(found, levels).all()


def test_the_trees_kept_say_what_scikit_learns_say(world):
    _, x, index = training_rows(world[0])
    fitted = HistGradientBoostingRegressor(max_iter=30, max_leaf_nodes=9).fit(x.numpy(), index.numpy())
    for rows in (x, 10 * torch.randn(500, x.shape[1], dtype=torch.float64)):
        expected = torch.from_numpy(fitted.predict(rows.numpy()))
        assert torch.equal(trees_sum(trees_of(fitted), rows), expected)


def test_the_settings_are_those_of_the_trees(world):
    data, _ = world
    one = StarBoosting(trees=1, lr=1.0, leaves=2)

    def different(**settings) -> int:
        return len(predicted(dataclasses.replace(one, **settings).trained(data), world).unique())

    assert different() == 2
    assert different(leaves=16) > 2
    assert different(trees=20) > 2
    assert different(leaf_ratings=200 * 12 // 2 + 1) == 1
    assert different(lr=1e-3) == 1


def test_equal_seeds_give_equal_trees_and_others_do_not(world, boosting):
    data, _ = world
    assert torch.equal(predicted(StarBoosting().trained(data), world), predicted(boosting, world))
    other = StarBoosting().trained(dataclasses.replace(data, seed=1))
    assert not torch.equal(predicted(other, world), predicted(boosting, world))


def test_ratings_of_users_without_a_source_tell_about_items_alone(world, logit):
    data, _ = world
    few = dataclasses.replace(data, target=taken(data.target, data.target.users >= 50))
    _, x, index = training_rows(data)
    _, fewer, same = training_rows(few)
    assert torch.equal(index, same)
    own = slice(11, 24)
    assert_close(x[:, own], fewer[:, own])
    assert not torch.allclose(x[:, :11], fewer[:, :11], atol=0.01)


@given(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=6))
def test_shrunk_shares_are_distributions_between_own_and_overall(rows):
    counts = torch.tensor(rows, dtype=torch.float64)
    overall = overall_shares(counts)
    shares = shrunk_shares(counts, overall)
    own = counts / counts.sum(1, keepdim=True).clamp(min=1)
    assert_close(shares.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert (shares > 0).all()
    rated_rows = counts.sum(1) > 0
    assert ((shares - own).abs() <= (overall - own).abs() + 1e-12)[rated_rows].all()
    assert_close(shares[~rated_rows], overall.expand((~rated_rows).sum(), 4))


def test_boosting_takes_no_more_threads_than_torch(world, monkeypatch):
    seen, fit = [], HistGradientBoostingRegressor.fit

    def watched(self, *given):
        seen.extend(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "openmp")
        return fit(self, *given)

    monkeypatch.setattr(HistGradientBoostingRegressor, "fit", watched)
    with threadpool_limits(2, "openmp"):
        torch.set_num_threads(1)
        StarBoosting(trees=1).trained(world[0])
    assert set(seen) == {1}


@pytest.mark.parametrize("kind", [ItemStars, StarLogit, StarBoosting])
def test_bad_data(world, kind):
    data, _ = world
    target = data.target
    with pytest.raises(ValueError, match=r"target\.items has row 59, its table has rows 0\.\.58"):
        kind().trained(dataclasses.replace(data, n_items=59))
    users = target.users.clone()
    users[0] = -1
    with pytest.raises(ValueError, match=r"target\.users has row -1"):
        kind().trained(dataclasses.replace(data, target=dataclasses.replace(target, users=users)))
    with pytest.raises(ValueError, match="rating 5 is none of the levels"):
        kind().trained(dataclasses.replace(data, levels=STARS[:4]))


@pytest.mark.parametrize("kind", [StarLogit, StarBoosting])
def test_descriptions_that_are_none(world, kind):
    data, _ = world
    for width in (5, 12):
        with pytest.raises(ValueError, match=f"described by {width} numbers, not 3 and two a source level"):
            kind().trained(dataclasses.replace(data, description=data.description[:, :width]))


@pytest.mark.parametrize("model", ["stars", "logit", "boosting"])
def test_bad_pairs(world, model, request):
    data, _ = world
    model, one = request.getfixturevalue(model), torch.tensor([0])
    with pytest.raises(ValueError, match="users has row 400"):
        model.predict_pairs(data.description, torch.tensor([400]), one)
    with pytest.raises(ValueError, match="items has row 60"):
        model.predict_pairs(data.description, one, torch.tensor([60]))
    with pytest.raises(RuntimeError, match="no parameters yet"):
        type(model)().predict_pairs(data.description, one, one)


@pytest.mark.parametrize("model", ["logit", "boosting"])
def test_descriptions_of_another_width(world, model, request):
    data, _ = world
    model, one = request.getfixturevalue(model), torch.tensor([0])
    with pytest.raises(ValueError, match="described by 11 numbers, trained on 13"):
        model.predict_pairs(data.description[:, :11], one, one)


def test_bad_settings_and_descriptions(world):
    data, _ = world
    with pytest.raises(ValueError, match="penalty must be above 0, not 0"):
        StarLogit(penalty=0.0)
    with pytest.raises(ValueError, match="leaves must be at least 2, not 1"):
        StarBoosting(leaves=1)
    with pytest.raises(ValueError, match="lr must be above 0, not -1"):
        StarBoosting(lr=-1.0)
    values = torch.full_like(data.target.values, 4.0)
    same = dataclasses.replace(data, target=dataclasses.replace(data.target, values=values), levels=STARS)
    with pytest.raises(ValueError, match="all ratings of users with source ratings are 4"):
        StarLogit().trained(same)
    source = ratings((0, 0, 5.0), (1, 1, 2.5))
    with pytest.raises(ValueError, match=r"rating 2\.5 is none of the levels"):
        star_description(source, 2, 2, STARS)
    with pytest.raises(ValueError, match=r"ratings\.users has row 1"):
        star_description(source, 1, 2, STARS)
    with pytest.raises(ValueError, match=r"ratings\.items has row 1"):
        star_description(source, 2, 1, STARS)
    with pytest.raises(ValueError, match="no rating to learn from"):
        star_description(taken(source, torch.zeros(2, dtype=torch.bool)), 2, 2, STARS)
