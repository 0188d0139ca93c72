"""The mapping baselines against closed forms and hand-computed values, and the registry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ml.data import Problem, Ratings, SourceUsers
from ml.models import ptupcdr
from ml.models.emcdr import EMCDR
from ml.models.lacdr import LACDR
from ml.models.ptupcdr import PTUPCDR
from ml.models.registry import MODELS, build
from ml.models.sscdr import SSCDR, liked_pairs
from ml.models.transfer import Batch, Stack
from ml.replicas import replica_generator
from tests.ml.problems import history, random_problem

torch.set_num_threads(1)

BASELINES = [EMCDR, SSCDR, LACDR, PTUPCDR]
every_baseline = pytest.mark.parametrize("kind", BASELINES, ids=lambda kind: kind.name)


def without_history(problem: Problem) -> Problem:
    source = problem.source
    return dataclasses.replace(
        problem, source=SourceUsers(source.factors, history(*[[]] * len(source)), source.item_factors)
    )


def loss_of(model, problem: Problem, parameters: dict[str, object], rows: list[int], **draws) -> float:
    """The model's loss on a batch of `rows` with these parameters and draws."""
    model.parameters_ = {n: torch.tensor([v]) for n, v in parameters.items()}
    stack = Stack([problem])
    model.prepare(stack)
    batch = Batch(
        torch.tensor([rows]), torch.ones(1, len(rows)), {n: torch.tensor([d]) for n, d in draws.items()}
    )
    return model.loss(stack, batch).item()


def two_users(**tables) -> Problem:
    """Two users of width 2; the first liked item 0, the second nothing; three ratings."""
    defaults = {
        "factors": [[1.0, 0.0], [0.0, 2.0]],
        "source_items": [[1.0, 1.0], [0.0, 1.0]],
        "target": [[1.0, 1.0], [2.0, 0.0]],
        "target_items": [[1.0, 0.0], [1.0, 2.0]],
        "liked": [[0], []],
    } | tables
    table = {n: torch.tensor(v) for n, v in defaults.items() if n != "liked"}
    return Problem(
        SourceUsers(table["factors"], history(*defaults["liked"]), table["source_items"]),
        table["target"],
        table["target_items"],
        Ratings(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([5.0, 1.0, 3.0])),
        seed=0,
    )


# What holds for all of them.


@every_baseline
def test_replicas_of_different_sizes_train_together_as_alone(kind):
    problems = [
        random_problem(seed, users=20 + 9 * seed, ratings=70 + 41 * seed, items=12 + 5 * seed)
        for seed in range(5)
    ]
    together = kind(epochs=3, batch=32)
    losses = [epoch.losses["loss"] for epoch in together.train(problems)]
    moved = together.transfer([p.source for p in problems])
    for r, problem in enumerate(problems):
        alone = kind(epochs=3, batch=32)
        expected = [epoch.losses["loss"][0] for epoch in alone.train([problem])]
        np.testing.assert_allclose([epoch[r] for epoch in losses], expected, rtol=1e-4)
        torch.testing.assert_close(moved[r], alone.transfer([problem.source])[0], rtol=1e-4, atol=1e-5)


@every_baseline
def test_training_repeats_with_its_seed_and_changes_with_it(kind):
    problem = random_problem(0)
    moved = [
        kind(epochs=1).trained([dataclasses.replace(problem, seed=seed)]).transfer([problem.source])[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2])


@every_baseline
def test_the_loss_falls(kind):
    epochs = list(kind(epochs=15, lr=0.01).train([random_problem(0)]))
    assert epochs[-1].losses["loss"][0] < 0.95 * epochs[0].losses["loss"][0]


@every_baseline
def test_source_and_target_widths_may_differ(kind):
    problem = random_problem(0, source=5, target=3)
    (moved,) = kind(epochs=1).trained([problem]).transfer([problem.source])
    assert moved.shape == (40, 3)


@every_baseline
def test_users_without_history_train_and_transfer(kind):
    problem = without_history(random_problem(0))
    model = kind(epochs=2)
    losses = [epoch.losses["loss"][0] for epoch in model.train([problem])]
    (moved,) = model.transfer([problem.source])
    assert np.isfinite(losses).all()
    assert moved.isfinite().all()


@every_baseline
def test_a_state_dict_round_trip_transfers_the_same(kind):
    problems = [random_problem(0), random_problem(1)]
    model = kind(epochs=1).trained(problems)
    users = [p.source for p in problems]
    loaded = kind().load_state_dict(model.state_dict(0), model.state_dict(1))
    for before, after in zip(model.transfer(users), loaded.transfer(users), strict=True):
        assert torch.equal(before, after)
    (second,) = kind().load_state_dict(model.state_dict(1)).transfer(users[1:])
    assert torch.equal(second, model.transfer(users)[1])


@every_baseline
def test_training_leaves_the_factors_alone(kind):
    problem, untouched = random_problem(0), random_problem(0)
    kind(epochs=1).trained([problem])
    assert torch.equal(problem.source.factors, untouched.source.factors)
    assert torch.equal(problem.source.item_factors, untouched.source.item_factors)
    assert torch.equal(problem.target_factors, untouched.target_factors)
    assert torch.equal(problem.target_items, untouched.target_items)


# EMCDR


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


# SSCDR


@pytest.mark.parametrize("inactive", ["no liked items", "margin never reached"])
def test_sscdr_without_its_ranking_term_reaches_affine_least_squares(inactive):
    problem = random_problem(0)
    if inactive == "no liked items":
        model, problem = SSCDR(epochs=1500, batch=150), without_history(problem)
    else:
        model = SSCDR(epochs=1500, batch=150, margin=-1e9)
    state = model.trained([problem]).state_dict()
    # A user counts once for each of its ratings.
    users = problem.ratings.users
    inputs = np.column_stack([problem.source.factors[users], np.ones(len(users))])
    expected = np.linalg.lstsq(inputs, problem.target_factors[users].numpy(), rcond=None)[0]
    np.testing.assert_allclose(state["map"].T, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(state["bias"], expected[-1], atol=1e-4)


def test_sscdr_loss_by_hand():
    """f = 2x + (1, 0). User 0: f(u) = (3, 0), ‖f − (1, 1)‖² = 5; f(i⁺) = (3, 2), 5; f(i⁻) = (1, 2), 1:
    ranking 1 + 5 − 1 = 5. User 1: f(u) = (1, 4), ‖f − (2, 0)‖² = 17, nothing liked."""
    parameters = {"map": [[2.0, 0.0], [0.0, 2.0]], "bias": [1.0, 0.0]}
    draws = {"positive": [0, 0], "negative": [1, 0], "liked": [1.0, 0.0]}
    loss = loss_of(SSCDR(), two_users(), parameters, [0, 1], **draws)
    assert loss == pytest.approx((5 + 5 + 17) / 2)
    # The pair the other way round is ranked right by more than the margin.
    draws |= {"positive": [1, 0], "negative": [0, 0]}
    assert loss_of(SSCDR(), two_users(), parameters, [0, 1], **draws) == pytest.approx((5 + 17) / 2)


def test_sscdr_ranking_brings_liked_items_nearer():
    problem = random_problem(0)
    users = problem.ratings.users
    pairs = liked_pairs(problem.source.history, users, replica_generator(9, "test"))

    def violation(margin: float) -> float:
        state = SSCDR(epochs=60, margin=margin).trained([problem]).state_dict()
        items = problem.source.item_factors @ state["map"].T + state["bias"]
        near, far = (
            (items[pairs[name]] - problem.target_factors[users]).square().sum(1)
            for name in ("positive", "negative")
        )
        return (1 + near - far).relu()[pairs["liked"] > 0].mean().item()

    assert violation(1.0) < 0.9 * violation(-1e9)


def test_liked_pairs_are_drawn_uniformly():
    liked = history([4, 7, 9], [], [4, 4, 1])
    users = torch.tensor([0, 1, 2]).repeat(6000)
    pairs = liked_pairs(liked, users, replica_generator(0, "test"))
    assert pairs["liked"].tolist() == [1.0, 0.0, 1.0] * 6000

    def counts(items: torch.Tensor) -> list[int]:
        return torch.bincount(items, minlength=10)[[1, 4, 7, 9]].tolist()

    first = counts(pairs["positive"][users == 0])
    assert sum(first) == 6000
    assert first[0] == 0
    assert chisquare(first[1:]).pvalue > 1e-3
    assert chisquare(counts(pairs["positive"][users == 2])[:2], [2000, 4000]).pvalue > 1e-3
    # The pool holds an item as often as it was liked.
    assert chisquare(counts(pairs["negative"]), [3000, 9000, 3000, 3000]).pvalue > 1e-3


# LACDR


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


# PTUPCDR


def reference(state: dict[str, np.ndarray], user: np.ndarray, liked: np.ndarray, target: int) -> np.ndarray:
    """One user's transferred vector, written out item by item."""
    characteristic = np.zeros(len(user))
    if len(liked):
        scores = [
            state["score"][0] @ np.maximum(state["attention"] @ v + state["attention_bias"], 0) for v in liked
        ]
        weights = np.exp(scores) / np.exp(scores).sum()
        characteristic = sum(w * v for w, v in zip(weights, liked, strict=True))
    hidden = np.maximum(state["decoder"] @ characteristic + state["decoder_bias"], 0)
    bridge = state["bridge"] @ hidden + state["bridge_bias"]
    return user @ bridge.reshape(len(user), target)


def test_ptupcdr_transfers_by_attention_and_bridge():
    problem = random_problem(0, source=3, target=2)
    model = PTUPCDR(epochs=3, length=4).trained([problem])
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    (moved,) = model.transfer([problem.source])
    source = problem.source
    for user in range(len(source)):
        liked = source.history.items[source.history.offsets[user] : source.history.offsets[user + 1]][-4:]
        expected = reference(state, source.factors[user].numpy(), source.item_factors[liked].numpy(), 2)
        np.testing.assert_allclose(moved[user], expected, rtol=1e-4, atol=1e-5)


def test_ptupcdr_loss_by_hand():
    """Attention and decoder at zero leave bridge_bias = ((1, 2), (0, 3)) for everyone: u_s = (1, 0) goes to
    (1, 2) and (0, 2) to (0, 6); with items (1, 0), (1, 2), (1, 0) predicted 1, 12, 0 against 5, 1, 3."""
    parameters = {
        "attention": [[0.0, 0.0]] * 2,
        "attention_bias": [0.0, 0.0],
        "score": [[0.0, 0.0]],
        "decoder": [[0.0, 0.0]],
        "decoder_bias": [0.0],
        "bridge": [[0.0]] * 4,
        "bridge_bias": [1.0, 2.0, 0.0, 3.0],
    }
    loss = loss_of(PTUPCDR(hidden=1), two_users(), parameters, [0, 1, 2])
    assert loss == pytest.approx((16 + 121 + 9) / 3)


def test_ptupcdr_looks_at_the_last_items_only():
    problem = random_problem(0)
    model = PTUPCDR(epochs=1, length=3).trained([problem])
    user = problem.source.factors[:1].expand(4, -1)
    liked = history([1, 2, 3, 4], [2, 3, 4], [2, 3, 5], [])
    (moved,) = model.transfer([SourceUsers(user, liked, problem.source.item_factors)])
    torch.testing.assert_close(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2])
    assert not torch.allclose(moved[0], moved[3])


def test_ptupcdr_reaches_zero_where_one_bridge_explains_the_ratings():
    problem = random_problem(0, users=60, ratings=400, source=3, target=3)
    bridge = torch.randn(3, 3, generator=torch.Generator().manual_seed(3))
    users, items = problem.ratings.users, problem.ratings.items
    values = ((problem.source.factors @ bridge)[users] * problem.target_items[items]).sum(1)
    problem = dataclasses.replace(problem, ratings=Ratings(users, items, values))
    model = PTUPCDR(epochs=120, batch=64)
    losses = [epoch.losses["loss"][0] for epoch in model.train([problem])]
    assert losses[-1] < 0.01 * values.square().mean()
    error = model.transfer([problem.source])[0] - problem.source.factors @ bridge
    assert error[users].square().mean() < 0.05 * (problem.source.factors @ bridge).square().mean()


def test_ptupcdr_writes_bridges_of_users_it_was_not_trained_on():
    """Users differ only in taste, and taste decides the sign of the bridge: a shared map cannot fit this."""
    taste = torch.tensor([0, 1] * 40)
    generator = torch.Generator().manual_seed(0)
    factors, items = torch.randn(80, 2, generator=generator), torch.randn(50, 2, generator=generator)
    source = SourceUsers(factors, history(*[[t] for t in taste.tolist()]), torch.tensor([[2.0, 0], [0, 2.0]]))
    true = factors * torch.where(taste == 0, 1.0, -1.0)[:, None]
    users = torch.arange(60).repeat(20)
    rated = torch.randint(0, 50, (1200,), generator=generator)
    ratings = Ratings(users, rated, (true[users] * items[rated]).sum(1))
    train = source.take(torch.arange(60))
    model = PTUPCDR(epochs=15).trained([Problem(train, true[:60], items, ratings, seed=0)])
    (moved,) = model.transfer([source.take(torch.arange(60, 80))])
    assert (moved - true[60:]).square().mean() < 0.05 * true[60:].square().mean()


def test_ptupcdr_transfers_in_chunks_what_it_transfers_at_once(monkeypatch):
    problem = random_problem(0)
    model = PTUPCDR(epochs=1).trained([problem])
    (at_once,) = model.transfer([problem.source])
    monkeypatch.setattr(ptupcdr, "CHUNK", 7)
    torch.testing.assert_close(model.transfer([problem.source])[0], at_once)


# The registry


def test_the_registry_lists_the_models_in_the_order_of_the_paper():
    assert list(MODELS)[:5] == ["emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr"]
    assert all(build(name).name == name for name in MODELS)


def test_build_passes_hyperparameters_on():
    model = build("lacdr", lr=1, epochs=3)
    assert (model.lr, model.epochs, model.latent) == (1, 3, 4)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("emdcr", {}, "unknown model 'emdcr'; known models: emcdr, sscdr, lacdr, ptupcdr, diffcdr"),
        ("emcdr", {"latent": 4}, "emcdr: unknown hyper-parameter 'latent'; known: epochs, batch, lr"),
        ("sscdr", {"lr": "1e-3"}, r"sscdr: lr must be of type float, not '1e-3' \(in YAML write 1.0e-3"),
        ("sscdr", {"epochs": 2.5}, r"sscdr: epochs must be of type int, not 2\.5"),
        ("ptupcdr", {"length": 0}, "ptupcdr: length must be at least 1, not 0"),
    ],
)
def test_build_refuses_what_it_does_not_know(name, values, message):
    with pytest.raises(ValueError, match=message):
        build(name, **values)
