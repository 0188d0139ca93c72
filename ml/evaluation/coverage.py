"""Where the errors are: by what is known of the item and of the user, and by what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

CALIBRATION_BINS = 16


@dataclass(frozen=True)
class Buckets:
    """Which bucket (m,) int64 each prediction is in, and the buckets' labels in order."""

    by: str
    index: Tensor
    labels: Sequence[str]


def coverage(
    predicted: Tensor,
    actual: Tensor,
    item_ratings: Tensor,
    history: Tensor,
    scale: tuple[float, float],
    clip: bool,
    median: Tensor | None = None,
) -> list[dict]:
    """Sums over the predictions of each bucket that has any: one row a bucket.

    predicted: (m,) before clipping; actual: (m,); item_ratings: (m,) int64 training ratings of each
    prediction's item; history: (m,) int64 length of its user's liked source history; clip: whether errors are
    those of predictions clipped to the scale; median: (m,), what absolute errors are taken of where it is not
    `predicted`. A row has `by` (all, item, history or prediction), `bucket`,
    `position` of the bucket, `count`, and sums of the absolute and squared errors, of what was predicted and
    was actual, and the number of predictions outside the scale before clipping.
    The buckets of `prediction`, for calibration, divide the scale into CALIBRATION_BINS of one width;
    predictions beyond its ends are in the outermost. A NaN counts as outside, and in the last one.
    """
    low, high = scale
    predicted, actual = predicted.double(), actual.double()
    used = predicted.clamp(low, high) if clip else predicted
    values = {
        "absolute": ((used if median is None else median.double()) - actual).abs(),
        "squared": (used - actual).square(),
        "predicted": used,
        "actual": actual,
        "outside": ~((predicted >= low) & (predicted <= high)),
    }
    buckets = (
        Buckets("all", torch.zeros(len(actual), dtype=torch.int64), ("all",)),
        _by_count("item", item_ratings, (0, 4), ("0", "1–4", "≥ 5")),
        _by_count("history", history, (0, 5, 20), ("0", "1–5", "6–20", "> 20")),
        _by_prediction(predicted, low, high),
    )
    return [row for part in buckets for row in _sums(part, values)]


def _by_count(by: str, counts: Tensor, last: Sequence[int], labels: Sequence[str]) -> Buckets:
    """Buckets that end with the counts `last`; the one after them has no end."""
    return Buckets(by, torch.bucketize(counts, torch.tensor(last)), labels)


def _by_prediction(predicted: Tensor, low: float, high: float) -> Buckets:
    edges = torch.linspace(low, high, CALIBRATION_BINS + 1, dtype=torch.float64)
    labels = [f"{a:.2f}–{b:.2f}" for a, b in pairwise(edges.tolist())]
    return Buckets("prediction", torch.bucketize(predicted, edges[1:-1], right=True), labels)


def _sums(buckets: Buckets, values: dict[str, Tensor]) -> list[dict]:
    size = len(buckets.labels)
    counts = torch.bincount(buckets.index, minlength=size)
    sums = {
        name: torch.bincount(buckets.index, value.double(), minlength=size) for name, value in values.items()
    }
    return [
        {
            "by": buckets.by,
            "bucket": label,
            "position": position,
            "count": int(counts[position]),
            **{name: total[position].item() for name, total in sums.items()},
        }
        for position, label in enumerate(buckets.labels)
        if counts[position]
    ]
