"""Distributions on a device: everything is moved there, and results do not depend on it."""

from __future__ import annotations

import pytest
import torch

from ml.data import Ratings
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.discriminative import ItemStars, StarBoosting, StarLogit, star_description
from ml.distribution.effects import fit_effects
from ml.distribution.model import StarDiffusion
from tests.ml.distribution.devices import NAME, Elsewhere, OtherDevice

torch.set_num_threads(1)

STARS = torch.arange(1.0, 6)
USERS, ITEMS = 60, 20
MODELS = {
    "diffusion": lambda: StarDiffusion(
        epochs=1, samples=8, train_samples=4, diffusion=VectorDiffusion(steps=8)
    ),
    "gaussian": lambda: StarDiffusion(epochs=1, samples=8, vectors="gaussian"),
    "mean": lambda: StarDiffusion(epochs=1, vectors="mean"),
    "item_stars": ItemStars,
    "star_logit": StarLogit,
    "star_boosting": lambda: StarBoosting(trees=5),
}
by_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())


def ratings(seed: int, users: int = USERS, each: int = 8) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    items = torch.cat([torch.randperm(ITEMS, generator=generator)[:each] for _ in range(users)])
    values = torch.randint(1, 6, (users * each,), generator=generator).float()
    return Ratings(torch.arange(users).repeat_interleave(each), items, values)


def data_of(build) -> TransferRatings:
    source = ratings(1)
    if isinstance(build(), StarDiffusion):
        description = fit_effects(source, USERS, ITEMS, seed=0).description()
    else:
        description = star_description(source, USERS, ITEMS, STARS)
    # The last ten are users of the target domain alone.
    source_user = torch.where(torch.arange(USERS) < USERS - 10, torch.arange(USERS), -1)
    return TransferRatings(ratings(2), USERS, ITEMS, source_user, description, seed=0)


def test_the_stand_in_refuses_to_mix_with_the_cpu():
    with OtherDevice():
        there = torch.ones(3).to(NAME)
        assert isinstance(there + 1, Elsewhere)
        assert isinstance(there * torch.tensor(2.0), Elsewhere)
        assert not isinstance(there.cpu(), Elsewhere)
        with pytest.raises(AssertionError, match="meets a tensor of the CPU"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="meets a tensor of the CPU"):
            there[torch.tensor([1])]


@by_model
def test_a_fit_and_its_predictions_on_another_device_are_those_of_the_cpu(build):
    data = data_of(build)
    asked = ratings(3, users=5, each=4)
    expected = build().trained(data)
    with OtherDevice():
        model = build().trained(data, NAME)
        state = model.tensors()
        found = model.predict_pairs(data.description, asked.users, asked.items)
    assert not any(isinstance(value, Elsewhere) for value in (*state.values(), found))
    assert set(state) == set(expected.tensors())
    assert all(torch.equal(state[name], value) for name, value in expected.tensors().items())
    assert torch.equal(found, expected.predict_pairs(data.description, asked.users, asked.items))


def test_what_was_fitted_lies_on_the_device():
    data = data_of(MODELS["diffusion"])
    with OtherDevice():
        model = MODELS["diffusion"]().trained(data, NAME)
    assert {name for name, value in model.state_.items() if not isinstance(value, Elsewhere)} == {"seed"}


def test_samples_and_first_ratings_go_to_the_device_too():
    data = data_of(MODELS["diffusion"])
    first, later = ratings(3, users=5, each=4), ratings(4, users=5, each=4)
    cpu = MODELS["diffusion"]().trained(data)
    vectors = cpu.sample(data.description)
    with OtherDevice():
        there = MODELS["diffusion"]().trained(data, NAME)
        assert torch.equal(there.sample(data.description), vectors)
        for method, arguments in (
            ("predict_pairs", (data.description, later.users, later.items, first)),
            ("joint_log_likelihood", (data.description, first)),
            ("log_probabilities", (data.description, vectors, first)),
        ):
            assert torch.equal(getattr(there, method)(*arguments), getattr(cpu, method)(*arguments)), method


def test_effects_are_fitted_on_the_device_and_come_back():
    source = ratings(1)
    expected = fit_effects(source, USERS, ITEMS, seed=0, keep_draws=True)
    with OtherDevice():
        found = fit_effects(source, USERS, ITEMS, seed=0, keep_draws=True, device=NAME)
        assert all(isinstance(value, Elsewhere) for value in vars(found).values())
        found = found.to("cpu")
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name
