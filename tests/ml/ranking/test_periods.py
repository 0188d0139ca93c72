from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from scipy.sparse import csr_matrix

from ml.data import Data, HeldOut, Ratings, Users
from ml.evaluation.lists import list_scores
from ml.ranking.blend import DeepBlend
from ml.ranking.choices import ChoiceDiffusion
from ml.ranking.periods import BANDS, PERIODS, A, When, periods, shares, timely, timely_of
from ml.ranking.ranker import Choices
from tests.ml.ranking.cells import cell

QUICK = dict(diffusion_steps=60, steps=20, samples=16)


def by_the_formula(active, counts, totals, share, band):
    """Equation (1), one number after the other."""
    users, items = active.shape[0], counts.shape[1]
    out = np.zeros((users, items))
    for u in range(users):
        for i in range(items):
            near = 0.0
            for b in range(PERIODS):
                if active[u, b]:
                    kernel = 1 / (1 + ((np.arange(PERIODS) - b) / (band * PERIODS)) ** 2)
                    near += active[u, b] * (kernel @ counts[:, i]) / (kernel @ totals)
            out[u, i] = np.log((near + A * share[i]) / ((1 + A) * share[i]))
    return out


def drawn(seed: int, users: int = 3, items: int = 4):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 3, (PERIODS, items)) * generator.integers(0, 2, (PERIODS, items)) * 1.0
    counts[0] += 1  # no item without a choice
    active = np.zeros((users, PERIODS))
    for row in active:
        row[generator.choice(PERIODS, 3, replace=False)] = generator.dirichlet(np.ones(3))
    return active, counts


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_what_was_popular_then_is_equation_1(seed):
    active, counts = drawn(seed)
    totals, share = counts.sum(1), counts.sum(0) / counts.sum()
    found = timely(
        csr_matrix(active.astype(np.float32)),
        csr_matrix(counts.T.astype(np.float32)),
        totals,
        torch.from_numpy(share).float(),
    )
    for column, band in enumerate(BANDS):
        expected = by_the_formula(active, counts, totals, share, band)
        np.testing.assert_allclose(found[..., column], expected, atol=1e-4)


def test_of_each_users_own_items_it_is_the_same_as_of_all():
    active, counts = drawn(1)
    active[1] = 0
    share = torch.from_numpy(counts.sum(0) / counts.sum()).float()
    about = (
        csr_matrix(active.astype(np.float32)),
        csr_matrix(counts.T.astype(np.float32)),
        counts.sum(1),
        share,
    )
    items = torch.tensor([[3, 0], [1, 2], [2, 2]])
    expected = timely(*about).gather(1, items[..., None].expand(-1, -1, len(BANDS)))
    torch.testing.assert_close(timely_of(*about, items), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_an_own_choice_counts_as_if_it_had_not_been_made(seed):
    active, counts = drawn(seed)
    period = int(np.random.default_rng(seed).integers(PERIODS))
    counts[period, 1] += 1
    totals, share = counts.sum(1), torch.from_numpy(counts.sum(0) / counts.sum()).float()
    own = torch.zeros(active.shape[0], counts.shape[1], dtype=torch.int64)
    own[2, 1] = period + 1
    rows, by_item = csr_matrix(active.astype(np.float32)), csr_matrix(counts.T.astype(np.float32))
    found = timely(rows, by_item, totals, share, own)
    without = counts.copy()
    without[period, 1] -= 1
    less = share.clone()
    less[1] -= 1 / counts.sum()
    expected = timely(rows, csr_matrix(without.T.astype(np.float32)), totals, less)
    torch.testing.assert_close(found[2, 1], expected[2, 1], atol=1e-3, rtol=1e-3)
    others = timely(rows, by_item, totals, share)
    assert torch.equal(found[:2], others[:2])
    assert torch.equal(found[2, [0, 2, 3]], others[2, [0, 2, 3]])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_an_item_that_is_chosen_alike_at_any_time_is_0_for_everyone(seed, times):
    active, counts = drawn(seed)
    counts = np.concatenate([counts, times * counts.sum(1, keepdims=True)], 1)
    found = timely(
        csr_matrix(active.astype(np.float32)),
        csr_matrix(counts.T.astype(np.float32)),
        counts.sum(1),
        torch.from_numpy(counts.sum(0) / counts.sum()).float(),
    )
    torch.testing.assert_close(found[:, -1], torch.zeros_like(found[:, -1]), atol=1e-4, rtol=0)


def test_of_a_user_without_times_nothing_is_said():
    active, counts = drawn(0)
    active[1] = 0
    found = timely(
        csr_matrix(active.astype(np.float32)),
        csr_matrix(counts.T.astype(np.float32)),
        counts.sum(1),
        torch.from_numpy(counts.sum(0) / counts.sum()).float(),
    )
    assert (found[1] == 0).all()
    assert (found[0] != 0).any()
    nowhere = Ratings(torch.tensor([0]), torch.tensor([0]), torch.ones(1))
    assert shares(nowhere, 2, np.zeros(PERIODS - 1, np.float32)).nnz == 0


def test_periods_hold_equally_many_choices_and_ties_fall_into_the_middle():
    edges = np.quantile(np.arange(4000.0), np.linspace(0, 1, PERIODS + 1)[1:-1]).astype(np.float32)
    counts = np.bincount(periods(torch.arange(4000.0), edges), minlength=PERIODS)
    assert counts.min() >= 9
    assert counts.max() <= 11
    alike = np.full(PERIODS - 1, 5.0, np.float32)
    found = periods(torch.tensor([4.0, 5.0, 6.0]), alike)
    assert found.tolist() == [0, (PERIODS - 1) // 2, PERIODS - 1]


def timed_cell(seed: int = 0) -> tuple[Data, HeldOut]:
    """Half of the users are active in each of two eras, and choose half of the target items in each; their
    source choices say nothing but when they were made."""
    generator = torch.Generator().manual_seed(seed)
    n, cold, items = 200, 60, 60
    era = torch.arange(n + cold) % 2

    def draw(count: int, first: torch.Tensor, width: int) -> Ratings:
        users = torch.arange(n + cold).repeat_interleave(count)
        chosen = first[users] + torch.randint(width, (len(users),), generator=generator)
        pairs = torch.stack([users, chosen], 1).unique(dim=0)
        times = era[pairs[:, 0]] * 1000 + torch.rand(len(pairs), generator=generator) * 100
        return Ratings(pairs[:, 0], pairs[:, 1], torch.ones(len(pairs)), times)

    source = draw(4, era * 0, items)
    target = draw(4, era * (items // 2), items // 2)
    known = target.users < n
    rows = torch.arange(n + cold)

    def users(chosen: torch.Tensor) -> Users:
        mine = source.take((source.users >= chosen[0]) & (source.users <= chosen[-1]))
        mine = dataclasses.replace(mine, users=mine.users - chosen[0])
        statistics = torch.zeros(len(chosen), 5, dtype=torch.float64)
        return Users(chosen, chosen, ratings=mine, statistics=statistics)

    held = target.take(~known)
    data = Data(
        seed=seed,
        source=source,
        target=target.take(known),
        n_source_users=n + cold,
        n_source_items=items,
        n_users=n + cold,
        n_items=items,
        train=users(rows[:n]),
        training=target.take(known),
        source_user=rows,
    )
    return data, HeldOut(users(rows[n:]), dataclasses.replace(held, users=held.users - n))


def without_times(users: Users) -> Users:
    return dataclasses.replace(users, ratings=dataclasses.replace(users.ratings, times=None))


def fitted(model, data):
    for _ in model.fit([data]):
        pass
    return model


def ndcg(model, users, held_out):
    return list_scores(model.top(users, 20)[0], held_out.ratings, 60).means()["ndcg@20"]


@pytest.mark.parametrize("model", [DeepBlend(), ChoiceDiffusion(**QUICK)], ids=lambda model: model.name)
def test_lists_follow_the_times_of_the_user(model):
    data, held_out = timed_cell()
    fitted(model, data)
    knowing, blind = (
        ndcg(model, users, held_out) for users in (held_out.users, without_times(held_out.users))
    )
    assert knowing > 1.3 * blind
    lists = model.top(held_out.users, 20)[0]
    again = type(model)(**{k: v for k, v in vars(model).items() if k != "states_"})
    again.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(again.top(held_out.users, 20)[0], lists)
    reasons, losses = model.because(held_out.users.take(torch.arange(3)), lists[:3])
    assert (reasons < 60).all()
    assert (losses >= 0).all()
    # The same of a few items as of all.
    rows = model.source_of(held_out.users, model.state(0))
    few, whole = (
        model.score_of(model.state(0), rows[:4], lists[0].numpy()),
        model.score(model.state(0), rows[:4]),
    )
    gap = (few - whole[:, lists[0].numpy()])[:1]
    if isinstance(model, DeepBlend):
        np.testing.assert_allclose(gap, gap[:, :1].repeat(20, 1), atol=1e-3)


def test_choices_with_other_times_are_other_choices():
    data, _ = timed_cell()
    later = dataclasses.replace(data.target, times=data.target.times.flip(0))
    moved, timeless = (
        dataclasses.replace(data, target=later),
        dataclasses.replace(data, train=without_times(data.train)),
    )
    digests = {Choices.of(each).digest for each in (data, moved, timeless)}
    assert len(digests) == 3
    assert Choices.of(timeless).when is None
    assert When.of(cell()[0]) is None


def test_a_pair_given_twice_counts_once():
    data, _ = timed_cell()
    target = data.target.take(torch.cat([torch.arange(len(data.target)), torch.tensor([0])]))
    once, twice = When.of(data), When.of(dataclasses.replace(data, target=target))
    assert once.counts.sum() == twice.counts.sum() == len(data.target)
    assert once.own.nnz == twice.own.nnz
    assert twice.own.max() <= PERIODS
