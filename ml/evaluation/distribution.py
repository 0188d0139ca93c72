"""Scores of predicted distributions over L rating levels, such as five stars.

All take probabilities (m, L), levels (L,) in rising order and the ratings that came, (m,) values among the
levels, as torch tensors; sums run in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean(probabilities: Tensor, levels: Tensor) -> Tensor:
    """The expected rating (m,) float64, the prediction that minimizes the squared error."""
    return probabilities.double() @ levels.double()


def median(probabilities: Tensor, levels: Tensor) -> Tensor:
    """The lowest level with at least half the probability at or below it: (m,) float64.

    It minimizes the expected absolute error.
    """
    below = probabilities.double().cumsum(1)
    # The sum may miss 1/2 by rounding where the halves are equal.
    return levels.double()[(below < 0.5 - 1e-9).sum(1)]


def crps(probabilities: Tensor, levels: Tensor, ratings: Tensor) -> Tensor:
    """Continuous ranked probability score of each rating, in rating units: (m,) float64.

    ∫ (F(x) − 1[r ≤ x])² dx = Σ_l (F_l − 1[r ≤ level_l])² (level_{l+1} − level_l) (Gneiting and Raftery,
    2007). For a certain prediction it is the absolute error, so it may stand beside MAE.
    """
    levels = levels.double()
    below = probabilities.double().cumsum(1)[:, :-1]
    came = (ratings.double()[:, None] <= levels[:-1]).double()
    return (below - came).square() @ levels.diff()


def log_loss(probabilities: Tensor, levels: Tensor, ratings: Tensor) -> Tensor:
    """−log of the probability of each rating that came: (m,) float64; infinite where it was 0."""
    return -probabilities.double().gather(1, _index(levels, ratings)[:, None])[:, 0].log()


def distribution_scores(probabilities: Tensor, levels: Tensor, ratings: Tensor) -> dict[str, float]:
    """Means over the ratings: `rmse` and `mae_mean` of the mean, `mae` of the median, `crps`, `log_loss` and
    `calibration_error`.

    Raises ValueError where shapes disagree, no rating is given, a row is no distribution or a rating is no
    level.
    """
    _check(probabilities, levels, ratings)
    error = mean(probabilities, levels) - ratings.double()
    return {
        "rmse": error.square().mean().sqrt().item(),
        "mae_mean": error.abs().mean().item(),
        "mae": (median(probabilities, levels) - ratings.double()).abs().mean().item(),
        "crps": crps(probabilities, levels, ratings).mean().item(),
        "log_loss": log_loss(probabilities, levels, ratings).mean().item(),
        "calibration_error": calibration_error(probabilities, levels, ratings),
    }


def calibration_curve(
    probabilities: Tensor, levels: Tensor, ratings: Tensor, bins: int = 10
) -> dict[str, Tensor]:
    """Stated against observed: P(r ≥ level) for each level but the lowest, in `bins` equal ranges.

    Returns `stated`, the mean probability, `observed`, the share of ratings that came so high, both (L − 1,
    bins) and NaN where `count` (L − 1, bins) is 0.
    """
    stated = 1 - probabilities.double().cumsum(1)[:, :-1]
    came = (ratings.double()[:, None] > levels.double()[:-1]).double()
    place = (stated * bins).long().clamp(0, bins - 1) + bins * torch.arange(len(levels) - 1)
    sums = [
        torch.bincount(place.flatten(), weights.flatten(), bins * (len(levels) - 1)).view(-1, bins)
        for weights in (torch.ones_like(stated), stated, came)
    ]
    return {"count": sums[0], "stated": sums[1] / sums[0], "observed": sums[2] / sums[0]}


def calibration_error(probabilities: Tensor, levels: Tensor, ratings: Tensor) -> float:
    """Mean distance between stated and observed probability of r ≥ level, weighted by the count of a bin."""
    curve = calibration_curve(probabilities, levels, ratings)
    gap = (curve["stated"] - curve["observed"]).abs().nan_to_num()
    return ((gap * curve["count"]).sum() / curve["count"].sum()).item()


def pit_histogram(probabilities: Tensor, levels: Tensor, ratings: Tensor, bins: int = 10) -> Tensor:
    """Non-randomized probability integral transform: shares (bins,) float64, each 1/bins if calibrated.

    A rating with F(r−) = a and F(r) = b spreads evenly over [a, b] (Czado, Gneiting and Held, 2009).
    """
    index = _index(levels, ratings)[:, None]
    upper = probabilities.double().cumsum(1).gather(1, index)
    width = probabilities.double().gather(1, index).clamp(min=1e-12)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return ((edges - (upper - width)) / width).clamp(0, 1).mean(0).diff()


def _index(levels: Tensor, ratings: Tensor) -> Tensor:
    return torch.searchsorted(levels.double(), ratings.double()).clamp(max=len(levels) - 1)


def _check(probabilities: Tensor, levels: Tensor, ratings: Tensor) -> None:
    if probabilities.shape != (len(ratings), len(levels)) or len(ratings) == 0:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} do not fit {len(ratings)} ratings and "
            f"{len(levels)} levels; give one row a rating, one column a level, and at least one rating"
        )
    sums = probabilities.double().sum(1)
    wrong = ((sums - 1).abs() > 1e-4) | (probabilities < 0).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"row {row} of probabilities is no distribution: it sums to {sums[row]:.6g}")
    strange = levels.double()[_index(levels, ratings)] != ratings.double()
    if strange.any():
        row = int(strange.nonzero()[0])
        raise ValueError(f"ratings[{row}] is {ratings[row]:g}, none of the levels {levels.tolist()}")
