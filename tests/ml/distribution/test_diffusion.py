from __future__ import annotations

import pytest
import torch

from ml.distribution.diffusion import VectorDiffusion, normal_points


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_points_are_standard_normal():
    points = normal_points(1024, 4, seed=3)
    torch.testing.assert_close(points.mean(0), torch.zeros(4), atol=5e-3, rtol=0)
    torch.testing.assert_close(points.T.cov(), torch.eye(4), atol=0.02, rtol=0)


def test_untrained_it_is_the_standard_normal_prior():
    """v = 0 is the exact score of N(0, I), so each noise ends where it began, up to 0.2 % of the solver."""
    diffusion = VectorDiffusion(nfe=30)
    parameters = diffusion._initial(3, 2, torch.Generator().manual_seed(0))
    noise = normal_points(64, 3, seed=0)
    samples = diffusion.sample(parameters, normal(5, 2), noise)
    torch.testing.assert_close(samples, noise.expand(5, -1, -1), atol=1e-4, rtol=3e-3)


def test_a_conditional_gaussian_is_recovered():
    """x | c ~ N((0.8 c, 0), diag(0.6², e^{c})): a moved mean and a spread that the condition sets."""
    c = normal(4000, 1)
    mean = torch.cat([0.8 * c, 0 * c], 1)
    spread = torch.cat([torch.full_like(c, 0.6), (c / 2).exp()], 1)
    draws = mean + spread * normal(4, 4000, 2, seed=1)
    diffusion = VectorDiffusion(steps=1200, lr=5e-3, decay=0.0)
    parameters = diffusion.fit(draws, c, seed=0)
    grid = torch.tensor([[-1.0], [0.0], [1.0]])
    samples = diffusion.sample(parameters, grid, normal_points(512, 2, seed=1))
    expected = torch.tensor([[-0.8, 0], [0, 0], [0.8, 0]])
    torch.testing.assert_close(samples.mean(1), expected, atol=0.1, rtol=0)
    spreads = torch.tensor([[0.6, 0.61], [0.6, 1.0], [0.6, 1.65]])
    torch.testing.assert_close(samples.std(1), spreads, atol=0.15, rtol=0)


def test_two_groups_of_users_stay_two():
    """A distribution that no Gaussian is: ±1.2 with little between."""
    sides = torch.where(normal(2000, 1) > 0, 1.2, -1.2)
    draws = (sides + 0.2 * normal(2000, 1, seed=1))[None]
    diffusion = VectorDiffusion(steps=800, lr=5e-3, decay=0.0, nfe=30)
    samples = diffusion.sample(
        diffusion.fit(draws, sides * 0, 0), torch.zeros(1, 1), normal_points(512, 1, 0)
    )
    assert (samples.abs() < 0.6).float().mean() < 0.05
    assert (samples > 0).float().mean() == pytest.approx(0.5, abs=0.06)


def test_equal_seeds_give_equal_parameters_and_a_users_samples_stand_alone():
    draws, c = normal(3, 50, 2), normal(50, 1)
    diffusion = VectorDiffusion(steps=20)
    first, again, other = (diffusion.fit(draws, c, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["middle.weight"], other["middle.weight"])
    noise = normal_points(16, 2, 0)
    together = diffusion.sample(first, c[:7], noise)
    torch.testing.assert_close(diffusion.sample(first, c[3:4], noise)[0], together[3])
