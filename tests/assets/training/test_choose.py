"""The one best: what failed is not better than what did not, and costs nobody else a seed."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.training.choose import best, candidates, compared
from tests.assets.report.sources import PAPER, TUNED


def validated(**errors):
    """Validation errors by model, of seeds 0, 1, …; None is no cell."""
    rows = [
        (seed, model, value)
        for model, values in errors.items()
        for seed, value in enumerate(values)
        if value is not None
    ]
    return pd.DataFrame(rows, columns=["seed", "model", "rmse"])


def test_the_lowest_mean_wins_or_the_highest():
    frame = validated(one=[1.0, 1.2], two=[1.1, 1.0])
    assert best(frame, ["one", "two"], "rmse") == "two"
    assert best(frame, ["one", "two"], "rmse", higher_is_better=True) == "one"
    assert best(frame, ["one"], "rmse") == "one"


@pytest.mark.parametrize("failed", [math.nan, math.inf, -math.inf, None])
def test_a_model_that_failed_on_one_of_two_seeds_is_not_recommended_over_a_stable_one(failed):
    frame = validated(unstable=[0.5, failed], stable=[1.0, 1.0])
    assert best(frame, ["unstable", "stable"], "rmse") == "stable"


def test_the_bad_seed_of_one_model_is_not_dropped_for_the_others():
    # Over seed 0 alone `lucky` would win.
    frame = validated(unstable=[0.5, math.nan], lucky=[0.8, 1.4], steady=[1.0, 1.0])
    assert best(frame, ["unstable", "lucky", "steady"], "rmse") == "steady"


def test_where_all_failed_somewhere_those_that_failed_least_are_compared_on_what_they_share():
    frame = validated(one=[math.nan, 1.0, 9.0], two=[2.0, 2.0, math.nan], three=[0.1, math.nan, math.nan])
    assert best(frame, ["one", "two", "three"], "rmse") == "one"


def test_nothing_is_chosen_where_nothing_is_finite():
    assert best(validated(one=[math.nan]), ["one"], "rmse") is None
    assert best(validated(), ["one"], "rmse") is None
    assert best(validated(one=[1.0]), ["two"], "rmse") is None


def test_of_equal_ones_the_first_counts():
    frame = validated(one=[1.0, 1.0], two=[1.0, 1.0])
    assert best(frame, ["two", "one"], "rmse") == "two"


FINITE = st.floats(0.1, 10)


@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=2, max_size=5), st.data())
def test_what_fails_never_gains(values, data):
    models = {f"m{i}": list(row) for i, row in enumerate(values)}
    before = best(validated(**models), models, "rmse")
    loser = data.draw(st.sampled_from(sorted(models)))
    models[loser][data.draw(st.integers(0, 2))] = data.draw(st.sampled_from([math.nan, math.inf]))
    after = best(validated(**models), models, "rmse")
    assert after != loser
    if before != loser:
        assert after == before
    means = {name: np.mean(row) for name, row in models.items() if name != loser}
    assert means[after] == min(means.values())


def test_what_answers_for_anyone_is_a_candidate_and_all_but_probes_are_compared():
    for profile in (PAPER, TUNED):
        rated = {
            name for name in (*profile.models, *profile.controls) if "rating" in profile.objectives_of(name)
        }
        assert rated - set(compared(profile)) == {"permuted_source"}
        # Users who come later are in no table of theirs.
        assert set(compared(profile)) - set(candidates(profile)) == {"tgt", "cmf"}
    assert "popularity" in candidates(PAPER, "ranking")
    assert "ridge_source" not in candidates(PAPER, "ranking")
