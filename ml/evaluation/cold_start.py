"""Cold-start evaluation of user factors on held-out users, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ml.evaluation.ratings import predict, rating_errors
from ml.models.base import Ratings, SourceUsers


@dataclass(frozen=True)
class HeldOut:
    """Users whose target ratings are hidden from training, and those ratings (users in 0..n-1)."""

    users: SourceUsers
    ratings: Ratings


def errors(user_factors: Tensor, item_factors: Tensor, ratings: Ratings) -> dict[str, float]:
    """MAE and RMSE, micro and macro, of held-out users (n, k) against items (items, k): r̂ = u·v."""
    predicted = predict(user_factors, item_factors, ratings)
    return rating_errors(predicted, ratings.values, ratings.users)
