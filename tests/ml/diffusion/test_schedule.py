"""The noise schedules against their integrals and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from ml.diffusion.schedule import network_label, training_levels
from tests.ml.diffusion.networks import SCHEDULE


def test_log_alpha_is_minus_half_the_integral_of_beta() -> None:
    for t in (1e-4, 0.3, 1.0):
        integral, _ = quad(lambda s: 0.1 + s * (20 - 0.1), 0, t)
        assert SCHEDULE.log_alpha(t) == pytest.approx(-integral / 2, rel=1e-12)


def test_alpha_and_sigma_preserve_variance_and_give_lambda() -> None:
    t = np.geomspace(1e-6, 1, 50)
    assert np.allclose(SCHEDULE.alpha(t) ** 2 + SCHEDULE.sigma(t) ** 2, 1, rtol=1e-14)
    log_ratio = np.log(SCHEDULE.alpha(t)) - np.log(SCHEDULE.sigma(t))
    assert np.allclose(SCHEDULE.lambda_(t), log_ratio, rtol=0, atol=1e-12)


@given(st.floats(1e-6, 1.0))
def test_inverse_lambda_undoes_lambda(t: float) -> None:
    assert float(SCHEDULE.inverse_lambda(SCHEDULE.lambda_(t))) == pytest.approx(t, rel=1e-10)


def test_labels_shift_by_one_step_stay_unrounded_and_never_fall_below_zero() -> None:
    assert network_label([1.0, 0.5005, 1e-3, 1e-4]) == pytest.approx([999.0, 499.5, 0.0, 0.0], abs=1e-9)


def test_training_levels_are_the_discrete_counterpart_of_the_continuous_schedule() -> None:
    signal, level = training_levels()
    assert signal.dtype == torch.float64
    assert torch.allclose(signal**2 + level**2, torch.ones(1000, dtype=torch.float64))
    assert float(signal[0] ** 2) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert float(signal[1] ** 2 / signal[0] ** 2) == pytest.approx(1 - (1e-4 + 0.0199 / 999), rel=1e-12)
    assert float(signal[999] ** 2 / signal[998] ** 2) == pytest.approx(1 - 0.02, rel=1e-12)
    continuous = SCHEDULE.log_alpha((np.arange(1000) + 1) / 1000)
    assert np.abs(signal.log().numpy() - continuous).max() < 0.05
