"""The score network against torch modules."""

from __future__ import annotations

import math

import pytest
import torch

from ml.diffusion import network
from tests.ml.diffusion.networks import HIDDEN, normal, random_parameters


def test_time_embedding_is_sines_then_cosines() -> None:
    embedding = network.time_embedding(torch.tensor([0.0, 499.5]), 128)
    assert embedding.shape == (2, 128)
    for j in (0, 1, 63):
        phase = 499.5 * 10000 ** (-j / 63)
        assert float(embedding[1, j]) == pytest.approx(math.sin(phase), abs=1e-9)
        assert float(embedding[1, 64 + j]) == pytest.approx(math.cos(phase), abs=1e-9)
    assert torch.equal(embedding[0], torch.cat([torch.zeros(64), torch.ones(64)]).double())


@pytest.mark.parametrize(
    ("activation", "module"),
    [("none", torch.nn.Identity), ("silu", torch.nn.SiLU), ("relu", torch.nn.ReLU)],
)
def test_network_equals_torch_modules_of_each_replica(activation: str, module: type) -> None:
    parameters = random_parameters(3, k=4, q=5)
    x, c, mask = normal(3, 6, 4), normal(3, 6, 5, seed=2), (normal(3, 6, seed=3) > 0).double()
    embedding = network.time_embedding(torch.arange(6), HIDDEN).expand(3, -1, -1)
    got = network.noise(parameters, x, embedding, c, mask, activation)
    for r in range(3):
        sizes = {
            "time": (HIDDEN, 4),
            "condition": (5, 4),
            "layer1": (4, HIDDEN),
            "layer2": (HIDDEN, HIDDEN),
            "layer3": (HIDDEN, 4),
        }
        linears = {name: torch.nn.Linear(*size).double() for name, size in sizes.items()}
        for name, linear in linears.items():
            linear.load_state_dict(
                {part: parameters[f"{name}.{part}"][r] for part in ("weight", "bias")}, strict=True
            )
        layers = torch.nn.Sequential(
            linears["layer1"], module(), linears["layer2"], module(), linears["layer3"]
        )
        hidden = linears["condition"](c[r]) * mask[r, :, None]
        expected = layers(x[r] + linears["time"](embedding[r]) + hidden)
        assert torch.allclose(got[r], expected, rtol=1e-12)


def test_initial_weights_are_uniform_within_the_bound_of_torch_linear() -> None:
    parameters = network.initial(10, 10, 128, torch.Generator().manual_seed(0))
    assert list(parameters) == list(network.NAMES)
    for name, inputs in (("time", 128), ("condition", 10), ("layer1", 10), ("layer2", 128), ("layer3", 128)):
        bound = inputs**-0.5
        for part in ("weight", "bias"):
            assert 0.5 * bound < float(parameters[f"{name}.{part}"].abs().max()) <= bound


def test_mask_hides_condition_and_its_bias() -> None:
    parameters = random_parameters(1)
    other = parameters | {"condition.bias": parameters["condition.bias"] + 5}
    x, embedding = normal(1, 2, 3), network.time_embedding(torch.zeros(1, 2), HIDDEN)
    mask = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    a = network.noise(parameters, x, embedding, normal(1, 2, 3, seed=2), mask, "none")
    b = network.noise(other, x, embedding, normal(1, 2, 3, seed=3), mask, "none")
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.allclose(a[:, 1], b[:, 1])
