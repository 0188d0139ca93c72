"""The random numbers that our trainings draw, written out so that the textbook can train on the same."""

from __future__ import annotations

import torch

from benchmarks.textbook.training import Script
from ml.data import Problem
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.models.transfer import TransferModel
from ml.replicas import EpochPlan, replica_generator


def transfer_script(model: TransferModel, problem: Problem) -> Script:
    """What `model.train([problem])` draws."""
    generator = replica_generator(problem.seed, model.name)
    initial, epochs = model.initial(problem, generator), []
    for _ in range(model.epochs):
        (order,) = EpochPlan.draw([model.training_rows(problem)], model.batch, [generator]).orders
        epochs.append((order, model.draws(problem, order, generator)))
    return Script(initial, epochs)


def factor_script(trainer: MatrixFactorization, table: RatingTable, purpose: str) -> Script:
    """What `trainer.train([table], purpose)` draws; the initial factors are named `users` and `items`."""
    generator = replica_generator(table.seed, purpose)
    initial = {
        name: trainer.init_std * torch.randn(rows, trainer.k, generator=generator)
        for name, rows in (("users", table.n_users), ("items", table.n_items))
    }
    epochs = [(torch.randperm(len(table), generator=generator), {}) for _ in range(trainer.epochs)]
    return Script(initial, epochs)
