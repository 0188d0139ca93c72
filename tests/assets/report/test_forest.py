"""The first screen: what each model gains over the simplest, and what is said of it."""

import math

import numpy as np
import pandas as pd
import pytest

from assets.report.forest import forest_frame, forest_part, forest_picture, sentences
from assets.state.store import Store
from ml.evaluation.significance import paired_bootstrap
from tests.assets.cells import errors, finish, user_errors
from tests.assets.report.sources import TUNED, source_of

COUNT = [2, 3, 1, 4, 2, 3, 2, 1]
OURS = {name: TUNED.title_of(name) for name in TUNED.ours}


def stars(store, model, error, key="tiny|b20-s0", validation=None):
    """A cell whose users err by about `error` a rating, and by it on validation users."""
    noise = np.random.default_rng(len(model)).uniform(0.9, 1.1, len(COUNT))
    sums = user_errors([error * n * x for n, x in zip(COUNT, noise, strict=True)], COUNT)
    judged = error if validation is None else validation
    validated = pd.DataFrame({"mae": [judged], "rmse": [judged]})
    files = {"user_errors.parquet": sums, "validation.parquet": validated}
    finish(store, model, key, errors(error, error, "validation"), "tuned", files=files)


def lists(store, model, ndcg, key="tiny|b20-s0"):
    validated = pd.DataFrame({"ndcg@20": [float(np.mean(ndcg))]})
    scores = pd.DataFrame({"user": range(len(ndcg)), "ndcg@20": ndcg, "hr@20": 1.0})
    files = {"validation.parquet": validated, "list_scores.parquet": scores}
    finish(
        store,
        model,
        key,
        {("cold", "validation", "ndcg@20"): float(np.mean(ndcg))},
        "tuned",
        "ranking",
        files,
    )


@pytest.fixture
def store(tmp_path):
    store = Store(home=str(tmp_path))
    for model, error in (("item_mean", 1.0), ("ridge_source", 0.8), ("star_diffusion", 0.5), ("cmf", 1.4)):
        stars(store, model, error)
    lists(store, "popularity", [0.1, 0.1, 0.2, 0.2])
    lists(store, "item_regression", [0.2, 0.1, 0.3, 0.2])
    lists(store, "choice_diffusion", [0.4, 0.3, 0.5, 0.4])
    return store


def of(source, metric):
    frame = forest_frame(source)
    return frame[frame["metric"] == metric].set_index("model")


def test_gains_are_positive_where_the_model_is_better(store):
    source = source_of(TUNED, store)
    assert of(source, "ndcg@20").loc["choice_diffusion", "gain"] == pytest.approx(0.25)
    by_rmse = of(source, "rmse")
    assert set(by_rmse.index) == {"ridge_source", "star_diffusion", "cmf"}
    assert (by_rmse["gain"] > 0).to_dict() == {"ridge_source": True, "star_diffusion": True, "cmf": False}
    assert (by_rmse["low"] <= by_rmse["gain"]).all()
    assert (by_rmse["gain"] <= by_rmse["high"]).all()
    row = by_rmse.loc["star_diffusion"]
    assert row["value_reference"] - row["value"] == pytest.approx(row["gain"])


def test_the_interval_is_that_of_the_paired_bootstrap(store):
    row = of(source_of(TUNED, store), "rmse").loc["cmf"]
    sums = [source_of(TUNED, store).table("user_errors.parquet", ["model", "user", "squared", "count"])]
    ours, other = (sums[0][sums[0]["model"] == name] for name in ("cmf", "item_mean"))
    interval = paired_bootstrap(ours["squared"], other["squared"], ours["count"], resamples=1000, root=True)
    assert (row["low"], row["high"]) == pytest.approx((-interval.high, -interval.low))


def test_seeds_that_only_one_has_do_not_count(store):
    before = of(source_of(TUNED, store), "rmse")
    stars(store, "cmf", 0.1, key="tiny|b20-s1")
    pd.testing.assert_frame_equal(of(source_of(TUNED, store), "rmse"), before)
    stars(store, "item_mean", 1.0, key="tiny|b20-s1")
    after = of(source_of(TUNED, store), "rmse")
    assert after["seeds"].to_dict() == {"ridge_source": 1, "star_diffusion": 1, "cmf": 2}
    assert after.loc["cmf", "gain"] > before.loc["cmf", "gain"]


def test_a_model_that_diverged_for_a_user_has_no_gain_and_its_neighbours_keep_theirs(store):
    before = of(source_of(TUNED, store), "rmse")
    files = {"user_errors.parquet": user_errors([math.nan, *COUNT[1:]], COUNT)}
    finish(store, "cmf", "tiny|b20-s0", errors(math.nan, math.nan, "validation"), "tuned", files=files)
    after = of(source_of(TUNED, store), "rmse")
    assert after.loc["cmf", ["gain", "low", "high"]].isna().all()
    pd.testing.assert_frame_equal(after.drop("cmf"), before.drop("cmf"))
    assert len(forest_part(source_of(TUNED, store)).pictures) == 1


def test_three_sentences_say_what_is_gained_and_what_is_left_of_it(store):
    source = source_of(TUNED, store)
    first, second, third = sentences(source, forest_frame(source))
    choices, of_stars = OURS["choice_diffusion"], OURS["star_diffusion"]
    assert first.startswith(
        f"Lists by {choices} reach an nDCG@20 of 0.400, the most popular items 0.150: better by 0.250 (95 % "
    )
    assert second.startswith(f"Stars by {of_stars} miss by 0.")
    assert third.startswith(
        f"Of the simple predictors the best is Item regression in lists, 0.200 nDCG@20 behind {choices}"
    )
    assert f"behind {of_stars}" in third


def test_what_is_said_is_of_the_tasks_that_are_asked_for(store):
    source = source_of(TUNED, store)
    frame = forest_frame(source)
    elsewhere = frame.assign(task="another")
    assert not [each for each in sentences(source, elsewhere) if "Of the simple" in each]
    assert [each for each in sentences(source, frame) if "Of the simple" in each]


def test_it_is_said_where_nothing_beats_the_simplest(store):
    lists(store, "popularity", [0.9, 0.9, 0.9, 0.9])
    stars(store, "star_diffusion", 0.5, validation=0.7)
    stars(store, "item_mean", 0.9, validation=0.6)
    first, second = sentences(source_of(TUNED, store), forest_frame(source_of(TUNED, store)))
    assert first == "Nothing beats the most popular items on validation users, nDCG@20 0.900."
    assert second == "Nothing beats each item's mean on validation users, RMSE " + second[-6:]


def test_a_simple_row_that_is_the_one_to_use_is_ahead_of_what_is_trained(store):
    lists(store, "item_regression", [0.8, 0.7, 0.9, 0.8])
    first, _, third = sentences(source_of(TUNED, store), forest_frame(source_of(TUNED, store)))
    assert first.startswith("Lists by Item regression reach an nDCG@20 of 0.800")
    assert f"Item regression in lists, 0.400 nDCG@20 ahead of {OURS['choice_diffusion']}" in third


def test_a_difference_that_may_be_chance_is_said_to(store):
    lists(store, "choice_diffusion", [0.4, 0.1, 0.0, 0.2])
    lists(store, "item_regression", [0.1, 0.1, 0.1, 0.1])
    first, *_ = sentences(source_of(TUNED, store), forest_frame(source_of(TUNED, store)))
    assert ", which may be chance." in first


def test_one_panel_is_drawn_where_there_are_no_lists(tmp_path):
    store = Store(home=str(tmp_path))
    stars(store, "item_mean", 1.0)
    stars(store, "star_diffusion", 0.5)
    source = source_of(TUNED, store)
    (picture,) = forest_picture(forest_frame(source), source.names)
    assert "each item's mean (RMSE)" in picture.caption
    assert "nDCG" not in picture.caption
    assert forest_picture(forest_frame(source), source.names)[0].formats == picture.formats
    assert forest_part(source_of(TUNED, Store(home=str(tmp_path / "empty")))).sentences == []


def test_a_reference_that_alone_has_every_seed_is_not_said_to_be_better(store):
    """Models of a seed fewer cannot be chosen by validation, however good they are."""
    before = sentences(source_of(TUNED, store), forest_frame(source_of(TUNED, store)))
    for seed in range(3):
        stars(store, "item_mean", 1.0, f"tiny|b20-s{seed}")
    after = sentences(source_of(TUNED, store), forest_frame(source_of(TUNED, store)))
    assert before[1].startswith(f"Stars by {OURS['star_diffusion']} miss by ")
    assert after[1] == (
        "Stars: no model can be chosen, for some were run on fewer seeds than each item's mean; "
        "run them on the same."
    )
