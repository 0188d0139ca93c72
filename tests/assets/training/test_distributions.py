"""Distributions on the tiny task through Dagster: what they may see, what is written, and that it adds up."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from assets.data.cell import held_out_ratings, joined, training_rows
from assets.report.results import read_calibration, read_results, read_validation, read_warming
from assets.settings.profile import load_profiles
from assets.training.distributions import Predicted, describe, overlap_codes, predict, transfer_ratings
from assets.training.effects import effects_asset, fit_source
from assets.training.factors import factor_assets
from assets.training.models import model_asset
from assets.training.warming import diffusions, warming_asset
from ml.data import Ratings
from ml.distribution.registry import build, hyperparameters
from ml.evaluation.distribution import distribution_scores
from ml.splits import TEST, VALIDATION
from tests.assets.axes import CELL
from tests.assets.house import house

MODELS = ("cmf", "emcdr", "diffcdr_vector", "diffcdr")
SMALL = {"epochs": 1, "samples": 16, "diffusion": {"steps": 20}}


def small():
    """The tuned profile with few models and few steps."""
    tuned = load_profiles()["tuned"]
    settings = {**tuned.settings, "diffcdr": {"model": "star_diffusion", **SMALL}}
    settings["diffcdr_gaussian"] = {**settings["diffcdr"], "vectors": "gaussian"}
    for name in ("cmf", "emcdr", "diffcdr_vector"):
        settings[name] = {**settings[name], "trials": settings[name]["trials"][:2]}
    controls = ("item_mean", "star_logit", "star_boosting", "shared_vector", "permuted_source")
    return dataclasses.replace(
        tuned, models=("tgt", *MODELS), ablations=("diffcdr_gaussian",), controls=controls, settings=settings
    )


@functools.cache
def tuned():
    """The tiny task's home with every kind of model of `small` trained in one cell."""
    made, profile = house(), small()
    assets = [*factor_assets(profile), effects_asset(profile), warming_asset(profile)]
    assets += [model_asset(profile, name) for name in profile.trained]
    names = [f"tuned/{asset.key.path[-1]}" for asset in assets]
    made.make(names, CELL.key, *assets)
    return made, profile


def results():
    made, _ = tuned()
    frame = read_results(made.store, "tiny", "tuned")
    return frame[(frame["stage"] == "cold") & (frame["selection"] == "validation")].pivot(
        index="model", columns="metric", values="value"
    )


def test_every_model_is_judged_under_every_rule():
    made, profile = tuned()
    frame = read_results(made.store, "tiny", "tuned")
    assert set(frame["model"]) == set(profile.trained)
    for _, part in frame.groupby("model"):
        rules = set(part[part["metric"] == "rmse"]["selection"])
        assert rules == {"validation", "last", "best_on_test"}
    assert np.isfinite(frame["value"]).all()


def test_training_sees_no_rating_of_a_held_out_user():
    made, profile = tuned()
    description = describe(made.store, profile, CELL, "star_diffusion")
    data = transfer_ratings(made.store, profile, CELL, description)
    for role in (VALIDATION, TEST):
        members, ratings = held_out_ratings(made.store, profile, CELL, role)
        hidden = overlap_codes(made.store, CELL.task, "target")[members]
        assert len(ratings)
        assert not np.isin(data.target.users.numpy(), hidden).any()
    assert len(data.target) == training_rows(made.store, profile, CELL).sum()


def test_users_are_described_by_their_own_source_ratings():
    made, profile = tuned()
    description = describe(made.store, profile, CELL, "star_diffusion")
    data = transfer_ratings(made.store, profile, CELL, description)
    counts = dict(made.query("tiny_video", 'SELECT "user", count(*) FROM ratings GROUP BY ALL'))
    known = torch.nonzero(data.source_user >= 0).flatten()
    rows = data.source_user[known]
    expected = torch.tensor([np.log1p(counts[int(row)]) for row in rows])
    torch.testing.assert_close(description[rows, -1], expected, check_dtype=False)


def test_what_is_restored_predicts_what_was_measured():
    made, profile = tuned()
    entry = made.store.model("tuned", "diffcdr", CELL)
    config = json.loads(entry.read("config.json"))
    assert config["model"] == "star_diffusion"
    model = build(config["model"], **config["hyperparameters"])
    model.load_state_dict(entry.tensors("weights.safetensors"))
    members, ratings = held_out_ratings(made.store, profile, CELL, TEST)
    description = describe(made.store, profile, CELL, "star_diffusion")
    rows = description[overlap_codes(made.store, CELL.task, "source")[members]]
    probabilities = model.predict(rows, ratings.users, ratings.items)
    scores = distribution_scores(probabilities, model.state_["levels"], ratings.values)
    measured = results().loc["diffcdr"]
    for name, value in scores.items():
        assert measured[name] == pytest.approx(value, rel=1e-6)


def test_the_errors_by_user_add_up_to_the_metrics():
    made, _ = tuned()
    frame = results()
    for model in ("diffcdr", "star_logit", "star_boosting", "emcdr", "item_mean"):
        sums = made.store.model("tuned", model, CELL).table("user_errors.parquet")
        total = sums["count"].sum()
        assert sums["absolute"].sum() / total == pytest.approx(frame.loc[model, "mae"], rel=1e-5)
        assert (sums["squared"].sum() / total) ** 0.5 == pytest.approx(frame.loc[model, "rmse"], rel=1e-5)
        crps = frame.loc[model, "crps" if model in ("diffcdr", "star_logit") else "mae"]
        assert sums["crps"].sum() / total == pytest.approx(crps, rel=1e-5)


def test_only_distributions_have_scores_of_distributions():
    frame = results()
    assert set(frame.index[frame["crps"].notna()]) == {
        "diffcdr",
        "diffcdr_gaussian",
        "star_logit",
        "permuted_source",
    }
    assert set(frame.index[frame["joint_log_likelihood"].notna()]) == {"diffcdr", "diffcdr_gaussian"}


def test_calibration_counts_every_rating_once_a_level():
    made, profile = tuned()
    ratings = held_out_ratings(made.store, profile, CELL, TEST)[1]
    frame = read_calibration(made.store, "tuned")
    levels = frame[(frame["model"] == "diffcdr") & (frame["kind"] == "level")]
    assert (levels.groupby("level")["count"].sum() == len(ratings)).all()
    high = levels[levels["level"] == 5]["observed"].sum()
    assert high == (ratings.values == 5).sum()
    pit = frame[(frame["model"] == "diffcdr") & (frame["kind"] == "pit")]["count"]
    assert pit.sum() == pytest.approx(len(ratings))


def test_the_trial_is_chosen_on_validation_users_alone():
    made, profile = tuned()
    judged = read_validation(made.store, "tuned").set_index("model")
    for model in ("cmf", "emcdr", "diffcdr_vector"):
        trials = made.store.model("tuned", model, CELL).table("trials.parquet")
        assert len(trials) == len(profile.settings[model]["trials"])
        assert trials["chosen"].sum() == 1
        chosen = trials[trials["chosen"]].iloc[0]
        assert chosen["validation_rmse"] == trials["validation_rmse"].min()
        assert chosen["validation_rmse"] == pytest.approx(judged.loc[model, "rmse"])
        assert not [name for name in trials if name.startswith("test_")]


def test_mlflow_shows_the_settings_of_the_chosen_trial():
    made, _ = tuned()
    entry = made.store.model("tuned", "diffcdr_vector", CELL)
    trials = entry.table("trials.parquet")
    chosen = trials[trials["chosen"]].iloc[0]
    client, _ = made.tracking.connect()
    params = client.get_run(entry.require()["mlflow_run_id"]).data.params
    assert params["model"] == "diffcdr"
    assert float(params["task_weight"]) == chosen["task_weight"]
    assert (params["clip_predictions"], params["clip"]) == ("True", "1.0")


def test_biased_factors_predict_by_a_plain_product():
    made, profile = tuned()
    factors = made.store.target_factors("tuned", CELL).tensors("factors.safetensors")
    users, items = joined(factors)
    assert users.shape[1] == items.shape[1] == 10
    torch.testing.assert_close(
        users[3] @ items[4], factors["users"][3] @ factors["items"][4] + factors["offset"][4]
    )
    # A user without training ratings stands at the item's mean: TGT is that predictor.
    hidden = overlap_codes(made.store, CELL.task, "target")[
        held_out_ratings(made.store, profile, CELL, TEST)[0]
    ]
    assert (factors["users"][hidden] == 0).all()


def test_warming_up_compares_methods_on_the_same_ratings():
    made, profile = tuned()
    assert diffusions(profile) == ["diffcdr", "diffcdr_gaussian"]
    frame = read_warming(made.store, "tuned").set_index(["method", "n"])
    assert {"diffcdr", "diffcdr_gaussian", "gaussian_prior", "shrunk_bias"} <= set(
        frame.index.unique("method")
    )
    assert (frame.groupby(level="n")["ratings"].nunique() == 1).all()
    assert frame.loc[("diffcdr", 0), "users"] >= 10


def test_what_is_current_is_not_fitted_again():
    made, profile = tuned()
    entry = made.store.source_effects("tuned", "tiny_video", 0)
    before = entry.require()
    fit_source(made.store, profile, "tiny_video", 0)
    assert entry.require() == before


def test_a_point_is_its_own_crps():
    point = torch.tensor([2.0, 4.5])
    ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([3.0, 4.0]))
    predicted = Predicted(point, point)
    assert predicted.crps(ratings).tolist() == [1.0, 0.5]
    assert "crps" not in predicted.metrics(ratings)


def test_a_model_of_points_is_not_asked_for_probabilities():
    class Points:
        def predict(self, description, users, items):
            return torch.full((len(users),), 3.0)

    ratings = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([3.0]))
    assert predict(Points(), torch.zeros(1, 5), ratings, torch.arange(1.0, 6)).probabilities is None


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("star", {}, "unknown model 'star'"),
        ("star_diffusion", {"sample": 1}, "unknown hyper-parameter 'sample'"),
        (
            "star_diffusion",
            {"diffusion": {"step": 1}},
            "star_diffusion.diffusion: unknown hyper-parameter 'step'",
        ),
        ("star_diffusion", {"samples": 1.5}, "samples must be of type int"),
        ("star_logit", {"diffusion": {}}, "unknown hyper-parameter 'diffusion'"),
    ],
)
def test_what_a_distribution_does_not_have_is_named(name, values, message):
    with pytest.raises(ValueError, match=message):
        build(name, **values)


def test_the_hyperparameters_are_flat():
    shown = hyperparameters(build("star_diffusion", **SMALL))
    assert (shown["epochs"], shown["diffusion.steps"], shown["diffusion.nfe"]) == (1, 20, 12)
    assert "diffusion" not in shown
