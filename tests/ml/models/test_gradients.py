"""Gradients derived by hand against autograd of the loss, for every transfer model, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.data import Problem, Ratings, SourceUsers
from ml.models.diffcdr import DiffCDR
from ml.models.lacdr import LACDR
from ml.models.registry import MODELS, find
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import replica_generator
from tests.ml.problems import random_problem, with_others, without_history

torch.set_num_threads(1)

TRANSFER = [kind for kind in map(find, MODELS) if issubclass(kind, TransferModel)]
BY_HAND = [kind for kind in TRANSFER if kind.gradients is not TransferModel.gradients]
SEEDS = st.integers(0, 10_000)


def in_float64(problem: Problem) -> Problem:
    source, ratings = problem.source, problem.ratings
    return dataclasses.replace(
        problem,
        source=SourceUsers(source.factors.double(), source.history, source.item_factors.double()),
        target_factors=problem.target_factors.double(),
        target_items=problem.target_items.double(),
        ratings=Ratings(ratings.users, ratings.items, ratings.values.double()),
        source_alone=problem.source_alone.double(),
        target_alone=problem.target_alone.double(),
    )


def prepared(
    model: TransferModel, problems: list[Problem], padding: list[int], rows: int = 12
) -> tuple[Stack, Batch]:
    """`model` as training begins, in float64, and a batch whose last padding[r] rows have no weight."""
    problems = [in_float64(problem) for problem in problems]
    generators = [replica_generator(p.seed, "gradients") for p in problems]
    model.begin(problems, generators)
    model.parameters_ = {n: v.detach().double().requires_grad_() for n, v in model.parameters_.items()}
    stack = Stack(problems)
    model.prepare(stack)
    picked = [
        torch.randint(model.training_rows(p), (rows,), generator=g)
        for p, g in zip(problems, generators, strict=True)
    ]
    drawn = [model.draws(p, r, g) for p, r, g in zip(problems, picked, generators, strict=True)]
    draws = {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}
    weight = torch.stack([(torch.arange(rows) < rows - p).double() for p in padding])
    floats = {name: d.double() if d.is_floating_point() else d for name, d in draws.items()}
    return stack, Batch(torch.stack(picked), weight, floats)


def assert_by_hand_is_autograd(model: TransferModel, stack: Stack, batch: Batch) -> None:
    loss, gradients = model.gradients(stack, batch)
    expected, by_autograd = TransferModel.gradients(model, stack, batch)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    assert set(gradients) == set(by_autograd)
    for name, value in by_autograd.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_the_models_with_gradients_by_hand_are_known():
    """A model outside this list is differentiated by autograd, DiffCDR by its own two parts, below."""
    assert {kind.name for kind in BY_HAND} >= {"emcdr", "sscdr", "lacdr", "ptupcdr", "lacdr_wide"}


@pytest.mark.parametrize("kind", BY_HAND, ids=lambda kind: kind.name)
@settings(max_examples=20, deadline=None)
@given(
    seed=SEEDS,
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    liked=st.booleans(),
)
def test_gradients_by_hand_are_those_of_the_formula(kind, seed, widths, padding, liked):
    """Replicas with padded rows, or with nothing but padding; users without history, or none with one."""
    source, target = widths
    problems = [
        with_others(random_problem(seed + r, users=15, ratings=40, items=9, source=source, target=target))
        for r in range(len(padding))
    ]
    if not liked:
        problems = [without_history(problem) for problem in problems]
    model = kind()
    assert_by_hand_is_autograd(model, *prepared(model, problems, padding))


@pytest.mark.parametrize("kind", BY_HAND, ids=lambda kind: kind.name)
def test_an_idle_replica_has_no_loss_and_no_gradient(kind):
    model = kind()
    stack, batch = prepared(model, [with_others(random_problem(r)) for r in range(2)], [0, 12])
    loss, gradients = model.gradients(stack, batch)
    assert loss[0] > 0
    assert loss[1] == 0
    assert not any(gradient[1].any() for gradient in gradients.values())


def test_a_perfect_reconstruction_has_a_gradient_of_zero_either_way():
    """Where a norm is 0 it has no slope; both take 0 there."""
    problem = with_others(random_problem(0))
    problem = dataclasses.replace(problem, target_factors=problem.source.factors)
    model = LACDR()
    stack, batch = prepared(model, [problem], [3])
    eye = torch.eye(4, dtype=torch.float64)[None]
    model.parameters_ = {name: eye.clone().requires_grad_() for name in model.parameters_}
    assert_by_hand_is_autograd(model, stack, batch)
    assert not any(gradient.any() for gradient in model.gradients(stack, batch)[1].values())


@pytest.mark.parametrize("parts", ["dat", "da", "at"])
@pytest.mark.parametrize("alignment_loss", ["smooth_l1", "l2"])
@settings(max_examples=10, deadline=None)
@given(
    seed=SEEDS,
    start=st.sampled_from(["source", "noise"]),
    width=st.integers(1, 5),
    padding=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    task_weight=st.floats(0, 8),
)
def test_the_two_parts_of_diffcdr_are_the_gradient_of_its_loss(
    parts, alignment_loss, seed, start, width, padding, task_weight
):
    model = DiffCDR(
        hidden=6, nfe=5, parts=parts, alignment_loss=alignment_loss, start=start, task_weight=task_weight
    )
    problems = [
        with_others(random_problem(seed + r, source=width, target=width)) for r in range(len(padding))
    ]
    stack, batch = prepared(model, problems, padding)
    _, expected = TransferModel.gradients(model, stack, batch)
    inputs = model.inputs(stack, batch)
    found = {} if parts == "at" else model.dim_gradients(inputs, batch.draws)[1]
    moved = model.moved_rows(stack, inputs, batch.draws)
    found["alignment.weight"] = model.alignment_gradient(inputs, moved)[1]
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", [*BY_HAND, DiffCDR], ids=lambda kind: kind.name)
def test_a_step_goes_by_the_gradients_and_never_differentiates(kind, monkeypatch):
    def refused(*_):
        raise AssertionError("a step asked autograd")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    kind(epochs=1).trained([with_others(random_problem(0))])
