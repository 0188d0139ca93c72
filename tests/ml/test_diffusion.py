"""Schedules, DPM-Solver, score network and folding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from ml.diffusion import affine, network
from ml.diffusion.schedule import LinearSchedule, network_label, training_levels
from ml.diffusion.solver import SOLVERS, plan, solve, step_orders

SCHEDULE = LinearSchedule()
HIDDEN = 16


def random_parameters(replicas: int, k: int = 3, q: int | None = None, scale: float = 2) -> dict[str, Tensor]:
    """Float64 parameters (R, ...), `scale` times as large as at the start of training."""
    generator = torch.Generator().manual_seed(0)
    states = [network.initial(k, q or k, HIDDEN, generator) for _ in range(replicas)]
    return {name: scale * torch.stack([state[name] for state in states]).double() for name in network.NAMES}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


# Schedules.


def test_log_alpha_is_minus_half_the_integral_of_beta() -> None:
    for t in (1e-4, 0.3, 1.0):
        integral, _ = quad(lambda s: 0.1 + s * (20 - 0.1), 0, t)
        assert SCHEDULE.log_alpha(t) == pytest.approx(-integral / 2, rel=1e-12)


def test_alpha_and_sigma_preserve_variance_and_give_lambda() -> None:
    t = np.geomspace(1e-6, 1, 50)
    assert np.allclose(SCHEDULE.alpha(t) ** 2 + SCHEDULE.sigma(t) ** 2, 1, rtol=1e-14)
    log_ratio = np.log(SCHEDULE.alpha(t)) - np.log(SCHEDULE.sigma(t))
    assert np.allclose(SCHEDULE.lambda_(t), log_ratio, rtol=0, atol=1e-12)


@given(st.floats(1e-6, 1.0))
def test_inverse_lambda_undoes_lambda(t: float) -> None:
    assert float(SCHEDULE.inverse_lambda(SCHEDULE.lambda_(t))) == pytest.approx(t, rel=1e-10)


def test_labels_shift_by_one_step_stay_unrounded_and_never_fall_below_zero() -> None:
    assert network_label([1.0, 0.5005, 1e-3, 1e-4]) == pytest.approx([999.0, 499.5, 0.0, 0.0], abs=1e-9)


def test_training_levels_are_the_discrete_counterpart_of_the_continuous_schedule() -> None:
    signal, level = training_levels()
    assert signal.dtype == torch.float64
    assert torch.allclose(signal**2 + level**2, torch.ones(1000, dtype=torch.float64))
    assert float(signal[0] ** 2) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert float(signal[1] ** 2 / signal[0] ** 2) == pytest.approx(1 - (1e-4 + 0.0199 / 999), rel=1e-12)
    assert float(signal[999] ** 2 / signal[998] ** 2) == pytest.approx(1 - 0.02, rel=1e-12)
    continuous = SCHEDULE.log_alpha((np.arange(1000) + 1) / 1000)
    assert np.abs(signal.log().numpy() - continuous).max() < 0.05


# Solver.


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


# Network.


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


# Folding.


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
