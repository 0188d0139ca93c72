"""The step of the transfer models: gathering for many steps at once, closed-form gradients, long Adams."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ml.data import Problem, Ratings, SourceUsers
from ml.models import transfer as base
from ml.models.diffcdr import DiffCDR
from ml.models.emcdr import EMCDR
from ml.models.lacdr import LACDR
from ml.models.ptupcdr import PTUPCDR
from ml.models.sscdr import SSCDR
from ml.models.transfer import Batch, Stack
from ml.replicas import ReplicaAdam, replica_generator
from tests.ml.problems import random_problem

torch.set_num_threads(1)

BASELINES = [EMCDR, SSCDR, LACDR, PTUPCDR]


def test_columns_are_the_gathered_rows_of_every_step():
    table = torch.randn(3, 7, 4)
    index = torch.randint(7, (5, 3, 6))
    columns = gather_columns(table, index)
    assert columns.is_contiguous()
    for step in range(5):
        assert torch.equal(columns[step], gather(table, index[step]).mT)


def test_the_steps_of_a_block_are_its_batches():
    weight = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    rows = torch.arange(8).view(2, 2, 2)
    block = Batch(rows, weight, {"noise": rows * 2}, {"source": rows * 3})
    assert block.share.tolist() == [[[0.5, 0.5], [1, 0]], [[1, 0], [0, 0]]]
    for step, batch in enumerate(block.steps()):
        assert torch.equal(batch.rows, rows[step])
        assert torch.equal(batch.share, block.share[step])
        assert torch.equal(batch.draws["noise"], rows[step] * 2)
        assert torch.equal(batch.inputs["source"], rows[step] * 3)


@pytest.mark.parametrize("kind", [*BASELINES, DiffCDR], ids=lambda kind: kind.name)
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


@pytest.mark.parametrize("kind", BASELINES, ids=lambda kind: kind.name)
def test_closed_form_gradients_are_the_slopes_of_the_loss(kind):
    """In float64, along a random direction, by central differences; one replica has padded rows."""
    problems = [in_float64(random_problem(seed, source=5, target=3)) for seed in range(2)]
    generators = [replica_generator(p.seed, "slopes") for p in problems]
    model = kind()
    initial = [model.initial(p, g) for p, g in zip(problems, generators, strict=True)]
    start = {name: torch.stack([state[name] for state in initial]).double() for name in initial[0]}
    stack = Stack(problems)
    model.parameters_ = start
    model.prepare(stack)
    rows = torch.stack([torch.randperm(40, generator=g)[:30] for g in generators])
    weight = torch.ones(2, 30, dtype=torch.float64)
    weight[1, 20:] = 0
    drawn = [model.draws(p, r, g) for p, r, g in zip(problems, rows, generators, strict=True)]
    batch = Batch(rows, weight, {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]})

    _, gradients = model.gradients(stack, batch)
    assert set(gradients) == set(start)
    for name, value in start.items():
        direction = torch.randn(value.shape, generator=generators[0], dtype=torch.float64)
        losses = []
        for step in (1e-6, -1e-6):
            model.parameters_ = start | {name: value + step * direction}
            losses.append(model.loss(stack, batch))
        expected = (losses[0] - losses[1]) / 2e-6
        slope = (gradients[name] * direction).flatten(1).sum(1)
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)


def in_float64(problem: Problem) -> Problem:
    source, ratings = problem.source, problem.ratings
    return dataclasses.replace(
        problem,
        source=SourceUsers(source.factors.double(), source.history, source.item_factors.double()),
        target_factors=problem.target_factors.double(),
        target_items=problem.target_items.double(),
        ratings=Ratings(ratings.users, ratings.items, ratings.values.double()),
    )


def test_replica_adam_goes_on_where_its_corrections_have_become_one():
    betas, generator = (0.5, 0.6), torch.Generator().manual_seed(0)
    ours = torch.zeros(2, 3, dtype=torch.float64)
    theirs = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mine, reference = ReplicaAdam([ours], 0.1, betas), torch.optim.Adam([theirs], 0.1, betas)
    steps = 2 * len(mine.rates)
    for _ in range(steps):
        theirs.grad = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        mine.update([theirs.grad], torch.tensor([True, True]))
        reference.step()
    assert mine.steps.tolist() == [steps, steps]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)
