"""SSCDR against least squares and hand-computed values, and its draws."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ml.data import SourceUsers
from ml.models.sscdr import SSCDR, RejectingSSCDR, liked_pairs
from ml.replicas import replica_generator
from tests.ml.models.losses import loss_of, two_users
from tests.ml.problems import history, random_problem, without_history

torch.set_num_threads(1)


@pytest.mark.parametrize("inactive", ["no liked items", "margin never reached"])
def test_sscdr_without_its_ranking_term_reaches_affine_least_squares(inactive):
    problem = random_problem(0)
    if inactive == "no liked items":
        model, problem = SSCDR(epochs=1500, batch=150), without_history(problem)
    else:
        model = SSCDR(epochs=1500, batch=150, margin=-1e9)
    state = model.trained([problem]).state_dict()
    # A user counts once for each of its ratings.
    users = problem.ratings.users
    inputs = np.column_stack([problem.source.factors[users], np.ones(len(users))])
    expected = np.linalg.lstsq(inputs, problem.target_factors[users].numpy(), rcond=None)[0]
    np.testing.assert_allclose(state["map"].T, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(state["bias"], expected[-1], atol=1e-4)


def test_sscdr_loss_by_hand():
    """f = 2x + (1, 0). User 0: f(u) = (3, 0), ‖f − (1, 1)‖² = 5; f(i⁺) = (3, 2), 5; f(i⁻) = (1, 2), 1:
    ranking 1 + 5 − 1 = 5. User 1: f(u) = (1, 4), ‖f − (2, 0)‖² = 17, nothing liked."""
    parameters = {"map": [[2.0, 0.0], [0.0, 2.0]], "bias": [1.0, 0.0]}
    draws = {"positive": [0, 0], "negative": [1, 0], "liked": [1.0, 0.0]}
    loss = loss_of(SSCDR(), two_users(), parameters, [0, 1], **draws)
    assert loss == pytest.approx((5 + 5 + 17) / 2)
    # The pair the other way round is ranked right by more than the margin.
    draws |= {"positive": [1, 0], "negative": [0, 0]}
    assert loss_of(SSCDR(), two_users(), parameters, [0, 1], **draws) == pytest.approx((5 + 17) / 2)


def test_sscdr_ranking_brings_liked_items_nearer():
    problem = random_problem(0)
    users = problem.ratings.users
    pairs = liked_pairs(problem.source.history, users, replica_generator(9, "test"))

    def violation(margin: float) -> float:
        state = SSCDR(epochs=60, margin=margin).trained([problem]).state_dict()
        items = problem.source.item_factors @ state["map"].T + state["bias"]
        near, far = (
            (items[pairs[name]] - problem.target_factors[users]).square().sum(1)
            for name in ("positive", "negative")
        )
        return (1 + near - far).relu()[pairs["liked"] > 0].mean().item()

    assert violation(1.0) < 0.9 * violation(-1e9)


def test_liked_pairs_are_drawn_uniformly():
    liked = history([4, 7, 9], [], [4, 4, 1])
    users = torch.tensor([0, 1, 2]).repeat(6000)
    pairs = liked_pairs(liked, users, replica_generator(0, "test"))
    assert pairs["liked"].tolist() == [1.0, 0.0, 1.0] * 6000

    def counts(items: torch.Tensor) -> list[int]:
        return torch.bincount(items, minlength=10)[[1, 4, 7, 9]].tolist()

    first = counts(pairs["positive"][users == 0])
    assert sum(first) == 6000
    assert first[0] == 0
    assert chisquare(first[1:]).pvalue > 1e-3
    assert chisquare(counts(pairs["positive"][users == 2])[:2], [2000, 4000]).pvalue > 1e-3
    # The pool holds an item as often as it was liked.
    assert chisquare(counts(pairs["negative"]), [3000, 9000, 3000, 3000]).pvalue > 1e-3


def liked_sets(problem) -> list[set[int]]:
    offsets, items = problem.source.history.offsets, problem.source.history.items
    return [set(items[a:b].tolist()) for a, b in pairwise(offsets)]


def test_a_random_item_is_never_a_liked_one_and_drawn_anew():
    problem = random_problem(0, ratings=600)
    model, generator = RejectingSSCDR(), replica_generator(0, "test")
    rows = torch.arange(600)
    first, second = (model.draws(problem, rows, generator) for _ in range(2))
    users, liked = problem.ratings.users.tolist(), liked_sets(problem)
    for draws in (first, second):
        pairs = zip(users, draws["negative"].tolist(), strict=True)
        assert all(item not in liked[user] for user, item in pairs)
    assert not torch.equal(first["negative"], second["negative"])


def test_a_user_who_liked_everything_still_trains():
    problem = random_problem(0, users=3, ratings=20, items=4)
    source = problem.source
    full = SourceUsers(source.factors, history([0, 1, 2, 3], [0], []), source.item_factors)
    model = RejectingSSCDR(epochs=2).trained([dataclasses.replace(problem, source=full)])
    assert model.transfer([full])[0].isfinite().all()
