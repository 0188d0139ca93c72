"""What models meet: histories, source users and problems."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.data import Problem, Ratings, SourceUsers
from tests.ml.problems import history, random_problem

torch.set_num_threads(1)


LIKED = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6)


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
