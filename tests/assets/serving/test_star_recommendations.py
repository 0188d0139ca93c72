"""Recommending and registering in a profile whose DiffCDR is a distribution on ratings, on the tiny task."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from assets.data.cell import domain_ratings, training_rows
from assets.serving.recommendations import (
    Bundle,
    RecommendationConfig,
    RecommendationError,
    best_model,
    candidates,
    cold_users,
    load_bundle,
    recommend_cell,
    recommend_file,
    recommendations_asset,
)
from assets.serving.registry import NotPromoted, register, rivals
from assets.settings.axes import Cell
from assets.settings.profile import load_profiles
from assets.state.store import parquet
from assets.training.effects import effects_asset
from assets.training.models import model_asset
from ml.data import Ratings
from tests.assets.cells import errors
from tests.assets.house import CELL
from tests.assets.house import house as trained_house

TUNED = load_profiles()["tuned"]
# Enough to see that it works.
QUICK = {"model": "star_diffusion", "epochs": 1, "diffusion": {"steps": 60}}
PROFILE = dataclasses.replace(
    TUNED,
    name="served",
    models=("emcdr", "diffcdr"),
    ablations=(),
    controls=("ridge_source", "star_logit"),
    settings={**TUNED.settings, "diffcdr": QUICK},
)
BEATEN = ("global_mean", "item_mean", "item_source_bias", "ridge_source", "star_logit")


@pytest.fixture(scope="module")
def house():
    made = trained_house()
    assets = [effects_asset(PROFILE), model_asset(PROFILE, "diffcdr"), recommendations_asset(PROFILE)]
    names = ["served/source_effects", "served/diffcdr", "served/recommendations"]
    made.make(names, CELL.key, *assets)
    return made


@pytest.fixture(scope="module")
def bundle(house) -> Bundle:
    return load_bundle(house.store, PROFILE, "tiny", "b20-s0", RecommendationConfig())


@pytest.fixture(scope="module")
def written(house) -> pd.DataFrame:
    return house.store.recommendations("served", CELL).table("recommendations.parquet")


def test_with_biased_factors_only_the_distribution_recommends(house):
    assert candidates(TUNED) == ["diffcdr"]
    assert best_model(house.store, PROFILE, CELL) == ("diffcdr", "rating")


def test_the_asset_depends_on_effects_and_not_on_factors():
    [keys] = recommendations_asset(TUNED).asset_deps.values()
    paths = {key.to_user_string() for key in keys}
    assert paths == {"split", "tuned/source_effects", "tuned/diffcdr"}


def test_every_cold_user_gets_the_items_of_the_highest_mean(house, bundle, written):
    cold = cold_users(house.store, PROFILE, CELL)
    assert written["user"].tolist() == np.repeat(cold, 20).tolist()
    assert set(written["model"]) == {"diffcdr"}
    target = domain_ratings(house.store, "tiny_music")
    trained = np.bincount(target.items[training_rows(house.store, PROFILE, CELL)], minlength=target.n_items)
    model, rows = bundle.recommender.model, bundle.users.description[cold]
    users = torch.arange(len(cold)).repeat_interleave(target.n_items)
    p = model.predict(rows, users, torch.arange(target.n_items).repeat(len(cold)))
    means = (p @ torch.arange(1.0, 6)).view(len(cold), -1)
    means[:, trained == 0] = -torch.inf
    np.testing.assert_allclose(
        written["score"].to_numpy().reshape(-1, 20), means.topk(20).values, atol=1e-4, rtol=0
    )


def test_other_effects_make_the_recommendations_stale(house):
    entry = house.store.source_effects("served", "tiny_video", CELL.seed)
    before = house.store.recommendations("served", CELL).require()
    recommend_cell(house.store, house.compute, PROFILE, CELL, RecommendationConfig())
    assert house.store.recommendations("served", CELL).require() == before
    facts = entry.require()
    content = entry.read("effects.safetensors")
    entry.write({"effects.safetensors": content}, "others", users=facts["users"], items=facts["items"])
    recommend_cell(house.store, house.compute, PROFILE, CELL, RecommendationConfig())
    after = house.store.recommendations("served", CELL).require()
    assert after["fingerprint"] != before["fingerprint"]


# Users from a file.


def histories(house) -> pd.DataFrame:
    rows = house.query(
        "tiny_video",
        'SELECT user_id, item_id, rating FROM ratings JOIN users USING ("user") JOIN items USING (item) '
        "ORDER BY ratings.rowid",
    )
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])


def asked(bundle, frame: pd.DataFrame, folder) -> tuple[dict, pd.DataFrame]:
    frame.to_parquet(folder / "users.parquet", index=False)
    counts = recommend_file(bundle, folder / "users.parquet", folder / "recs.parquet", 20)
    return counts, pd.read_parquet(folder / "recs.parquet")


def test_known_users_and_strangers_of_a_file(bundle, written, tmp_path):
    known = written["user_id"].iloc[0]
    counts, got = asked(bundle, pd.DataFrame({"user_id": [known, "stranger"]}), tmp_path)
    assert counts == {"users": 2, "by_popularity": 1}
    mine = got[got["user_id"] == known]
    assert mine["item_id"].tolist() == written[written["user_id"] == known]["item_id"].tolist()


def test_new_users_are_folded_in_and_get_nearly_what_they_got_in_training(house, bundle, tmp_path):
    """Whoever rated anything is known, even one who liked nothing."""
    frame = histories(house)
    counts, got = asked(bundle, frame.assign(user_id="new-" + frame["user_id"]), tmp_path)
    assert counts == {"users": len(bundle.user_ids), "by_popularity": 0}
    rows = bundle.recommender.transfer(bundle.users)
    trained, _ = bundle.recommender.top(rows, torch.from_numpy(bundle.known), 20)
    folded = torch.from_numpy(got["item"].to_numpy().reshape(-1, 20))
    order = np.argsort(bundle.user_ids.astype(str), kind="stable")
    agreement = (folded[:, :, None] == trained[order][:, None, :]).any(2).float().mean()
    assert agreement > 0.9


def test_a_rating_between_the_levels_is_named(house, bundle, tmp_path):
    frame = histories(house).head(5)
    frame.loc[2, "rating"] = 4.5
    with pytest.raises(RecommendationError, match=r"row 3: rating 4\.5 is none of the levels 1, 2, 3, 4, 5"):
        asked(bundle, frame, tmp_path)


def test_folding_by_hand_is_what_the_file_gets(house, bundle):
    every = domain_ratings(house.store, "tiny_video")
    folded = bundle.recommender.fold(
        Ratings(*map(torch.from_numpy, (every.users, every.items, every.values))), every.n_users
    )
    trained = bundle.users.description
    assert torch.corrcoef(torch.stack([folded.description[:, 0], trained[:, 0]]))[0, 1] > 0.99
    torch.testing.assert_close(folded.description[:, -1], trained[:, -1])


# The registry.


def judged(house, **rmse: float) -> None:
    own = house.store.model("served", "diffcdr", CELL).table("curves.parquet")["validation_rmse"].min()
    for name in BEATEN:
        curves = pd.DataFrame({"epoch": [1], "validation_rmse": [rmse.get(name, own + 0.1)]})
        rows = [(*where, value, 1) for where, value in errors(0.8, 1.0, "validation").items()]
        metrics = pd.DataFrame(rows, columns=["stage", "selection", "metric", "value", "epoch"])
        files = {"curves.parquet": parquet(curves), "metrics.parquet": parquet(metrics)}
        house.store.model("served", name, Cell.parse(CELL.key)).write(files, "made by hand")


def test_what_does_not_beat_the_logit_is_not_promoted(house):
    assert rivals(PROFILE) == list(BEATEN)
    judged(house, star_logit=0.001)
    with pytest.raises(NotPromoted, match=r"but star_logit has 0\.0010"):
        register(house.store, house.tracking, "tiny", PROFILE)
    (house.store.model("served", "star_logit", CELL).path / "manifest.json").unlink()
    with pytest.raises(NotPromoted, match="there is no validation RMSE of star_logit"):
        register(house.store, house.tracking, "tiny", PROFILE)


def test_the_distribution_is_registered_with_its_scores(house):
    judged(house)
    done = register(house.store, house.tracking, "tiny", PROFILE)
    assert done.model == "diffcdr"
    card = done.card
    assert "| model | validation RMSE | test RMSE | test MAE | test CRPS | test calibration error |" in card
    test = house.store.model("served", "diffcdr", CELL).table("metrics.parquet")
    test = test.query("stage == 'cold' and selection == 'validation'").set_index("metric")["value"]
    shown = " | ".join(f"{test[name]:.4f}" for name in ("rmse", "mae", "crps", "calibration_error"))
    assert f" | {shown} |" in card
    assert "| star_logit (simple) |" in card
    assert "| 1.0000 | 0.8000 | nan | nan |" in card
    assert "Of a model with a CRPS, MAE is that of the median." in card
    assert "- Users without source ratings get popular items" in card
    client, _ = house.tracking.connect()
    version = client.get_model_version_by_alias("diffcdr-tiny", "champion")
    [folder] = house.home.rglob(f"{version.tags['logged_model']}/artifacts")
    config = json.loads((folder / "artifacts" / "config.json").read_text())
    assert config["recommender"] == "distribution"
    assert config["settings"]["hyperparameters"]["diffusion"]["steps"] == 60
