"""Training of the transfer models, and DiffCDR's predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.data import LinkedDomains, no_history, random_problem, random_ratings
from benchmarks.measure import Result, relative_difference
from benchmarks.paths.path import Options, Path, Work
from benchmarks.scripts import transfer_script
from benchmarks.textbook import baselines, diffcdr
from benchmarks.textbook.training import Script, state
from ml.data import Problem, Ratings, SourceUsers
from ml.evaluation.ratings import predict
from ml.models.diffcdr import DiffCDR
from ml.models.registry import build

GPU = "GPU not measured"
RELU = "the tolerance allows for a ReLU that rounding tips over; in float64 the two agree to 1e-14"
PREDICT_BATCH = 1024  # rows a pass of the textbook's prediction; larger ones were not faster


@dataclass(frozen=True)
class Training:
    """R trainings of one model with the settings, and the script of each."""

    name: str
    settings: dict[str, int]
    problems: list[Problem]
    scripts: list[Script]
    device: str


def training(name: str, problems: list[Problem], device: str, **settings: int) -> Training:
    model = build(name, **settings)
    return Training(name, settings, problems, [transfer_script(model, p) for p in problems], device)


def train_ours(data: Training) -> Callable[[], Result]:
    model = build(data.name, **data.settings).trained(data.problems, data.device)
    return lambda: by_replica([model.state_dict(r) for r in range(model.replicas)])


def train_textbook(data: Training) -> Callable[[], Result]:
    model = build(data.name, **data.settings)
    states = [
        _train_one(data.name, problem, script, model.batch, model.lr, data.device)
        for problem, script in zip(data.problems, data.scripts, strict=True)
    ]
    return lambda: by_replica(states)


def _train_one(
    name: str, problem: Problem, script: Script, batch: int, lr: float, device: str
) -> dict[str, Tensor]:
    if name == "diffcdr":
        trained = diffcdr.train(problem, script, batch, lr, device=device)
        return state(trained, {ours: diffcdr.name_of(ours) for ours in script.initial})
    trained = baselines.train(name, problem, script, batch, lr, device)
    return state(trained, trained.NAMES)


def by_replica(states: Sequence[dict[str, Tensor]]) -> Result:
    return {f"{r} {name}": value.numpy() for r, s in enumerate(states) for name, value in s.items()}


def prepare_diffcdr(seeds: int, options: Options) -> Work:
    users = 300 if options.quick else 20_000
    problems = [random_problem(users, users, users // 4, seed) for seed in range(seeds)]
    return Work(
        f"one epoch of {users:,} ratings of {users:,} users, batch 128, seeds: {seeds}",
        training("diffcdr", problems, options.device, epochs=1),
        seeds * users,
    )


def prepare_baseline(name: str, steps: int, epochs: int, options: Options) -> Work:
    """Full-size tables, and as many ratings as `steps` batches hold; EMCDR's rows are all the users."""
    domains = LinkedDomains("tiny" if options.quick else "task1")
    batch = build(name).batch
    steps = 5 if options.quick else steps
    problems = [
        domains.problem(0.2, seed, *domains.random_factors(seed), ratings=steps * batch) for seed in range(5)
    ]
    data = training(name, problems, options.device, epochs=epochs)
    rows = sum(len(order) for script in data.scripts for order, _ in script.epochs)
    return Work(
        f"Task 1's tables ({len(problems[0].source):,} training users), five seeds, "
        f"{rows // 5 // batch:,} steps of batch {batch}",
        data,
        rows,
    )


@dataclass(frozen=True)
class Prediction:
    state: dict[str, Tensor]
    users: SourceUsers
    items: Tensor
    ratings: Ratings
    device: str


def prepare_prediction(options: Options) -> Work:
    users, rows = (100, 500) if options.quick else (14_400, 200_000)
    generator = torch.Generator().manual_seed(0)
    problem = random_problem(users, 1, 64_443, 0)
    return Work(
        f"{rows:,} rating rows of {users:,} test users, 30 NFE, s = 0.1",
        Prediction(
            DiffCDR().initial(problem, generator),
            SourceUsers(problem.source.factors, no_history(users), problem.source.item_factors),
            problem.target_items,
            random_ratings(users, 64_443, rows, generator),
            options.device,
        ),
        rows,
    )


def predict_ours(data: Prediction) -> Callable[[], Result]:
    model = DiffCDR().load_state_dict({n: v.to(data.device) for n, v in data.state.items()})
    predicted = predict(model.transfer([data.users])[0], data.items, data.ratings)
    return lambda: {"predicted": predicted.numpy()}


def predict_textbook(data: Prediction) -> Callable[[], Result]:
    model = diffcdr.build(data.state, data.device)
    predicted = diffcdr.predict(model, data.users.factors, data.items, data.ratings, PREDICT_BATCH)
    return lambda: {"predicted": predicted.numpy()}


def _trained(name: str, target: float, prepare: Callable[[Options], Work], repeats: int, note: str) -> Path:
    return Path(name, target, 1e-3, prepare, train_ours, train_textbook, repeats=repeats, note=note)


PATHS = (
    _trained("diffcdr training", 12, partial(prepare_diffcdr, 1), 3, GPU),
    _trained("diffcdr training, five seeds", 25, partial(prepare_diffcdr, 5), 2, GPU),
    Path(
        "diffcdr inference",
        300,
        1e-3,
        prepare_prediction,
        predict_ours,
        predict_textbook,
        difference=relative_difference,
        note=f"difference is relative; textbook solves each row, in batches of {PREDICT_BATCH}; {GPU}",
    ),
    _trained("ptupcdr training", 10, partial(prepare_baseline, "ptupcdr", 200, 1), 3, RELU),
    _trained("sscdr training", 10, partial(prepare_baseline, "sscdr", 600, 1), 3, ""),
    _trained("lacdr training", 10, partial(prepare_baseline, "lacdr", 600, 1), 3, ""),
    _trained("emcdr training", 10, partial(prepare_baseline, "emcdr", 600, 3), 3, ""),
)
