"""Rating prediction: errors, and predictions from factors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ml.data import Ratings

CHUNK = 1_000_000  # rows a step of `predict`, which holds two (CHUNK, k) gathers


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
def predict(
    user_factors: Tensor,
    item_factors: Tensor,
    ratings: Ratings,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """u·v of every rating: (m,) in the factors' dtype, within `clip` where that is given.

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
        product = user_factors.index_select(0, users).mul_(item_factors.index_select(0, items))
        torch.sum(product, 1, out=part)
    return out.clamp_(*clip) if clip else out


def _check_rows(field: str, index: Tensor, rows: int) -> None:
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise ValueError(
            f"ratings.{field} spans {int(index.min())}..{int(index.max())}, but the factors have {rows} "
            f"rows; number {field} as the factor table does"
        )
