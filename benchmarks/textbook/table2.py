"""One cell of Table 2 from the split to MAE and RMSE, model after model, judged after every epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.data import LinkedDomains
from benchmarks.scripts import factor_script, transfer_script
from benchmarks.textbook import baselines, diffcdr, factorization
from benchmarks.textbook.training import load
from ml.data import Problem, Ratings, SourceUsers
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.models.registry import build

Factors = tuple[Tensor, Tensor]


def run_cell(domains: LinkedDomains, beta: float, seed: int, epochs: int) -> dict[str, list[float]]:
    """[MAE, RMSE] after the last epoch, by model."""
    members = domains.test_members(beta, seed)
    ratings = domains.ratings_of(members)
    source_rows = torch.from_numpy(domains.source_user[members])
    target_rows = torch.from_numpy(domains.target_user[members])
    values: dict[str, list[float]] = {}

    def judge(
        name: str, rows: Tensor, first_item: int
    ) -> Callable[[factorization.MatrixFactorization], None]:
        def after_epoch(model: factorization.MatrixFactorization) -> None:
            users, items = model.users.weight.detach()[rows], model.items.weight.detach()[first_item:]
            values[name] = errors((users[ratings.users] * items[ratings.items]).sum(1), ratings.values)

        return after_epoch

    source = train_factors(domains.source_table(seed), "source", epochs, lambda model: None)
    target = train_factors(domains.target_table(beta, seed), "target", epochs, judge("tgt", target_rows, 0))
    collective = domains.collective_table(beta, seed)
    train_factors(collective, "cmf", epochs, judge("cmf", source_rows, domains.n_items[0]))

    problem = domains.problem(beta, seed, source, target)
    users = domains.source_users(members, source)
    for name in baselines.BASELINES:
        values[name] = train_baseline(name, problem, users, ratings, epochs)
    values["diffcdr"] = train_diffcdr(problem, users, ratings, epochs)
    return values


def train_factors(
    table: RatingTable,
    purpose: str,
    epochs: int,
    after_epoch: Callable[[factorization.MatrixFactorization], None],
) -> Factors:
    settings = MatrixFactorization(epochs=epochs)
    script = factor_script(settings, table, purpose)
    model = factorization.train(table, script, settings.batch, settings.lr, after_epoch=after_epoch)
    return model.users.weight.detach(), model.items.weight.detach()


def train_baseline(
    name: str, problem: Problem, users: SourceUsers, ratings: Ratings, epochs: int
) -> list[float]:
    settings = build(name, epochs=epochs)
    script = transfer_script(settings, problem)
    model = baselines.BASELINES[name](problem)
    load(model, model.NAMES, script.initial)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    found: list[float] = []
    for order, draws in script.epochs:
        baselines.train_epoch(model, optimizer, problem, order, draws, settings.batch)
        with torch.no_grad():
            moved = model.transfer(users)
        predicted = (moved[ratings.users] * problem.target_items[ratings.items]).sum(1)
        found = errors(predicted, ratings.values)
    return found


def train_diffcdr(problem: Problem, users: SourceUsers, ratings: Ratings, epochs: int) -> list[float]:
    settings = build("diffcdr", epochs=epochs)
    script = transfer_script(settings, problem)
    model = diffcdr.build(script.initial)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    found: list[float] = []
    for order, draws in script.epochs:
        diffcdr.train_epoch(model, optimizer, problem, order, draws, settings.batch, task_weight=0.1)
        predicted = diffcdr.predict(model, users.factors, problem.target_items, ratings, batch=1024)
        found = errors(predicted, ratings.values)
    return found


def errors(predicted: Tensor, actual: Tensor) -> list[float]:
    error = predicted - actual
    return [error.abs().mean().item(), error.square().mean().sqrt().item()]
