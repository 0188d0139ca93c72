"""EMCDR, its ridge and its perceptron against least squares and scikit-learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor

from ml.models.emcdr import EMCDR, PerceptronEMCDR, RidgeEMCDR
from tests.ml.models.losses import loss_of, two_users
from tests.ml.problems import random_problem

torch.set_num_threads(1)


def test_emcdr_reaches_least_squares_with_every_user_counted_once():
    problem = random_problem(0)
    model = EMCDR(epochs=1500, batch=40).trained([problem])
    expected = np.linalg.lstsq(problem.source.factors.numpy(), problem.target_factors.numpy(), rcond=None)[0]
    np.testing.assert_allclose(model.state_dict()["map"].T, expected, atol=1e-4)
    (moved,) = model.transfer([problem.source])
    np.testing.assert_allclose(moved, problem.source.factors.numpy() @ expected, atol=1e-3)


def test_emcdr_loss_by_hand():
    # W u_s = (1, 3) and (4, 8) against (1, 1) and (2, 0): squares 0, 4, 4, 64 over 4 numbers.
    loss = loss_of(EMCDR(), two_users(), {"map": [[1.0, 2.0], [3.0, 4.0]]}, [0, 1])
    assert loss == pytest.approx(72 / 4)


def test_emcdr_has_one_row_a_user():
    assert EMCDR().training_rows(random_problem(0, users=7, ratings=50)) == 7


def test_ridge_is_scikit_learns():
    problem = random_problem(0, source=5, target=3)
    (moved,) = RidgeEMCDR(penalty=7.0).trained([problem]).transfer([problem.source])
    reference = Ridge(alpha=7.0, fit_intercept=False).fit(problem.source.factors, problem.target_factors)
    np.testing.assert_allclose(moved, reference.predict(problem.source.factors), rtol=1e-4, atol=1e-5)


def test_ridge_without_penalty_and_with_few_users_takes_the_least_norm():
    problem = random_problem(0, users=2, ratings=5)
    model = RidgeEMCDR(penalty=0.0).trained([problem])
    expected = torch.linalg.pinv(problem.source.factors) @ problem.target_factors
    torch.testing.assert_close(model.state_dict()["map"].T, expected, rtol=1e-3, atol=1e-4)


def test_ridge_refuses_a_negative_penalty():
    with pytest.raises(ValueError, match="penalty"):
        RidgeEMCDR(penalty=-1.0)


def test_the_perceptron_computes_what_scikit_learns_does():
    problem = random_problem(0)
    model = PerceptronEMCDR(epochs=1).trained([problem])
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    reference = MLPRegressor(hidden_layer_sizes=(8,), activation="tanh", max_iter=1)
    with pytest.warns(ConvergenceWarning):
        reference.fit(problem.source.factors, problem.target_factors)
    reference.coefs_ = [state["hidden"].T, state["output"].T]
    reference.intercepts_ = [state["hidden_bias"], state["output_bias"]]
    (moved,) = model.transfer([problem.source])
    np.testing.assert_allclose(moved, reference.predict(problem.source.factors), rtol=1e-4, atol=1e-5)


def test_the_perceptron_learns_what_a_line_cannot():
    problem = random_problem(0, users=400)
    bent = dataclasses.replace(problem, target_factors=problem.source.factors.abs())
    model = PerceptronEMCDR(epochs=200, lr=0.01).trained([bent])
    line = RidgeEMCDR(penalty=0.0).trained([bent])
    errors = [
        (m.transfer([bent.source])[0] - bent.target_factors).square().mean().item() for m in (model, line)
    ]
    assert errors[0] < 0.2 * errors[1]
