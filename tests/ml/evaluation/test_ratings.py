import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from ml.data import Ratings
from ml.evaluation import ratings as module
from ml.evaluation.ratings import predict, rating_errors


def sample(rows=500, users=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(4, 1, rows), rng.integers(1, 6, rows).astype(float), rng.integers(0, users, rows) * 1000


def test_errors_equal_sklearn():
    predicted, actual, users = sample()
    errors = rating_errors(predicted, actual, users)
    groups = [users == user for user in np.unique(users)]
    assert errors == pytest.approx(
        {
            "mae": mean_absolute_error(actual, predicted),
            "rmse": root_mean_squared_error(actual, predicted),
            "mae_macro": np.mean([mean_absolute_error(actual[g], predicted[g]) for g in groups]),
            "rmse_macro": np.mean([root_mean_squared_error(actual[g], predicted[g]) for g in groups]),
        },
        rel=1e-12,
    )


def test_errors_by_hand():
    errors = rating_errors(np.array([5, 3, 1]), np.array([4, 5, 1]), np.array([7, 7, 3]))
    assert errors["mae"] == 1
    assert errors["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert errors["mae_macro"] == 0.75
    assert errors["rmse_macro"] == pytest.approx(math.sqrt(2.5) / 2)


@given(st.permutations(range(12)))
def test_errors_ignore_the_order_of_rows(order):
    predicted, actual, users = sample(12, 4)
    assert rating_errors(predicted[order], actual[order], users[order]) == pytest.approx(
        rating_errors(predicted, actual, users), rel=1e-12
    )


def test_tensors_and_arrays_agree():
    arrays = sample()
    assert rating_errors(*map(torch.from_numpy, arrays)) == rating_errors(*arrays)


def test_float32_input_is_accumulated_in_float64():
    rows = 3_000_000
    predicted = torch.full((rows,), 0.1)
    errors = rating_errors(predicted, torch.zeros(rows), torch.zeros(rows, dtype=torch.int64))
    exact = float(np.float32(0.1))
    assert errors == pytest.approx(dict.fromkeys(errors, exact), rel=1e-9)


def test_a_diverged_model_has_nan_errors():
    errors = rating_errors(torch.tensor([math.nan, 1.0]), torch.ones(2), torch.tensor([0, 1]))
    assert all(math.isnan(value) for value in errors.values())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [((0, 0, 0), "no ratings"), ((3, 2, 2), r"\(3,\), \(2,\), \(2,\)"), ((2, 2, 1), "alike")],
)
def test_errors_refuse_bad_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        rating_errors(*(torch.zeros(n) for n in shapes))


def test_errors_refuse_a_column_instead_of_a_vector():
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        rating_errors(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2))


def some_ratings(rows, users, items):
    generator = torch.Generator().manual_seed(1)
    return Ratings(
        torch.randint(users, (rows,), generator=generator),
        torch.randint(items, (rows,), generator=generator),
        torch.ones(rows),
    )


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 23])
def test_predictions_are_entries_of_the_product_whatever_the_chunk(rows, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    u, v = torch.randn(6, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    ratings = some_ratings(rows, 6, 9)
    torch.testing.assert_close(predict(u, v, ratings), (u @ v.T)[ratings.users, ratings.items])


def test_predictions_need_no_gradient():
    u = torch.ones(2, 3, requires_grad=True)
    assert not predict(u, torch.ones(4, 3), some_ratings(5, 2, 4)).requires_grad


def test_predict_refuses_other_widths():
    with pytest.raises(ValueError, match=r"\(2, 3\) and item factors \(4, 5\)"):
        predict(torch.ones(2, 3), torch.ones(4, 5), some_ratings(5, 2, 4))


@pytest.mark.parametrize(("field", "row"), [("users", -1), ("users", 2), ("items", 4)])
def test_predict_refuses_rows_outside_the_tables(field, row):
    ratings = some_ratings(5, 2, 4)
    getattr(ratings, field)[3] = row
    with pytest.raises(ValueError, match=rf"ratings\.{field} spans .*{row}"):
        predict(torch.ones(2, 3), torch.ones(4, 3), ratings)
