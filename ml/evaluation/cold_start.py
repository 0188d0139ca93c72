"""Evaluation of user factors on held-out users, for either objective."""

from __future__ import annotations

import torch
from torch import Tensor

from ml.data import Predicted, Ratings
from ml.evaluation.distribution import crps, distribution_scores
from ml.evaluation.lists import list_scores
from ml.evaluation.ranking import metrics_of_lists, rank_metrics
from ml.evaluation.ratings import predict, rating_errors
from ml.evaluation.selection import Objective


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


def rating_metrics(predicted: Predicted, ratings: Ratings) -> dict[str, float]:
    """MAE of the median and RMSE of the mean, micro and macro, and the scores of a distribution."""
    by_mean = rating_errors(predicted.mean, ratings.values, ratings.users)
    by_median = rating_errors(predicted.median, ratings.values, ratings.users)
    errors = {name: (by_median if "mae" in name else by_mean)[name] for name in by_mean}
    if predicted.probabilities is None:
        return errors
    return distribution_scores(predicted.probabilities, predicted.levels, ratings.values) | errors


def crps_of(predicted: Predicted, ratings: Ratings) -> Tensor:
    """CRPS (m,) float64 of each rating; of a point it is the absolute error."""
    if predicted.probabilities is None:
        return (predicted.median - ratings.values).double().abs()
    return crps(predicted.probabilities, predicted.levels, ratings.values)


def list_metrics(lists: Tensor, ratings: Ratings, n_items: int) -> dict[str, float]:
    """The metrics of `rank_metrics` at k of lists (n, k) int64 of n users, with those of `list_scores`."""
    scores = list_scores(lists, ratings, n_items)
    means = {name: value for name, value in scores.means().items() if "@" in name}
    return means | metrics_of_lists(lists, ratings, n_items)


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
