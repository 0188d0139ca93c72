"""Implicit factorization: the closed form of a half-step, its objective, determinism, its checks."""

import dataclasses
import warnings

import implicit.utils
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ml.factorization.adam import RatingTable
from ml.factorization.implicit import ImplicitFactorization

CHOSEN = torch.tensor(
    [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
)


def table_of(chosen: Tensor, seed: int = 0) -> RatingTable:
    users, items = chosen.nonzero(as_tuple=True)
    return RatingTable(users, items, torch.arange(1.0, len(users) + 1), *chosen.shape, seed)


def test_users_are_the_exact_solution_on_the_final_items():
    model = ImplicitFactorization(k=2, penalty=0.3, confidence=4.0, sweeps=2).fit(table_of(CHOSEN), "test")
    items = model.item_factors_.double()
    for row, user in zip(CHOSEN, model.user_factors_.double(), strict=True):
        weight = torch.where(row > 0, 4.0, 1.0).double().diag()
        system = items.T @ weight @ items + 0.3 * torch.eye(2)
        expected = torch.linalg.solve(system, items.T @ weight @ row.double())
        torch.testing.assert_close(user, expected, rtol=1e-4, atol=1e-5)


def test_every_sweep_lowers_the_objective():
    model = ImplicitFactorization(k=2, penalty=0.3, confidence=4.0, sweeps=6)
    objective, told = [], []
    for epoch in model.train(table_of(CHOSEN), "test"):
        users, items = model.user_factors_.double(), model.item_factors_.double()
        weight = torch.where(CHOSEN > 0, 4.0, 1.0)
        error = (weight * (CHOSEN - users @ items.T).square()).sum()
        objective.append((error + 0.3 * (users.square().sum() + items.square().sum())).item())
        told += epoch.losses["loss"]
    assert len(objective) == 6
    assert objective == sorted(objective, reverse=True)
    assert told == sorted(told, reverse=True)


def test_the_library_has_no_threads_of_blas_to_warn_of(monkeypatch):
    monkeypatch.setattr(implicit.utils, "_checked_blas_config", False)
    with threadpool_limits(2, "blas"), warnings.catch_warnings():
        warnings.simplefilter("error")
        ImplicitFactorization(k=2, sweeps=1).fit(table_of(CHOSEN), "test")


def test_the_seed_and_the_purpose_decide_and_the_values_do_not():
    model = ImplicitFactorization(k=3, penalty=0.3, sweeps=2)

    def users(table: RatingTable, purpose: str = "test") -> Tensor:
        return model.fit(table, purpose).user_factors_

    table = table_of(CHOSEN)
    first = users(table)
    assert first.dtype == torch.float32
    assert torch.equal(first, users(table))
    assert torch.equal(first, users(dataclasses.replace(table, values=torch.ones(len(table)))))
    assert not torch.equal(first, users(dataclasses.replace(table, seed=1)))
    assert not torch.equal(first, users(table, "another"))


def test_a_choice_given_twice_is_one():
    table = table_of(CHOSEN)
    twice = dataclasses.replace(
        table, **{name: torch.cat([getattr(table, name)] * 2) for name in ("users", "items", "values")}
    )
    model = ImplicitFactorization(k=2, penalty=0.3, sweeps=3)
    assert torch.equal(model.fit(table, "test").item_factors_, model.fit(twice, "test").item_factors_)


def test_who_chose_nothing_is_zero():
    model = ImplicitFactorization(k=2, penalty=0.3, sweeps=3).fit(table_of(CHOSEN), "test")
    assert model.user_factors_[4].tolist() == [0, 0]
    assert model.item_factors_[4].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"sweeps": 0}, "sweeps must be at least 1"),
        ({"penalty": 0.0}, "penalty must be positive"),
        ({"confidence": 1.0}, "confidence must be finite and above 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImplicitFactorization(**settings)


def test_a_table_that_does_not_fit_is_refused():
    table = table_of(CHOSEN)
    with pytest.raises(ValueError, match="no ratings"):
        ImplicitFactorization().fit(table_of(torch.zeros(2, 2)), "test")
    with pytest.raises(ValueError, match="items has row"):
        ImplicitFactorization().fit(dataclasses.replace(table, items=table.items + 5), "test")
