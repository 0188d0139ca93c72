from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from ml.factorization import negatives as negatives_module
from ml.factorization.adam import RatingTable
from ml.factorization.negatives import sample_negatives


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(users, items, n_items, per_positive=1, seed=0):
    return sample_negatives(
        torch.tensor(users), torch.tensor(items), n_items, per_positive, generator=generator(seed)
    )


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=40),
    st.integers(9, 14),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_negatives_are_unrated_complete_and_used_evenly(pairs, n_items, per_positive, seed):
    users, items = zip(*pairs, strict=True)
    negatives = draw(users, items, n_items, per_positive, seed)
    assert negatives.rows.tolist() == [row for row in range(len(pairs)) for _ in range(per_positive)]
    assert negatives.users.tolist() == [users[row] for row in negatives.rows]
    drawn = list(zip(negatives.users.tolist(), negatives.items.tolist(), strict=True))
    assert not set(drawn) & set(pairs)
    assert all(0 <= item < n_items for _, item in drawn)
    times = Counter(drawn)
    for user in set(users):
        unrated = [item for item in range(n_items) if (user, item) not in pairs]
        uses = [times[user, item] for item in unrated]
        assert max(uses) - min(uses) <= 1


def test_large_draw_has_no_rated_and_no_repeated_pair():
    users, items = (torch.randint(n, (20_000,), generator=generator(n)) for n in (300, 500))
    negatives = sample_negatives(users, items, 500, 2, generator=generator())
    keys = negatives.users * 500 + negatives.items
    assert len(keys) == 40_000
    assert not torch.isin(keys, users * 500 + items).any()
    crowded = 500 - torch.bincount((users * 500 + items).unique() // 500) < 2 * torch.bincount(users)
    free = ~crowded[negatives.users]
    assert free.any()
    assert len(keys[free].unique()) == int(free.sum())


@pytest.mark.parametrize(
    "per_positive", [1, 2, 3]
)  # two items of six by redrawing, four and six by shuffling
def test_negatives_are_uniform_over_items_and_their_sets(per_positive):
    # 6000 users alike, each with ratings of items 1 and 4 among 8.
    users = torch.arange(6000).repeat_interleave(2)
    items = torch.tensor([1, 4]).repeat(6000)
    negatives = sample_negatives(users, items, 8, per_positive, generator=generator(3))
    for slot in range(2 * per_positive):
        counts = torch.bincount(negatives.items.view(6000, -1)[:, slot], minlength=8)
        assert counts[[1, 4]].tolist() == [0, 0]
        assert chisquare(counts[[0, 2, 3, 5, 6, 7]]).pvalue > 1e-3
    pairs = negatives.items.view(6000, -1)[:, :2].sort(1).values
    both = torch.bincount(pairs[:, 0] * 8 + pairs[:, 1])
    assert chisquare(both[both > 0]).pvalue > 1e-3
    assert int((both > 0).sum()) == 15


def test_the_seed_determines_the_draw():
    users, items = torch.arange(50) % 7, torch.arange(50)
    first, again, other = (sample_negatives(users, items, 60, 2, generator=generator(s)) for s in (1, 1, 2))
    assert first.items.equal(again.items)
    assert not first.items.equal(other.items)


def test_a_user_who_rated_everything_gets_none():
    negatives = draw([3, 0, 3, 3, 0], [0, 1, 1, 2, 0], 3)
    assert negatives.rows.tolist() == [1, 4]
    assert negatives.users.tolist() == [0, 0]
    assert negatives.items.tolist() == [2, 2]
    assert len(draw([0, 0], [0, 1], 2)) == 0


def test_too_few_unrated_items_are_used_in_turn():
    negatives = draw([0, 0, 0], [0, 1, 2], 5, per_positive=4)
    assert Counter(negatives.items.tolist()) == {3: 6, 4: 6}


def test_a_repeated_rating_hides_its_item_once():
    assert set(draw([0, 0, 0], [1, 1, 1], 3, per_positive=2).items.tolist()) == {0, 2}


@pytest.mark.parametrize("rising", [False, True])
def test_how_many_ratings_are_worked_on_at_a_time_changes_nothing(rising, monkeypatch):
    users, items = torch.randint(30, (2, 400), generator=generator(5))
    users = users.sort().values if rising else users
    expected = sample_negatives(users, items, 40, 2, generator=generator(6))
    for part in (1, 16, 1000):
        monkeypatch.setattr(negatives_module, "PART", part)
        # Ids of either width.
        found = sample_negatives(users.int(), items.int(), 40, 2, generator=generator(6))
        assert found.users.tolist() == expected.users.tolist()
        assert found.items.equal(expected.items)
        assert found.rows.equal(expected.rows)


def test_negatives_by_rating_are_minus_one_for_users_who_rated_everything():
    negatives = draw([0, 1, 1, 1, 2], [0, 0, 1, 2, 2], 3)
    found = negatives.by_rating(5)
    assert found.dtype == torch.int32
    assert found[1:4].tolist() == [-1, -1, -1]
    assert found[[0, 4]].tolist() == negatives.items.tolist()
    with pytest.raises(ValueError, match="several negatives were drawn for a rating"):
        draw([0, 1], [0, 1], 9, per_positive=2).by_rating(2)


@pytest.mark.parametrize("rows", [None, [0, 2, 3]])
def test_a_table_with_negatives_is_the_table_followed_by_them(rows):
    table = RatingTable(
        torch.tensor([0, 1, 1, 2], dtype=torch.int32),
        torch.tensor([0, 0, 3, 1], dtype=torch.int32),
        torch.tensor([5.0, 4.0, 1.0, 2.0]).double(),
        3,
        5,
        7,
        rows=None if rows is None else torch.tensor(rows, dtype=torch.int32),
        negatives=torch.tensor([4, 2, -1, 0], dtype=torch.int32),
    )
    both, kept = table.flat(), rows or [0, 1, 2, 3]
    drawn = [row for row in kept if row != 2]
    assert len(both) == len(table) == len(kept) + len(drawn)
    assert both.users.tolist() == table.users[[*kept, *drawn]].tolist()
    assert both.items.tolist() == [*table.items[kept].tolist(), *table.negatives[drawn].tolist()]
    assert both.values.tolist() == [*table.values[kept].tolist(), *[0] * len(drawn)]
    assert (both.users.dtype, both.values.dtype) == (torch.int64, torch.float64)
    assert (both.n_users, both.n_items, both.seed, both.negatives) == (3, 5, 7, None)


@pytest.mark.parametrize(
    ("users", "items", "options", "message"),
    [
        ([0], [0, 1], {}, r"users \(1,\) and items \(2,\)"),
        ([[0]], [[0]], {}, r"\(m,\) alike"),
        ([], [], {}, "no ratings to draw negatives for"),
        ([0], [0], {"per_positive": 0}, "per_positive must be at least 1, not 0"),
        ([-1], [0], {}, "users has row -1"),
        ([0], [5], {}, r"items has row 5, its table has rows 0\.\.4"),
        ([0], [-1], {}, "items has row -1"),
    ],
)
def test_refuses(users, items, options, message):
    with pytest.raises(ValueError, match=message):
        draw(users, items, 5, **options)
