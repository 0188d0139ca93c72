import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml.factorization import adam as factorization
from ml.factorization.adam import (
    DeferredAdam,
    MatrixFactorization,
    RatingTable,
    merge_domains,
    remaining_path,
)
from ml.replicas import replica_generator

PURPOSE = "test"


def random_table(ratings: int, n_users: int, n_items: int, seed: int, dtype=torch.float64) -> RatingTable:
    """Skewed ids, as in real data: some rows are touched in nearly every batch, some once or never."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> Tensor:
        return (torch.rand(ratings, generator=generator) ** 3 * n).long()

    values = torch.randint(1, 6, (ratings,), generator=generator).to(dtype)
    return RatingTable(ids(n_users), ids(n_items), values, n_users, n_items, seed)


def dense_adam(model: MatrixFactorization, table: RatingTable):
    """The definition: autograd and torch.optim.Adam over whole tables. Yields users, items, loss by epoch."""
    generator = replica_generator(table.seed, PURPOSE)
    users, items = (
        (model.init_std * torch.randn(n, model.k, generator=generator))
        .to(table.values.dtype)
        .requires_grad_()
        for n in (table.n_users, table.n_items)
    )
    adam = torch.optim.Adam([users, items], lr=model.lr)
    for _ in range(model.epochs):
        total = 0.0
        for rows in torch.randperm(len(table), generator=generator).split(model.batch):
            error = (users[table.users[rows]] * items[table.items[rows]]).sum(1) - table.values[rows]
            adam.zero_grad()
            error.square().mean().backward()
            adam.step()
            total += float(error.detach().square().sum())
        yield users.detach().clone(), items.detach().clone(), total / len(table)


def test_every_epoch_equals_dense_adam():
    model = MatrixFactorization(k=4, epochs=4, batch=4)
    table = random_table(801, n_users=90, n_items=70, seed=3)  # the last batch of an epoch has one rating
    for epoch, (users, items, loss) in zip(
        model.train([table], PURPOSE), dense_adam(model, table), strict=True
    ):
        torch.testing.assert_close(model.user_factors_[0], users, rtol=0, atol=1e-7)
        torch.testing.assert_close(model.item_factors_[0], items, rtol=0, atol=1e-7)
        assert epoch.losses["loss"] == pytest.approx([loss], rel=1e-8)
    assert epoch.number == 4


def test_single_precision_stays_close_to_dense_adam():
    model = MatrixFactorization(epochs=3, batch=16)
    table = random_table(1000, n_users=200, n_items=150, seed=1, dtype=torch.float32)
    users, items, _ = list(dense_adam(model, table))[-1]
    model.fit([table], PURPOSE)
    torch.testing.assert_close(model.user_factors_[0], users, rtol=0, atol=2e-5)
    torch.testing.assert_close(model.item_factors_[0], items, rtol=0, atol=2e-5)


def test_replicas_of_different_length_equal_each_trained_alone():
    counts = (900, 500, 900, 37, 4)
    tables = [random_table(m, 50, 40, seed, torch.float32) for seed, m in enumerate(counts)]
    together = MatrixFactorization(k=5, epochs=3, batch=16)
    losses = [epoch.losses["loss"] for epoch in together.train(tables, PURPOSE)]
    for r, table in enumerate(tables):
        alone = MatrixFactorization(k=5, epochs=3, batch=16)
        alone_losses = [epoch.losses["loss"][0] for epoch in alone.train([table], PURPOSE)]
        torch.testing.assert_close(together.user_factors_[r], alone.user_factors_[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(together.item_factors_[r], alone.item_factors_[0], rtol=1e-6, atol=1e-6)
        assert [epoch[r] for epoch in losses] == pytest.approx(alone_losses, rel=1e-6)


def test_block_size_has_no_effect(monkeypatch):
    tables = [random_table(m, 50, 40, seed=m) for m in (300, 170)]
    whole = MatrixFactorization(k=3, epochs=2, batch=8).fit(tables, PURPOSE)
    monkeypatch.setattr(factorization, "BLOCK", 50)
    blocks = MatrixFactorization(k=3, epochs=2, batch=8).fit(tables, PURPOSE)
    assert torch.equal(whole.user_factors_, blocks.user_factors_)
    assert torch.equal(whole.item_factors_, blocks.item_factors_)


def test_ids_without_ratings_keep_their_initial_noise():
    table = random_table(400, n_users=30, n_items=20, seed=5)
    wide = dataclasses.replace(table, n_users=5000, n_items=4000)
    model = MatrixFactorization(epochs=3, batch=32, init_std=0.5).fit([wide], PURPOSE)
    generator = replica_generator(wide.seed, PURPOSE)
    users = 0.5 * torch.randn(5000, 10, generator=generator)
    items = 0.5 * torch.randn(4000, 10, generator=generator)
    assert torch.equal(model.user_factors_[0, 30:], users[30:].double())
    assert torch.equal(model.item_factors_[0, 20:], items[20:].double())
    assert float(model.user_factors_[0, 30:].std()) == pytest.approx(0.5, rel=0.02)
    moved = (model.user_factors_[0] != users).any(1)
    assert moved.nonzero()[:, 0].tolist() == table.users.unique().tolist()


def test_recovers_a_low_rank_matrix():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(80, 3, generator=generator) @ torch.randn(3, 60, generator=generator)
    seen = torch.rand(80, 60, generator=generator) < 0.6
    users, items = seen.nonzero(as_tuple=True)
    table = RatingTable(users, items, truth[seen], 80, 60, seed=0)
    model = MatrixFactorization(k=3, epochs=60, batch=32).fit([table], PURPOSE)
    predicted = model.user_factors_[0] @ model.item_factors_[0].T
    held_out = (predicted - truth)[~seen].square().mean().sqrt()
    assert float(held_out) < 0.02 * float(truth.std())


def test_draws_follow_seed_and_purpose():
    table = random_table(100, 20, 20, seed=0)

    def users(table: RatingTable, purpose: str) -> Tensor:
        return MatrixFactorization(epochs=1).fit([table], purpose).user_factors_

    assert torch.equal(users(table, "a"), users(table, "a"))
    assert not torch.equal(users(table, "a"), users(table, "b"))
    assert not torch.equal(users(table, "a"), users(dataclasses.replace(table, seed=1), "a"))


@given(
    start=st.integers(1, 300), idle=st.integers(0, 300), size=st.floats(0.01, 10), beta1=st.floats(0.01, 0.95)
)
@settings(max_examples=50, deadline=None)
def test_remaining_path_sums_the_idle_steps(start, idle, size, beta1):
    """Idle steps one by one, without eps, against the closed form lr·m/√v·(T(t₀) − ρʲ T(t₀+j))."""
    beta2, lr, first, second = 0.999, 0.01, 0.3 * size, size**2
    rho, path = beta1 / beta2**0.5, remaining_path(start + idle, (beta1, beta2))[0]
    closed = lr * first / second**0.5 * (path[start] - rho**idle * path[start + idle])
    moved = 0.0
    for t in range(start + 1, start + idle + 1):
        first, second = first * beta1, second * beta2
        moved += lr * first / (1 - beta1**t) / (second / (1 - beta2**t)) ** 0.5
    assert float(closed) == pytest.approx(moved, rel=1e-9, abs=1e-15)


def touch(adam: DeferredAdam, rows: Tensor, time: Tensor, gradient: Tensor) -> Tensor:
    """One step with a given gradient; returns the parameters that it is taken at."""
    (planned,) = adam.plan(rows[None], time[None])
    seen = []

    def given(parameters: Tensor) -> Tensor:
        seen.append(parameters.clone())
        return gradient.clone()

    adam.touch(planned, given)
    return seen[0]


@given(
    eps=st.sampled_from([1e-30, 1e-8]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0]),
    touched=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=60),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_deferred_adam_equals_adam_on_sparse_gradients(eps, scale, touched, seed):
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    dense = initial.clone()
    adam = torch.optim.Adam([dense], lr=0.01, eps=eps)
    deferred = DeferredAdam(initial, lr=0.01, steps=len(touched), eps=eps)
    for t, rows in enumerate(map(sorted, touched), start=1):
        sign = torch.randint(0, 2, (4, 2), generator=generator) * 2 - 1
        gradient = scale * sign * (0.5 + torch.rand(4, 2, dtype=torch.float64, generator=generator))
        gradient[[row for row in range(4) if row not in rows]] = 0
        before = dense.clone()
        dense.grad = gradient.clone()
        adam.step()
        if rows:
            index, time = torch.tensor(rows), torch.full((len(rows),), t - 1)
            at = touch(deferred, index, time, gradient[index])
            assert float((at - before[index]).abs().max()) < 1e-12 + 5 * (eps / scale) ** 2
    now = deferred.read(torch.arange(4), torch.full((4,), len(touched)))
    # Without eps the two are the same; with it they differ by its second order.
    assert float((now - dense).abs().max()) < 1e-12 + 5 * (eps / scale) ** 2


def test_one_touch_moves_a_row_ten_times_as_far_as_its_own_step():
    deferred = DeferredAdam(torch.zeros(1, 1, dtype=torch.float64), lr=0.01, steps=30_000)
    row, time = torch.tensor([0]), torch.tensor([20_000])
    touch(deferred, row, time, torch.ones(1, 1, dtype=torch.float64))
    step = float(deferred.read(row, time + 1))
    settled = float(deferred.read(row, torch.tensor([30_000])))
    assert step == pytest.approx(-0.01 * 0.1 / 0.001**0.5)
    assert settled / step == pytest.approx(1 / (1 - 0.9 / 0.999**0.5), rel=1e-6)


def test_gradients_of_a_row_that_repeats_are_summed():
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    once, often = (DeferredAdam(initial, lr=0.01, steps=40) for _ in range(2))
    for t in range(40):
        rows = torch.randint(5, (2, 6), generator=generator)
        gradient = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
        summed = torch.zeros_like(initial).index_add_(0, rows.view(-1), gradient.view(-1, 3))
        distinct, time = rows.unique(), torch.tensor([[t]])
        touch(once, distinct, time[0], summed[distinct])
        at = touch(often, rows, time, gradient)
        assert torch.equal(at[rows == distinct[0]].unique(dim=0), at[rows == distinct[0]][:1])
    every, end = torch.arange(5), torch.tensor([40])
    torch.testing.assert_close(often.read(every, end), once.read(every, end), rtol=0, atol=1e-14)
    assert float((once.read(every, end) - initial).abs().min()) > 0


def test_steps_planned_ahead_equal_steps_planned_one_by_one():
    generator = torch.Generator().manual_seed(1)
    initial = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    rows = torch.randint(6, (30, 4), generator=generator)
    # Two clocks, of which the second started later.
    time = torch.arange(30)[:, None] + torch.tensor([70, 70, 0, 0])
    rows[:, :2] %= 3
    rows[:, 2:] = rows[:, 2:] % 3 + 3
    gradient = torch.randn(30, 4, 2, dtype=torch.float64, generator=generator)
    ahead, single = (DeferredAdam(initial, lr=0.01, steps=100) for _ in range(2))
    for planned, step in zip(ahead.plan(rows, time), gradient, strict=True):
        ahead.touch(planned, lambda _, step=step: step.clone())
    for parts in zip(rows, time, gradient, strict=True):
        touch(single, *parts)
    every, end = torch.arange(6), torch.tensor([100, 100, 100, 30, 30, 30])
    assert torch.equal(ahead.read(every, end), single.read(every, end))


@pytest.mark.parametrize("negatives", [False, True])
def test_replicas_that_share_columns_equal_replicas_with_copies(negatives):
    whole = random_table(900, 50, 40, 0, torch.float32)
    narrow = dataclasses.replace(whole, users=whole.users.int(), items=whole.items.int())
    rows = [torch.arange(0, 900, step, dtype=torch.int32) for step in (2, 3)]
    shared = [dataclasses.replace(narrow, rows=r, seed=seed) for seed, r in enumerate(rows)]
    if negatives:
        # The second has some ratings without.
        drawn = [torch.randint(least, 40, (900,), dtype=torch.int32) for least in (0, -1)]
        shared = [dataclasses.replace(t, negatives=d) for t, d in zip(shared, drawn, strict=True)]
    copies = [table.flat() for table in shared]
    assert copies[1].users[:300].tolist() == whole.users[::3].tolist()
    assert copies[1].users.dtype == torch.int64
    models = [MatrixFactorization(k=5, epochs=2, batch=16).fit(t, PURPOSE) for t in (shared, copies)]
    assert torch.equal(models[0].user_factors_, models[1].user_factors_)
    assert torch.equal(models[0].item_factors_, models[1].item_factors_)
    assert list(map(len, shared)) == list(map(len, copies))
    assert len(shared[0]) == (900 if negatives else 450)
    assert 300 <= len(shared[1]) < (600 if negatives else 301)


def test_merge_domains():
    source = RatingTable(torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([5.0, 4.0]), 2, 3, seed=7)
    target = RatingTable(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), 2, 2, seed=7)
    merged = merge_domains(source, target, torch.tensor([2, 0]), torch.tensor([0, 1]), n_users=3)
    assert merged.users.tolist() == [2, 0, 1, 0]
    assert merged.items.tolist() == [2, 0, 3, 4]
    assert merged.values.tolist() == [5, 4, 1, 2]
    assert (merged.n_users, merged.n_items, merged.seed) == (3, 5, 7)


@pytest.mark.parametrize(
    ("of_source", "of_target", "seed", "message"),
    [
        ([0], [0, 1], 7, "user_of_source has 1 entries, its table 2 users"),
        ([0, 1], [0, 3], 7, r"user_of_target, row 1: user 3 is not in 0\.\.2"),
        ([1, 1], [0, 2], 7, "user_of_source gives two users the same number"),
        ([0, 1], [0, 2], 8, "source has seed 7, target 8"),
    ],
)
def test_merge_domains_refuses_maps_that_do_not_fit(of_source, of_target, seed, message):
    source = random_table(5, 2, 3, seed=7)
    target = dataclasses.replace(random_table(5, 2, 3, seed=7), seed=seed)
    with pytest.raises(ValueError, match=message):
        merge_domains(source, target, torch.tensor(of_source), torch.tensor(of_target), n_users=3)


GOOD = RatingTable(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([5.0, 4.0]), 2, 3, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": torch.tensor([0, 2])}, r"replica 1, row 1: user 2 is not in 0\.\.1"),
        ({"items": torch.tensor([-1, 0])}, r"replica 1, row 0: item -1 is not in 0\.\.2"),
        ({"values": torch.tensor([1.0, float("nan")])}, "replica 1, row 1: rating nan is not finite"),
        ({"values": torch.tensor([1.0])}, "replica 1 has 2 users, 2 items and 1 values"),
        ({"values": torch.tensor([1, 2])}, "replica 1 has .* torch.int64 values; give int32 or int64 ids"),
        ({"rows": torch.tensor([0, 2])}, r"replica 1, row 1: row 2 is not in 0\.\.1"),
        ({"n_items": 4}, "equal n_users, n_items and value type"),
    ],
)
def test_bad_tables_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MatrixFactorization().fit([GOOD, dataclasses.replace(GOOD, **change)], PURPOSE)


def test_empty_input_is_refused():
    none = torch.tensor([], dtype=torch.int64)
    empty = RatingTable(none, none, torch.tensor([]), 2, 3, seed=0)
    with pytest.raises(ValueError, match="replica 1 has no ratings"):
        MatrixFactorization().fit([GOOD, empty], PURPOSE)
    with pytest.raises(ValueError, match="at least one rating table"):
        MatrixFactorization().fit([], PURPOSE)


@pytest.mark.parametrize("setting", [{"k": 0}, {"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"init_std": -1.0}])
def test_bad_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"mf: {next(iter(setting))}"):
        MatrixFactorization(**setting)
