from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.evaluation import distribution

STARS = torch.arange(1.0, 6)


def random_probabilities(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator, dtype=torch.float64).mul(2).softmax(1)


def test_crps_by_hand():
    p = torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    # F = (0, 0, ½, 1): at rating 3 the steps of the truth are (0, 0, 1, 1); at 2 of a sure 5, 5 − 2.
    assert distribution.crps(p, STARS, torch.tensor([3.0, 2.0])).tolist() == [0.25, 3.0]


def test_crps_uses_the_distance_between_levels():
    p, levels = torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0.0, 1.0, 4.0])
    assert distribution.crps(p, levels, torch.tensor([0.0])).item() == pytest.approx(0.25 * 1 + 0.25 * 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_crps_is_the_energy_form(seed):
    """CRPS = E|X − r| − ½ E|X − X'| (Gneiting and Raftery, Equation 21)."""
    p = random_probabilities(1, seed)
    rating = STARS[seed % 5]
    distance = (STARS[:, None] - STARS).abs().double()
    energy = p[0] @ (STARS - rating).abs().double() - 0.5 * p[0] @ distance @ p[0]
    assert distribution.crps(p, STARS, rating[None]).item() == pytest.approx(energy.item(), abs=1e-12)


def test_the_median_minimizes_the_expected_absolute_error_and_the_mean_the_squared_one():
    p = random_probabilities(50)
    absolute = p @ (STARS[:, None] - STARS).abs().double()
    at_median = absolute.gather(1, (distribution.median(p, STARS).long() - 1)[:, None])[:, 0]
    torch.testing.assert_close(at_median, absolute.min(1).values)
    np.testing.assert_allclose(distribution.mean(p, STARS), p.numpy() @ np.arange(1, 6))


def test_the_lower_median_where_the_halves_are_equal():
    thirds = torch.tensor([[0.1, 0.2, 0.2, 0.3, 0.2]])
    assert distribution.median(thirds, STARS).item() == 3


def test_scores_together():
    p = torch.tensor([[0.1, 0.1, 0.2, 0.2, 0.4], [0.6, 0.1, 0.1, 0.1, 0.1]])
    scores = distribution.distribution_scores(p, STARS, torch.tensor([5.0, 1.0]))
    assert scores["rmse"] == pytest.approx(math.sqrt((1.3**2 + 1.0**2) / 2))
    assert scores["mae_mean"] == pytest.approx((1.3 + 1.0) / 2)
    assert scores["mae"] == pytest.approx((1 + 0) / 2)
    assert scores["log_loss"] == pytest.approx(-(math.log(0.4) + math.log(0.6)) / 2)


def draw(p: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return STARS[torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]]


def test_ratings_drawn_from_the_prediction_are_calibrated_and_others_are_not():
    p = random_probabilities(40_000)
    ratings = draw(p)
    assert distribution.calibration_error(p, STARS, ratings) < 0.01
    assert (distribution.pit_histogram(p, STARS, ratings) - 0.1).abs().max() < 0.005
    sure = (3 * p.log()).softmax(1)
    assert distribution.calibration_error(sure, STARS, ratings) > 0.05
    pit = distribution.pit_histogram(sure, STARS, ratings)
    assert pit[[0, -1]].min() > 0.12
    assert pit.sum() == pytest.approx(1)


def test_the_calibration_curve_counts_every_threshold():
    p = torch.tensor([[0.05, 0.05, 0.05, 0.2, 0.65]])
    curve = distribution.calibration_curve(p, STARS, torch.tensor([4.0]))
    assert curve["count"].sum(1).tolist() == [1] * 4
    assert curve["observed"][3, 6] == 0  # P(r = 5) = 0.65 was stated, 4 came
    assert curve["observed"][2, 8] == 1  # P(r ≥ 4) = 0.85, and it came


@pytest.mark.parametrize(
    ("p", "rating", "message"),
    [
        ([[0.5, 0.5]], [1.0], "do not fit 1 ratings and 5 levels"),
        ([[0.5, 0.5, 0.5, 0, 0]], [1.0], "row 0 of probabilities is no distribution: it sums to 1.5"),
        ([[1.0, 0, 0, 0, 0]], [2.5], r"ratings\[0\] is 2.5, none of the levels"),
        ([[1.0, 0, 0, 0, 0]], [7.0], r"ratings\[0\] is 7, none of the levels"),
    ],
)
def test_bad_input(p, rating, message):
    with pytest.raises(ValueError, match=message):
        distribution.distribution_scores(torch.tensor(p), STARS, torch.tensor(rating))


def test_no_ratings():
    with pytest.raises(ValueError, match="at least one rating"):
        distribution.distribution_scores(torch.zeros(0, 5), STARS, torch.zeros(0))
