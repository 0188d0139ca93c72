"""Recommendations on the tiny task: who gets them, what they are, and what a bad filter or file says."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from assets.data.cell import domain_ratings, training_rows
from assets.serving import recommendations
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
from assets.settings.profile import load_profiles
from assets.state.store import NotMaterialized
from ml.data import Ratings
from tests.assets.house import CELL, MODELS, STRICT
from tests.assets.house import house as trained_house

pytestmark = pytest.mark.usefixtures("house")


@pytest.fixture(scope="module")
def house():
    return trained_house()


@pytest.fixture(scope="module")
def written(house):
    """The asset's file, and its metadata."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommendations, "CHUNK", 50)
        done = house.make(["strict/recommendations"], CELL.key, recommendations_asset(STRICT))
    [event] = done.asset_materializations_for_node("strict__recommendations")
    path = house.store.recommendations("strict", CELL).path_of("recommendations.parquet")
    return path, {name: entry.value for name, entry in event.metadata.items()}


def make(house, **config) -> pd.DataFrame:
    recommend_cell(house.store, house.compute, STRICT, CELL, RecommendationConfig(**config))
    return house.store.recommendations("strict", CELL).table("recommendations.parquet")


def test_every_cold_user_and_no_other_gets_twenty_items(house, written):
    path, metadata = written
    frame = pd.read_parquet(path)
    source = {user for (user,) in house.query("tiny_video", "SELECT user_id FROM users")}
    target = {user for (user,) in house.query("tiny_music", "SELECT user_id FROM users")}
    shared = house.store.overlap("tiny").table("users.parquet")
    role = house.store.split(CELL).table("roles.parquet")["role"]
    expected = (source - target) | set(shared["user_id"][(role == 2).to_numpy()])
    assert set(frame["user_id"]) == expected
    assert metadata["users"] == len(expected)
    assert metadata["dagster/row_count"] == len(frame) == 20 * len(expected)
    assert (frame.groupby("user_id")["rank"].agg(list).map(tuple) == tuple(range(1, 21))).all()
    assert not frame.duplicated(["user_id", "item_id"]).any()
    assert pq.ParquetFile(path).num_row_groups == -(-len(expected) // 50)


def test_the_ids_are_those_of_the_codes(house, written):
    frame = pd.read_parquet(written[0])
    users = dict(house.query("tiny_video", 'SELECT "user", user_id FROM users'))
    items = dict(house.query("tiny_music", "SELECT item, item_id FROM items"))
    assert (frame["user"].map(users) == frame["user_id"]).all()
    assert (frame["item"].map(items) == frame["item_id"]).all()


def test_scores_are_those_of_the_trained_model_on_the_test_users(house, written):
    frame = pd.read_parquet(written[0])
    name, objective = best_model(house.store, STRICT, CELL)
    users = house.store.model("strict", name, CELL, objective).tensors("users.safetensors")["users"]
    items = house.store.target_factors("strict", CELL).tensors("factors.safetensors")["items"]
    trained = np.bincount(
        domain_ratings(house.store, "tiny_music").items[training_rows(house.store, STRICT, CELL)],
        minlength=len(items),
    )
    scores = (users @ items.T).numpy()
    scores[:, trained == 0] = -np.inf
    shared = house.store.overlap("tiny").table("users.parquet")
    role = house.store.split(CELL).table("roles.parquet")["role"].to_numpy()
    compared = 0
    for row, code in zip(scores, shared["source_user"][role == 2], strict=True):
        mine = frame[(frame["user"] == code) & (frame["model"] == name)]
        if len(mine):
            np.testing.assert_allclose(mine["score"], np.sort(row)[::-1][:20], rtol=1e-4)
            np.testing.assert_allclose(mine["score"], row[mine["item"]], rtol=1e-4)
            compared += 1
    assert compared > 10


def test_who_liked_nothing_gets_the_most_popular_items(house, written):
    frame = pd.read_parquet(written[0])
    liked = {user for (user,) in house.query("tiny_video", 'SELECT "user" FROM ratings WHERE rating > 3')}
    by_popularity = frame["model"] == "popularity"
    assert (~frame["user"].isin(liked) == by_popularity).all()
    counts = np.bincount(
        domain_ratings(house.store, "tiny_music").items[training_rows(house.store, STRICT, CELL)]
    )
    bundle = load_bundle(house.store, STRICT, "tiny", "b20-s0", RecommendationConfig())
    stranger = bundle.recommend(bundle.known_users(np.array([-1]), np.array(["new"], object)), 5)
    assert stranger["model"].to_pylist() == ["popularity"] * 5
    assert stranger["user"].null_count == 5
    assert stranger["score"].to_pylist() == sorted(counts.tolist(), reverse=True)[:5]


def test_the_best_on_validation_recommends(house):
    curves = {
        name: house.store.model("strict", name, CELL).table("curves.parquet")["validation_rmse"].min()
        for name in MODELS
    }
    assert best_model(house.store, STRICT, CELL) == (min(curves, key=curves.get), "rating")


def test_a_model_that_diverged_is_never_the_best(house):
    profile = dataclasses.replace(STRICT, name="made_up")
    for name, rmse in (("emcdr", [np.nan, np.nan]), ("ptupcdr", [np.nan, 9.0])):
        house.judge(name, *rmse, profile="made_up")
    assert best_model(house.store, profile, CELL) == ("ptupcdr", "rating")


def test_without_validation_users_it_is_diffcdr_for_ranking(house):
    paper = load_profiles()["paper"]
    assert candidates(paper) == ["diffcdr"]
    with pytest.raises(NotMaterialized, match="run `diffcdr run --task tiny --profile paper` first"):
        best_model(house.store, paper, CELL)
    house.store.model("paper", "diffcdr", CELL, "ranking").write({}, "made by hand")
    assert best_model(house.store, paper, CELL) == ("diffcdr", "ranking")


def test_models_without_a_map_do_not_recommend():
    assert candidates(load_profiles()["strict"]) == ["emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr"]


def test_filters_keep_items_out(house, written, tmp_path):
    before = pd.read_parquet(written[0])
    best = before[before["rank"] == 1]["item_id"].unique()[:2].tolist()
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("\n".join(["", *best, ""]))
    after = make(house, exclude=str(exclude), k=5)
    assert not set(after["item_id"]) & set(best)
    assert after["rank"].max() == 5
    counts = np.bincount(
        domain_ratings(house.store, "tiny_music").items[training_rows(house.store, STRICT, CELL)]
    )
    few = int(np.median(counts))
    assert counts[make(house, min_ratings=few)["item"].unique()].min() >= few > counts.min()


def test_what_is_up_to_date_is_not_written_again(house):
    make(house, k=3)
    before = house.store.recommendations("strict", CELL).require()
    make(house, k=3)
    assert house.store.recommendations("strict", CELL).require() == before
    make(house, k=4)
    assert house.store.recommendations("strict", CELL).require() != before


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


# Users from a file.


@pytest.fixture(scope="module")
def bundle(house) -> Bundle:
    return load_bundle(house.store, STRICT, "tiny", "", RecommendationConfig())


def histories(house, prefix: str = "") -> pd.DataFrame:
    rows = house.query(
        "tiny_video",
        'SELECT user_id, item_id, rating FROM ratings JOIN users USING ("user") JOIN items USING (item) '
        "ORDER BY ratings.rowid",
    )
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    return frame.assign(user_id=prefix + frame["user_id"])


def asked(bundle, frame: pd.DataFrame, folder, k: int = 20) -> tuple[dict, pd.DataFrame]:
    frame.to_parquet(folder / "users.parquet", index=False)
    counts = recommend_file(bundle, folder / "users.parquet", folder / "recs.parquet", k)
    assert {path.name for path in folder.glob("*.parquet")} == {"users.parquet", "recs.parquet"}
    return counts, pd.read_parquet(folder / "recs.parquet")


def test_known_users_of_a_file_get_what_the_asset_gives_them(house, written, bundle, tmp_path, monkeypatch):
    make(house)
    expected = house.store.recommendations("strict", CELL).table("recommendations.parquet")
    monkeypatch.setattr(recommendations, "CHUNK", 7)
    cold = bundle.user_ids[cold_users(house.store, STRICT, CELL)]
    wanted = pd.DataFrame({"user_id": [*cold[::-1], "stranger"]})
    counts, got = asked(bundle, wanted, tmp_path)
    assert counts["users"] == len(cold) + 1
    assert got[got["user_id"] == "stranger"]["model"].unique().tolist() == ["popularity"]
    mine = got[got["user_id"] != "stranger"].reset_index(drop=True).astype({"user": "int32"})
    pd.testing.assert_frame_equal(mine, expected, check_exact=False, rtol=1e-5)


def test_new_users_of_a_file_are_folded_in(house, bundle, tmp_path, monkeypatch):
    _, whole = asked(bundle, histories(house, "new-"), tmp_path)
    assert whole["user"].isna().all()
    monkeypatch.setattr(recommendations, "CHUNK", 31)
    counts, chunked = asked(bundle, histories(house, "new-"), tmp_path)
    assert counts["users"] == len(bundle.user_ids)
    assert counts["by_popularity"] == (~bundle.known).sum()
    pd.testing.assert_frame_equal(whole, chunked, check_exact=False, rtol=1e-4)

    every = domain_ratings(house.store, "tiny_video")
    rows = (every.users, every.items, every.values)
    folded = bundle.recommender.fold(Ratings(*map(torch.from_numpy, rows)), every.n_users)
    _, scores = bundle.recommender.top(
        bundle.recommender.transfer(folded), torch.from_numpy(bundle.known), 20
    )
    np.testing.assert_allclose(whole["score"], scores.flatten(), rtol=1e-4)


def test_the_latter_of_two_ratings_counts(house, bundle, tmp_path):
    history = histories(house).query("user_id == user_id.iloc[0]")
    once = asked(bundle, history, tmp_path)[1]
    contrary = history.assign(rating=6 - history["rating"])
    pd.testing.assert_frame_equal(asked(bundle, pd.concat([contrary, history]), tmp_path)[1], once)
    assert not asked(bundle, pd.concat([history, contrary]), tmp_path)[1]["score"].equals(once["score"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": "nothing"}, r"users.parquet, row 3: item nothing is not in the source domain"),
        ({"item_id": None}, r"row 3: item null is not in the source domain"),
        ({"rating": 9.0}, r"row 3: rating 9.0 is not a number from 1 to 5; correct or remove that row"),
        ({"rating": np.nan}, r"row 3: rating n.* is not a number from 1 to 5"),
        ({"user_id": None}, r"row 3: the user id is missing"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(house, bundle, tmp_path, change, message):
    frame = histories(house).head(5).astype({"item_id": object, "user_id": object})
    for name, value in change.items():
        frame.loc[2, name] = value
    with pytest.raises(RecommendationError, match=message):
        asked(bundle, frame, tmp_path)
    assert not (tmp_path / "recs.parquet").exists()


def test_a_file_of_another_kind_is_refused(bundle, tmp_path):
    pd.DataFrame({"name": ["a"]}).to_parquet(tmp_path / "users.parquet")
    with pytest.raises(RecommendationError, match=r"no column user_id; the file has .*name"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "recs.parquet", 5)
    (tmp_path / "users.parquet").write_text("user_id\n1\n")
    with pytest.raises(RecommendationError, match="is not a readable Parquet file"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "recs.parquet", 5)


def test_an_unknown_cell_is_refused(house):
    with pytest.raises(RecommendationError, match="unknown cell 'b99-s0'; known are b20-s0, b20-s1"):
        load_bundle(house.store, STRICT, "tiny", "b99-s0", RecommendationConfig())
    with pytest.raises(NotMaterialized, match=r"tiny\|b50-s1: no model of profile strict is trained yet"):
        load_bundle(house.store, STRICT, "tiny", "b50-s1", RecommendationConfig())
