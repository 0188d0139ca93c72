"""The contract of the transfer models and the training loop below it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.data import Problem, Ratings, SourceUsers
from ml.models.transfer import Stack, TransferModel
from ml.replicas import (
    EpochPlan,
    ReplicaAdam,
    bias,
    clip_by_replica,
    dense,
    linear,
    replica_generator,
    weighted_mean,
)
from tests.ml.problems import data_of, history, random_problem, users_of

torch.set_num_threads(1)

LIKED = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6)


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
        users = gather(stack.users, batch.rows)
        moved = gather(stack.source, users) + self.parameters_["shift"].unsqueeze(1)
        return weighted_mean((moved - gather(stack.target, users)).square().sum(2), batch.weight)

    def apply(self, parameters, users):
        return users.factors + parameters["shift"]


@given(LIKED, st.integers(1, 7))
def test_history_last_keeps_the_latest_items_in_order(liked, length):
    items, present = history(*liked).last(length)
    assert items.shape == present.shape == (len(liked), length)
    for row, mask, expected in zip(items, present, liked, strict=True):
        assert row[mask].tolist() == expected[-length:]
        assert mask.tolist() == [slot < len(expected) for slot in range(length)]
        assert not row[~mask].any()


@given(LIKED, st.data())
def test_history_take_selects_and_reorders_users(liked, data):
    users = data.draw(st.lists(st.integers(0, len(liked) - 1), max_size=8))
    taken = history(*liked).take(torch.tensor(users, dtype=torch.int64))
    expected = history(*[liked[u] for u in users])
    assert taken.offsets.tolist() == expected.offsets.tolist()
    assert taken.items.tolist() == expected.items.tolist()


def test_source_users_take_moves_factors_and_history_together():
    users = SourceUsers(torch.arange(6.0).view(3, 2), history([1], [], [0, 2]), torch.zeros(3, 2))
    taken = users.take(torch.tensor([2, 0]))
    assert taken.factors.tolist() == [[4, 5], [0, 1]]
    assert taken.history.items.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"ratings": Ratings(p.ratings.users + 1, *p_items(p))}, "ratings.users has row 40"),
        (
            lambda p: {"ratings": Ratings(p.ratings.users, p.ratings.items - 1, p.ratings.values)},
            "has row -1",
        ),
        (lambda p: {"target_items": p.target_items[:, :3]}, "width 4, target item factors 3"),
        (lambda p: {"target_factors": p.target_factors[:7]}, "40 training users .* 7 target"),
        (lambda p: {"source": p.source.take(torch.tensor([], dtype=torch.int64))}, "no training users"),
    ],
)
def test_a_problem_whose_tables_disagree_is_refused(change, message):
    problem = random_problem(0, ratings=2000)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(problem, **change(problem))


def p_items(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return problem.ratings.items, problem.ratings.values


def test_source_users_whose_tables_disagree_are_refused():
    factors, items = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="history of 1 users, factors of 2"):
        SourceUsers(factors, history([0]), items)
    with pytest.raises(ValueError, match="width 4, source item factors 2"):
        SourceUsers(factors, history([0], [1]), items[:, :2])
    with pytest.raises(ValueError, match=r"history\.items has row 3, its table has rows 0\.\.2"):
        SourceUsers(factors, history([0], [3]), items)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_stack_gather_reads_each_replica_its_own_table(sizes, extra, data):
    table = torch.randn(len(sizes), max(sizes), *([2] * extra))
    index = torch.tensor([[data.draw(st.integers(0, n - 1)) for _ in range(3)] for n in sizes])
    expected = torch.stack([table[r][index[r]] for r in range(len(sizes))])
    assert torch.equal(gather(table, index), expected)
    assert torch.equal(gather(table, index[..., None]), expected.unsqueeze(2))


def test_stack_pads_short_problems_with_zeros():
    long, short = random_problem(0), random_problem(1, users=7, ratings=11, items=5)
    stack = Stack([long, short])
    assert stack.source.shape == (2, 40, 4)
    assert torch.equal(stack.source[1, :7], short.source.factors)
    assert not stack.source[1, 7:].any()
    assert torch.equal(stack.values[0], long.ratings.values)
    assert torch.equal(stack.items[1, :11], short.ratings.items)


def test_initial_weights_equal_those_of_torch_linear():
    layer = torch.manual_seed(5) and torch.nn.Linear(6, 3)
    generator = torch.Generator().manual_seed(5)
    torch.testing.assert_close(linear(3, 6, generator), layer.weight.detach())
    torch.testing.assert_close(bias(3, 6, generator), layer.bias.detach())


def test_dense_equals_one_linear_layer_a_replica():
    x, w, b = torch.randn(3, 5, 4), torch.randn(3, 2, 4), torch.randn(3, 2)
    expected = [torch.nn.functional.linear(x[r], w[r], b[r]) for r in range(3)]
    torch.testing.assert_close(dense(x, w, b), torch.stack(expected))


def test_weighted_mean_ignores_padding_and_is_zero_for_an_idle_replica():
    loss = torch.tensor([[1.0, 3.0, 100.0], [5.0, 5.0, 5.0]])
    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert weighted_mean(loss, weight).tolist() == [2.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 9))
def test_epoch_plan_visits_each_row_once_as_if_alone(counts, batch):
    def generators():
        return [replica_generator(r, "plan") for r in range(len(counts))]

    plan = EpochPlan.draw(counts, batch, generators())
    assert plan.rows.shape == plan.weight.shape == (len(counts), -(-max(counts) // batch), batch)
    for r, (count, generator) in enumerate(zip(counts, generators(), strict=True)):
        seen = plan.rows[r][plan.weight[r] == 1]
        assert torch.equal(seen.sort().values, torch.arange(count))
        assert plan.weight[r].sum() == count
        alone = EpochPlan.draw([count], batch, [generator])
        assert torch.equal(plan.orders[r], alone.orders[0])
        assert torch.equal(seen, alone.rows[alone.weight == 1])


def test_epoch_plan_spreads_draws_beside_their_rows():
    plan = EpochPlan.draw([5, 3], 2, [replica_generator(r, "plan") for r in range(2)])
    spread = plan.spread([{"a": torch.stack([o, 10 * o], 1)} for o in plan.orders])["a"]
    assert spread.shape == (2, 3, 2, 2)
    on = plan.weight == 1
    assert torch.equal(spread[on], torch.stack([plan.rows, 10 * plan.rows], -1)[on])
    assert not spread[~on].any()


def test_epoch_plan_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"at least one training row, got \[3, 0\]"):
        EpochPlan.draw([3, 0], 2, [replica_generator(r, "plan") for r in range(2)])


def test_generators_repeat_and_differ_by_seed_and_purpose():
    def first(seed: int, purpose: str) -> float:
        return torch.rand((), generator=replica_generator(seed, purpose)).item()

    assert first(1, "emcdr") == first(1, "emcdr")
    assert len({first(1, "emcdr"), first(2, "emcdr"), first(1, "sscdr"), first(11, "emcdr")}) == 4


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_replica_adam_equals_separate_torch_adams(max_norm):
    """Random gradients of very different size; each replica sits out its own third of the steps."""
    replicas, shapes, lr = 3, [(4, 2), (5,), (), (2, 3, 2)], 0.03
    start = [torch.randn(replicas, *shape, dtype=torch.float64) for shape in shapes]
    together = [p.clone() for p in start]
    ours = ReplicaAdam(together, lr, max_norm=max_norm)
    alone = [[p[r].clone().requires_grad_() for p in start] for r in range(replicas)]
    theirs = [torch.optim.Adam(parameters, lr) for parameters in alone]
    for number in range(40):
        active = torch.tensor([(number + r) % 3 != 0 for r in range(replicas)])
        gradients = [torch.randn(replicas, *s, dtype=torch.float64) * 10 ** (number % 4 - 2) for s in shapes]
        ours.update(gradients, active)
        for r in active.nonzero().flatten().tolist():
            for p, g in zip(alone[r], gradients, strict=True):
                p.grad = g[r].clone()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(alone[r], max_norm)
            theirs[r].step()
    for r in range(replicas):
        for p, q in zip(together, alone[r], strict=True):
            torch.testing.assert_close(p[r], q.detach(), rtol=1e-12, atol=1e-12)


def test_replica_adam_keeps_float32_precision_in_the_first_steps():
    """1 − 0.999 in float32 is off by 1e-5, which would show in the sixth digit of the first steps."""
    gradient = torch.randn(1, 50)
    ours, theirs = torch.zeros(1, 50), torch.zeros(1, 50, requires_grad=True)
    mine, reference = ReplicaAdam([ours], 1.0), torch.optim.Adam([theirs], 1.0)
    for _ in range(3):
        mine.update([gradient], torch.tensor([True]))
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)


def test_an_inactive_replica_keeps_everything():
    parameter = torch.ones(2, 3, requires_grad=True)
    optimizer = ReplicaAdam([parameter], 0.1)
    optimizer.update([2 * parameter.detach()], torch.tensor([True, False]))
    assert parameter[1].tolist() == [1, 1, 1]
    assert optimizer.steps.flatten().tolist() == [1, 0]
    assert not optimizer.first[1].any()
    torch.testing.assert_close(parameter[0].detach(), torch.full((3,), 0.9))


def test_clipping_leaves_small_gradients_alone():
    gradient = torch.tensor([[3.0, 4.0], [0.03, 0.04]])
    clipped = clip_by_replica(gradient, 1.0)
    torch.testing.assert_close(clipped, torch.tensor([[0.6, 0.8], [0.03, 0.04]]))


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
