"""Whether two models differ by more than chance: tests over pairs, Holm's correction, a bootstrap over users.

All differences are ours − other: of errors, a negative one means that ours is better. What the data cannot
decide is None with the reason in `undefined`, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ROUNDING = 1e-12  # of the largest value: differences below it come from the order of summation
CHUNK = 1_000_000  # bootstrap multiplicities drawn at once, 8 bytes each in a few copies


@dataclass(frozen=True)
class Test:
    """A two-sided test of n pairs; statistic and p_value are None where `undefined` says why."""

    statistic: float | None
    p_value: float | None
    n: int
    undefined: str | None = None


@dataclass(frozen=True)
class Interval:
    """A difference and its confidence interval over n_users; None where `undefined` says why."""

    difference: float | None
    low: float | None
    high: float | None
    n_users: int
    undefined: str | None = None


def paired_t_test(ours: Sequence[float], other: Sequence[float]) -> Test:
    """Student's paired t-test, the test of the paper's Table 2 (ρ = 0.05, pairs are seeds).

    ours, other: (n,) numbers, pair i being ours[i] and other[i]. Undefined for fewer than two pairs, values
    that are NaN or infinite, and differences that are all equal, zero included: their variance is zero.
    Raises ValueError where the shapes differ.
    """
    difference, rounding = _differences(ours, other)
    reason = _undecidable(difference, "pair")
    if reason is None and np.ptp(difference) <= rounding:
        reason = f"all {len(difference)} differences are equal, so they have no variance"
    if reason is not None:
        return Test(None, None, len(difference), reason)
    result = stats.ttest_1samp(difference, 0)
    return Test(float(result.statistic), float(result.pvalue), len(difference))


def wilcoxon_signed_rank(ours: Sequence[float], other: Sequence[float]) -> Test:
    """Wilcoxon's signed-rank test of paired values (n,): seeds, or the users' own errors.

    Pairs that tie are dropped, as Wilcoxon did; `n` counts the others and `statistic` is the smaller rank
    sum. The p-value is exact for up to 50 pairs without equal ranks: five seeds cannot go below 2/2⁵ =
    0.0625. Undefined for fewer than two pairs, values that are NaN or infinite, and where all pairs tie.
    Raises ValueError where the shapes differ.
    """
    difference, rounding = _differences(ours, other)
    reason = _undecidable(difference, "pair")
    if reason is not None:
        return Test(None, None, len(difference), reason)
    untied = difference[np.abs(difference) > rounding]
    if len(untied) == 0:
        return Test(None, None, 0, f"all {len(difference)} pairs tie")
    result = stats.wilcoxon(untied)
    return Test(float(result.statistic), float(result.pvalue), len(untied))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down adjusted p-values, under the same names in the same order.

    The i-th smallest of m (from 0) becomes the largest (m − j) p_j of j ≤ i, at most 1. An undefined one,
    None or NaN, stays undefined (None) and does not count in m. Raises ValueError for a p-value outside
    [0, 1].
    """
    defined = {name: p for name, p in p_values.items() if p is not None and not math.isnan(p)}
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, name in enumerate(sorted(defined, key=defined.__getitem__)):
        if not 0 <= defined[name] <= 1:
            raise ValueError(f"{name} has p-value {defined[name]}; give one in 0..1, or None where undefined")
        largest = max(largest, (len(defined) - rank) * defined[name])
        adjusted[name] = min(1.0, largest)
    return adjusted


def paired_bootstrap(
    ours: np.ndarray,
    other: np.ndarray,
    weights: np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    root: bool = False,
) -> Interval:
    """Percentile interval of the difference of two micro errors when whole users are drawn again.

    ours, other: (users,) each user's sum of absolute errors (MAE), or of squared errors with `root` (RMSE);
    weights: (users,) the number of ratings summed. The statistic is Σ ours / Σ weights − Σ other / Σ weights,
    with `root` the difference of their square roots. Users are drawn with replacement, both models' sums
    together, because the ratings of one user are not independent. Undefined for fewer than two users and for
    sums that are NaN or infinite. Raises ValueError where shapes differ, a sum is negative, a user has no
    rating, or level is outside (0, 1).
    """
    return paired_bootstraps({"ours": ours}, other, weights, resamples, seed, level, root)["ours"]


def paired_bootstraps(
    several: Mapping[str, np.ndarray],
    other: np.ndarray,
    weights: np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    root: bool = False,
) -> dict[str, Interval]:
    """`paired_bootstrap` of several models (users,) against one other, by name.

    The users are drawn once for all of them, which is most of the work.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give the share that the interval covers, such as 0.95")
    other, weights = (np.asarray(x, dtype=np.float64) for x in (other, weights))
    columns = {name: np.asarray(ours, dtype=np.float64) for name, ours in several.items()}
    for ours in columns.values():
        _check_sums(ours, other, weights)
    reasons = {name: _undecidable(ours + other, "user") for name, ours in columns.items()}
    decidable = [name for name, reason in reasons.items() if reason is None]
    drawn = [*(columns[name] for name in decidable), other, weights]
    *totals, of_other, of_weights = _resampled_totals(drawn, resamples, seed) if decidable else (None, None)
    found, tail = {}, (1 - level) / 2
    for name, reason in reasons.items():
        if reason is not None:
            found[name] = Interval(None, None, None, len(weights), reason)
            continue
        of_ours = totals[decidable.index(name)]
        differences = _error_difference(np.stack([of_ours, of_other, of_weights]), root)
        low, high = np.quantile(differences, [tail, 1 - tail])
        observed = _error_difference(np.stack([columns[name], other, weights]).sum(1), root)
        found[name] = Interval(float(observed), float(low), float(high), len(weights))
    return found


def _differences(ours: Sequence[float], other: Sequence[float]) -> tuple[np.ndarray, float]:
    """ours − other (n,) in float64, and the size up to which a difference is rounding."""
    ours, other = np.asarray(ours, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != other.shape:
        raise ValueError(f"ours {ours.shape} and other {other.shape} must be (n,) alike; pair them first")
    return ours - other, ROUNDING * np.abs([ours, other]).max(initial=0)


def _undecidable(values: np.ndarray, unit: str) -> str | None:
    """Why no test can use these values, one for each pair or user; None where it can."""
    if len(values) < 2:
        return f"needs at least two {unit}s, got {len(values)}"
    if not np.isfinite(values).all():
        return f"{unit} {int(np.argmin(np.isfinite(values)))} has a value that is NaN or infinite"
    return None


def _check_sums(ours: np.ndarray, other: np.ndarray, weights: np.ndarray) -> None:
    shapes = [x.shape for x in (ours, other, weights)]
    if shapes != [(ours.size,)] * 3:
        raise ValueError(f"ours, other and weights must be (users,) alike, got {', '.join(map(str, shapes))}")
    for name, values, wrong in (
        ("ours", ours, ours < 0),
        ("other", other, other < 0),
        ("weights", weights, ~((weights > 0) & np.isfinite(weights))),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{name}[{row}] is {values[row]}; give each user's sum of absolute or squared errors, "
                "its number of ratings as weight, and leave out users without ratings"
            )


def _resampled_totals(columns: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """The columns' totals (columns, resamples) over users drawn with replacement."""
    rng = np.random.default_rng(seed)
    users = len(columns[0])
    rows = max(1, CHUNK // users)
    parts = []
    for start in range(0, resamples, rows):
        draws = min(rows, resamples - start)
        drawn = rng.integers(users, size=(draws, users)) + users * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * users).reshape(draws, users).astype(np.float64)
        # Column by column, so that equal columns have bitwise equal totals and equal models differ by 0.
        parts.append([times @ column for column in columns])
    return np.concatenate(parts, axis=1)


def _error_difference(totals: np.ndarray, root: bool) -> np.ndarray:
    """The difference of the errors whose totals (ours, other, weights) are the rows of (3, ...)."""
    ours, other = totals[:2] / totals[2]
    return np.sqrt(ours) - np.sqrt(other) if root else ours - other
