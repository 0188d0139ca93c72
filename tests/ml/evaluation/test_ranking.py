import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
)

from ml.data import Ratings
from ml.evaluation import ranking as module
from ml.evaluation.ranking import random_expectation, rank_metrics, top_k


def ratings(*pairs, values=None):
    users, items = zip(*pairs, strict=True) if pairs else ((), ())
    values = torch.ones(len(pairs)) if values is None else torch.tensor(values)
    return Ratings(torch.tensor(users, dtype=torch.int64), torch.tensor(items, dtype=torch.int64), values)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def fully_sorted(users, items, k, exclude):
    """Lists of (item, score) by a sort of all scores, each list at most k long."""
    scores = (users.double() @ items.double().T).numpy()
    hidden = set(zip(exclude.users.tolist(), exclude.items.tolist(), strict=True))
    left = [[(-s, i) for i, s in enumerate(row) if (u, i) not in hidden] for u, row in enumerate(scores)]
    return [[(i, -s) for s, i in sorted(row)[:k]] for row in left]


# top_k


@given(
    st.integers(0, 9),
    st.integers(1, 90),
    st.integers(1, 25),
    st.sampled_from([1, 100, 1 << 22]),
    st.integers(1, 5),
    st.integers(0, 10_000),
)
def test_top_k_is_a_full_sort_with_ties_by_lower_item(users, items, k, size, levels, seed):
    # Small whole numbers: exact scores of both signs, most of them tied.
    u, v = (integers(2 * levels + 1, n, 2, seed=seed + n) - levels for n in (users, items))
    exclude = Ratings(
        integers(max(users, 1), 30 * min(users, 1), seed=seed),
        integers(items, 30 * min(users, 1), seed=seed + 1),
        torch.ones(30 * min(users, 1)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCORES", size)
        found, scores = top_k(u.float(), v.float(), k, exclude)
    assert found.shape == scores.shape == (users, k)
    assert (found.dtype, scores.dtype) == (torch.int64, torch.float32)
    expected = fully_sorted(u, v, k, exclude)
    for row, row_scores, pairs in zip(found.tolist(), scores.tolist(), expected, strict=True):
        missing = k - len(pairs)
        assert row == [i for i, _ in pairs] + [-1] * missing
        assert row_scores == [s for _, s in pairs] + [-math.inf] * missing


def test_top_k_of_many_items_is_torch_topk():
    u, v = normal(50, 11), normal(7001, 11, seed=1)
    items, scores = top_k(u, v)
    torch.testing.assert_close(items, torch.topk(u @ v.T, 20).indices)
    torch.testing.assert_close(scores, torch.topk(u @ v.T, 20).values)


def test_a_score_that_underflows_ties_with_zero():
    # Fused multiply-add gives -0.0 for the first and the last item.
    items, scores = top_k(torch.tensor([[1e-30]]), torch.tensor([[-1e-30], [0.0], [-1e-30]]), 3)
    assert items.tolist() == [[0, 1, 2]]
    assert not scores.signbit().any()
    keys = module._keys(torch.tensor([-0.0, 0.0]), torch.arange(2))
    assert keys[0] > keys[1]


def test_top_k_needs_no_gradient():
    _, scores = top_k(torch.ones(2, 3, requires_grad=True), torch.ones(4, 3), 2)
    assert not scores.requires_grad


def test_an_excluded_item_is_hidden_from_its_user_only():
    u, v = torch.ones(3, 1), torch.tensor([[3.0], [2.0], [1.0]])
    items, _ = top_k(u, v, 3, ratings((1, 0), (1, 0), (2, 0), (2, 1), (2, 2)))
    assert items.tolist() == [[0, 1, 2], [1, 2, -1], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4, 5)), r"\(2, 3\) and item factors \(4, 5\)"),
        ((torch.ones(2, 3), torch.ones(4, 3), 0), "k must be at least 1, not 0"),
        ((torch.tensor([[1.0], [math.nan]]), torch.ones(4, 1)), "user factors of row 1"),
        ((torch.ones(2, 1), torch.tensor([[math.inf]])), "item factors of row 0"),
        ((torch.ones(2, 1), torch.ones(4, 1), 2, ratings((2, 0))), r"exclude\.users has row 2"),
        ((torch.ones(2, 1), torch.ones(4, 1), 2, ratings((0, 4))), r"exclude\.items has row 4"),
    ],
)
def test_top_k_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        top_k(*arguments)


# rank_metrics

CATALOGUE = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])  # ranked 0, 1, 2, 3, 4 by a user of factor 1


def test_metrics_by_hand():
    # User 0 hits places 1 and 3 with two of three relevant items, user 1 misses, user 2 rated nothing.
    relevant = ratings((0, 0), (0, 2), (0, 4), (1, 3))
    d1, d2, d3 = 1.0, 1 / math.log2(3), 0.5
    assert rank_metrics(torch.ones(3, 1), CATALOGUE, relevant, k=3) == pytest.approx(
        {
            "dcg@3": (d1 + d3) / 2,
            "ndcg@3": (d1 + d3) / (d1 + d2 + d3) / 2,
            "ndcg_retrieved@3": (d1 + d3) / (d1 + d2) / 2,
            "recall@3": (2 / 3) / 2,
            "recall_micro@3": 2 / 4,
            "hr@3": 1 / 2,
            "precision@3": (2 / 3) / 2,
            "users": 2,
            "users_left_out": 1,
        }
    )


def test_only_ratings_above_the_threshold_are_relevant():
    relevant = ratings((0, 0), (0, 2), (1, 1), values=[3.0, 4.0, 2.0])
    strict = rank_metrics(torch.ones(2, 1), CATALOGUE, relevant, k=3, above=3)
    assert strict == rank_metrics(torch.ones(2, 1), CATALOGUE, ratings((0, 2)), k=3)
    assert strict["users"] == strict["users_left_out"] == 1
    assert rank_metrics(torch.ones(2, 1), CATALOGUE, relevant, k=3)["users"] == 2


def test_a_pair_given_twice_counts_once():
    once = rank_metrics(torch.ones(1, 1), CATALOGUE, ratings((0, 0), (0, 4)), k=3)
    assert rank_metrics(torch.ones(1, 1), CATALOGUE, ratings((0, 0), (0, 4), (0, 0)), k=3) == once


def test_excluded_items_free_their_places():
    relevant, fine_tuned = ratings((1, 3)), ratings((0, 3), (1, 0), (1, 1))
    assert rank_metrics(torch.ones(2, 1), CATALOGUE, relevant, k=2)["hr@2"] == 0
    after = rank_metrics(torch.ones(2, 1), CATALOGUE, relevant, k=2, exclude=fine_tuned)
    assert (after["hr@2"], after["precision@2"]) == (1, 0.5)
    assert after["dcg@2"] == pytest.approx(1 / math.log2(3))


def test_missing_places_hit_nothing():
    # Item -1 of user 1 would be the last item of user 0 if pairs were compared by number alone.
    relevant, exclude = ratings((0, 4), (1, 0)), ratings(*((1, i) for i in range(1, 5)))
    metrics = rank_metrics(torch.ones(2, 1), CATALOGUE, relevant, k=10, exclude=exclude)
    assert metrics["precision@10"] == pytest.approx(0.1)
    assert metrics["recall@10"] == 1


def random_case(n=60, n_items=300, m=500, seed=0):
    pairs = torch.stack([integers(n, m, seed=seed), integers(n_items, m, seed=seed + 1)], 1).unique(dim=0)
    relevant = Ratings(pairs[:, 0], pairs[:, 1], torch.ones(len(pairs)))
    target = torch.zeros(n, n_items, dtype=torch.int64)
    target[relevant.users, relevant.items] = 1
    return normal(n, 6, seed=seed), normal(n_items, 6, seed=seed + 1), relevant, target


@pytest.mark.parametrize("k", [1, 5, 20])
def test_metrics_equal_torchmetrics(k):
    u, v, relevant, target = random_case()
    found = rank_metrics(u, v, relevant, k)
    for name, function in [
        ("ndcg", retrieval_normalized_dcg),
        ("recall", retrieval_recall),
        ("hr", retrieval_hit_rate),
        ("precision", retrieval_precision),
    ]:
        values = [function(p, t, top_k=k) for p, t in zip(u @ v.T, target, strict=True) if t.any()]
        assert found[f"{name}@{k}"] == pytest.approx(torch.stack(values).mean().item(), abs=1e-6), name
        assert found[f"{name}@{k}"] > 0
    assert found["users"] == len(values)


def test_ndcg_equals_sklearn():
    u, v, relevant, target = random_case(seed=5)
    ranked = target.any(1)
    expected = ndcg_score(target[ranked].numpy(), (u @ v.T)[ranked].numpy(), k=20)
    assert rank_metrics(u, v, relevant)["ndcg@20"] == pytest.approx(expected, rel=1e-9)


def test_users_without_relevant_items_change_nothing_but_their_count():
    u, v, relevant, _ = random_case()
    exclude = Ratings(relevant.users, (relevant.items + 150) % 300, relevant.values)
    hidden = torch.isin(exclude.users * 300 + exclude.items, relevant.users * 300 + relevant.items)
    exclude = Ratings(exclude.users[~hidden], exclude.items[~hidden], exclude.values[~hidden])
    plain = rank_metrics(u, v, relevant, 20, exclude)
    spread = Ratings(relevant.users * 2, relevant.items, relevant.values)
    wide = rank_metrics(
        u.repeat_interleave(2, 0), v, spread, 20, Ratings(exclude.users * 2, exclude.items, exclude.values)
    )
    assert wide["users_left_out"] == plain["users_left_out"] + 60
    assert {**wide, "users_left_out": 0} == {**plain, "users_left_out": 0}


def test_a_diverged_model_has_nan_metrics():
    metrics = rank_metrics(torch.tensor([[1.0], [math.nan]]), CATALOGUE, ratings((0, 0), (1, 0)), k=3)
    assert metrics["users"] == 2
    assert all(math.isnan(value) for name, value in metrics.items() if "@" in name)
    assert metrics.keys() == random_expectation(5, np.array([1]), 3).keys()


@pytest.mark.parametrize(
    ("relevant", "options", "message"),
    [
        (ratings(), {}, "no user has a relevant item among 0"),
        (ratings((0, 0)), {"above": 1.0}, "lower `above`"),
        (ratings((2, 0)), {}, r"relevant\.users has row 2"),
        (ratings((0, 5)), {}, r"relevant\.items has row 5"),
        (ratings((0, 0)), {"exclude": ratings((5, 0))}, r"exclude\.users has row 5"),
        (ratings((0, 0)), {"exclude": ratings((0, -1))}, r"exclude\.items has row -1"),
        (ratings((1, 3)), {"exclude": ratings((0, 3), (1, 3))}, "row 1: item 3 is also .* user 1"),
        (ratings((0, 0)), {"k": 0}, "k must be at least 1"),
    ],
)
def test_metrics_refuse(relevant, options, message):
    with pytest.raises(ValueError, match=message):
        rank_metrics(torch.ones(2, 1), CATALOGUE, relevant, **options)


# random_expectation


@pytest.mark.parametrize("n_relevant", [1, 2, 3, 5])
@pytest.mark.parametrize("k", [1, 2, 4, 5, 8])
def test_expectation_is_the_mean_over_all_orders(n_relevant, k):
    orders = torch.tensor(list(itertools.permutations(range(5))), dtype=torch.float32)
    pairs = itertools.product(range(len(orders)), range(n_relevant))
    exact = rank_metrics(orders, torch.eye(5), ratings(*pairs), k)
    expected = random_expectation(5, np.full(len(orders), n_relevant), k)
    assert expected == pytest.approx(exact, rel=1e-12)


def test_expectation_agrees_with_simulated_rankers():
    groups, n, n_items = 1000, 100, 50
    counts = 1 + torch.arange(n) % 9
    pairs = [(u, i) for u, count in enumerate(counts.tolist()) for i in range(count)]
    exclude = ratings(*((u, n_items - 1 - i) for u in range(n) for i in range(u % 7)))
    relevant = ratings(*pairs)
    draws = [
        rank_metrics(normal(n, n_items, seed=s), torch.eye(n_items), relevant, 6, exclude)
        for s in range(groups)
    ]
    expected = random_expectation(n_items - torch.arange(n) % 7, counts, 6)
    for name, value in expected.items():
        sample = np.array([draw[name] for draw in draws])
        error = 4 * sample.std(ddof=1) / math.sqrt(groups)
        assert abs(sample.mean() - value) <= error <= 0.03 * value, name


def test_expectation_of_a_large_catalogue_and_left_out_users():
    some = random_expectation(64_443, torch.tensor([0, 3, 0, 9]), 20)
    assert (some["users"], some["users_left_out"]) == (2, 2)
    assert some["recall@20"] == pytest.approx(20 / 64_443)
    miss = [math.comb(64_443 - r, 20) / math.comb(64_443, 20) for r in (3, 9)]
    assert some["hr@20"] == pytest.approx(1 - sum(miss) / 2, rel=1e-9)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 30))
def test_expectation_is_an_average_over_users(counts, k):
    whole = random_expectation(12, np.array(counts), k)
    alone = [random_expectation(12, np.array([r]), k) for r in counts]
    for name in whole.keys() - {"users", "users_left_out", f"recall_micro@{k}"}:
        assert whole[name] == pytest.approx(np.mean([metrics[name] for metrics in alone]), rel=1e-12)


@pytest.mark.parametrize(
    ("n_items", "counts", "k", "message"),
    [
        (5, [1, 6], 2, "user 1: 6 relevant items of 5"),
        (np.array([5, 2]), [1, 3], 2, "user 1: 3 relevant items of 2"),
        (5, [-1], 2, "user 0: -1"),
        (5, [0, 0], 2, "no user has a relevant item"),
        (5, [1], 0, "k must be at least 1"),
    ],
)
def test_expectation_refuses(n_items, counts, k, message):
    with pytest.raises(ValueError, match=message):
        random_expectation(n_items, np.array(counts), k)
