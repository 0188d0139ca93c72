"""Coverage: every prediction is in one bucket of each kind, and the sums are those of its bucket."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.evaluation.coverage import coverage
from ml.evaluation.ratings import rating_errors

SCALE = (1.0, 5.0)


def table(predicted, actual, item_ratings=None, history=None, clip=False):
    m = len(actual)
    counts = [torch.tensor(x or [0] * m) for x in (item_ratings, history)]
    rows = coverage(torch.tensor(predicted), torch.tensor(actual), *counts, SCALE, clip)
    return {(row["by"], row["bucket"]): row for row in rows}


def test_counts_fall_into_the_named_buckets():
    counts = [0, 1, 4, 5, 6, 20, 21, 1000]
    rows = table([3.0] * 8, [3.0] * 8, counts, counts)
    size = {key: row["count"] for key, row in rows.items()}
    assert {b: size["item", b] for b in ("0", "1–4", "≥ 5")} == {"0": 1, "1–4": 2, "≥ 5": 5}
    by_history = {b: size["history", b] for b in ("0", "1–5", "6–20", "> 20")}
    assert by_history == {"0": 1, "1–5": 3, "6–20": 2, "> 20": 2}


def test_sums_of_a_bucket_by_hand():
    rows = table([2.0, 3.5, 6.0], [1.0, 4.0, 4.0], [0, 2, 3])
    seen = rows["item", "1–4"]
    assert (seen["count"], seen["absolute"], seen["squared"]) == (2, 2.5, 4.25)
    assert (seen["predicted"], seen["actual"], seen["outside"]) == (9.5, 8.0, 1)
    assert ("item", "≥ 5") not in rows


def test_clipping_changes_the_errors_and_not_the_share_outside():
    raw, clipped = (table([6.0, 0.0], [4.0, 1.0], clip=clip)["all", "all"] for clip in (False, True))
    assert (raw["absolute"], clipped["absolute"]) == (3.0, 1.0)
    assert raw["outside"] == clipped["outside"] == 2


def test_calibration_bins_divide_the_scale_and_hold_what_is_beyond_it():
    rows = table([-1.0, 1.0, 1.24, 1.25, 4.9, 5.0, 9.0], [1.0] * 7)
    bins = {bucket: row["count"] for (by, bucket), row in rows.items() if by == "prediction"}
    assert bins == {"1.00–1.25": 3, "1.25–1.50": 1, "4.75–5.00": 3}


def test_a_diverged_prediction_shows():
    row = table([math.nan, 3.0], [1.0, 1.0])["all", "all"]
    assert math.isnan(row["absolute"])
    assert row["outside"] == 1


@given(
    st.lists(
        st.tuples(st.floats(-2, 8, width=32), st.integers(1, 5), st.integers(0, 9), st.integers(0, 30)),
        min_size=1,
        max_size=40,
    )
)
def test_buckets_of_each_kind_add_up_to_the_whole(rows):
    predicted, actual, item_ratings, history = map(list, zip(*rows, strict=True))
    actual = [float(value) for value in actual]
    found = coverage(
        torch.tensor(predicted),
        torch.tensor(actual),
        torch.tensor(item_ratings),
        torch.tensor(history),
        SCALE,
        clip=False,
    )
    reference = rating_errors(torch.tensor(predicted), torch.tensor(actual), torch.zeros(len(rows)))
    for kind in ("all", "item", "history", "prediction"):
        mine = [row for row in found if row["by"] == kind]
        assert sum(row["count"] for row in mine) == len(rows)
        assert sum(row["absolute"] for row in mine) / len(rows) == pytest.approx(reference["mae"])
        assert (sum(row["squared"] for row in mine) / len(rows)) ** 0.5 == pytest.approx(reference["rmse"])
