"""What holds for every transfer model of the registry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ml.models import transfer as base
from ml.models.diffcdr import DiffCDR
from ml.models.emcdr import RidgeEMCDR
from ml.models.registry import MODELS, find
from ml.models.transfer import TransferModel
from tests.ml.problems import random_problem, with_others, without_history

torch.set_num_threads(1)

TRANSFER = [kind for kind in map(find, MODELS) if issubclass(kind, TransferModel)]
# What is trained in steps with one loss, whatever the widths.
MAPPINGS = [kind for kind in TRANSFER if kind not in (RidgeEMCDR, DiffCDR)]
every_mapping = pytest.mark.parametrize("kind", MAPPINGS, ids=lambda kind: kind.name)
every_model = pytest.mark.parametrize("kind", TRANSFER, ids=lambda kind: kind.name)


def short(kind, **settings):
    """The model with few epochs, or solved in closed form."""
    return kind() if kind is RidgeEMCDR else kind(**settings)


@pytest.mark.parametrize("kind", [*MAPPINGS, RidgeEMCDR], ids=lambda kind: kind.name)
def test_replicas_of_different_sizes_train_together_as_alone(kind):
    problems = [
        with_others(random_problem(seed, users=20 + 9 * seed, ratings=70 + 41 * seed, items=12 + 5 * seed))
        for seed in range(5)
    ]
    together = short(kind, epochs=3, batch=32)
    losses = [epoch.losses["loss"] for epoch in together.train(problems)]
    moved = together.transfer([p.source for p in problems])
    for r, problem in enumerate(problems):
        alone = short(kind, epochs=3, batch=32)
        expected = [epoch.losses["loss"][0] for epoch in alone.train([problem])]
        np.testing.assert_allclose([epoch[r] for epoch in losses], expected, rtol=1e-4)
        torch.testing.assert_close(moved[r], alone.transfer([problem.source])[0], rtol=1e-4, atol=1e-5)


VARIANTS = {
    "lr": [{"lr": lr} for lr in (1e-3, 1e-2, 3e-2)],
    "margin": [{"lr": 1e-3, "margin": 0.3}, {"lr": 1e-2}, {"margin": 2.0}],
    "guidance": [{"task_weight": 1.0}, {"guidance": 1.0}, {"guidance": 5.0, "task_weight": 0.0}],
}
VARIED = [
    (kind, values)
    for kind in TRANSFER
    for name, values in VARIANTS.items()
    if name in kind.varied and (name != "lr" or "margin" not in kind.varied)
]


@pytest.mark.parametrize(("kind", "variants"), VARIED, ids=lambda given: getattr(given, "name", ""))
def test_variants_train_together_as_alone_and_go_on_without_those_given_up(kind, variants):
    """Two cells under three settings each, of which the program loses one of each cell, and then a cell."""
    problems = [with_others(random_problem(seed, users=30 + 9 * seed, ratings=110)) for seed in range(2)]
    asked = [(problem, values) for values in variants for problem in problems]
    given_up, left = {2: {0, 3}, 3: {2, 4}}, set(range(len(asked)))
    model, losses, moved = kind(epochs=4, batch=32), {r: [] for r in left}, {}
    for epoch in model.train([problem for problem, _ in asked], "cpu", [values for _, values in asked]):
        for r in left:
            losses[r].append({name: values[r] for name, values in epoch.losses.items()})
            restored = kind(batch=32).load_state_dict(model.state_dict(r))
            (moved[r],) = restored.transfer([asked[r][0].source])
        assert all(np.isnan(values[r]) for values in epoch.losses.values() for r in set(losses) - left)
        model.give_up(given_up.get(epoch.number, set()))
        left -= given_up.get(epoch.number, set())
    assert model.replicas == len(left) == 2
    for r, (problem, values) in enumerate(asked):
        epochs = len(losses[r])
        alone = kind(**{"epochs": epochs, "batch": 32, **values})
        expected = [{n: v[0] for n, v in epoch.losses.items()} for epoch in alone.train([problem])]
        for found, single in zip(losses[r], expected, strict=True):
            assert found == {name: pytest.approx(value, rel=1e-4) for name, value in single.items()}
        torch.testing.assert_close(moved[r], alone.transfer([problem.source])[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(IndexError, match="there is no number 0"):
        model.state_dict(0)


@every_mapping
def test_training_repeats_with_its_seed_and_changes_with_it(kind):
    problem = random_problem(0)
    moved = [
        kind(epochs=1).trained([dataclasses.replace(problem, seed=seed)]).transfer([problem.source])[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2])


@every_mapping
def test_the_loss_falls(kind):
    epochs = list(kind(epochs=15, lr=0.01).train([random_problem(0)]))
    assert epochs[-1].losses["loss"][0] < 0.95 * epochs[0].losses["loss"][0]


@every_mapping
def test_source_and_target_widths_may_differ(kind):
    problem = random_problem(0, source=5, target=3)
    (moved,) = kind(epochs=1).trained([problem]).transfer([problem.source])
    assert moved.shape == (40, 3)


@every_mapping
def test_users_without_history_train_and_transfer(kind):
    problem = without_history(random_problem(0))
    model = kind(epochs=2)
    losses = [epoch.losses["loss"][0] for epoch in model.train([problem])]
    (moved,) = model.transfer([problem.source])
    assert np.isfinite(losses).all()
    assert moved.isfinite().all()


@every_model
def test_a_state_dict_round_trip_transfers_the_same(kind):
    problems = [random_problem(0), random_problem(1)]
    model = short(kind, epochs=1).trained(problems)
    users = [p.source for p in problems]
    loaded = kind().load_state_dict(model.state_dict(0), model.state_dict(1))
    for before, after in zip(model.transfer(users), loaded.transfer(users), strict=True):
        assert torch.equal(before, after)
    (second,) = kind().load_state_dict(model.state_dict(1)).transfer(users[1:])
    assert torch.equal(second, model.transfer(users)[1])


@every_model
def test_training_leaves_the_factors_alone(kind):
    problem, untouched = random_problem(0), random_problem(0)
    short(kind, epochs=1).trained([problem])
    assert torch.equal(problem.source.factors, untouched.source.factors)
    assert torch.equal(problem.source.item_factors, untouched.source.item_factors)
    assert torch.equal(problem.target_factors, untouched.target_factors)
    assert torch.equal(problem.target_items, untouched.target_items)


@pytest.mark.parametrize("kind", [*MAPPINGS, DiffCDR], ids=lambda kind: kind.name)
def test_how_many_steps_are_gathered_at_once_changes_nothing(kind, monkeypatch):
    problems = [random_problem(seed, ratings=100 + 70 * seed, users=50 + 20 * seed) for seed in range(3)]
    trained = []
    for block in (1, 250, 8192):
        monkeypatch.setattr(base, "BLOCK", block)
        model = kind(epochs=2, batch=16).trained(problems)
        trained.append([model.state_dict(r) for r in range(3)])
    for other in trained[1:]:
        for state, expected in zip(other, trained[0], strict=True):
            assert all(torch.equal(state[name], value) for name, value in expected.items())
