"""Serving in a profile of biased factors and distributions: any model that is best answers, new users too."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from assets.serving.bundle import Bundle, RecommendationError
from assets.serving.choice import Choice, Chosen, choose
from assets.serving.lists import Wanted
from assets.serving.recommendations import RecommendationConfig, cold_users, recommend_cell
from assets.serving.user_files import recommend_file
from assets.settings.profile import load_profiles
from assets.training.effects import effects_asset
from assets.training.factors import factor_assets
from assets.training.models import model_asset
from assets.training.run import gate_of
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.house import house as trained_house

TUNED = load_profiles()["tuned"]
NAMES = ("emcdr", "star_diffusion", "star_logit", "ridge_source", "diffcdr")


def quick() -> dict:
    """Enough to see that it works: no trials but one, few epochs."""
    entries = {
        name: dataclasses.replace(TUNED.entries[name], trials=TUNED.entries[name].trials[:1])
        if isinstance(TUNED.entries[name].trials, tuple)
        else TUNED.entries[name]
        for name in TUNED.entries
    }
    star = entries["star_diffusion"]
    settings = {**star.settings, "epochs": 1, "diffusion.steps": 60}
    return {**entries, "star_diffusion": dataclasses.replace(star, settings=settings)}


PROFILE = dataclasses.replace(
    TUNED,
    name="served",
    objectives=("rating",),
    models=("emcdr", "diffcdr", "star_diffusion"),
    ablations=(),
    controls=("star_logit", "ridge_source"),
    entries=quick(),
)


@pytest.fixture(scope="module")
def house():
    made = trained_house()
    assets = [
        *factor_assets(AXES, PROFILE),
        effects_asset(AXES, PROFILE),
        *(model_asset(AXES, PROFILE, name) for name in NAMES),
    ]
    names = [f"served/{name}" for name in ("source_factors", "target_factors", "source_effects", *NAMES)]
    made.make(names, CELL.key, *assets)
    return made


def bundle(house, name: str) -> Bundle:
    choice = Choice(name, "rating")
    return Bundle.of_cell(house.store, PROFILE, CELL, Chosen(choice, choice))


def test_the_best_of_all_kinds_answers(house):
    values = {
        name: house.store.model("served", name, CELL).table("curves.parquet")["validation_rmse"].min()
        for name in NAMES
    }
    assert choose(house.store, CATALOG, PROFILE, [CELL]).lists.name == min(values, key=values.get)


@pytest.mark.parametrize("name", NAMES)
def test_a_held_out_user_gets_what_evaluation_saw(house, name):
    """By the user's row, and by the user's source ratings alone."""
    held = gate_of(house.store, PROFILE, name, CELL, "rating").held_out("test")
    answers = bundle(house, name).recommender
    rows = held.users.source_rows
    asked = answers.known_users(rows)
    items = torch.arange(len(answers.popularity))
    model = answers.lists.model
    expected = model.scores(held.users, items)
    torch.testing.assert_close(model.scores(asked.lists, items), expected)
    new = answers.new_users(asked.ratings, len(rows))
    folded = model.scores(new.lists, items)
    if name == "star_diffusion":
        # Trained vectors are means over sweeps, a folded one is the mode on the final items.
        agreement = np.corrcoef(folded.flatten(), expected.flatten())[0, 1]
        assert agreement > 0.98
    else:
        torch.testing.assert_close(folded, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_lists_explains_and_is_kept(house, name, tmp_path):
    made = bundle(house, name)
    for file, content in made.files().items():
        (tmp_path / file).write_bytes(content)
    kept = Bundle.of_files(tmp_path)
    rows = torch.from_numpy(cold_users(house.store, PROFILE, CELL))
    before, after = (b.recommender.recommend(b.recommender.known_users(rows), 20) for b in (made, kept))
    assert torch.equal(before.items, after.items)
    torch.testing.assert_close(before.mean, after.mean, equal_nan=True)
    asked = kept.recommender.known_users(rows[:1])
    items = after.items[0][after.items[0] >= 0][:3]
    history = set(asked.ratings.items.tolist())
    assert all(set(reasons) <= history for reasons in kept.recommender.because(asked, 0, items))


def test_the_asset_writes_what_the_best_says(house):
    facts = recommend_cell(house.store, AXES, PROFILE, CELL, RecommendationConfig(k=5))
    frame = house.store.recommendations("served", CELL).table("recommendations.parquet")
    assert len(frame) == facts["rows"]
    assert set(frame["model"]) == {facts["model"]}
    assert frame["rating"].between(1, 5).all()
    assert frame["median"].between(1, 5).all()


def test_a_rating_between_the_levels_is_named(house, tmp_path):
    made = bundle(house, "star_diffusion")
    frame = pd.DataFrame({"user_id": ["a"] * 2, "item_id": made.source_ids[:2], "rating": [4.0, 4.5]})
    frame.to_csv(tmp_path / "users.csv", index=False)
    with pytest.raises(RecommendationError, match=r"row 2: rating 4\.5 is none of the levels 1, 2, 3, 4, 5"):
        recommend_file(made, tmp_path / "users.csv", tmp_path / "recs.csv", Wanted())
    recommend_file(bundle(house, "emcdr"), tmp_path / "users.csv", tmp_path / "recs.csv", Wanted(k=2))
    assert len(pd.read_csv(tmp_path / "recs.csv")) == 2
