"""A model under users who are mixed up: everybody has the source of another, and their own ratings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ml.data import History, Ratings, SourceUsers, Users
from ml.models.emcdr import EMCDR
from ml.models.permuted import Permuted, shuffled
from tests.ml.problems import data_of, random_problem


def users(n: int, purpose: str = "test") -> Users:
    """Users whose source vector and only liked item are their own row."""
    own, rows = torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n)
    factors = SourceUsers(own, History(torch.arange(n + 1), rows), torch.zeros(n, 1))
    return Users(rows, rows, factors, purpose=purpose)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_everybody_has_the_source_of_another(n):
    mixed = users(n).take(shuffled(n, 0, "test")).factors
    assert (mixed.factors.flatten() != torch.arange(n)).all()
    assert sorted(mixed.factors.flatten().tolist()) == list(range(n))
    # Histories go with the factors.
    assert mixed.history.items.tolist() == mixed.factors.flatten().long().tolist()


def test_the_order_is_drawn_by_seed_and_purpose():
    assert torch.equal(shuffled(50, 0, "test"), shuffled(50, 0, "test"))
    assert not torch.equal(shuffled(50, 0, "test"), shuffled(50, 1, "test"))
    assert not torch.equal(shuffled(50, 0, "test"), shuffled(50, 0, "validation"))


def test_a_user_alone_keeps_their_source():
    assert shuffled(1, 0, "test").tolist() == [0]


def test_predictions_are_the_models_own_of_other_users():
    given = data_of(random_problem(0))
    model = EMCDR(epochs=1)
    list(model.fit([given]))
    probe = Permuted()
    list(probe.fit([dataclasses.replace(given, model=model)]))
    held = dataclasses.replace(given.train, purpose="test")
    others = held.take(shuffled(len(held), given.seed, "test"))
    rows = Ratings(torch.arange(40), torch.arange(40) % 30, torch.zeros(40))
    assert torch.equal(probe.predict(held, rows).mean, model.predict(others, rows).mean)
    assert torch.equal(probe.scores(held, torch.arange(30)), model.scores(others, torch.arange(30)))
    assert torch.equal(probe.top(held, 5)[0], model.top(others, 5)[0])
    assert not torch.equal(probe.predict(held, rows).mean, model.predict(held, rows).mean)
