"""Rating prediction: errors, predictions from factors, and which epoch's errors are reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ml.models.base import Ratings

CHUNK = 1_000_000  # rows a step of `predict`, which holds two (CHUNK, k) gathers

Curve = dict[str, dict[str, float] | None]


def rating_errors(
    predicted: Tensor | np.ndarray, actual: Tensor | np.ndarray, users: Tensor | np.ndarray
) -> dict[str, float]:
    """MAE and RMSE over m ratings, accumulated in float64.

    predicted, actual: (m,) numbers; users: (m,) integers naming each rating's user; tensors or arrays alike.
    `mae` and `rmse` weigh every rating equally (paper section 5.1, micro); `mae_macro` and `rmse_macro` are
    means over users of the user's own MAE and RMSE. A NaN prediction gives NaN errors.
    Raises ValueError where the three differ in shape or hold no rating.
    """
    predicted, actual, users = (torch.as_tensor(x) for x in (predicted, actual, users))
    shapes = [tuple(x.shape) for x in (predicted, actual, users)]
    if shapes != [(actual.numel(),)] * 3:
        raise ValueError(f"predicted, actual and users must be (m,) alike, got {', '.join(map(str, shapes))}")
    if len(actual) == 0:
        raise ValueError("no ratings to evaluate: the split holds no target rating of these users")
    difference = predicted.double() - actual.double()
    absolute, squared = difference.abs(), difference.square()
    row, counts = torch.unique(users, return_inverse=True, return_counts=True)[1:]
    return {
        "mae": absolute.mean().item(),
        "rmse": squared.mean().sqrt().item(),
        "mae_macro": (torch.bincount(row, absolute) / counts).mean().item(),
        "rmse_macro": (torch.bincount(row, squared) / counts).sqrt().mean().item(),
    }


@torch.no_grad()
def predict(user_factors: Tensor, item_factors: Tensor, ratings: Ratings) -> Tensor:
    """u·v of every rating: (m,) in the factors' dtype.

    user_factors: (n, k), item_factors: (items, k); `ratings` names their rows. Raises ValueError where the
    widths differ or a rating names a row that is not there.
    """
    if user_factors.shape[1:] != item_factors.shape[1:]:
        raise ValueError(
            f"user factors {tuple(user_factors.shape)} and item factors {tuple(item_factors.shape)} "
            "differ in width; transfer into the space of these items"
        )
    _check_rows("users", ratings.users, len(user_factors))
    _check_rows("items", ratings.items, len(item_factors))
    out = user_factors.new_empty(len(ratings))
    parts = zip(*(x.split(CHUNK) for x in (out, ratings.users, ratings.items)), strict=True)
    for part, users, items in parts:
        torch.sum(user_factors[users] * item_factors[items], 1, out=part)
    return out


def _check_rows(field: str, index: Tensor, rows: int) -> None:
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise ValueError(
            f"ratings.{field} spans {int(index.min())}..{int(index.max())}, but the factors have {rows} "
            f"rows; number {field} as the factor table does"
        )


@dataclass(frozen=True)
class Selected:
    """One reported error: the test `value` of `metric` at `epoch` (from 1), which rule `selection` chose."""

    selection: str
    metric: str
    value: float
    epoch: int


def select(curves: Sequence[Curve]) -> list[Selected]:
    """The test errors to report for a training whose epoch e measured `curves[e - 1]`.

    Each element is {"validation": errors or None, "test": errors}, errors as of `rating_errors`: lower is
    better. The rules, in the order of the rows:
    `validation`: one epoch for all metrics, the one of the lowest validation RMSE; absent without validation;
    `last`: the last epoch;
    `best_on_test`: each metric at its own best test epoch, as the paper's code reports.
    Of equal epochs the earliest counts; a NaN loses to any number. Raises ValueError on an empty list and
    where only some epochs have validation errors.
    """
    validated = _validated(curves)
    rules = ["validation"] * validated + ["last"]
    epochs = {"validation": chosen_epoch(curves), "last": len(curves)}
    rows = [
        Selected(rule, metric, value, epochs[rule])
        for rule in rules
        for metric, value in curves[epochs[rule] - 1]["test"].items()
    ]
    for metric in curves[0]["test"]:
        values = [curve["test"][metric] for curve in curves]
        best = _lowest(values)
        rows.append(Selected("best_on_test", metric, values[best], best + 1))
    return rows


def chosen_epoch(curves: Sequence[Curve]) -> int:
    """The epoch (from 1) of the lowest validation RMSE, or the last one without a validation set."""
    if not _validated(curves):
        return len(curves)
    return 1 + _lowest([curve["validation"]["rmse"] for curve in curves])


def _validated(curves: Sequence[Curve]) -> bool:
    if not curves:
        raise ValueError("no epoch to select from: measure at least one")
    missing = [number for number, curve in enumerate(curves, 1) if curve["validation"] is None]
    if missing and len(missing) < len(curves):
        raise ValueError(f"epochs {missing} have no validation errors, the others have; measure every epoch")
    return not missing


def _lowest(values: Sequence[float]) -> int:
    return min(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
