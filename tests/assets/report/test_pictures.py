"""What is drawn by β, by time and by epoch is what the cells hold."""

import math

import pandas as pd
import pytest

from assets.report.by_beta import by_beta_part
from assets.report.cost import cost_frame
from assets.report.histograms import history_lengths
from assets.report.learning import learning_frame
from assets.state import plots
from assets.state.store import Store
from tests.assets.cells import errors, finish
from tests.assets.report.sources import PAPER, TUNED, source_of


def test_one_beta_is_said_and_several_are_drawn(tmp_path):
    store = Store(home=str(tmp_path))
    finish(store, "emcdr", "tiny|b20-s0", errors(1.0, 1.2))
    part = by_beta_part(source_of(PAPER, store))
    assert (len(part.pictures), list(part.sentences)) == (
        0,
        ["Only β = 20% has been run; others would be drawn beside it."],
    )
    finish(store, "emcdr", "tiny|b50-s0", errors(1.1, 1.3))
    part = by_beta_part(source_of(PAPER, store))
    assert (len(part.pictures), list(part.sentences)) == (1, [])
    assert part.frame["mean"].tolist() == [1.2, 1.3]


def test_time_is_a_seed_s_share(tmp_path):
    store = Store(home=str(tmp_path))
    speed = {"device": "cpu", "replicas": 2, "train_samples": 1000, "train_seconds": 5.0}
    speed |= {"test_samples": 100, "test_users": 10, "test_seconds": 0.5}
    files = {"throughput.parquet": pd.DataFrame([speed])}
    for key in ("tiny|b20-s0", "tiny|b20-s1", "tiny|b50-s0"):
        finish(store, "emcdr", key, errors(1.0, 1.2), files=files)
    (row,) = cost_frame(source_of(PAPER, store)).to_dict("records")
    assert (row["beta"], row["value"], row["seconds"], row["users_a_second"]) == (0.2, 1.2, 2.5, 20.0)


def test_curves_are_means_over_the_seeds_of_the_epochs_that_all_have(tmp_path):
    store = Store(home=str(tmp_path))
    for seed, values in ((0, [3.0, 2.0, 1.0]), (1, [1.0, 1.0])):
        curves = pd.DataFrame(
            {"epoch": range(1, len(values) + 1), "validation_rmse": values, "test_rmse": 9.0}
        )
        finish(store, "emcdr", f"tiny|b20-s{seed}", errors(1, 1), "tuned", files={"curves.parquet": curves})
    closed = pd.DataFrame({"epoch": [1], "validation_rmse": [1.0]})
    finish(store, "cmf", "tiny|b20-s0", errors(1, 1), "tuned", files={"curves.parquet": closed})
    frame = learning_frame(source_of(TUNED, store))
    assert frame[["model", "epoch", "value"]].values.tolist() == [["emcdr", 1, 2.0], ["emcdr", 2, 1.5]]


def test_lengths_of_histories_are_counted_by_span():
    counts = history_lengths(pd.Series([1, 2, 3, 4, 5, 9, 10, 99, 100, 5000]))
    assert counts.to_dict() == {
        "1": 1, "2": 1, "3–4": 2, "5–9": 2, "10–19": 1, "20–49": 0, "50–99": 1, "100+": 2,
    }  # fmt: skip


def test_labels_are_moved_apart_and_stay_in_order():
    assert plots._apart([0.0, 0.5, 1.0], 0.1) == [0.0, 0.5, 1.0]
    heights = plots._apart([0.5, 0.5, 0.52, 0.9], 0.1)
    assert heights == pytest.approx([0.5 + 0.02 / 3 - 0.1, 0.5 + 0.02 / 3, 0.5 + 0.02 / 3 + 0.1, 0.9])


def test_what_is_far_off_does_not_press_the_others_together():
    low, high = plots.near(pd.Series([1.0, 1.1, 1.2, 50.0]), 1.0, 4.0)
    assert low < 1.0
    assert 1.2 < high < 2.0
    assert all(math.isfinite(end) for end in plots.near(pd.Series([1.0]), 1.0, 4.0))
