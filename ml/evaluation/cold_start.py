"""Evaluation of user factors on held-out users, for either objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data import Ratings, SourceUsers
from ml.evaluation.ranking import random_expectation, rank_metrics
from ml.evaluation.ratings import predict, rating_errors
from ml.evaluation.selection import Objective


@dataclass(frozen=True)
class HeldOut:
    """Users whose target ratings are hidden from training, and those ratings (users in 0..n-1)."""

    users: SourceUsers
    ratings: Ratings


def measure(
    objective: Objective,
    user_factors: Tensor,
    item_factors: Tensor,
    ratings: Ratings,
    known: Ratings | None = None,
    clip: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Metrics of held-out users (n, k) against items (items, k) by r̂ = u·v.

    Rating: MAE and RMSE, micro and macro, of predictions within the scale `clip` where it is given.
    Ranking: the metrics of `rank_metrics` over all items but those that `known` lists for a user.
    """
    if objective.name == "rating":
        predicted = predict(user_factors, item_factors, ratings, clip)
        return rating_errors(predicted, ratings.values, ratings.users)
    metrics = rank_metrics(user_factors, item_factors, ratings, exclude=known)
    return {name: value for name, value in metrics.items() if "@" in name}


def random_ranker(n_items: int, n_users: int, ratings: Ratings) -> dict[str, float]:
    """The closed-form expectation of the ranking metrics for a uniformly random order of the items."""
    return random_expectation(n_items, torch.bincount(ratings.users, minlength=n_users))


def user_error_sums(
    mean: Tensor, median: Tensor, crps: Tensor, ratings: Ratings, n_users: int
) -> dict[str, Tensor]:
    """Sums over each user's ratings (n_users,) float64: `absolute` errors of the `median` (m,), `squared`
    ones of the `mean` (m,), `crps` (m,), and the `count`. A point prediction is both mean and median."""

    def total(values: Tensor) -> Tensor:
        return torch.bincount(ratings.users, values.double(), minlength=n_users)

    return {
        "absolute": total((median - ratings.values).abs()),
        "squared": total((mean - ratings.values).square()),
        "crps": total(crps),
        "count": torch.bincount(ratings.users, minlength=n_users),
    }
