"""PTUPCDR against its equations written out item by item."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ml.data import Problem, Ratings, SourceUsers
from ml.models import ptupcdr
from ml.models.ptupcdr import PTUPCDR
from tests.ml.models.losses import loss_of, two_users
from tests.ml.problems import history, random_problem

torch.set_num_threads(1)


def reference(state: dict[str, np.ndarray], user: np.ndarray, liked: np.ndarray, target: int) -> np.ndarray:
    """One user's transferred vector, written out item by item."""
    characteristic = np.zeros(len(user))
    if len(liked):
        scores = [
            state["score"][0] @ np.maximum(state["attention"] @ v + state["attention_bias"], 0) for v in liked
        ]
        weights = np.exp(scores) / np.exp(scores).sum()
        characteristic = sum(w * v for w, v in zip(weights, liked, strict=True))
    hidden = np.maximum(state["decoder"] @ characteristic + state["decoder_bias"], 0)
    bridge = state["bridge"] @ hidden + state["bridge_bias"]
    return user @ bridge.reshape(len(user), target)


def test_ptupcdr_transfers_by_attention_and_bridge():
    problem = random_problem(0, source=3, target=2)
    model = PTUPCDR(epochs=3, length=4).trained([problem])
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    (moved,) = model.transfer([problem.source])
    source = problem.source
    for user in range(len(source)):
        liked = source.history.items[source.history.offsets[user] : source.history.offsets[user + 1]][-4:]
        expected = reference(state, source.factors[user].numpy(), source.item_factors[liked].numpy(), 2)
        np.testing.assert_allclose(moved[user], expected, rtol=1e-4, atol=1e-5)


def test_ptupcdr_loss_by_hand():
    """Attention and decoder at zero leave bridge_bias = ((1, 2), (0, 3)) for everyone: u_s = (1, 0) goes to
    (1, 2) and (0, 2) to (0, 6); with items (1, 0), (1, 2), (1, 0) predicted 1, 12, 0 against 5, 1, 3."""
    parameters = {
        "attention": [[0.0, 0.0]] * 2,
        "attention_bias": [0.0, 0.0],
        "score": [[0.0, 0.0]],
        "decoder": [[0.0, 0.0]],
        "decoder_bias": [0.0],
        "bridge": [[0.0]] * 4,
        "bridge_bias": [1.0, 2.0, 0.0, 3.0],
    }
    loss = loss_of(PTUPCDR(hidden=1), two_users(), parameters, [0, 1, 2])
    assert loss == pytest.approx((16 + 121 + 9) / 3)


def test_ptupcdr_looks_at_the_last_items_only():
    problem = random_problem(0)
    model = PTUPCDR(epochs=1, length=3).trained([problem])
    user = problem.source.factors[:1].expand(4, -1)
    liked = history([1, 2, 3, 4], [2, 3, 4], [2, 3, 5], [])
    (moved,) = model.transfer([SourceUsers(user, liked, problem.source.item_factors)])
    torch.testing.assert_close(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2])
    assert not torch.allclose(moved[0], moved[3])


def test_ptupcdr_reaches_zero_where_one_bridge_explains_the_ratings():
    problem = random_problem(0, users=60, ratings=400, source=3, target=3)
    bridge = torch.randn(3, 3, generator=torch.Generator().manual_seed(3))
    users, items = problem.ratings.users, problem.ratings.items
    values = ((problem.source.factors @ bridge)[users] * problem.target_items[items]).sum(1)
    problem = dataclasses.replace(problem, ratings=Ratings(users, items, values))
    model = PTUPCDR(epochs=120, batch=64)
    losses = [epoch.losses["loss"][0] for epoch in model.train([problem])]
    assert losses[-1] < 0.01 * values.square().mean()
    error = model.transfer([problem.source])[0] - problem.source.factors @ bridge
    assert error[users].square().mean() < 0.05 * (problem.source.factors @ bridge).square().mean()


def test_ptupcdr_writes_bridges_of_users_it_was_not_trained_on():
    """Users differ only in taste, and taste decides the sign of the bridge: a shared map cannot fit this."""
    taste = torch.tensor([0, 1] * 40)
    generator = torch.Generator().manual_seed(0)
    factors, items = torch.randn(80, 2, generator=generator), torch.randn(50, 2, generator=generator)
    source = SourceUsers(factors, history(*[[t] for t in taste.tolist()]), torch.tensor([[2.0, 0], [0, 2.0]]))
    true = factors * torch.where(taste == 0, 1.0, -1.0)[:, None]
    users = torch.arange(60).repeat(20)
    rated = torch.randint(0, 50, (1200,), generator=generator)
    ratings = Ratings(users, rated, (true[users] * items[rated]).sum(1))
    train = source.take(torch.arange(60))
    model = PTUPCDR(epochs=15).trained([Problem(train, true[:60], items, ratings, seed=0)])
    (moved,) = model.transfer([source.take(torch.arange(60, 80))])
    assert (moved - true[60:]).square().mean() < 0.05 * true[60:].square().mean()


def test_ptupcdr_transfers_in_chunks_what_it_transfers_at_once(monkeypatch):
    problem = random_problem(0)
    model = PTUPCDR(epochs=1).trained([problem])
    (at_once,) = model.transfer([problem.source])
    monkeypatch.setattr(ptupcdr, "CHUNK", 7)
    torch.testing.assert_close(model.transfer([problem.source])[0], at_once)
