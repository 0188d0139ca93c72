"""The solver against the probability flow, integrated by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ml.diffusion import affine, network
from ml.diffusion.schedule import LinearSchedule
from ml.diffusion.solver import SOLVERS, plan, solve, step_orders
from tests.ml.diffusion.networks import HIDDEN, SCHEDULE, normal, random_parameters, relative_error


@pytest.mark.parametrize(
    ("nfe", "solver", "orders"),
    [
        (30, "fast", [3] * 9 + [2, 1]),
        (31, "fast", [3] * 10 + [1]),
        (32, "fast", [3] * 10 + [2]),
        (3, "fast", [2, 1]),
        (1, "fast", [1]),
        (30, "dpm3", [3] * 10),
        (7, "dpm2", [2, 2, 2, 1]),
        (5, "dpm1", [1] * 5),
        (2, "dpm3", [2]),
    ],
)
def test_step_orders(nfe: int, solver: str, orders: list[int]) -> None:
    assert step_orders(nfe, solver) == orders


@pytest.mark.parametrize(("nfe", "solver", "word"), [(0, "fast", "nfe"), (30, "ddim", "fast, dpm1")])
def test_bad_plans_are_refused(nfe: int, solver: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        plan(nfe, solver)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 10, 30])
def test_solve_evaluates_the_network_nfe_times_in_order(nfe: int, solver: str) -> None:
    calls = []

    def noise(x: Tensor, n: int) -> Tensor:
        calls.append(n)
        return torch.zeros_like(x)

    solve(plan(nfe, solver), noise, torch.ones(2))
    assert calls == list(range(nfe))
    assert len(plan(nfe, solver).labels) == nfe


def test_plan_starts_at_the_last_training_step_in_uniform_log_snr_steps() -> None:
    steps = plan(30, "fast").steps
    assert steps[0][0].label == pytest.approx(999, abs=1e-6)
    starts = np.array([step[0].label for step in steps]) / 1000 + 1 / 1000
    gaps = np.diff(SCHEDULE.lambda_(starts[starts > 1.001e-3]))
    whole = (SCHEDULE.lambda_(1e-4) - SCHEDULE.lambda_(1.0)) / len(steps)
    assert gaps == pytest.approx(np.full(len(gaps), whole), rel=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 7, 30])
def test_constant_noise_is_solved_exactly(nfe: int, solver: str) -> None:
    x, constant = normal(4, 3), normal(4, 3, seed=2)
    begin, end = (float(SCHEDULE.alpha(t)) for t in (1.0, 1e-4))
    sigma_begin, sigma_end = (float(SCHEDULE.sigma(t)) for t in (1.0, 1e-4))
    without = solve(plan(nfe, solver), lambda x, n: torch.zeros_like(x), x)
    assert torch.allclose(without, end / begin * x, rtol=1e-12)
    with_constant = solve(plan(nfe, solver), lambda x, n: constant, x)
    expected = end * (x / begin - constant * (sigma_begin / begin - sigma_end / end))
    assert torch.allclose(with_constant, expected, rtol=1e-10, atol=1e-10)


def slow_in_time(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network without the fast sinusoids, so that few steps resolve its course in time."""
    slow = torch.cat([torch.arange(HIDDEN // 2) >= HIDDEN // 4] * 2)
    return parameters | {"time.weight": parameters["time.weight"] * slow}


def probability_flow(
    parameters: dict[str, Tensor], schedule: LinearSchedule, activation: str, x: Tensor, c: Tensor
) -> Tensor:
    """x at schedule.end by scipy, from dx/dt = f x + g² / (2σ) ε (paper Equation 10)."""
    shift = network.affine(parameters, "condition", c)

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        beta = 0.1 + t * (20 - 0.1)
        state = torch.from_numpy(flat).view_as(x)
        label = torch.tensor([1000 * max(t - 1e-3, 0.0)])
        time = network.affine(parameters, "time", network.time_embedding(label, HIDDEN)[None])
        noise = network.guided_noise(parameters, state, time, shift, 0.7, activation)
        return (-beta / 2 * state + beta / (2 * float(schedule.sigma(t))) * noise).numpy().ravel()

    span = (schedule.start, schedule.end)
    solution = solve_ivp(slope, span, x.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-10)
    return torch.from_numpy(solution.y[:, -1]).view_as(x)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_solvers_converge_at_their_order_to_the_probability_flow(activation: str) -> None:
    # Ends above t = 1/1000, where the label stops falling and leaves a kink that no order sees.
    schedule = LinearSchedule(end=2e-3)
    parameters = slow_in_time(random_parameters(1, scale=1))
    x, c = normal(1, 2, 3), normal(1, 2, 3, seed=2)
    exact = probability_flow(parameters, schedule, activation, x, c)
    for order, steps in ((1, 128), (2, 48), (3, 24)):
        errors = []
        for count in (steps, 2 * steps):
            course = plan(order * count, f"dpm{order}", schedule)
            got = affine.solve_stepwise(parameters, course, 0.7, activation, x, c)
            errors.append(relative_error(got, exact))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
        assert errors[1] < 0.01


def test_default_plan_follows_the_probability_flow() -> None:
    parameters = slow_in_time(random_parameters(1, scale=1))
    x, c = normal(1, 2, 3), normal(1, 2, 3, seed=2)
    exact = probability_flow(parameters, SCHEDULE, "none", x, c)
    assert relative_error(affine.fold(parameters, plan(), 0.7)(x, c), exact) < 5e-3
