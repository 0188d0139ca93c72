"""Recommendations on the tiny task: who gets them, what they are, and what a bad filter says."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from assets.data.cell import training_rows
from assets.data.domain import domain_ratings
from assets.serving import recommendations
from assets.serving.answering import ANY_CELL, answering
from assets.serving.bundle import Bundle, RecommendationError
from assets.serving.choice import Choice, Chosen, choose, choose_at, objectives
from assets.serving.recommendations import RecommendationConfig, recommend_cell, recommendations_asset
from assets.settings.profile import load_profiles
from assets.state.store import NotMaterialized, Store
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.house import MODELS, STRICT
from tests.assets.house import house as trained_house

pytestmark = pytest.mark.usefixtures("house")


@pytest.fixture(scope="module")
def house():
    return trained_house()


@pytest.fixture(scope="module")
def written(house):
    """The asset's file as a table, its metadata and its number of row groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommendations, "CHUNK", 50)
        done = house.make(["strict/recommendations"], CELL.key, recommendations_asset(AXES, STRICT))
    [event] = done.asset_materializations_for_node("strict__recommendations")
    path = house.store.recommendations("strict", CELL).path_of("recommendations.parquet")
    groups = pq.ParquetFile(path).num_row_groups
    return pd.read_parquet(path), {name: entry.value for name, entry in event.metadata.items()}, groups


def make(house, **config) -> pd.DataFrame:
    recommend_cell(house.store, AXES, STRICT, CELL, RecommendationConfig(**config))
    return house.store.recommendations("strict", CELL).table("recommendations.parquet")


def counts(house) -> np.ndarray:
    target = domain_ratings(house.store, "tiny_music")
    rows = training_rows(house.store, STRICT, CELL)
    return np.bincount(target.items[rows], minlength=target.n_items)


def rated(house) -> dict[str, set[str]]:
    rows = house.query(
        "tiny_music",
        'SELECT user_id, item_id FROM ratings JOIN users USING ("user") JOIN items USING (item)',
    )
    return pd.DataFrame(rows, columns=["user", "item"]).groupby("user")["item"].agg(set).to_dict()


def test_every_cold_user_and_no_other_gets_a_list(house, written):
    frame, metadata, groups = written
    source = {user for (user,) in house.query("tiny_video", "SELECT user_id FROM users")}
    target = {user for (user,) in house.query("tiny_music", "SELECT user_id FROM users")}
    shared = house.store.overlap("tiny").table("users.parquet")
    role = house.store.split(CELL).table("roles.parquet")["role"]
    expected = (source - target) | set(shared["user_id"][(role == 2).to_numpy()])
    assert set(frame["user_id"]) == expected
    assert metadata["users"] == len(expected)
    assert metadata["dagster/row_count"] == len(frame)
    assert not frame.duplicated(["user_id", "item_id"]).any()
    ranks = frame.groupby("user_id")["rank"].agg(list)
    assert all(each == list(range(1, len(each) + 1)) for each in ranks)
    assert (ranks.map(len) == 20).mean() > 0.9
    assert groups == -(-len(expected) // 50)


def test_ids_that_are_numbers_in_the_data_are_numbers_in_the_asset(house, monkeypatch):
    of_cell = Bundle.of_cell

    def numbered(*given) -> Bundle:
        made = of_cell(*given)
        ids = {
            name: np.array([str(base + row) for row in range(len(getattr(made, name)))], dtype=object)
            for name, base in (("user_ids", 1000), ("target_ids", 7000))
        }
        return dataclasses.replace(made, **ids, numbered=frozenset({"user_ids", "target_item_ids"}))

    monkeypatch.setattr(Bundle, "of_cell", numbered)
    frame = make(house, k=3)
    assert frame[["user_id", "item_id"]].dtypes.tolist() == [np.int64, np.int64]
    assert (frame["user_id"] == 1000 + frame["user"]).all()
    assert (frame["item_id"] == 7000 + frame["item"]).all()


def test_the_ids_are_those_of_the_codes(house, written):
    users = dict(house.query("tiny_video", 'SELECT "user", user_id FROM users'))
    items = dict(house.query("tiny_music", "SELECT item, item_id FROM items"))
    assert (written[0]["user"].map(users) == written[0]["user_id"]).all()
    assert (written[0]["item"].map(items) == written[0]["item_id"]).all()


def test_what_a_user_has_rated_is_not_listed_unless_asked_for(house, written):
    known = rated(house)
    pairs = zip(written[0]["user_id"], written[0]["item_id"], strict=True)
    assert not any(item in known.get(user, ()) for user, item in pairs)
    everything = make(house, include_rated=True)
    pairs = zip(everything["user_id"], everything["item_id"], strict=True)
    assert any(item in known.get(user, ()) for user, item in pairs)


def test_scores_and_stars_are_those_of_the_trained_model(house, written):
    from assets.training.run import gate_of, restored_model

    chosen = choose_at(house.store, AXES, STRICT, CELL)
    frame = written[0]
    name = chosen.lists.name
    gate = gate_of(house.store, STRICT, name, CELL, "rating")
    held = gate.held_out("test")
    scores = restored_model(house.store, STRICT, name, CELL, "rating").scores(
        held.users, torch.arange(domain_ratings(house.store, "tiny_music").n_items)
    )
    compared = 0
    for row, code in zip(scores.numpy(), held.users.source_rows.tolist(), strict=True):
        mine = frame[(frame["user"] == code) & (frame["model"] == name)]
        np.testing.assert_allclose(mine["score"], row[mine["item"]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mine["rating"], row[mine["item"]].clip(1, 5), rtol=1e-4, atol=1e-5)
        compared += len(mine) > 0
    assert compared > 10


def test_of_whom_nothing_is_known_gets_the_most_popular_items_and_is_told_so(house, written):
    """Every source user has a rating, so nobody of the file is a stranger."""
    assert set(written[0]["model"]) == {choose_at(house.store, AXES, STRICT, CELL).lists.name}
    assert written[0]["note"].isna().all()
    bundle = answering(house.store, house.tracking, AXES, "tiny", STRICT, "b20-s0").bundle
    stranger = bundle.recommender.known_users(torch.tensor([-1]))
    listed = bundle.recommender.recommend(stranger, 5)
    assert not listed.known.any()
    assert listed.scores[0].tolist() == sorted(counts(house).tolist(), reverse=True)[:5]


def validation_rmse(house) -> dict[str, float]:
    return {
        name: house.store.model("strict", name, CELL).table("curves.parquet")["validation_rmse"].min()
        for name in MODELS
    }


def test_the_best_on_validation_answers(house):
    values = validation_rmse(house)
    best = Choice(min(values, key=values.get), "rating")
    assert choose_at(house.store, AXES, STRICT, CELL) == Chosen(best, best)


def test_stale_cells_do_not_count(house):
    """Under other settings what is there is not what would be trained: nothing may be chosen by it."""
    entries = {**STRICT.entries}
    name = min(validation_rmse(house), key=validation_rmse(house).get)
    entries[name] = dataclasses.replace(entries[name], settings={**entries[name].settings, "epochs": 3})
    [other] = set(MODELS) - {name}
    changed = dataclasses.replace(STRICT, entries=entries)
    assert choose(house.store, CATALOG, changed, [CELL]).lists.name == other


def test_without_validation_users_the_profiles_own_model_answers(house):
    paper = load_profiles()["paper"]
    assert objectives(paper) == ["ranking", "rating"]
    with pytest.raises(NotMaterialized, match="run `diffcdr run --task tiny --profile paper` first"):
        choose(house.store, CATALOG, paper, [CELL])


def test_the_asset_depends_on_all_that_may_be_chosen():
    [keys] = recommendations_asset(AXES, load_profiles()["tuned"]).asset_deps.values()
    names = {key.path[-1] for key in keys}
    assert {"split", "emcdr", "star_diffusion", "star_logit", "item_mean"} <= names
    assert not {"tgt", "cmf", "permuted_source", "diffcdr_mean"} & names


def test_filters_keep_items_out(house, written, tmp_path):
    best = written[0][written[0]["rank"] == 1]["item_id"].unique()[:2].tolist()
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("\n".join(["", *best, ""]))
    after = make(house, exclude=str(exclude), k=5)
    assert not set(after["item_id"]) & set(best)
    assert after["rank"].max() == 5
    few = int(np.median(counts(house)))
    assert counts(house)[make(house, min_ratings=few)["item"].unique()].min() >= few > counts(house).min()


def test_what_is_up_to_date_is_not_written_again(house):
    entry = house.store.recommendations("strict", CELL)
    make(house, k=3)
    before = entry.require()
    make(house, k=3)
    assert entry.require() == before
    make(house, k=4)
    assert entry.require() != before


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("no-such-item\n", {}, r"exclude.txt: item 'no-such-item' is not in the target domain"),
        (None, {}, r"the exclusion list .*exclude.txt cannot be read: .*No such file"),
        ("", {"min_ratings": 10**6}, r"no item has 1000000 ratings in training .* lower min_ratings"),
    ],
)
def test_a_bad_filter_is_refused_in_one_sentence(house, tmp_path, text, config, message):
    path = tmp_path / "exclude.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecommendationError, match=message):
        make(house, exclude=str(path), **config)


def test_an_order_that_the_model_does_not_make_is_refused(house):
    with pytest.raises(ValueError, match=r"list 'coverage' is none that \w+ makes; it makes probability"):
        make(house, list="coverage")


def test_the_first_trained_cell_answers_where_there_is_no_champion(house, tmp_path):
    found = answering(house.store, house.tracking, AXES, "tiny", STRICT, ANY_CELL)
    assert found.bundle.cell == CELL.key
    assert found.what == f"{found.bundle.names} of tiny|b20-s0, profile strict"
    with pytest.raises(RecommendationError, match="unknown cell 'b99-s0'; known are b20-s0, b20-s1"):
        answering(house.store, house.tracking, AXES, "tiny", STRICT, "b99-s0")
    with pytest.raises(NotMaterialized, match=r"tiny\|b50-s0 … b50-s1: no model of profile strict is"):
        answering(house.store, house.tracking, AXES, "tiny", STRICT, "b50-s1")
    with pytest.raises(NotMaterialized, match="run `diffcdr run --task tiny --profile strict` first"):
        answering(Store(home=str(tmp_path)), house.tracking, AXES, "tiny", STRICT, ANY_CELL)
