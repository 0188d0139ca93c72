from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load, save

from ml.data import Ratings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects, level_basis
from ml.distribution.model import (
    StarDiffusion,
    TransferRatings,
    initial_alignment,
    log_probabilities,
    mixture,
)
from ml.evaluation.distribution import distribution_scores

STARS = torch.arange(1.0, 6)
FAST = {"epochs": 3, "diffusion": VectorDiffusion(steps=150)}


def domain(theta: torch.Tensor, items: int, each: int, seed: int) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    users = torch.arange(len(theta)).repeat_interleave(each)
    columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(len(theta))])
    phi = 0.4 * torch.randn(items, 4, generator=generator)
    p = ((theta[users] + phi[columns]) @ level_basis(STARS).float().T).softmax(1)
    return Ratings(users, columns, STARS[torch.multinomial(p, 1, generator=generator)[:, 0]])


@pytest.fixture(scope="module")
def world():
    """400 users with the same vectors in both domains; the last 100 are held out in the target."""
    theta = 0.8 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    source, target = domain(theta, 80, 30, seed=1), domain(theta, 60, 12, seed=2)
    description = fit_effects(source, 400, 80, seed=0).description()
    seen = target.users < 300
    data = TransferRatings(
        Ratings(target.users[seen], target.items[seen], target.values[seen]),
        n_users=400,
        n_items=60,
        source_user=torch.arange(400),
        description=description,
        seed=0,
    )
    return data, Ratings(target.users[~seen], target.items[~seen], target.values[~seen])


@pytest.fixture(scope="module")
def fitted(world) -> StarDiffusion:
    return StarDiffusion(**FAST).trained(world[0])


@pytest.fixture(scope="module")
def blind(world) -> tuple[StarDiffusion, TransferRatings]:
    """The same with the users' descriptions shuffled: the source says nothing."""
    data, _ = world
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    data = dataclasses.replace(data, description=data.description[order])
    return StarDiffusion(**FAST).trained(data), data


def scores(model: StarDiffusion, world, **options) -> dict[str, float]:
    data, held_out = world
    p = model.predict_pairs(data.description, held_out.users, held_out.items, **options)
    return distribution_scores(p, STARS, held_out.values)


def test_the_source_helps_cold_start_users(world, fitted, blind):
    own, other = scores(fitted, world), scores(blind[0], (blind[1], world[1]))
    assert own["crps"] < 0.95 * other["crps"]
    assert own["calibration_error"] < 0.04


def test_ratings_seen_first_sharpen_the_rest(world, blind):
    """Bayes' rule on the samples: without training, and more with more ratings."""
    model, data = blind
    held_out = world[1]
    place = torch.arange(len(held_out)) % 12
    rest = Ratings(*(x[place >= 8] for x in (held_out.users, held_out.items, held_out.values)))
    losses = []
    for seen in (0, 2, 8):
        first = place < seen
        observed = Ratings(held_out.users[first], held_out.items[first], held_out.values[first])
        losses.append(scores(model, (data, rest), observed=observed, samples=256)["log_loss"])
    assert losses[2] < losses[1] - 0.01 < losses[0] - 0.02


def test_the_posterior_is_bayes_rule(world, fitted):
    """p(r₂ | r₁) = p(r₁, r₂) / p(r₁), all three from the public methods."""
    data, _ = world
    user, first, second = torch.tensor([310]), torch.tensor([4]), torch.tensor([9])
    seen = Ratings(user, first, torch.tensor([5.0]))
    conditional = fitted.predict_pairs(data.description, user, second, observed=seen)[0]
    alone = fitted.joint_log_likelihood(data.description, seen)[310]
    for stars in (1, 5):
        both = Ratings(user.repeat(2), torch.cat([first, second]), torch.tensor([5.0, stars]))
        joint = fitted.joint_log_likelihood(data.description, both)[310]
        torch.testing.assert_close(conditional[stars - 1].log(), joint - alone, atol=1e-4, rtol=1e-4)


def test_all_ratings_together_are_likelier_than_one_by_one(world, fitted):
    data, held_out = world
    joint = fitted.joint_log_likelihood(data.description, held_out, samples=512)
    assert (joint[:300] == 0).all()
    one_by_one = -scores(fitted, world)["log_loss"] * len(held_out)
    assert joint.sum() > one_by_one


def test_predictions_are_distributions_and_each_stands_alone(world, fitted):
    data, held_out = world
    p = fitted.predict_pairs(data.description, held_out.users, held_out.items)
    torch.testing.assert_close(p.sum(1), torch.ones(len(held_out)))
    alone = fitted.predict_pairs(data.description[350:351], torch.tensor([0]), held_out.items[600:601])
    torch.testing.assert_close(alone[0], p[600])
    assert held_out.users[600] == 350


def test_the_state_restores_the_model(world, fitted):
    data, held_out = world
    state = fitted.tensors()
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in state.values())
    restored = StarDiffusion(**FAST).restored(state)
    arguments = data.description, held_out.users, held_out.items
    assert torch.equal(restored.predict_pairs(*arguments), fitted.predict_pairs(*arguments))


def test_equal_seeds_give_equal_models(world, fitted):
    again = StarDiffusion(**FAST).trained(world[0])
    for name, value in fitted.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name


def test_the_mean_is_one_vector_and_the_gaussian_has_the_priors_spread(world):
    data, _ = world
    mean = StarDiffusion(vectors="mean", epochs=1).trained(data).sample(data.description)
    assert mean.shape == (400, 1, 4)
    model = StarDiffusion(vectors="gaussian", epochs=1).trained(data)
    samples = model.sample(data.description, 1024)
    torch.testing.assert_close(samples.mean(1), mean[:, 0], atol=0.01, rtol=0)
    factor = model.tensors()["prior.factor"]
    torch.testing.assert_close(samples[7].T.cov(), factor @ factor.T, atol=0.02, rtol=0.05)


def test_the_alignment_starts_at_the_effects(world):
    data, _ = world
    effects = fit_effects(data.target, 400, 60, seed=0)
    items, theta = effects.items.float()[:10], effects.users.float()[:10]
    features = torch.cat([items, torch.randn(10, 22)], 1)
    found = log_probabilities(initial_alignment(effects, 26), features, items, theta[:, None])[:, 0]
    logits = (effects.intercept + effects.users[:10] + effects.items[:10]) @ effects.basis.T
    torch.testing.assert_close(found.double(), logits.log_softmax(1), atol=1e-5, rtol=1e-5)


def test_the_mixture_is_the_mean_of_probabilities():
    p = torch.rand(3, 7, 5)
    torch.testing.assert_close(mixture(p.log()).exp(), p.mean(1))


def test_users_of_the_target_domain_alone_tell_about_items(world, fitted):
    data, _ = world
    without = torch.where(torch.arange(400) < 150, -1, torch.arange(400))
    with_them = StarDiffusion(**FAST).trained(dataclasses.replace(data, source_user=without))
    kept = data.target.users >= 150
    target = Ratings(data.target.users[kept], data.target.items[kept], data.target.values[kept])
    dropped = StarDiffusion(**FAST).trained(dataclasses.replace(data, target=target, source_user=without))
    assert scores(with_them, world)["crps"] < scores(dropped, world)["crps"]


@pytest.fixture(scope="module")
def fewer(world) -> TransferRatings:
    """All users had 30 source ratings; now those who are held out have 3, which training never saw."""
    data, _ = world
    assert len(data.description[:, 4].unique()) == 1
    held_out = (torch.arange(400) >= 300)[:, None] & (torch.arange(5) == 4)
    return dataclasses.replace(data, description=data.description.where(~held_out, math.log(4)))


def test_a_column_that_was_constant_in_training_counts_nothing(world, fewer, fitted):
    data, held_out = world
    assert not torch.equal(fewer.description, data.description)
    assert scores(fitted, (fewer, held_out)) == scores(fitted, world)


def test_without_a_diffusion_a_constant_column_is_no_column(world, fewer):
    """Nothing is drawn for it there, so that the two fits must be equal; after saving too."""
    none = dataclasses.replace(fewer, description=fewer.description[:, :4])
    narrow, model = (StarDiffusion(vectors="gaussian", epochs=1).trained(each) for each in (none, fewer))
    restored = StarDiffusion(vectors="gaussian").restored(load(save(model.tensors())))
    found, expected = (
        each.predict_pairs(data.description, world[1].users, world[1].items)
        for each, data in ((restored, fewer), (narrow, none))
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_bad_input(world, fitted):
    data, held_out = world
    with pytest.raises(ValueError, match="source_user has 3 rows for 400 target users"):
        dataclasses.replace(data, source_user=torch.arange(3))
    with pytest.raises(ValueError, match="source_user has row 400"):
        dataclasses.replace(data, source_user=torch.arange(400) + 1)
    with pytest.raises(ValueError, match="no target rating of a user with source ratings"):
        dataclasses.replace(data, source_user=torch.full((400,), -1))
    with pytest.raises(ValueError, match="items has row 60"):
        fitted.predict_pairs(data.description, held_out.users[:1], torch.tensor([60]))
    with pytest.raises(ValueError, match="described by 3 numbers, trained on 5"):
        fitted.predict_pairs(data.description[:, :3], held_out.users, held_out.items)
    with pytest.raises(ValueError, match="vectors must be one of diffusion, gaussian, mean"):
        StarDiffusion(vectors="laplace")
    with pytest.raises(RuntimeError, match="fit it or load its state first"):
        StarDiffusion().predict_pairs(data.description, held_out.users, held_out.items)
