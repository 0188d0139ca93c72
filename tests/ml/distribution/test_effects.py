from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from ml.data import Ratings
from ml.distribution import effects
from ml.distribution.effects import (
    fit_effects,
    items_without_own_rating,
    level_basis,
    level_index,
    posterior_modes,
    rating_levels,
    slopes,
    standardized,
)

STARS = torch.arange(1.0, 6).double()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simulated(users: int = 300, items: int = 60, each: int = 40, seed: int = 0):
    """Ratings drawn from the model: θ ~ N(0, 0.6²), φ ~ N(0, 0.4²)."""
    generator = torch.Generator().manual_seed(seed)
    basis = level_basis(STARS)
    theta, phi = 0.6 * normal(users, 4, seed=1), 0.4 * normal(items, 4, seed=2)
    rows = torch.arange(users).repeat_interleave(each)
    columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(users)])
    p = ((theta[rows] + phi[columns]) @ basis.T).softmax(1)
    values = STARS[torch.multinomial(p, 1, generator=generator)[:, 0]]
    return Ratings(rows, columns, values.float()), theta, phi


@pytest.mark.parametrize(("levels", "width"), [(5, 4), (10, 4), (2, 1), (3, 2)])
def test_the_basis_is_orthonormal_and_blind_to_a_shift_of_all_logits(levels, width):
    basis = level_basis(torch.linspace(0.5, 5, levels))
    torch.testing.assert_close(basis.T @ basis, torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(basis.sum(0), torch.zeros(width, dtype=torch.float64))
    assert (basis[:, 0].diff() > 0).all()  # the first shifts towards the top


def test_slopes_are_those_of_autograd():
    logits, index, basis = normal(6, 5), torch.tensor([0, 1, 2, 3, 4, 4]), level_basis(STARS)

    def objective(x: torch.Tensor, row: int) -> torch.Tensor:
        return (logits[row] + basis @ x).log_softmax(0)[index[row]]

    gradient, curvature = slopes(logits, index, basis)
    zero = torch.zeros(4, dtype=torch.float64)
    for row in range(6):
        expected = torch.autograd.functional.jacobian(lambda x, r=row: objective(x, r), zero)
        torch.testing.assert_close(gradient[row], expected)
        hessian = torch.autograd.functional.hessian(lambda x, r=row: objective(x, r), zero)
        torch.testing.assert_close(curvature[row], -hessian)


def test_modes_are_what_scipy_finds():
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
    index = torch.tensor([0, 1, 0, 4, 4, 4, 4, 3, 4])
    offset, basis = normal(9, 5), level_basis(STARS)
    mean, root = 0.3 * normal(3, 4, seed=1), normal(4, 4, seed=2)
    covariance = root @ root.T + 0.5 * torch.eye(4, dtype=torch.float64)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    modes, uncertainty = posterior_modes(groups, offset, index, basis, mean, covariance, zero, 12)
    precision = np.linalg.inv(covariance.numpy())
    for group in range(2):
        rows = (groups == group).numpy()

        def loss(x, group=group, rows=rows):
            logp = log_softmax(offset.numpy()[rows] + basis.numpy() @ x, 1)
            gap = x - mean[group].numpy()
            return gap @ precision @ gap / 2 - logp[np.arange(rows.sum()), index.numpy()[rows]].sum()

        found = minimize(loss, np.zeros(4), tol=1e-10)
        np.testing.assert_allclose(modes[group], found.x, atol=1e-4)
    # Nobody rated in group 2: prior mean and covariance.
    torch.testing.assert_close(modes[2], mean[2])
    torch.testing.assert_close(uncertainty[2], covariance)


def test_vectors_and_priors_are_recovered():
    ratings, theta, phi = simulated()
    fitted = fit_effects(ratings, 300, 60, seed=0, keep_draws=True)
    for found, true in ((fitted.users, theta), (fitted.items, phi)):
        correlation = torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1]
        assert correlation > 0.8
    spread = fitted.prior_covariance.diagonal().sqrt()
    assert (spread - 0.6).abs().max() < 0.12
    # Draws spread as the population does; modes are shrunk towards the mean.
    assert (fitted.draws.std((0, 1)) - 0.6).abs().max() < 0.12
    assert (fitted.users.std(0) < fitted.draws.std((0, 1))).all()


def test_the_prior_mean_follows_the_description():
    ratings, theta, _ = simulated()
    fitted = fit_effects(ratings, 300, 60, seed=0, description=standardized(theta[:, :1]))
    assert torch.corrcoef(torch.stack([fitted.prior_mean[:, 0], theta[:, 0]]))[0, 1] > 0.99
    assert fitted.prior_covariance[0, 0] < 0.15 < fitted.prior_covariance[1, 1]


def test_leaving_a_rating_out_is_refitting_without_it():
    ratings, _, _ = simulated(users=60, items=20, each=6)
    fitted = fit_effects(ratings, 60, 20, seed=0)
    approximate = items_without_own_rating(fitted, ratings)
    index = level_index(ratings.values, fitted.levels)
    offset = ((fitted.intercept + fitted.users) @ fitted.basis.T)[ratings.users]
    for row in (0, 100, 200):
        kept = torch.arange(len(ratings)) != row
        exact, _ = posterior_modes(
            ratings.items[kept],
            offset[kept],
            index[kept],
            fitted.basis,
            fitted.item_prior_mean,
            fitted.item_prior_covariance,
            fitted.items,
            10,
        )
        item = ratings.items[row]
        moved = (exact[item] - fitted.items[item]).norm()
        assert (approximate[row] - exact[item]).norm() < 0.1 * moved


def test_equal_seeds_give_equal_fits_and_unrated_rows_their_prior():
    ratings, _, _ = simulated(users=50, items=20, each=5)
    fits = [fit_effects(ratings, 52, 21, seed=seed) for seed in (3, 3, 4)]
    torch.testing.assert_close(fits[0].users, fits[1].users, rtol=0, atol=0)
    assert not torch.equal(fits[0].users, fits[2].users)
    torch.testing.assert_close(fits[0].items[20], fits[0].item_prior_mean[20])
    assert fits[0].description().shape == (52, 5)
    assert fits[0].description()[51, 4] == 0


def test_estimates_are_means_over_the_sweeps_after_the_burn_in(monkeypatch):
    ratings, _, _ = simulated(users=50, items=20, each=5)
    sweep, seen = effects._Side.sweep, []

    def recorded(side, *arguments):
        sweep(side, *arguments)
        seen.append((side.modes, side.map, side.covariance, side.draw))

    monkeypatch.setattr(effects._Side, "sweep", recorded)
    fitted = fit_effects(ratings, 50, 20, seed=0, keep_draws=True)
    assert len(seen) == 2 * effects.SWEEPS
    users, items = (
        [torch.stack(values) for values in zip(*seen[2 * effects.BURN_IN + side :: 2], strict=True)]
        for side in (0, 1)
    )
    for found, kept in (
        (fitted.users, users[0]),
        (fitted.prior_map, users[1]),
        (fitted.prior_covariance, users[2]),
        (fitted.item_prior_covariance, items[2]),
    ):
        torch.testing.assert_close(found, kept.mean(0), atol=1e-12, rtol=1e-12)
    assert torch.equal(fitted.draws, users[3].float())


def test_draws_are_kept_only_where_asked():
    ratings, _, _ = simulated(users=50, items=20, each=5)
    without, fitted = (fit_effects(ratings, 50, 20, seed=0, keep_draws=keep) for keep in (False, True))
    assert without.draws is None
    assert torch.equal(without.users, fitted.users)
    assert torch.equal(without.items, fitted.items)


def test_a_table_of_offsets_is_one_row_a_rating():
    groups, rows = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 0, 1, 1, 2])
    index, table, basis = torch.tensor([0, 4, 2, 3, 4]), normal(3, 5), level_basis(STARS)
    zero, unit = torch.zeros(3, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    rest = index, basis, zero, unit, zero, 8
    found, expected = posterior_modes(groups, table, *rest, rows), posterior_modes(groups, table[rows], *rest)
    torch.testing.assert_close(found, expected)


def test_chunks_have_no_effect(monkeypatch):
    ratings, _, _ = simulated(users=50, items=20, each=5)

    def everything() -> tuple[torch.Tensor, ...]:
        fitted = fit_effects(ratings, 50, 20, seed=0)
        return fitted.users, fitted.items, items_without_own_rating(fitted, ratings)

    whole = everything()
    monkeypatch.setattr(effects, "CHUNK", 7)
    torch.testing.assert_close(everything(), whole, atol=1e-9, rtol=1e-9)


def test_bad_ratings():
    ratings, _, _ = simulated(users=50, items=20, each=5)
    half = dataclasses.replace(ratings, values=ratings.values + 0.5 * (torch.arange(len(ratings)) == 3))
    with pytest.raises(ValueError, match="is none of the levels"):
        fit_effects(half, 50, 20, seed=0, levels=STARS)
    with pytest.raises(ValueError, match=r"ratings\.items has row 19"):
        fit_effects(ratings, 50, 19, seed=0)
    with pytest.raises(ValueError, match="take 100 distinct values"):
        rating_levels(torch.arange(100.0))
    with pytest.raises(ValueError, match="take 1 distinct values"):
        rating_levels(torch.ones(4))
