"""Controls on the tiny task: nothing hidden is learnt from, the source matters, and clipping is as asked."""

import dagster as dg
import numpy as np
import pytest
import torch

from assets.data.cell import domain_ratings, held_out_ratings, roles
from assets.report.results import read_coverage, read_results
from assets.settings.axes import CATALOG, Cell
from assets.settings.profile import load_profiles
from assets.state.store import Store
from assets.training.controls import PERMUTED, PREDICTORS, VECTORS, evidence, source_of
from ml.evaluation.ratings import predict, rating_errors
from ml.splits import TEST, TRAIN, VALIDATION
from pipeline.chain import Chain

CELL = Cell.parse("tiny|b20-s0")
STRICT = load_profiles()["strict"]
CONTROLS = [name for name in STRICT.controls if STRICT.objectives_of(name)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A home with DiffCDR and every control of one cell."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setenv("DIFFCDR_HOME", home)
        chain = Chain(instance, ["tiny"], [0.2], [0], ["strict"], ["diffcdr", *CONTROLS])
        for title, step in chain.steps():
            if "tables" not in title:
                step()
    return Store(home=home)


def values(store, metric, selection="validation"):
    frame = read_results(store)
    frame = frame[(frame["selection"] == selection) & (frame["stage"] == "cold")]
    return frame[frame["metric"] == metric].set_index("model")["value"]


def test_every_control_of_the_profile_has_results_under_every_rule(store):
    assert {*PREDICTORS, *VECTORS, PERMUTED, "random"} == set(STRICT.controls)
    for selection in ("validation", "last", "best_on_test"):
        assert set(values(store, "mae", selection).index) == {"diffcdr", *CONTROLS}


def test_diffcdr_without_its_users_source_is_worse(store):
    rmse = values(store, "rmse")
    assert rmse["permuted_source"] > rmse["diffcdr"]


def test_simple_predictors_are_ordered_by_what_they_know(store):
    rmse = values(store, "rmse")
    assert rmse["ridge_source"] < rmse["item_mean"] < rmse["global_mean"]


def test_evidence_holds_training_ratings_only(store):
    given = evidence(store, STRICT, CELL, source_of(store, "tiny"))
    role = roles(store, STRICT, CELL)
    users = store.overlap("tiny").table("users.parquet")
    hidden = users["target_user"].to_numpy()[role != TRAIN]
    everything = domain_ratings(store, "tiny_music")
    assert len(given.known) == (~np.isin(everything.users, hidden)).sum()
    assert not np.isin(given.known.users.numpy(), hidden).any()
    assert set(role[given.training.users.unique()]) == {TRAIN}
    assert set(role[given.validation.users.unique()]) == {VALIDATION}


def test_a_profile_without_validation_users_has_none_to_choose_by(store):
    given = evidence(store, load_profiles()["paper"], CELL, source_of(store, "tiny"))
    assert given.validation is None
    assert len(given.known) > len(evidence(store, STRICT, CELL, given.source).known)


def test_source_statistics_are_those_of_the_users_own_ratings(store):
    users = store.overlap("tiny").table("users.parquet")
    ratings = domain_ratings(store, "tiny_video")
    row = 11
    mine = ratings.values[ratings.users == users.loc[row, "source_user"]]
    expected = [mine.std(), (mine == 5).mean(), (mine <= 2).mean(), np.log1p(len(mine))]
    assert source_of(store, "tiny")[row, 1:].tolist() == pytest.approx(expected, rel=1e-6)


def test_stored_factors_give_the_reported_clipped_error(store):
    entry = store.model("strict", "ridge_source", CELL)
    factors = entry.tensors("users.safetensors")
    _, ratings = held_out_ratings(store, STRICT, CELL, TEST)
    raw = predict(factors["users"], factors["items"], ratings)
    clipped = predict(factors["users"], factors["items"], ratings, CATALOG.domains["tiny_music"].scale)
    reported = values(store, "mae")["ridge_source"]
    assert rating_errors(clipped, ratings.values, ratings.users)["mae"] == pytest.approx(reported, rel=1e-6)
    assert not torch.equal(raw, clipped)
    coverage = read_coverage(store, "strict").set_index(["model", "by"])
    whole = coverage.loc[("ridge_source", "all")].iloc[0]
    assert whole["outside"] == (raw != clipped).sum().item()
    assert whole["absolute"] / whole["count"] == pytest.approx(reported, rel=1e-6)
    errors = entry.table("user_errors.parquet")
    assert errors["absolute"].sum() == pytest.approx(whole["absolute"], rel=1e-6)


def test_coverage_knows_the_training_ratings_and_the_histories(store):
    frame = read_coverage(store, "strict")
    mine = frame[frame["model"] == "diffcdr"]
    _, ratings = held_out_ratings(store, STRICT, CELL, TEST)
    known = evidence(store, STRICT, CELL, source_of(store, "tiny")).items.count[ratings.items]
    by_item = mine[mine["by"] == "item"].set_index("bucket")["count"].to_dict()
    expected = {"0": known == 0, "1–4": (known > 0) & (known < 5), "≥ 5": known >= 5}
    assert by_item == {bucket: int(rows.sum()) for bucket, rows in expected.items() if rows.any()}
    assert mine[mine["by"] == "history"]["count"].sum() == len(ratings)


def test_controls_are_not_warmed_up(store):
    assert set(store.model("strict", "item_mean", CELL).table("metrics.parquet")["stage"]) == {"cold"}
    assert "warm" in set(store.model("strict", "diffcdr", CELL).table("metrics.parquet")["stage"])
