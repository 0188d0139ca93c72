"""The training loop of the transfer models, and how they meet the contract."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ml.data import Problem, Ratings
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import (
    EpochPlan,
    gather,
    weighted_mean,
)
from tests.ml.problems import data_of, random_problem, users_of

torch.set_num_threads(1)


@dataclass
class Shift(TransferModel):
    """û_t = u_s + b: the least model that the loop can train; with epochs it nears the mean difference."""

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "Shift"
    summary: ClassVar[str] = "one shift for everybody."
    source: ClassVar[str] = "this test"
    scale: float = 1.0

    def initial(self, problem: Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"shift": torch.zeros(problem.widths[1])}

    def draws(self, problem, rows, generator):
        return {"row": rows}

    def loss(self, stack, batch):
        drawn = batch.draws["row"]
        assert torch.equal(drawn[batch.weight > 0], batch.rows[batch.weight > 0])
        users = stack.users(batch.rows)
        moved = gather(stack.source, users) + self.parameters_["shift"].unsqueeze(1)
        return weighted_mean((moved - gather(stack.target, users)).square().sum(2), batch.weight)

    def apply(self, parameters, users):
        return users.factors + parameters["shift"]


def test_stack_pads_short_problems_with_zeros():
    long, short = random_problem(0), random_problem(1, users=7, ratings=11, items=5)
    stack = Stack([long, short])
    assert stack.source.shape == (2, 40, 4)
    assert torch.equal(stack.source[1, :7], short.source.factors)
    assert not stack.source[1, 7:].any()


def test_a_stack_reads_the_ratings_of_each_problem_where_they_are():
    long, short = random_problem(0), random_problem(1, users=7, ratings=11, items=5)
    narrow = Ratings(short.ratings.users.int(), short.ratings.items.int(), short.ratings.values)
    stack = Stack([long, dataclasses.replace(short, ratings=narrow)])
    rows = torch.tensor([[[5, 3], [10, 0]], [[1, 1], [2, 4]]])
    for column, name in ((stack.users, "users"), (stack.items, "items"), (stack.values, "values")):
        found = column(rows)
        assert found.dtype == getattr(long.ratings, name).dtype
        for r, problem in enumerate((long, short)):
            assert torch.equal(found[:, r], getattr(problem.ratings, name)[rows[:, r]])
            assert torch.equal(column(rows[0])[r], getattr(problem.ratings, name)[rows[0, r]])


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


def test_train_reports_every_epoch_and_allows_transfer_between():
    problem = random_problem(3)
    model = Shift(epochs=3, batch=16, lr=0.1)
    moved = []
    for epoch in model.train([problem]):
        assert epoch.number == len(moved) + 1
        moved.append(model.transfer([problem.source])[0])
    assert len(moved) == 3
    assert not torch.equal(moved[0], moved[1])


def test_the_epoch_loss_is_the_mean_over_rows():
    """With a learning rate too small to move anything, it is the mean squared error at the start."""
    problem = random_problem(3)
    (epoch,) = Shift(epochs=1, batch=16, lr=1e-12).train([problem])
    users = problem.ratings.users
    expected = (problem.source.factors - problem.target_factors)[users].square().sum(1).mean().item()
    assert epoch.losses["loss"] == [pytest.approx(expected, rel=1e-5)]


def test_the_loop_trains_towards_the_optimum():
    problem = random_problem(3)
    model = Shift(epochs=300, batch=200, lr=0.05).trained([problem])
    difference = (problem.target_factors - problem.source.factors)[problem.ratings.users].mean(0)
    torch.testing.assert_close(model.state_dict()["shift"], difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("biased", [False, True])
def test_predictions_are_products_of_transferred_users_and_items_with_their_offset(biased):
    problems = [random_problem(seed, items=20 + seed) for seed in range(2)]
    offsets = [torch.randn(20), torch.randn(21)] if biased else [None, None]
    data = [data_of(p, offset) for p, offset in zip(problems, offsets, strict=True)]
    model = Shift(epochs=2)
    assert [epoch.number for epoch in model.fit(data)] == [1, 2]
    moved = Shift(epochs=2).trained(problems).transfer([p.source for p in problems])
    for r, problem in enumerate(problems):
        users, asked = users_of(problem.source), problem.ratings
        expected = (moved[r][asked.users] * problem.target_items[asked.items]).sum(1)
        scores = moved[r] @ problem.target_items[:7].T
        if biased:
            expected, scores = expected + offsets[r][asked.items], scores + offsets[r][:7]
        torch.testing.assert_close(model.predict(users, asked, r).mean, expected)
        torch.testing.assert_close(model.scores(users, torch.arange(7), r), scores)
        assert model.items_of(r) == 20 + r
        assert model.rows(data[r]) == len(problem.ratings)


def test_a_restored_model_predicts_once_it_is_bound_to_its_cell():
    data = data_of(random_problem(0), torch.randn(30))
    model = Shift(epochs=1)
    list(model.fit([data]))
    restored = Shift().load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="shift has no item factors yet: call fit or bind"):
        restored.predict(data.train, data.training)
    expected = model.predict(data.train, data.training).mean
    assert torch.equal(restored.bind([data]).predict(data.train, data.training).mean, expected)


def test_misuse_of_a_model_is_refused():
    problem = random_problem(0)
    with pytest.raises(RuntimeError, match="shift has no parameters yet: call fit or load_state_dict"):
        Shift().transfer([problem.source])
    with pytest.raises(ValueError, match="at least one problem"):
        Shift().trained([])
    model = Shift(epochs=1).trained([problem, random_problem(1)])
    with pytest.raises(ValueError, match="shift holds 2 replicas, got users for 1"):
        model.transfer([problem.source])
    with pytest.raises(ValueError, match="replicas disagree on parameters"):
        Shift().load_state_dict({"shift": torch.zeros(4)}, {"other": torch.zeros(4)})


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": -1}, {"lr": 0.0}])
def test_impossible_hyperparameters_are_refused(bad):
    with pytest.raises(ValueError, match=f"shift: {next(iter(bad))} must be"):
        Shift(**bad)


def test_hyperparameters_are_what_the_model_was_built_with():
    assert Shift(epochs=2, scale=0.0).hyperparameters() == {
        "epochs": 2,
        "batch": 128,
        "lr": 0.01,
        "scale": 0.0,
    }


def test_an_epoch_in_parts_trains_as_in_one(monkeypatch):
    problems = [random_problem(0), random_problem(1, users=7, ratings=11)]
    whole = list(Shift(batch=4, epochs=2).train(problems))
    model = Shift(batch=4, epochs=2).trained(problems)
    parts = EpochPlan.parts
    monkeypatch.setattr(EpochPlan, "parts", lambda *given: parts(*given, most=8))
    split = Shift(batch=4, epochs=2)
    losses = [epoch.losses["loss"] for epoch in split.train(problems)]
    assert losses == [pytest.approx(epoch.losses["loss"], rel=1e-5) for epoch in whole]
    for r in range(2):
        assert torch.equal(split.state_dict(r)["shift"], model.state_dict(r)["shift"])
