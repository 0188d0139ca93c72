"""What the choice of a trial and an epoch is worth on users that it was not made on.

The best of many trials and epochs on validation users is in part the one that was lucky with them, and the
more were tried the luckier: by that number a model with eight trials is ahead of a better one with none. So
models are compared by a number that luck is not in. Validation users are cut into FOLDS; of each fold the
value counts that the trial and epoch have there which are best on the other folds (cross-validation of the
choice, Stone, JRSS B 1974). It is never better than the best of what was tried, and where there is nothing to
choose it is the plain value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ml.data import Predicted, Ratings
from ml.evaluation.cold_start import crps_of, user_error_sums
from ml.evaluation.lists import list_scores
from ml.evaluation.selection import Objective

FOLDS = 5
# By metric: the sum over a fold's ratings or users, and how many there are, each (FOLDS, 2) float64.
FoldSums = Mapping[str, Tensor]
ROOTS = ("rmse",)


def rating_sums(predicted: Predicted, ratings: Ratings, n_users: int) -> FoldSums:
    """Of predictions of n users' ratings; CRPS where a distribution was predicted."""
    errors = user_error_sums(predicted.mean, predicted.median, crps_of(predicted, ratings), ratings, n_users)
    names = {"mae": "absolute", "rmse": "squared", "crps": "crps"}
    if predicted.probabilities is None:
        del names["crps"]
    users = torch.arange(n_users)
    return {name: _by_fold(users, errors[of], errors["count"]) for name, of in names.items()}


def list_sums(lists: Tensor, ratings: Ratings, n_items: int) -> FoldSums:
    """Of lists (n, k) int64 of n users."""
    scores = list_scores(lists, ratings, n_items)
    each = torch.ones(len(scores.users))
    return {name: _by_fold(scores.users, values, each) for name, values in scores.values.items()}


def crossfitted(tried: Sequence[FoldSums], objective: Objective) -> dict[str, float]:
    """Each metric of a choice among what was `tried`, by the objective's criterion, on users not chosen by.

    Not finite where no criterion tried is; of equal ones the first is chosen. Raises ValueError where
    nothing was tried.
    """
    if not tried:
        raise ValueError("nothing was tried: give the sums of at least one epoch")
    sums = torch.stack([each[objective.criterion] for each in tried])
    total = sums.sum(1, keepdim=True)
    cost = _cost(total - sums, objective)
    # Where the other folds are empty there is only the total to choose by.
    cost = torch.where(cost.isfinite().any(0), cost, _cost(total, objective))
    chosen, folds = cost.argmin(0), torch.arange(sums.shape[1])
    return {
        name: _value(name, torch.stack([each[name] for each in tried])[chosen, folds]) for name in tried[0]
    }


def _by_fold(users: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    fold = users % FOLDS
    return torch.stack([torch.bincount(fold, x.double(), minlength=FOLDS) for x in (sums, counts)], 1)


def _cost(sums: Tensor, objective: Objective) -> Tensor:
    mean = sums[..., 0] / sums[..., 1]
    cost = -mean if objective.higher_is_better else mean
    return torch.where(cost.isfinite(), cost, torch.inf)


def _value(name: str, sums: Tensor) -> float:
    total, count = sums.sum(0).tolist()
    mean = total / count if count else float("nan")
    return mean**0.5 if name in ROOTS else mean
