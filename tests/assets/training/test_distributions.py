"""Distributions on the tiny task: what they may see, what is written, and that it adds up."""

import dataclasses
import functools
import json
import tempfile

import numpy as np
import pytest
import torch

from assets.data.cell import SIDES, Gate, joined, training_rows
from assets.report.distribution import CALIBRATION
from assets.report.results import source
from assets.report.warming import COLUMNS
from assets.settings.profile import load_profiles
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.effects import fit_source
from assets.training.run import restored_model
from assets.training.warming import sampling_models, warm_up
from ml.evaluation.distribution import distribution_scores
from tests.assets.axes import CATALOG, CELL
from tests.assets.tiny import measured, prepare, train

MODELS = ("cmf", "emcdr", "diffcdr", "star_diffusion")
TRIED = ("cmf", "emcdr", "diffcdr")
CONTROLS = ("item_mean", "star_logit", "star_boosting", "shared_vector", "permuted_source")
SMALL = {"epochs": 1, "samples": 16, "diffusion": {"steps": 20}}


def small():
    """The tuned profile with few models, few steps and the objective of ratings alone."""
    tuned = load_profiles()["tuned"]
    names = ("tgt", *MODELS, "star_diffusion_gaussian", *CONTROLS)
    entries = {name: tuned.entries[name] for name in names}
    entries["star_diffusion"] = dataclasses.replace(entries["star_diffusion"], settings=SMALL)
    for name in TRIED:
        entries[name] = dataclasses.replace(entries[name], trials=entries[name].trials[:2])
    return dataclasses.replace(
        tuned,
        objectives=("rating",),
        models=("tgt", *MODELS),
        ablations=("star_diffusion_gaussian",),
        controls=CONTROLS,
        entries=entries,
    )


@functools.cache
def tuned():
    """The tiny task's store with every kind of model of `small` trained in one cell."""
    folder, profile = tempfile.TemporaryDirectory(prefix="diffcdr-tuned-"), small()
    store = prepare(Store(home=folder.name))
    train(store, profile, profile.trained)
    warm_up(store, CATALOG, profile, CELL)
    tuned.folder = folder  # removed with the session
    return store, profile


def read():
    return source(tuned()[0], CATALOG, tuned()[1])


def results():
    frame = read().results
    return frame[(frame["stage"] == "cold") & (frame["selection"] == "validation")].pivot(
        index="model", columns="metric", values="value"
    )


def gate(*needs, side="test"):
    store, profile = tuned()
    made = Gate(store, profile, CELL, needs=needs)
    return made, made.held_out(side)


def test_every_model_is_judged_under_every_rule():
    _, profile = tuned()
    frame = read().results
    assert set(frame["model"]) == set(profile.trained)
    for _, part in frame.groupby("model"):
        rules = set(part[part["metric"] == "rmse"]["selection"])
        assert rules == {"validation", "last", "best_on_test"}
    assert np.isfinite(frame["value"]).all()


@pytest.mark.parametrize("needs", ["effects", "stars"])
def test_training_sees_no_rating_of_a_held_out_user(needs):
    store, profile = tuned()
    for side in SIDES:
        made, held = gate(needs, side=side)
        assert len(held.ratings)
        assert not torch.isin(made.data.target.users, held.users.target_rows).any()
    assert len(made.data.target) == training_rows(store, profile, CELL).sum()


def test_users_are_described_by_their_own_source_ratings():
    made, held = gate("effects")
    counts = torch.bincount(made.data.source.users, minlength=made.data.n_source_users)
    expected = counts[held.users.source_rows].double().log1p()
    torch.testing.assert_close(held.users.description[:, -1], expected)
    known = made.data.source_user[held.users.target_rows]
    assert torch.equal(made.data.description[known], held.users.description)


@pytest.mark.parametrize("name", ["star_diffusion", "star_logit"])
def test_what_is_restored_predicts_what_was_measured(name):
    store, profile = tuned()
    config = json.loads(store.model("tuned", name, CELL).read("config.json"))
    assert config["model"] == name
    model = restored_model(store, profile, name, CELL, "rating")
    _, held = gate(*model.needs)
    predicted = model.predict(held.users, held.ratings)
    scores = distribution_scores(predicted.probabilities, predicted.levels, held.ratings.values)
    for metric, value in scores.items():
        assert results().loc[name, metric] == pytest.approx(value, rel=1e-6)


def test_restored_trees_predict_what_was_measured():
    store, profile = tuned()
    model = restored_model(store, profile, "star_boosting", CELL, "rating")
    _, held = gate("stars")
    error = (model.predict(held.users, held.ratings).median - held.ratings.values).double().abs().mean()
    assert measured(store, profile, "star_boosting", "validation")["mae"] == pytest.approx(error.item())


def test_the_errors_by_user_add_up_to_the_metrics():
    store, _ = tuned()
    frame = results()
    for model in ("star_diffusion", "star_logit", "star_boosting", "emcdr", "item_mean"):
        sums = store.model("tuned", model, CELL).table("user_errors.parquet")
        total = sums["count"].sum()
        assert sums["absolute"].sum() / total == pytest.approx(frame.loc[model, "mae"], rel=1e-5)
        assert (sums["squared"].sum() / total) ** 0.5 == pytest.approx(frame.loc[model, "rmse"], rel=1e-5)
        crps = frame.loc[model, "crps" if model in ("star_diffusion", "star_logit") else "mae"]
        assert sums["crps"].sum() / total == pytest.approx(crps, rel=1e-5)


def test_only_distributions_have_scores_of_distributions():
    frame, sampling = results(), {"star_diffusion", "star_diffusion_gaussian"}
    assert set(frame.index[frame["crps"].notna()]) == sampling | {"star_logit", "permuted_source"}
    assert set(frame.index[frame["joint_log_likelihood"].notna()]) == sampling


def test_calibration_counts_every_rating_once_a_level():
    ratings = gate()[1].ratings
    frame = read().table("calibration.parquet", CALIBRATION)
    frame = frame[frame["model"] == "star_diffusion"]
    levels = frame[frame["kind"] == "level"]
    assert (levels.groupby("level")["count"].sum() == len(ratings)).all()
    high = levels[levels["level"] == 5]["observed"].sum()
    assert high == pytest.approx((ratings.values == 5).sum().item())
    assert frame[frame["kind"] == "pit"]["count"].sum() == pytest.approx(len(ratings))


def test_the_trial_is_chosen_on_validation_users_alone():
    store, profile = tuned()
    judged = read().validated().set_index("model")
    for model in TRIED:
        trials = store.model("tuned", model, CELL).table("trials.parquet")
        assert len(trials) == len(profile.entries[model].trials)
        assert trials["chosen"].sum() == 1
        chosen = trials[trials["chosen"]].iloc[0]
        assert chosen["validation_rmse"] == trials["validation_rmse"].min()
        # What models are compared by has no luck in it, so it is never better.
        assert judged.loc[model, "rmse"] >= chosen["validation_rmse"] - 1e-6
        assert not [name for name in trials if name.startswith("test_")]


def test_mlflow_shows_the_settings_of_the_chosen_trial():
    store, _ = tuned()
    entry = store.model("tuned", "diffcdr", CELL)
    trials = entry.table("trials.parquet")
    chosen = trials[trials["chosen"]].iloc[0]
    client, _ = MlflowTracking(home=str(store.root)).connect()
    params = client.get_run(entry.require()["mlflow_run_id"]).data.params
    assert params["model"] == "diffcdr"
    assert float(params["task_weight"]) == chosen["task_weight"]
    assert (params["clip_predictions"], params["clip"]) == ("True", "1.0")


def test_mlflow_shows_nested_settings_one_by_one():
    store, _ = tuned()
    client, _ = MlflowTracking(home=str(store.root)).connect()
    run = store.model("tuned", "star_diffusion_gaussian", CELL).require()["mlflow_run_id"]
    params = client.get_run(run).data.params
    shown = {name: params[name] for name in ("model", "vectors", "epochs", "diffusion.steps")}
    assert shown == {
        "model": "star_diffusion",
        "vectors": "gaussian",
        "epochs": "1",
        "diffusion.steps": "20",
    }
    assert "diffusion" not in params


def test_biased_factors_predict_by_a_plain_product():
    store, _ = tuned()
    factors = store.target_factors("tuned", CELL).tensors("factors.safetensors")
    users, items = joined(factors)
    assert users.shape[1] == items.shape[1] == 10
    torch.testing.assert_close(
        users[3] @ items[4], factors["users"][3] @ factors["items"][4] + factors["offset"][4]
    )
    # A user without training ratings stands at the item's mean: TGT is that predictor.
    assert (factors["users"][gate()[1].users.target_rows] == 0).all()


def test_warming_up_compares_methods_on_the_same_ratings():
    _, profile = tuned()
    sampling = sampling_models(profile)
    assert sampling == ["star_diffusion", "star_diffusion_gaussian"]
    frame = read().analysis("warming", "warming.parquet", COLUMNS).set_index(["method", "n"])
    assert {*sampling, "gaussian_prior", "shrunk_bias"} <= set(frame.index.unique("method"))
    assert (frame.groupby(level="n")["ratings"].nunique() == 1).all()
    assert frame.loc[("star_diffusion", 0), "users"] >= 10


def test_what_is_current_is_not_fitted_again():
    store, profile = tuned()
    entry = store.source_effects("tuned", "tiny_video", 0)
    before = entry.require()
    fit_source(store, CATALOG, profile, CELL)
    assert entry.require() == before
