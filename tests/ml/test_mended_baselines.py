"""The mended baselines: against closed forms, and against the originals they are variants of."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor

from ml.data import SourceUsers
from ml.models.emcdr import PerceptronEMCDR, RidgeEMCDR
from ml.models.lacdr import LACDR, WideLACDR
from ml.models.registry import VARIANTS
from ml.models.sscdr import RejectingSSCDR
from ml.replicas import replica_generator
from tests.ml.problems import history, random_problem

torch.set_num_threads(1)
every_variant = pytest.mark.parametrize("kind", VARIANTS, ids=lambda kind: kind.name)


def with_others(problem, source: int = 25, target: int = 15):
    """`problem` with users of one domain alone."""
    generator = torch.Generator().manual_seed(problem.seed + 100)
    k, q = problem.widths
    return dataclasses.replace(
        problem,
        source_alone=torch.randn(source, k, generator=generator),
        target_alone=torch.randn(target, q, generator=generator),
    )


@every_variant
def test_replicas_train_together_as_alone(kind):
    problems = [with_others(random_problem(seed, users=20 + 9 * seed)) for seed in range(3)]
    moved = kind().trained(problems).transfer([p.source for p in problems])
    for problem, together in zip(problems, moved, strict=True):
        (alone,) = kind().trained([problem]).transfer([problem.source])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@every_variant
def test_a_state_dict_round_trip_transfers_the_same(kind):
    problem = random_problem(0)
    model = kind().trained([problem])
    (before,) = model.transfer([problem.source])
    (after,) = kind().load_state_dict(model.state_dict()).transfer([problem.source])
    assert torch.equal(before, after)


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


def liked_sets(problem) -> list[set[int]]:
    offsets, items = problem.source.history.offsets, problem.source.history.items
    return [set(items[a:b].tolist()) for a, b in pairwise(offsets)]


def test_a_random_item_is_never_a_liked_one_and_drawn_anew():
    problem = random_problem(0, ratings=600)
    model, generator = RejectingSSCDR(), replica_generator(0, "test")
    rows = torch.arange(600)
    first, second = (model.draws(problem, rows, generator) for _ in range(2))
    users, liked = problem.ratings.users.tolist(), liked_sets(problem)
    for draws in (first, second):
        pairs = zip(users, draws["negative"].tolist(), strict=True)
        assert all(item not in liked[user] for user, item in pairs)
    assert not torch.equal(first["negative"], second["negative"])


def test_a_user_who_liked_everything_still_trains():
    problem = random_problem(0, users=3, ratings=20, items=4)
    source = problem.source
    full = SourceUsers(source.factors, history([0, 1, 2, 3], [0], []), source.item_factors)
    model = RejectingSSCDR(epochs=2).trained([dataclasses.replace(problem, source=full)])
    assert model.transfer([full])[0].isfinite().all()


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


def test_the_wide_gradient_is_autograds():
    from ml.models.transfer import Batch, Stack

    problem = with_others(random_problem(1))
    model = WideLACDR()
    parameters = model.initial(problem, replica_generator(0, "test"))
    model.parameters_ = {name: value[None].requires_grad_() for name, value in parameters.items()}
    stack = Stack([problem])
    model.prepare(stack)
    rows = torch.arange(32)
    draws = model.draws(problem, rows, replica_generator(0, "draws"))
    batch = Batch(rows[None], torch.ones(1, 32), {name: value[None] for name, value in draws.items()})
    _, gradients = model.gradients(stack, batch)

    def missed(side: str, vectors: torch.Tensor) -> torch.Tensor:
        codes = vectors @ model.parameters_[f"{side}_encoder"][0].T
        return (codes @ model.parameters_[f"{side}_decoder"][0].T - vectors).norm(dim=1).sum()

    users = problem.ratings.users[rows]
    source, target = problem.source.factors[users], problem.target_factors[users]
    apart = (
        source @ model.parameters_["source_encoder"][0].T - target @ model.parameters_["target_encoder"][0].T
    )
    everyone = {
        "source": torch.cat([problem.source.factors, problem.source_alone]),
        "target": torch.cat([problem.target_factors, problem.target_alone]),
    }
    loss = missed("source", source) + missed("target", target) + 2 * apart.norm(dim=1).sum()
    loss = loss + sum(missed(side, everyone[side][draws[side]]) for side in everyone)
    expected = torch.autograd.grad(loss / 32, list(model.parameters_.values()))
    for name, reference in zip(model.parameters_, expected, strict=True):
        torch.testing.assert_close(gradients[name], reference, rtol=1e-4, atol=1e-5)
