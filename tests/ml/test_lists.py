from __future__ import annotations

import itertools
import math

import pytest
import torch
from ranx import Qrels, Run, evaluate
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank

from ml.data import Ratings
from ml.evaluation.lists import (
    beyond_accuracy,
    by_length,
    by_popularity,
    list_scores,
    sampled_metrics,
)
from ml.evaluation.ranking import BLOCK, rank_metrics, top_by_scores, top_k


def ratings(*pairs: tuple[int, int], values: list[float] | None = None) -> Ratings:
    rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Ratings(rows[:, 0], rows[:, 1], torch.ones(len(rows)) if values is None else torch.tensor(values))


def random_case(n=80, n_items=150, k=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, n_items, generator=generator)
    pairs = torch.rand(n, n_items, generator=generator) < 0.05
    pairs[0] = False
    relevant = Ratings(*pairs.nonzero().T, torch.ones(int(pairs.sum())))
    return scores, relevant, scores.topk(k).indices


def test_scores_of_a_case_computed_by_hand():
    lists = torch.tensor([[3, 1, 0, 2], [0, 1, 2, -1], [4, 3, 2, 1]])
    relevant = ratings((0, 1), (0, 2), (0, 4), (1, 4))
    scores = list_scores(lists, relevant, 5, cuts=(2, 4))
    d2, d4 = 1 / math.log2(3), 1 / math.log2(5)
    assert scores.users.tolist() == [0, 1]
    assert scores.left_out == 1
    values = {name: value.tolist() for name, value in scores.values.items()}
    assert values["ndcg@2"] == pytest.approx([d2 / (1 + d2), 0])
    assert values["ndcg@4"] == pytest.approx([(d2 + d4) / (1 + d2 + 0.5), 0])
    assert values["recall@2"] == pytest.approx([1 / 3, 0])
    assert values["recall@4"] == pytest.approx([2 / 3, 0])
    assert values["hr@2"] == [1, 0]
    assert values["mrr@4"] == [0.5, 0]
    assert scores.means()["recall@4"] == pytest.approx(1 / 3)


def test_scores_equal_ranx():
    scores, relevant, lists = random_case()
    qrels, run = {}, {}
    for user, item in zip(relevant.users.tolist(), relevant.items.tolist(), strict=True):
        qrels.setdefault(str(user), {})[str(item)] = 1
    for user in qrels:
        items = lists[int(user)].tolist()
        run[user] = {str(item): float(len(items) - place) for place, item in enumerate(items)}
    names = {"ndcg": "ndcg", "recall": "recall", "hr": "hit_rate", "mrr": "mrr"}
    ours = list_scores(lists, relevant, scores.shape[1]).means()
    for (mine, theirs), k in itertools.product(names.items(), (10, 20)):
        expected = evaluate(Qrels(qrels), Run(run), f"{theirs}@{k}")
        assert ours[f"{mine}@{k}"] == pytest.approx(float(expected), rel=1e-9), mine


def test_scores_equal_those_of_factors_and_torchmetrics():
    scores, relevant, lists = random_case(seed=3)
    ours = list_scores(lists, relevant, scores.shape[1])
    factors = rank_metrics(scores, torch.eye(scores.shape[1]), relevant)
    for name in ("ndcg@20", "recall@20", "hr@20"):
        assert ours.means()[name] == pytest.approx(factors[name], rel=1e-9)
    target = torch.zeros_like(scores, dtype=torch.int64)
    target[relevant.users, relevant.items] = 1
    expected = [retrieval_reciprocal_rank(scores[u], target[u], top_k=10).item() for u in ours.users]
    assert ours.values["mrr@10"].tolist() == pytest.approx(expected, rel=1e-6)


def test_only_liked_items_are_relevant_above_the_threshold():
    lists, given = torch.tensor([[0, 1], [1, 0]]), ratings((0, 0), (0, 1), (1, 1), values=[5.0, 3.0, 3.0])
    liked = list_scores(lists, given, 2, cuts=(2,), above=3.0)
    assert liked.users.tolist() == [0]
    assert liked.values["ndcg@2"].tolist() == [1]


def test_lists_that_are_none_are_refused():
    relevant = ratings((0, 0))
    with pytest.raises(ValueError, match="listed twice"):
        list_scores(torch.tensor([[1, 1]]), relevant, 2, cuts=(2,))
    with pytest.raises(ValueError, match="at least 20 places"):
        list_scores(torch.tensor([[1, 0]]), relevant, 2)
    with pytest.raises(ValueError, match="no user has a relevant item"):
        list_scores(torch.tensor([[1, 0]]), relevant, 2, cuts=(2,), above=1.0)


def test_beyond_accuracy_equals_the_mean_over_all_pairs():
    lists = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(s))[:4] for s in range(6)])
    popularity = torch.tensor([8, 4, 2, 1, 1, 3, 8, 5, 2, 0])
    found = beyond_accuracy(lists, popularity, 16)
    pairs = [len(set(a) & set(b)) / 4 for a, b in itertools.combinations(lists.tolist(), 2)]
    assert found["overlap"] == pytest.approx(sum(pairs) / len(pairs))
    assert found["coverage"] == pytest.approx(len(set(lists.flatten().tolist())) / 9)
    bits = [-math.log2(int(popularity[i]) / 16) for i in lists.flatten()]
    assert found["self_information"] == pytest.approx(sum(bits) / len(bits))
    assert beyond_accuracy(lists[:1].repeat(3, 1), popularity, 16)["overlap"] == pytest.approx(1)


def test_thirds_hold_a_third_of_the_ratings_each():
    popularity = torch.tensor([1, 6, 1, 3, 3, 4, 0])  # falling: 1 | 5, 3 | 4, 0, 2 and the unrated
    lists = torch.tensor([[1, 5], [1, 0]])
    head, middle, tail = by_popularity(lists, ratings((0, 1), (0, 3), (1, 0), (1, 2)), popularity)
    assert (head["items"], middle["items"], tail["items"]) == (1, 2, 4)
    assert (head["listed"], middle["listed"], tail["listed"]) == (0.5, 0.25, 0.25)
    assert (head["recall"], middle["recall"], tail["recall"]) == (1, 0, 0.5)
    assert tail["relevant"] == 0.5


def test_users_are_grouped_by_the_length_of_their_history():
    lists = torch.tensor([[0, 1], [2, 1], [0, 2]])
    scores = list_scores(lists, ratings((0, 0), (1, 0), (2, 0)), 3, cuts=(2,))
    rows = by_length(scores, torch.tensor([0, 7, 70]))
    assert [(row["from"], row["to"], row["users"], row["hr@2"]) for row in rows] == [
        (0, 0, 1, 1),
        (5, 9, 1, 0),
        (50, None, 1, 1),
    ]


def test_sampled_metrics_of_all_negatives_are_exact():
    scores, relevant, _ = random_case(n=12, n_items=40)
    found = sampled_metrics(lambda rows: scores[rows], relevant, torch.ones(40), 12, seed=0, k=5)
    hits = []
    for user in relevant.users.unique():
        mine = relevant.items[relevant.users == user]
        others = [i for i in range(40) if i not in mine]
        hits.append(torch.tensor([(scores[user, others] > scores[user, i]).sum() < 5 for i in mine]).double())
    expected = torch.stack([h.mean() for h in hits]).mean().item()
    assert found["hr@5_sampled_uniform"] == found["hr@5_sampled_popular"] == pytest.approx(expected)


def test_sampled_by_popularity_is_harder_for_a_popular_order():
    popularity = torch.arange(1, 401)
    relevant = Ratings(torch.arange(200), torch.randint(100, 400, (200,)), torch.ones(200))
    found = sampled_metrics(
        lambda rows: popularity.float().expand(len(rows), -1), relevant, popularity, 200, 0, negatives=50
    )
    assert found["hr@10_sampled_popular"] < found["hr@10_sampled_uniform"]


def test_a_models_scores_give_the_same_lists_as_factors():
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(50, 4, generator=generator), torch.randn(300, 4, generator=generator)
    exclude = ratings((0, 3), (49, 7))
    blocks = []

    def scores(rows):
        blocks.append(len(rows))
        return users[rows] @ items.T

    found = top_by_scores(scores, 50, 300, 20, exclude)
    expected = top_k(users, items, 20, exclude)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert sum(blocks) == 50


def test_a_model_is_asked_for_bounded_blocks_of_users():
    asked = []

    def scores(rows):
        asked.append(len(rows))
        return torch.zeros(len(rows), 1 << 16).index_fill_(1, torch.tensor([5]), 1.0)

    items, _ = top_by_scores(scores, 600, 1 << 16, 1)
    assert items.unique().tolist() == [5]
    assert sum(asked) == 600
    assert max(asked) * (1 << 16) <= BLOCK
    with pytest.raises(ValueError, match="user 1 are not numbers"):
        top_by_scores(lambda rows: torch.tensor([[0.0], [math.nan]]), 2, 1, 1)
