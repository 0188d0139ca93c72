"""What folding and gradients by hand give, against solving step by step and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml.diffusion import affine, network
from ml.diffusion.solver import SOLVERS, plan, solve
from tests.ml.diffusion.networks import HIDDEN, normal, random_parameters, relative_error


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 2, 5, 15, 30])
@pytest.mark.parametrize("guidance", [0.0, 0.1, 5.0])
def test_folded_solve_equals_step_by_step(nfe: int, solver: str, guidance: float) -> None:
    parameters = random_parameters(3, k=4, q=5)
    x, c = normal(3, 7, 4), normal(3, 7, 5, seed=2)
    course = plan(nfe, solver)
    folded = affine.transport(parameters, course, guidance, "none", x, c)
    assert relative_error(folded, affine.solve_stepwise(parameters, course, guidance, "none", x, c)) < 1e-10


def test_transport_with_activation_is_not_folded() -> None:
    parameters, x = random_parameters(2), normal(2, 4, 3)
    stepwise = affine.solve_stepwise(parameters, plan(6), 0.1, "relu", x, x)
    assert torch.equal(affine.transport(parameters, plan(6), 0.1, "relu", x, x), stepwise)
    assert relative_error(affine.transport(parameters, plan(6), 0.1, "none", x, x), stepwise) > 1e-3


@pytest.mark.parametrize(("guidance", "mask"), [(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_guidance_zero_is_unconditional_and_one_is_conditional(
    guidance: float, mask: float, activation: str
) -> None:
    parameters, course = random_parameters(2), plan(12)
    x, c = normal(2, 5, 3), normal(2, 5, 3, seed=2)
    labels = torch.tensor(course.labels, dtype=torch.float64)

    def plain(state: Tensor, n: int) -> Tensor:
        embedding = network.time_embedding(labels[n].expand(2, 5), HIDDEN)
        return network.noise(
            parameters, state, embedding, c, torch.full((2, 5), mask, dtype=torch.float64), activation
        )

    got = affine.transport(parameters, course, guidance, activation, x, c)
    assert relative_error(got, solve(course, plain, x)) < 1e-10


def test_hand_written_gradients_equal_autograd() -> None:
    parameters = {name: p.requires_grad_() for name, p in random_parameters(3, k=4, q=5).items()}
    x, c, mask = normal(3, 6, 4), normal(3, 6, 5, seed=2), (normal(3, 6, seed=3) > 0).double()
    embedding = network.time_embedding(torch.arange(6), HIDDEN).expand(3, -1, -1)
    outer = normal(3, 6, 4, seed=4)
    expected = network.noise(parameters, x, embedding, c, mask, "none")
    by_autograd = torch.autograd.grad((expected * outer).sum(), list(parameters.values()))
    with torch.no_grad():
        noise, trace = affine.forward(parameters, x, embedding, c, mask)
        gradients = affine.backward(parameters, trace, outer)
    assert torch.allclose(noise, expected, rtol=1e-10)
    assert set(gradients) == set(parameters)
    for name, gradient in zip(parameters, by_autograd, strict=True):
        assert gradients[name].shape == gradient.shape
        assert relative_error(gradients[name], gradient) < 1e-12, name
