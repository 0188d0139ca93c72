"""DiffCDR against plain torch, its variants, and the contract of transfer models."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from ml.data import Problem, Ratings, SourceUsers
from ml.diffusion import affine, network
from ml.diffusion.schedule import training_levels
from ml.diffusion.solver import plan
from ml.models.diffcdr import DiffCDR
from ml.replicas import EpochPlan, replica_generator
from tests.ml.problems import history, random_problem

SMALL = {"epochs": 2, "batch": 32, "hidden": 8, "nfe": 5, "lr": 0.01}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-4) -> bool:
    assert set(a) == set(b)
    return all(torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance) for name in a)


class PlainDiffCDR(torch.nn.Module):
    """One replica, written with torch's own layers, losses, optimizer and autograd."""

    def __init__(self, problem: Problem, model: DiffCDR) -> None:
        super().__init__()
        self.problem, self.model = problem, model
        self.generator = replica_generator(problem.seed, "diffcdr")
        initial = model.initial(problem, self.generator)
        self.alm = torch.nn.Parameter(initial.pop("alignment.weight"))
        self.dim = torch.nn.ParameterDict({n.replace(".", "_"): v for n, v in initial.items()})
        self.signal, self.level = (levels.float() for levels in training_levels())
        self.optimizer = torch.optim.Adam(self.parameters(), model.lr)

    def noise(self, x: Tensor, label: Tensor, c: Tensor, mask: Tensor) -> Tensor:
        def layer(name: str, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.dim[f"{name}_weight"], self.dim[f"{name}_bias"])

        between = {"none": lambda z: z, "silu": torch.nn.functional.silu}[self.model.activation]
        z = x + layer("time", network.time_embedding(label, 8).float())
        z = z + mask[:, None] * layer("condition", c)
        return layer("layer3", between(layer("layer2", between(layer("layer1", z)))))

    def descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        # Clipping sees only the part that the loss reached: the other has no gradient.
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.model.clip)
        self.optimizer.step()

    def moved(self, c: Tensor) -> Tensor:
        state = {n.replace("_", "."): v.detach()[None] for n, v in self.dim.items()}
        course = plan(self.model.nfe, self.model.solver)
        x, c = c[None], c[None]
        return affine.solve_stepwise(state, course, self.model.guidance, self.model.activation, x, c)[0]

    def fit(self) -> None:
        p, smooth_l1 = self.problem, torch.nn.functional.smooth_l1_loss
        for _ in range(self.model.epochs):
            order = EpochPlan.draw([len(p.ratings)], self.model.batch, [self.generator]).orders[0]
            draws = self.model.draws(p, order, self.generator)
            for at in torch.arange(len(order)).split(self.model.batch):
                rows, time, noise, mask = order[at], *(draws[n][at] for n in ("time", "noise", "mask"))
                users = p.ratings.users[rows]
                source, target = p.source.factors[users], p.target_factors[users]
                x = self.signal[time, None] * target + self.level[time, None] * noise
                self.descend(smooth_l1(self.noise(x, time, source, mask), noise))
                aligned = self.moved(source) @ self.alm.T
                predicted = (aligned * p.target_items[p.ratings.items[rows]]).sum(1)
                task = (p.ratings.values[rows] - predicted).square().mean()
                self.descend(smooth_l1(aligned, target) + self.model.task_weight * task)

    def state(self) -> dict[str, Tensor]:
        dim = {n.replace("_", "."): v.detach() for n, v in self.dim.items()}
        return dim | {"alignment.weight": self.alm.detach()}


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("clip", [0.05, 1.0])
def test_training_equals_plain_torch(activation: str, clip: float) -> None:
    model = DiffCDR(**SMALL, activation=activation, clip=clip)
    problem = random_problem(3)
    plain = PlainDiffCDR(problem, model)
    start = {name: value.clone() for name, value in plain.state().items()}
    plain.fit()
    state = model.trained([problem]).state_dict()
    assert close(state, plain.state())
    assert not close(state, start, 1e-2)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("start", ["source", "noise"])
def test_five_replicas_together_equal_each_alone(activation: str, start: str) -> None:
    problems = [random_problem(seed, ratings=90 + 40 * seed, users=30 + seed) for seed in range(5)]
    users = [p.source for p in problems]
    together = DiffCDR(**SMALL, activation=activation, start=start).trained(problems)
    for r, problem in enumerate(problems):
        alone = DiffCDR(**SMALL, activation=activation, start=start).trained([problem])
        assert close(together.state_dict(r), alone.state_dict())
        assert torch.allclose(together.transfer(users)[r], alone.transfer([users[r]])[0], atol=1e-3)


def test_transfer_is_alm_of_dim_output() -> None:
    problems = [random_problem(seed) for seed in range(2)]
    model = DiffCDR(**SMALL).trained(problems)
    users = [problems[0].source, problems[1].source.take(torch.tensor([4, 1]))]
    outputs, transferred = model.dim_output(users), model.transfer(users)
    for r, (output, moved) in enumerate(zip(outputs, transferred, strict=True)):
        assert torch.allclose(output @ model.state_dict(r)["alignment.weight"].T, moved, atol=1e-6)
        assert not torch.allclose(output, users[r].factors, atol=0.1)
    with pytest.raises(ValueError, match="2 replicas"):
        model.dim_output(users[:1])


def test_draws_pair_time_steps_and_mask_the_asked_share() -> None:
    problem = random_problem(0)
    rows = torch.arange(10_001)
    draws = DiffCDR(mask=0.3, start="noise").draws(problem, rows, torch.Generator().manual_seed(0))
    time = draws["time"]
    assert torch.equal(time[:-1:2] + time[1::2], torch.full((5000,), 999))
    assert int(time.min()) >= 0
    assert int(time.max()) <= 999
    assert int(time[::2].unique().numel()) > 980
    assert float(draws["mask"].mean()) == pytest.approx(0.7, abs=0.02)
    assert draws["noise"].shape == draws["start"].shape == (10_001, 4)
    assert float(draws["noise"].std()) == pytest.approx(1, abs=0.02)


def test_at_has_no_network_and_hands_the_source_factors_to_alm() -> None:
    problem = random_problem(0, source=5, target=4)
    model = DiffCDR(**SMALL, parts="at")
    epochs = list(model.train([problem]))
    assert set(epochs[0].losses) == {"alignment", "task"}
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"alignment.weight": (4, 5)}
    assert torch.equal(model.dim_output([problem.source])[0], problem.source.factors)
    expected = problem.source.factors @ state["alignment.weight"].T
    assert torch.allclose(model.transfer([problem.source])[0], expected)


def with_ratings(problem: Problem, values: Tensor) -> Problem:
    ratings = Ratings(problem.ratings.users, problem.ratings.items, values)
    return dataclasses.replace(problem, ratings=ratings)


def test_da_ignores_the_ratings_and_dat_does_not() -> None:
    problem = random_problem(0)
    other = with_ratings(problem, 6 - problem.ratings.values)
    for parts, same in (("da", True), ("dat", False)):
        a, b = (DiffCDR(**SMALL, parts=parts).trained([p]).state_dict() for p in (problem, other))
        assert torch.equal(a["alignment.weight"], b["alignment.weight"]) == same
        assert all(torch.equal(a[name], b[name]) for name in network.NAMES)


def test_da_takes_the_squared_alignment_loss() -> None:
    problem = random_problem(0)
    da = DiffCDR(**SMALL, parts="da").trained([problem]).state_dict()
    squared = DiffCDR(**SMALL, task_weight=0.0, alignment_loss="l2").trained([problem]).state_dict()
    smooth = DiffCDR(**SMALL, task_weight=0.0).trained([problem]).state_dict()
    assert torch.equal(da["alignment.weight"], squared["alignment.weight"])
    assert not torch.equal(da["alignment.weight"], smooth["alignment.weight"])


def test_alm_alone_with_a_heavy_task_solves_least_squares() -> None:
    problem = random_problem(1, source=2, target=2)
    users, items = problem.source.factors[problem.ratings.users], problem.target_items[problem.ratings.items]
    # r ≈ vᵀ W u is linear in W: one column of features for each entry of W.
    features = (items[:, :, None] * users[:, None, :]).flatten(1)
    expected = torch.linalg.lstsq(features, problem.ratings.values[:, None]).solution.view(2, 2)
    model = DiffCDR(parts="at", epochs=500, batch=150, lr=0.02, task_weight=1e4, clip=1e9).trained([problem])
    assert torch.allclose(model.state_dict()["alignment.weight"], expected, atol=1e-2)


def test_alm_alone_without_task_and_with_squared_loss_solves_least_squares() -> None:
    problem = random_problem(1, source=2, target=2)
    users = problem.ratings.users
    source, target = problem.source.factors[users], problem.target_factors[users]
    expected = torch.linalg.lstsq(source, target).solution.T
    model = DiffCDR(
        parts="at", epochs=500, batch=150, lr=0.02, task_weight=0.0, alignment_loss="l2", clip=1e9
    ).trained([problem])
    assert torch.allclose(model.state_dict()["alignment.weight"], expected, atol=1e-2)


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
def test_losses_fall_where_there_is_something_to_learn(activation: str) -> None:
    problem = random_problem(0, ratings=600)
    linear = problem.source.factors @ torch.diag(torch.tensor([1.0, -1.0, 0.5, 2.0]))
    ratings = (linear[problem.ratings.users] * problem.target_items[problem.ratings.items]).sum(1)
    problem = with_ratings(dataclasses.replace(problem, target_factors=linear), ratings)
    settings = SMALL | {"epochs": 30, "hidden": 32}
    epochs = list(DiffCDR(**settings, activation=activation).train([problem]))
    for name in ("dim", "alignment", "task"):
        assert epochs[-1].losses[name][0] < 0.7 * epochs[0].losses[name][0], name


@pytest.mark.parametrize("start", ["source", "noise"])
def test_restored_model_transfers_equally(start: str) -> None:
    problem = random_problem(0)
    model = DiffCDR(**SMALL, start=start).trained([problem])
    restored = DiffCDR(**model.hyperparameters()).load_state_dict(model.state_dict())
    first, second = model.transfer([problem.source])[0], restored.transfer([problem.source])[0]
    assert torch.equal(first, second)
    assert bool(first.isfinite().all())


def test_noisy_start_depends_on_seed_and_draw_alone() -> None:
    problem = random_problem(0, source=5, target=4)
    model = DiffCDR(**SMALL, start="noise").trained([problem])
    outputs = [model.dim_output([problem.source], draw)[0] for draw in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    state = model.state_dict()
    reseeded = DiffCDR(**SMALL, start="noise").load_state_dict(state | {"seed": torch.tensor(7)})
    assert not torch.allclose(reseeded.dim_output([problem.source])[0], outputs[0])


def test_no_users_give_no_factors() -> None:
    problem = random_problem(0)
    model = DiffCDR(**SMALL).trained([problem])
    nobody = SourceUsers(torch.zeros(0, 4), history(), problem.source.item_factors)
    assert model.transfer([nobody])[0].shape == (0, 4)


@pytest.mark.parametrize(
    "field",
    [
        {"solver": "ddim"},
        {"activation": "tanh"},
        {"start": "target"},
        {"alignment_loss": "l1"},
        {"parts": "d"},
        {"hidden": 7},
        {"hidden": 2},
        {"nfe": 0},
        {"epochs": 0},
        {"mask": 1.5},
        {"task_weight": -0.1},
        {"clip": 0.0},
        {"lr": 0.0},
    ],
)
def test_bad_hyper_parameters_are_named(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"diffcdr: {next(iter(field))} must"):
        DiffCDR(**field)


def test_unequal_widths_need_a_noisy_start() -> None:
    problem = random_problem(0, source=5, target=4)
    with pytest.raises(ValueError, match="set start to noise"):
        DiffCDR(**SMALL).trained([problem])


# Variants: replicas with their own guidance and task weight are what each is when trained alone.

GRID = [{"task_weight": w, "guidance": s} for w, s in itertools.product([0.0, 0.1, 4.0], [0.0, 0.2, 2.0])]


def trained(model: DiffCDR, problems: list, variants: list[dict[str, float]]) -> list:
    return list(model.train(problems, "cpu", variants))


def assert_equal_to_alone(model: DiffCDR, r: int, alone: DiffCDR, users) -> None:
    state, expected = model.state_dict(r), alone.state_dict()
    assert float(state.pop("guidance")) == pytest.approx(alone.guidance)
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)
    transferred = model.transfer([users] * model.replicas)[r]
    torch.testing.assert_close(transferred, alone.transfer([users])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "silu"},
        {"start": "noise"},
        {"start": "noise", "activation": "relu"},
        {"parts": "at"},
        {"parts": "da"},
    ],
    ids=str,
)
def test_a_grid_on_one_problem_equals_models_trained_alone(settings: dict[str, str]) -> None:
    problem = random_problem(3)
    model = DiffCDR(**SMALL, **settings)
    epochs = trained(model, [problem] * len(GRID), GRID)
    assert model.replicas == len(GRID)
    for r, variant in enumerate(GRID):
        alone = DiffCDR(**SMALL, **settings, **variant)
        losses = list(alone.train([problem]))[-1].losses
        assert {name: values[r] for name, values in epochs[-1].losses.items()} == {
            name: pytest.approx(values[0], rel=1e-3) for name, values in losses.items()
        }
        assert_equal_to_alone(model, r, alone, problem.source)


@pytest.mark.parametrize("start", ["source", "noise"])
def test_variants_on_a_problem_each_equal_models_trained_alone(start: str) -> None:
    problems = [random_problem(seed, ratings=90 + 40 * seed, users=30 + seed) for seed in range(3)]
    variants = [{"guidance": 1.0}, {"task_weight": 3.0}, {}]
    model = DiffCDR(**SMALL, start=start)
    trained(model, problems, variants)
    for r, (problem, variant) in enumerate(zip(problems, variants, strict=True)):
        alone = DiffCDR(**SMALL, start=start, **variant).trained([problem])
        state = model.state_dict(r)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)
        users = [p.source for p in problems]
        expected = alone.transfer([problem.source])[0]
        torch.testing.assert_close(model.transfer(users)[r], expected, rtol=1e-3, atol=1e-3)


def test_both_values_reach_alm_and_neither_reaches_dim() -> None:
    model = DiffCDR(**SMALL)
    plain, heavy, guided = {}, {"task_weight": 8.0}, {"guidance": 5.0}
    # A problem for each, so that each trains a DIM of its own.
    trained(model, [random_problem(0) for _ in range(3)], [plain, heavy, guided])
    states = [model.state_dict(r) for r in range(3)]
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in network.NAMES)
        assert not torch.allclose(states[0]["alignment.weight"], other["alignment.weight"], atol=1e-3)


def test_each_replica_transfers_and_is_restored_with_its_own_guidance() -> None:
    problem = random_problem(0)
    model = DiffCDR(**SMALL)
    trained(model, [problem] * 2, [{"guidance": 0.1}, {"guidance": 5.0}])
    first, second = model.transfer([problem.source] * 2)
    restored = DiffCDR(**model.hyperparameters()).load_state_dict(model.state_dict(1))
    assert torch.equal(restored.transfer([problem.source])[0], second)
    unguided = {name: value for name, value in model.state_dict(1).items() if name != "guidance"}
    by_field = DiffCDR(**SMALL, guidance=5.0).load_state_dict(unguided)
    torch.testing.assert_close(by_field.transfer([problem.source])[0], second)
    assert not torch.allclose(first, second, atol=1e-2)


def test_a_later_training_without_variants_is_the_plain_one() -> None:
    problem = random_problem(0)
    model = DiffCDR(**SMALL)
    trained(model, [problem] * len(GRID), GRID)
    state, expected = model.trained([problem]).state_dict(), DiffCDR(**SMALL).trained([problem]).state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("problems", "variants", "message"),
    [
        (2, [{}, {}, {}], "2 problems for 3 variants"),
        (2, [{}, {"nfe": 5}], "variant 1 sets nfe; replicas may differ in guidance and task_weight only"),
        (1, [{"task_weight": -1.0}], "task_weight must not be negative"),
        (1, [{}, {}], "1 problems for 2 variants"),
    ],
)
def test_bad_variants_are_named(problems: int, variants: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(DiffCDR(**SMALL), [random_problem(seed) for seed in range(problems)], variants)
