"""Generators, epoch plans, gathering and Adam with a replica axis, against torch alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.replicas import (
    EpochPlan,
    ReplicaAdam,
    bias,
    clip_by_replica,
    dense,
    gather,
    gather_columns,
    linear,
    replica_generator,
    weighted_mean,
)

torch.set_num_threads(1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_gather_reads_each_replica_its_own_table(sizes, extra, data):
    table = torch.randn(len(sizes), max(sizes), *([2] * extra))
    index = torch.tensor([[data.draw(st.integers(0, n - 1)) for _ in range(3)] for n in sizes])
    expected = torch.stack([table[r][index[r]] for r in range(len(sizes))])
    assert torch.equal(gather(table, index), expected)
    assert torch.equal(gather(table, index[..., None]), expected.unsqueeze(2))


def test_columns_are_the_gathered_rows_of_every_step():
    table = torch.randn(3, 7, 4)
    index = torch.randint(7, (5, 3, 6))
    columns = gather_columns(table, index)
    assert columns.is_contiguous()
    for step in range(5):
        assert torch.equal(columns[step], gather(table, index[step]).mT)


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


def test_replicas_have_their_own_rates_and_go_on_without_those_that_leave():
    rates, left = [0.1, 0.003, 0.1, 0.03], torch.tensor([3, 1])
    start = [torch.randn(4, *shape, dtype=torch.float64) for shape in ((4, 2), (5,))]
    together = [p.clone() for p in start]
    ours = ReplicaAdam(together, rates)
    alone = [[p[r].clone().requires_grad_() for p in start] for r in range(4)]
    theirs = [torch.optim.Adam(parameters, rate) for parameters, rate in zip(alone, rates, strict=True)]
    numbers = torch.arange(4)
    for step in range(9):
        if step == 5:
            together, numbers = [p[left].clone() for p in together], left
            ours.keep(left, together)
        # Each sits out a third of the steps.
        active = (step + numbers) % 3 != 0
        gradients = [torch.randn(4, *p.shape[1:], dtype=torch.float64) for p in start]
        ours.update([g[numbers] for g in gradients], active)
        for r in numbers[active].tolist():
            for p, g in zip(alone[r], gradients, strict=True):
                p.grad = g[r].clone()
            theirs[r].step()
    for row, r in enumerate(left.tolist()):
        for p, q in zip(together, alone[r], strict=True):
            torch.testing.assert_close(p[row], q.detach(), rtol=1e-12, atol=1e-12)


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


def test_parts_of_an_epoch_are_the_steps_of_the_whole():
    def generators():
        return [replica_generator(r, "parts") for r in range(2)]

    whole = EpochPlan.draw([23, 6], 4, generators())
    parts = list(EpochPlan.parts([23, 6], 4, generators(), most=7))
    assert [part.steps for part in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([part.rows for part in parts], 1), whole.rows)
    assert torch.equal(torch.cat([part.weight for part in parts], 1), whole.weight)
    assert [len(part.orders[1]) for part in parts] == [6, 0, 0]
