"""The random ranker: its metrics in closed form are the means of its own lists."""

from __future__ import annotations

import pytest
import torch

from ml.data import Ratings, Users
from ml.evaluation.cold_start import list_metrics
from ml.models.chance import Random
from tests.ml.cells import ITEMS, cell


def test_what_is_expected_is_the_mean_over_many_users():
    n, wanted = 20_000, 3
    data = cell(0).data
    model = Random()
    list(model.fit([data]))
    rows = torch.arange(n)
    items = torch.rand(n, ITEMS, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :wanted]
    ratings = Ratings(rows.repeat_interleave(wanted), items.flatten(), torch.ones(n * wanted))
    scores = model.scores(Users(rows, rows, purpose="test"), torch.arange(ITEMS))
    lists = torch.nn.functional.pad(scores.argsort(1, descending=True), (0, 20 - ITEMS), value=-1)
    found = list_metrics(lists, ratings, ITEMS)
    expected = model.expected(ratings, n)
    assert expected
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.01), name


def test_its_order_is_drawn_by_seed_and_purpose():
    given = cell(0)
    model, items = Random(), torch.arange(ITEMS)
    list(model.fit([given.data]))
    users = Users(torch.arange(9), torch.arange(9), purpose="test")
    other = Users(torch.arange(9), torch.arange(9), purpose="validation")
    assert torch.equal(model.scores(users, items), model.scores(users, items))
    assert not torch.equal(model.scores(users, items), model.scores(other, items))


def test_it_predicts_no_ratings():
    given = cell(0)
    with pytest.raises(ValueError, match=r"predicts no ratings; give it `objectives: \[ranking\]`"):
        Random().predict(given.test.users, given.test.ratings)
