"""DiffCDR replicas with their own guidance and task weight: each is the model that is trained alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from ml.diffusion import network
from ml.models.diffcdr import DiffCDR
from tests.ml.problems import random_problem

SMALL = {"epochs": 2, "batch": 32, "hidden": 8, "nfe": 5, "lr": 0.01}
GRID = [{"task_weight": w, "guidance": s} for w, s in itertools.product([0.0, 0.1, 4.0], [0.0, 0.2, 2.0])]


def trained(model: DiffCDR, problems: list, variants: list[dict[str, float]]) -> list:
    return list(model.train(problems, "cpu", variants))


def assert_equal_to_alone(model: DiffCDR, r: int, alone: DiffCDR, users) -> None:
    state, expected = model.state_dict(r), alone.state_dict()
    assert float(state.pop("guidance")) == pytest.approx(alone.guidance)
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)
    transferred = model.transfer([users] * model.replicas)[r]
    torch.testing.assert_close(transferred, alone.transfer([users])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "silu"},
        {"start": "noise"},
        {"start": "noise", "activation": "relu"},
        {"parts": "at"},
        {"parts": "da"},
    ],
    ids=str,
)
def test_a_grid_on_one_problem_equals_models_trained_alone(settings: dict[str, str]) -> None:
    problem = random_problem(3)
    model = DiffCDR(**SMALL, **settings)
    epochs = trained(model, [problem], GRID)
    assert model.replicas == len(GRID)
    for r, variant in enumerate(GRID):
        alone = DiffCDR(**SMALL, **settings, **variant)
        losses = list(alone.train([problem]))[-1].losses
        assert {name: values[r] for name, values in epochs[-1].losses.items()} == {
            name: pytest.approx(values[0], rel=1e-3) for name, values in losses.items()
        }
        assert_equal_to_alone(model, r, alone, problem.source)


@pytest.mark.parametrize("start", ["source", "noise"])
def test_variants_on_a_problem_each_equal_models_trained_alone(start: str) -> None:
    problems = [random_problem(seed, ratings=90 + 40 * seed, users=30 + seed) for seed in range(3)]
    variants = [{"guidance": 1.0}, {"task_weight": 3.0}, {}]
    model = DiffCDR(**SMALL, start=start)
    trained(model, problems, variants)
    for r, (problem, variant) in enumerate(zip(problems, variants, strict=True)):
        alone = DiffCDR(**SMALL, start=start, **variant).trained([problem])
        state = model.state_dict(r)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)
        users = [p.source for p in problems]
        expected = alone.transfer([problem.source])[0]
        torch.testing.assert_close(model.transfer(users)[r], expected, rtol=1e-3, atol=1e-3)


def test_both_values_reach_alm_and_neither_reaches_dim() -> None:
    model = DiffCDR(**SMALL)
    plain, heavy, guided = {}, {"task_weight": 8.0}, {"guidance": 5.0}
    # A problem for each, so that each trains a DIM of its own.
    trained(model, [random_problem(0)] * 3, [plain, heavy, guided])
    states = [model.state_dict(r) for r in range(3)]
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in network.NAMES)
        assert not torch.allclose(states[0]["alignment.weight"], other["alignment.weight"], atol=1e-3)


def test_each_replica_transfers_and_is_restored_with_its_own_guidance() -> None:
    problem = random_problem(0)
    model = DiffCDR(**SMALL)
    trained(model, [problem], [{"guidance": 0.1}, {"guidance": 5.0}])
    first, second = model.transfer([problem.source] * 2)
    restored = DiffCDR(**model.hyperparameters()).load_state_dict(model.state_dict(1))
    assert torch.equal(restored.transfer([problem.source])[0], second)
    unguided = {name: value for name, value in model.state_dict(1).items() if name != "guidance"}
    by_field = DiffCDR(**SMALL, guidance=5.0).load_state_dict(unguided)
    torch.testing.assert_close(by_field.transfer([problem.source])[0], second)
    assert not torch.allclose(first, second, atol=1e-2)


def test_a_later_training_without_variants_is_the_plain_one() -> None:
    problem = random_problem(0)
    model = DiffCDR(**SMALL)
    trained(model, [problem], GRID)
    state, expected = model.trained([problem]).state_dict(), DiffCDR(**SMALL).trained([problem]).state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("problems", "variants", "message"),
    [
        (2, [{}, {}, {}], "2 problems for 3 variants"),
        (1, [{}, {"nfe": 5}], "variant 1 sets nfe; replicas may differ in guidance and task_weight only"),
        (1, [{"task_weight": -1.0}], "task_weight must not be negative"),
        (0, [{}], "0 problems for 1 variants"),
    ],
)
def test_bad_variants_are_named(problems: int, variants: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(DiffCDR(**SMALL), [random_problem(seed) for seed in range(problems)], variants)
