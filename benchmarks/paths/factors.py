"""One epoch of the target domain's matrix factorization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import LinkedDomains
from benchmarks.measure import Result
from benchmarks.paths.path import Options, Path, Work
from benchmarks.scripts import factor_script
from benchmarks.textbook import factorization
from benchmarks.textbook.training import Script
from ml.data import Ratings
from ml.evaluation.ratings import predict, rating_errors
from ml.factorization.adam import MatrixFactorization, RatingTable


@dataclass(frozen=True)
class Epoch:
    table: RatingTable
    held_out: Ratings
    script: Script
    device: str

    def rmse(self, users: Tensor, items: Tensor) -> Result:
        ratings = self.held_out
        predicted = predict(users.cpu(), items.cpu(), ratings)
        return {"rmse": np.array([rating_errors(predicted, ratings.values, ratings.users)["rmse"]])}


def prepare(options: Options) -> Work:
    """The target's ratings over the union of both domains' users and items, as the authors' code has them."""
    domains = LinkedDomains("tiny" if options.quick else "task1")
    frame, seed = domains.target, 0
    users = torch.from_numpy(domains.people[frame.users].astype(np.int64))
    items = torch.from_numpy(frame.items.astype(np.int64)) + domains.n_items[0]
    values = torch.from_numpy(frame.stars.astype(np.float32))
    kept = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) >= 0.02
    n_users = sum(domains.n_users) - len(domains.source_user)
    # The tiny scale also has users of a third domain in the numbering.
    n_users = max(n_users, int(domains.people.max()) + 1)
    table = RatingTable(users[kept], items[kept], values[kept], n_users, sum(domains.n_items), seed)
    return Work(
        f"{len(table):,} ratings, {n_users:,} users and {table.n_items:,} items, batch 256, one epoch",
        Epoch(
            table,
            Ratings(users[~kept], items[~kept], values[~kept]),
            factor_script(MatrixFactorization(epochs=1), table, "target"),
            options.device,
        ),
        len(table),
    )


def ours(data: Epoch) -> Callable[[], Result]:
    trainer = MatrixFactorization(epochs=1).fit([data.table], "target", data.device)
    return lambda: data.rmse(trainer.user_factors_[0], trainer.item_factors_[0])


def textbook(data: Epoch) -> Callable[[], Result]:
    model = factorization.train(data.table, data.script, batch=256, device=data.device)
    return lambda: data.rmse(model.users.weight.detach(), model.items.weight.detach())


def excess(ours: Result, textbook: Result) -> float:
    """By what share our held-out RMSE is above the textbook's."""
    return float(ours["rmse"][0] / textbook["rmse"][0] - 1)


PATHS = (
    Path(
        "mf",
        50,
        0.005,
        prepare,
        ours,
        textbook,
        difference=excess,
        repeats=2,
        note="difference: held-out RMSE above the textbook's, relative",
    ),
)
