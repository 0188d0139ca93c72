"""What is said of held-out ratings: points and distributions by the same metrics."""

from __future__ import annotations

import pytest
import torch

from ml.data import Predicted, Ratings
from ml.evaluation.cold_start import crps_of, rating_metrics, user_error_sums
from ml.evaluation.distribution import crps, distribution_scores
from ml.evaluation.ratings import rating_errors

LEVELS = torch.arange(1.0, 6)
RATINGS = Ratings(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 2]), torch.tensor([3.0, 4.0, 1.0]))


def distribution() -> Predicted:
    probabilities = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    mean = probabilities @ LEVELS
    return Predicted(mean, torch.tensor([3.0, 3.0, 2.0]), probabilities, LEVELS)


def test_the_crps_of_a_point_is_its_absolute_error():
    predicted = Predicted.points(torch.tensor([2.0, 4.5, 1.0]))
    assert crps_of(predicted, RATINGS).tolist() == [1.0, 0.5, 0.0]
    assert "crps" not in rating_metrics(predicted, RATINGS)


def test_a_distribution_is_scored_as_one():
    predicted = distribution()
    found = rating_metrics(predicted, RATINGS)
    for name, value in distribution_scores(predicted.probabilities, LEVELS, RATINGS.values).items():
        if name not in ("mae", "rmse"):
            assert found[name] == value
    expected = crps(predicted.probabilities, LEVELS, RATINGS.values)
    assert torch.equal(crps_of(predicted, RATINGS), expected)


def test_absolute_errors_are_of_the_median_and_squared_ones_of_the_mean():
    predicted, found = distribution(), rating_metrics(distribution(), RATINGS)
    by_median = rating_errors(predicted.median, RATINGS.values, RATINGS.users)
    by_mean = rating_errors(predicted.mean, RATINGS.values, RATINGS.users)
    for name in ("mae", "mae_macro"):
        assert found[name] == by_median[name]
    for name in ("rmse", "rmse_macro"):
        assert found[name] == by_mean[name]


def test_sums_by_user_give_the_metrics_again():
    predicted = distribution()
    sums = user_error_sums(predicted.mean, predicted.median, crps_of(predicted, RATINGS), RATINGS, n_users=3)
    found = rating_metrics(predicted, RATINGS)
    assert sums["count"].tolist() == [1, 2, 0]
    assert (sums["absolute"].sum() / 3).item() == pytest.approx(found["mae"])
    assert (sums["squared"].sum() / 3).sqrt().item() == pytest.approx(found["rmse"])
    assert (sums["crps"].sum() / 3).item() == pytest.approx(found["crps"])
