"""LACDR against hand-computed values and domains with one common space, and its wide variant."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ml.data import SourceUsers
from ml.models.lacdr import LACDR, WideLACDR
from ml.models.transfer import Batch, Stack
from tests.ml.models.losses import loss_of, two_users
from tests.ml.problems import random_problem, with_others

torch.set_num_threads(1)


def test_lacdr_loss_by_hand():
    """User 0, all codes of width 1: u_s = (1, 0), E_s u_s = 2, D_s 2 = (2, −2), off by (1, −2): √5;
    u_t = (1, 1), E_t u_t = 4, D_t 4 = (4, 0), off by (3, −1): √10; codes 2 apart: 2 · 2."""
    parameters = {
        "source_encoder": [[2.0, 1.0]],
        "source_decoder": [[1.0], [-1.0]],
        "target_encoder": [[1.0, 3.0]],
        "target_decoder": [[1.0], [0.0]],
    }
    one = np.sqrt(5) + np.sqrt(10) + 4
    assert loss_of(LACDR(latent=1), two_users(), parameters, [0]) == pytest.approx(one)
    # Summed over the batch: a row twice counts twice.
    assert loss_of(LACDR(latent=1), two_users(), parameters, [0, 0]) == pytest.approx(2 * one)


def test_lacdr_reports_the_mean_loss_of_a_row():
    problem = two_users(factors=[[1.0, 0.0]] * 2, target=[[1.0, 1.0]] * 2)
    one, two, three = (
        next(LACDR(epochs=1, batch=batch, lr=1e-12).train([problem])).losses["loss"] for batch in (1, 2, 3)
    )
    assert one == pytest.approx(two)
    assert one == pytest.approx(three)


def test_lacdr_recovers_two_domains_with_one_common_space():
    problem = random_problem(0, users=60, ratings=200, source=7, target=6)
    code = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    mixing = torch.linalg.qr(torch.randn(13, 13, generator=torch.Generator().manual_seed(2)))[0] * 2
    source = SourceUsers(code @ mixing[:4, :7], problem.source.history, problem.source.item_factors)
    problem = dataclasses.replace(problem, source=source, target_factors=code @ mixing[4:8, :6])
    model = LACDR(epochs=250, batch=50, lr=0.005)
    losses = [epoch.losses["loss"][0] for epoch in model.train([problem])]
    (moved,) = model.transfer([source])
    assert losses[-1] < 0.02 * losses[0]
    error = (moved - problem.target_factors)[problem.ratings.users]
    assert error.square().mean() < 1e-3 * problem.target_factors.square().mean()


def test_lacdr_has_a_finite_gradient_where_nothing_is_left_to_learn():
    eye = torch.eye(4).unsqueeze(0)
    names = ["source_encoder", "source_decoder", "target_encoder", "target_decoder"]
    model = LACDR()
    model.parameters_ = {name: eye.clone().requires_grad_() for name in names}
    problem = random_problem(0)
    stack = Stack([dataclasses.replace(problem, target_factors=problem.source.factors)])
    model.step(stack, Batch(torch.tensor([[0, 1]]), torch.ones(1, 2), {}), model.optimizer())
    assert all(torch.equal(value, eye) for value in model.parameters_.values())


def reconstruction(model, side: str, vectors: torch.Tensor) -> float:
    state = model.state_dict()
    out = vectors @ state[f"{side}_encoder"].T @ state[f"{side}_decoder"].T
    return (out - vectors).norm(dim=1).mean().item()


def test_users_of_one_domain_alone_are_reconstructed_too():
    problem = with_others(random_problem(0), source=300, target=300)
    # They vary where the training users do not, so only who has seen them can reconstruct them.
    flat = problem.target_factors.clone()
    flat[:, 0] = 0
    problem = dataclasses.replace(problem, target_factors=flat)
    wide, plain = (kind(epochs=60, lr=0.01).trained([problem]) for kind in (WideLACDR, LACDR))
    assert reconstruction(wide, "target", problem.target_alone) < 0.7 * reconstruction(
        plain, "target", problem.target_alone
    )
