"""Controls that give every user one vector: its closed form, and that everybody has it."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.testing import assert_close

from ml.models.one_vector import MeanTargetVector, SharedVector
from ml.models.statistics import PENALTY
from tests.ml.problems import data_of, random_problem, users_of


def fitted(kind, given):
    model = kind()
    assert [epoch.number for epoch in model.fit([given])] == [1]
    return model


def test_the_mean_vector_is_that_of_the_training_users():
    problem = random_problem(0)
    model = fitted(MeanTargetVector, data_of(problem))
    assert_close(model.vectors(users_of(problem.source))[3], problem.target_factors.sum(0) / 40)


def test_the_shared_vector_is_scikit_learns_ridge_on_the_items():
    problem = random_problem(0)
    rows = problem.target_items[problem.ratings.items].numpy()
    reference = Ridge(alpha=PENALTY, fit_intercept=False).fit(rows, problem.ratings.values.numpy())
    model = fitted(SharedVector, data_of(problem))
    expected = torch.tensor(reference.coef_)
    assert_close(model.vectors(users_of(problem.source))[3], expected, check_dtype=False)


@pytest.mark.parametrize("kind", [MeanTargetVector, SharedVector])
def test_everybody_has_the_same_vector_whatever_their_source(kind):
    model = fitted(kind, data_of(random_problem(0)))
    scores = model.scores(users_of(random_problem(1).source), torch.arange(30))
    assert torch.equal(scores, scores[:1].expand_as(scores))


@pytest.mark.parametrize("kind", [MeanTargetVector, SharedVector])
def test_offsets_of_the_items_are_added_to_the_product(kind):
    problem, offset = random_problem(0), torch.linspace(1, 5, 30)
    plain, biased = (fitted(kind, data_of(problem, given)) for given in (None, offset))
    users, items = users_of(problem.source), torch.arange(30)
    assert_close(biased.scores(users, items), plain.scores(users, items) + offset)
