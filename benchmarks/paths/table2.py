"""Table 2: all models in all cells of a task, from the split to MAE and RMSE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.data import LinkedDomains
from benchmarks.measure import Result
from benchmarks.paths.path import Options, Path, Work
from benchmarks.textbook import table2 as textbook
from ml.data import Ratings
from ml.evaluation.ratings import predict, rating_errors
from ml.factorization.adam import MatrixFactorization
from ml.models.registry import build

BETAS, SEEDS, EPOCHS = (0.2, 0.5, 0.8), (0, 1, 2, 3, 4), 10

TRANSFER_MODELS = ("emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr")

Cell = tuple[float, int]


@dataclass(frozen=True)
class Table:
    """cells: (β, seed), all of ours; sample: those that the textbook does."""

    domains: LinkedDomains
    cells: list[Cell]
    sample: list[Cell]
    epochs: int


def prepare(options: Options) -> Work:
    betas, seeds, epochs = ((0.2, 0.5), (0, 1), 1) if options.quick else (BETAS, SEEDS, EPOCHS)
    cells = [(beta, seed) for beta in betas for seed in seeds]
    sample = [(beta, 0) for beta in betas]
    domains = LinkedDomains("tiny" if options.quick else "demo")
    return Work(
        f"the demo's {len(cells)} cells, seven models, {epochs} epochs (textbook: {len(sample)} cells)",
        Table(domains, cells, sample, epochs),
        len(cells),
        textbook_share=len(sample) / len(cells),
    )


def ours(data: Table) -> Callable[[], Result]:
    """All cells of a model are replicas of one program; source factors are trained once a seed."""
    domains, cells = data.domains, data.cells
    seeds = sorted({seed for _, seed in cells})
    source = MatrixFactorization(epochs=data.epochs).fit([domains.source_table(s) for s in seeds], "source")
    members = [domains.test_members(*cell) for cell in cells]
    held_out = [domains.ratings_of(m) for m in members]
    values: dict[str, list[float]] = {}

    def judge(model: str, users: list[Tensor], items: list[Tensor]) -> None:
        for cell, factors, table, ratings in zip(cells, users, items, held_out, strict=True):
            values[_key(model, cell)] = errors(factors, table, ratings)

    target = MatrixFactorization(epochs=data.epochs)
    for _ in target.train([domains.target_table(*cell) for cell in cells], "target"):
        rows = [domains.target_user[m] for m in members]
        judge(
            "tgt", [u[r] for u, r in zip(target.user_factors_, rows, strict=True)], list(target.item_factors_)
        )
    collective = MatrixFactorization(epochs=data.epochs)
    for _ in collective.train([domains.collective_table(*cell) for cell in cells], "cmf"):
        rows = [domains.source_user[m] for m in members]
        users = [u[r] for u, r in zip(collective.user_factors_, rows, strict=True)]
        judge("cmf", users, [items[domains.n_items[0] :] for items in collective.item_factors_])

    problems, test_users = [], []
    for index, (beta, seed) in enumerate(cells):
        replica = seeds.index(seed)
        factors = source.user_factors_[replica], source.item_factors_[replica]
        target_factors = target.user_factors_[index], target.item_factors_[index]
        problems.append(domains.problem(beta, seed, factors, target_factors))
        test_users.append(domains.source_users(members[index], factors))
    for name in TRANSFER_MODELS:
        model = build(name, epochs=data.epochs)
        for _ in model.train(problems):
            judge(name, model.transfer(test_users), [p.target_items for p in problems])
    return lambda: _sampled(values, data)


def errors(users: Tensor, items: Tensor, ratings: Ratings) -> list[float]:
    found = rating_errors(predict(users, items, ratings), ratings.values, ratings.users)
    return [found["mae"], found["rmse"]]


def run_textbook(data: Table) -> Callable[[], Result]:
    values = {
        _key(model, cell): value
        for cell in data.sample
        for model, value in textbook.run_cell(data.domains, *cell, data.epochs).items()
    }
    return lambda: _sampled(values, data)


def _sampled(values: dict[str, list[float]], data: Table) -> Result:
    return {
        key: np.array(value)
        for key, value in values.items()
        if key in {_key(key.split()[0], cell) for cell in data.sample}
    }


def _key(model: str, cell: Cell) -> str:
    return f"{model} {cell[0]} {cell[1]}"


PATHS = (
    Path(
        "table 2 of the demo",
        20,
        0.02,
        prepare,
        ours,
        run_textbook,
        repeats=1,
        note="difference: MAE and RMSE of the last epoch, the largest that of PTUPCDR; "
        "neither side under Dagster",
    ),
)
