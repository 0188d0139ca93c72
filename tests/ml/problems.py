"""Small transfer problems for the tests of the models."""

from __future__ import annotations

import dataclasses

import torch

from ml.data import Data, History, Problem, Ratings, SourceUsers, Users


def history(*liked: list[int]) -> History:
    """One user for each list of liked items."""
    counts = torch.tensor([0, *map(len, liked)])
    return History(counts.cumsum(0), torch.tensor([i for items in liked for i in items], dtype=torch.int64))


def random_problem(
    seed: int, users: int = 40, ratings: int = 150, items: int = 30, source: int = 4, target: int = 4
) -> Problem:
    """Normal factors of widths `source` and `target`, ratings 1..5, zero to six liked items a user."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def integers(low: int, high: int, size: int) -> torch.Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    liked = [integers(0, items, n).tolist() for n in integers(0, 7, users).tolist()]
    return Problem(
        SourceUsers(normal(users, source), history(*liked), normal(items, source)),
        normal(users, target),
        normal(items, target),
        Ratings(integers(0, users, ratings), integers(0, items, ratings), integers(1, 6, ratings).float()),
        seed,
    )


def users_of(factors: SourceUsers) -> Users:
    """Users of whom nothing is known but their factors."""
    rows = torch.arange(len(factors))
    return Users(rows, torch.full_like(rows, -1), factors)


def data_of(problem: Problem, offset: torch.Tensor | None = None) -> Data:
    """A cell in which all users overlap; with `offset`, of biased factors."""
    n, m = len(problem.source), len(problem.target_items)
    return Data(
        problem.seed,
        problem.ratings,
        problem.ratings,
        n,
        len(problem.source.item_factors),
        n,
        m,
        users_of(problem.source),
        problem.ratings,
        torch.arange(n),
        problem=problem,
        offset=offset,
    )


def with_others(problem: Problem, source: int = 25, target: int = 15) -> Problem:
    """`problem` with users of one domain alone."""
    generator = torch.Generator().manual_seed(problem.seed + 100)
    k, q = problem.widths
    return dataclasses.replace(
        problem,
        source_alone=torch.randn(source, k, generator=generator),
        target_alone=torch.randn(target, q, generator=generator),
    )


def without_history(problem: Problem) -> Problem:
    """`problem` in which nobody liked anything."""
    source = problem.source
    nothing = history(*[[]] * len(source))
    return dataclasses.replace(problem, source=SourceUsers(source.factors, nothing, source.item_factors))
