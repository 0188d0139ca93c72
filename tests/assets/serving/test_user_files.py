"""Users from a file: known and new ones, Parquet and CSV, and what a bad file or row says."""

import dataclasses
import os

import numpy as np
import pandas as pd
import pytest
import torch

from assets.data.domain import domain_ratings
from assets.serving import user_files
from assets.serving.answering import answering
from assets.serving.bundle import Bundle, RecommendationError
from assets.serving.lists import NOTE, Wanted
from assets.serving.user_files import check_files, recommend_file
from tests.assets.axes import AXES
from tests.assets.house import STRICT
from tests.assets.house import house as trained_house

WANTED = Wanted()


@pytest.fixture(scope="module")
def house():
    return trained_house()


@pytest.fixture(scope="module")
def bundle(house) -> Bundle:
    return answering(house.store, house.tracking, AXES, "tiny", STRICT, "b20-s0").bundle


def histories(house, prefix: str = "") -> pd.DataFrame:
    rows = house.query(
        "tiny_video",
        'SELECT user_id, item_id, rating FROM ratings JOIN users USING ("user") JOIN items USING (item) '
        "ORDER BY ratings.row",
    )
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    return frame.assign(user_id=prefix + frame["user_id"])


def asked(bundle, frame: pd.DataFrame, folder, wanted: Wanted = WANTED) -> tuple[dict, pd.DataFrame]:
    frame.to_parquet(folder / "users.parquet", index=False)
    counts = recommend_file(bundle, folder / "users.parquet", folder / "recs.parquet", wanted)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"users.parquet", "recs.parquet"}
    return counts, pd.read_parquet(folder / "recs.parquet")


def test_known_users_and_strangers(bundle, tmp_path, monkeypatch):
    known = bundle.user_ids[[5, 2, 9]].tolist()
    counts, got = asked(bundle, pd.DataFrame({"user_id": [*known, "a stranger"]}), tmp_path)
    assert counts == {"users": 4, "by_popularity": 1}
    stranger = got[got["user_id"] == "a stranger"]
    assert stranger["model"].unique().tolist() == ["popularity"]
    assert stranger["note"].unique().tolist() == [NOTE]
    assert stranger["user"].isna().all()
    listed = bundle.recommender.recommend(bundle.recommender.known_users(torch.tensor([5])), 20)
    mine = got[got["user_id"] == known[0]]
    assert mine["item"].tolist() == listed.items[0][listed.items[0] >= 0].tolist()
    assert mine["user"].tolist() == [5] * len(mine)
    monkeypatch.setattr(user_files, "CHUNK", 2)
    pd.testing.assert_frame_equal(
        asked(bundle, pd.DataFrame({"user_id": [*known, "a stranger"]}), tmp_path)[1], got, rtol=1e-5
    )


def test_new_users_are_folded_in(house, bundle, tmp_path, monkeypatch):
    _, whole = asked(bundle, histories(house, "new-"), tmp_path)
    assert whole["user"].isna().all()
    monkeypatch.setattr(user_files, "CHUNK", 31)
    counts, chunked = asked(bundle, histories(house, "new-"), tmp_path)
    assert counts == {"users": len(bundle.user_ids), "by_popularity": 0}
    pd.testing.assert_frame_equal(whole, chunked, check_exact=False, rtol=1e-4)
    ratings = domain_ratings(house.store, "tiny_video")
    new = bundle.recommender.new_users(ratings.tensors(), ratings.n_users)
    scores = bundle.recommender.recommend(new, 20).scores
    order = np.argsort(bundle.user_ids.astype(str), kind="stable")
    np.testing.assert_allclose(whole["score"], scores[order].flatten(), rtol=1e-4)


def test_the_latter_of_two_ratings_counts(house, bundle, tmp_path):
    history = histories(house).query("user_id == user_id.iloc[0]")
    once = asked(bundle, history, tmp_path)[1]
    contrary = history.assign(rating=6 - history["rating"])
    pd.testing.assert_frame_equal(asked(bundle, pd.concat([contrary, history]), tmp_path)[1], once)
    assert not asked(bundle, pd.concat([history, contrary]), tmp_path)[1]["score"].equals(once["score"])


def test_csv_in_and_out_says_the_same(house, bundle, tmp_path):
    frame = histories(house, "00").head(200)
    _, expected = asked(bundle, frame, tmp_path)
    frame.to_csv(tmp_path / "users.csv", index=False)
    recommend_file(bundle, tmp_path / "users.csv", tmp_path / "recs.csv", WANTED)
    got = pd.read_csv(tmp_path / "recs.csv", dtype={"user_id": str, "item_id": str})
    assert got["user_id"].tolist() == expected["user_id"].tolist()
    assert got["item_id"].tolist() == expected["item_id"].tolist()
    np.testing.assert_allclose(got["score"], expected["score"], rtol=1e-5)


def test_ids_of_users_keep_their_type(bundle, tmp_path):
    numbers = pd.DataFrame({"user_id": np.array([7, 7_000_000_000], dtype=np.int64)})
    _, got = asked(bundle, numbers, tmp_path, Wanted(k=2))
    assert got["user_id"].dtype == np.int64
    assert got["user_id"].tolist() == [7, 7, 7_000_000_000, 7_000_000_000]
    numbers.to_csv(tmp_path / "users.csv", index=False)
    recommend_file(bundle, tmp_path / "users.csv", tmp_path / "out.csv", Wanted(k=1))
    assert pd.read_csv(tmp_path / "out.csv")["user_id"].tolist() == [7, 7_000_000_000]


def test_ids_of_items_are_numbers_where_they_are_in_the_data(bundle, tmp_path):
    """Columns are read back without being told their types."""
    text = asked(bundle, pd.DataFrame({"user_id": bundle.user_ids[:3]}), tmp_path)[1]
    assert text["item_id"].map(type).unique().tolist() == [str]
    ids = np.array([str(7000 + row) for row in range(len(bundle.target_ids))], dtype=object)
    numbers = dataclasses.replace(bundle, target_ids=ids, numbered=frozenset({"target_item_ids"}))
    _, got = asked(numbers, pd.DataFrame({"user_id": bundle.user_ids[:3]}), tmp_path)
    assert got["item_id"].dtype == np.int64
    assert (got["item_id"] == 7000 + got["item"]).all()
    recommend_file(numbers, tmp_path / "users.parquet", tmp_path / "out.csv", WANTED)
    assert pd.read_csv(tmp_path / "out.csv")["item_id"].tolist() == got["item_id"].tolist()


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["7", "-12"], "int64"),
        (["0"], "int64"),
        (["007", "12"], "str"),
        (["7", "7a"], "str"),
        (["9" * 19], "str"),
    ],
)
def test_ids_of_a_csv_are_numbers_where_all_are_written_as_such(bundle, tmp_path, ids, kind):
    (tmp_path / "users.csv").write_text("user_id\n" + "\n".join(ids) + "\n")
    recommend_file(bundle, tmp_path / "users.csv", tmp_path / "out.parquet", Wanted(k=1))
    got = pd.read_parquet(tmp_path / "out.parquet")["user_id"]
    assert sorted(got.astype(str)) == sorted(ids)
    assert (got.dtype == "int64") == (kind == "int64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": "nothing"}, r"users.parquet, row 3: item nothing is not in the source domain"),
        ({"item_id": None}, r"row 3: item null is not in the source domain"),
        ({"rating": 9.0}, r"row 3: rating 9.0 is not a number from 1 to 5; correct or remove that row"),
        ({"rating": np.nan}, r"row 3: the rating is missing \(null or NaN\)"),
        ({"user_id": None}, r"row 3: the user id is missing"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(house, bundle, tmp_path, change, message):
    frame = histories(house).head(5).astype({"item_id": object, "user_id": object})
    for name, value in change.items():
        frame.loc[2, name] = value
    with pytest.raises(RecommendationError, match=message):
        asked(bundle, frame, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["users.parquet"]


def test_a_rating_that_is_no_number_is_named(house, bundle, tmp_path):
    frame = histories(house).head(3).astype({"rating": object})
    frame.loc[1, "rating"] = "good"
    frame.to_csv(tmp_path / "users.csv", index=False)
    with pytest.raises(
        RecommendationError, match=r"users.csv, row 2: rating good is not a number from 1 to 5"
    ):
        recommend_file(bundle, tmp_path / "users.csv", tmp_path / "recs.csv", WANTED)


def test_a_failure_midway_leaves_the_old_file(bundle, tmp_path, monkeypatch):
    (tmp_path / "recs.parquet").write_bytes(b"old")
    pd.DataFrame({"user_id": ["a", "b"]}).to_parquet(tmp_path / "users.parquet")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(user_files.lists, "table", fail)
    with pytest.raises(OSError, match="no space left"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "recs.parquet", WANTED)
    assert (tmp_path / "recs.parquet").read_bytes() == b"old"
    assert len(list(tmp_path.glob("*.p*"))) == 2


def test_a_file_of_another_kind_is_refused(bundle, tmp_path):
    users, output = tmp_path / "users.parquet", tmp_path / "recs.parquet"
    pd.DataFrame({"name": ["a"]}).to_parquet(users)
    with pytest.raises(RecommendationError, match=r"no column user_id; the file has name"):
        recommend_file(bundle, users, output, WANTED)
    users.write_text("user_id\n1\n")
    with pytest.raises(RecommendationError, match="is not a readable Parquet file"):
        recommend_file(bundle, users, output, WANTED)
    with pytest.raises(RecommendationError, match=r"--users .*users.txt: name a file that ends in .csv"):
        recommend_file(bundle, tmp_path / "users.txt", output, WANTED)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(RecommendationError, match="is not a readable CSV file"):
        recommend_file(bundle, tmp_path / "empty.csv", output, WANTED)


def test_a_name_is_no_pattern(bundle, tmp_path):
    pd.DataFrame({"user_id": ["a"]}).to_parquet(tmp_path / "users[1].parquet")
    pd.DataFrame({"user_id": ["b"]}).to_parquet(tmp_path / "users1.parquet")
    recommend_file(bundle, tmp_path / "users[1].parquet", tmp_path / "recs.parquet", Wanted(k=1))
    assert pd.read_parquet(tmp_path / "recs.parquet")["user_id"].tolist() == ["a"]


def test_an_output_that_is_an_input_or_no_file_is_refused(tmp_path):
    users, exclude = tmp_path / "users.csv", tmp_path / "exclude.csv"
    users.write_text("user_id\na\n")
    exclude.write_text("x\n")
    os.link(users, tmp_path / "same.csv")
    with pytest.raises(RecommendationError, match="the same file as --users, which would be lost"):
        check_files(users, tmp_path / "same.csv")
    with pytest.raises(RecommendationError, match="the same file as --exclude"):
        check_files(users, exclude, str(exclude))
    with pytest.raises(RecommendationError, match="there is no folder"):
        check_files(users, tmp_path / "no" / "recs.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RecommendationError, match="a folder or device"):
        check_files(users, tmp_path / "folder.csv")
    with pytest.raises(RecommendationError, match=r"--users .*folder.csv: there is no such file"):
        check_files(tmp_path / "folder.csv", tmp_path / "recs.csv")
