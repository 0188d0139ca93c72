"""Histories with times, in requests and files: users get what a known one with the same history gets."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from assets.serving.bundle import Bundle, RecommendationError
from assets.serving.lists import Wanted
from assets.serving.pyfunc_recommender import Request, ServedRecommender
from assets.serving.user_files import recommend_file
from ml.data import Users
from ml.encoder import ItemStatistics, SourceEncoder
from ml.ranking.blend import Blend
from ml.recommender import Recommender, Served, UserRatings
from tests.ml.ranking.test_periods import fitted, timed_cell

SCALE = 1.0, 5.0
DAY = 86_400
USERS = 5  # who are asked for


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Lists by a blend that has learned from times, and no stars."""
    data, _ = timed_cell()
    source = dataclasses.replace(
        data.source, times=(data.source.times.double() * DAY).round().div(DAY).float()
    )
    every = torch.arange(data.n_source_users)
    needs = tuple(Blend.needs)
    statistics = ItemStatistics.of(source, data.n_source_items)
    encoder = SourceEncoder(needs, data.n_source_items, SCALE, 3.0, statistics=statistics)
    popularity = torch.bincount(data.target.items, minlength=data.n_items)
    recommender = Recommender(
        Served("blend", "blend", fitted(Blend(), data), encoder, Users(every, torch.full_like(every, -1))),
        None,
        history=UserRatings.of(source, data.n_source_users),
        rated=UserRatings.of(data.target, data.n_source_users),
        popularity=popularity,
        allowed=popularity.nonzero()[:, 0],
        scale=SCALE,
    )
    sizes = data.n_source_users, data.n_source_items, data.n_items
    ids = (
        np.array([f"{kind}{row}" for row in range(size)], dtype=object)
        for kind, size in zip("ust", sizes, strict=True)
    )
    return Bundle("made up", "tiny|b20-s0", recommender, *ids, SCALE)


@pytest.fixture(scope="module")
def answering(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name, content in bundle.files().items():
        (folder / name).write_bytes(content)
    files = {path.name.partition(".")[0]: str(path) for path in folder.iterdir()}
    served = ServedRecommender()
    served.load_context(SimpleNamespace(artifacts=files))

    def answer(*requests: dict) -> list[dict]:
        return served.predict(None, [Request.model_validate(request) for request in requests])

    return answer


def history(bundle: Bundle, user: int) -> list[dict]:
    """What a user has rated, with whole seconds, the latest first."""
    rated = bundle.recommender.history.take(torch.tensor([user]))
    return [
        {"item": f"s{item}", "rating": rating, "timestamp": round(time * DAY)}
        for item, rating, time in zip(
            rated.items.tolist(), rated.values.tolist(), rated.times.double().tolist(), strict=True
        )
    ][::-1]


def near(answers: list[dict]) -> list[dict]:
    """Scores may differ in the last digit, since users are scored together or apart."""
    return [
        each | {"items": [item | {"score": pytest.approx(item["score"], abs=1e-4)} for item in each["items"]]}
        for each in answers
    ]


def test_a_typed_history_with_times_gets_the_list_of_the_known_user(answering, bundle):
    asked = {"k": 10, "because": True, "include_rated": True}
    typed = [{"history": history(bundle, user), **asked} for user in range(USERS)]
    known = answering(*({"user_id": f"u{user}", **asked} for user in range(USERS)))
    assert answering(*typed) == near(known)
    # Those of others in the same call do not matter, nor does a rating that a later one replaces.
    first = typed[0]["history"][-1]
    again = first | {"rating": 5.0 - first["rating"], "timestamp": first["timestamp"] - 1}
    timeless = [{name: each[name] for name in ("item", "rating")} for each in typed[1]["history"]]
    mixed = answering(
        {"history": timeless, **asked},
        {"history": [*typed[0]["history"], again], **asked},
        {"history": [], **asked},
    )
    assert mixed[1] == near(known)[0]
    assert mixed[0]["items"] != near(known)[1]["items"]
    assert mixed[2]["model"] == "popularity"


@pytest.mark.parametrize(
    ("timestamp", "sentence"),
    [
        (
            None,
            "inputs[0].history[1].timestamp is missing: give one with every rating of a history, "
            "or with none",
        ),
        (
            1_600_000_000_000,
            "inputs[0].history[1].timestamp is 1600000000000, give seconds since 1970, "
            "of the years 1900 to 2099",
        ),
    ],
)
def test_a_bad_time_is_named(answering, timestamp, sentence):
    rated = [
        {"item": "s1", "rating": 1.0, "timestamp": 1_600_000_000},
        {"item": "s2", "rating": 1.0, "timestamp": timestamp},
    ]
    assert answering({"history": rated}) == [{"error": sentence}]


def frame(bundle: Bundle) -> pd.DataFrame:
    rows = [{"user_id": f"u{user}", **each} for user in range(USERS) for each in history(bundle, user)]
    return pd.DataFrame(rows).rename(columns={"item": "item_id"})


def listed(bundle: Bundle, users: pd.DataFrame, folder, ending: str = ".parquet") -> pd.DataFrame:
    given, output = folder / f"users{ending}", folder / "recs.parquet"
    users.to_csv(given, index=False) if ending == ".csv" else users.to_parquet(given, index=False)
    recommend_file(bundle, given, output, Wanted(k=10, include_rated=True))
    return pd.read_parquet(output)[["user_id", "item_id", "rank", "score"]]


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_file_with_times_gets_the_lists_of_the_known_users(bundle, tmp_path, ending):
    users = frame(bundle)
    known = listed(bundle, users[["user_id"]].drop_duplicates(), tmp_path)
    replaced = users.iloc[[-1]].assign(rating=3.0, timestamp=users["timestamp"].iloc[-1] - 1)
    pd.testing.assert_frame_equal(
        listed(bundle, pd.concat([users, replaced]), tmp_path, ending), known, check_exact=False, atol=1e-4
    )
    timeless = listed(bundle, users.drop(columns="timestamp"), tmp_path, ending)
    assert timeless["item_id"].tolist() != known["item_id"].tolist()


@pytest.mark.parametrize(
    ("timestamp", "sentence"),
    [
        (None, r"row 3: the timestamp is missing \(null or NaN\); give one in every row or drop the column"),
        ("noon", "row 3: timestamp noon is not a whole number"),
        ("7.5", "row 3: timestamp 7.5 is not a whole number"),
        ("nan", r"row 3: the timestamp is missing \(null or NaN\)"),
        ("inf", "row 3: timestamp inf is not a whole number"),
        ("1600000000000", "row 3: timestamp 1600000000000 is not within the years 1900 to 2099 in seconds"),
    ],
)
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_bad_time_of_a_file_is_named(bundle, tmp_path, timestamp, sentence, ending):
    users = frame(bundle).astype({"timestamp": str}).astype({"timestamp": object})
    users.loc[2, "timestamp"] = timestamp
    with pytest.raises(RecommendationError, match=sentence):
        listed(bundle, users, tmp_path, ending)


def test_times_of_another_type_are_refused(bundle, tmp_path):
    users = frame(bundle)
    dated = users.assign(timestamp=pd.to_datetime(users["timestamp"], unit="s"))
    with pytest.raises(RecommendationError, match=r"row 1: timestamp 19.* is not a whole number"):
        listed(bundle, dated, tmp_path)
    floats = users.astype({"timestamp": float})
    pd.testing.assert_frame_equal(listed(bundle, floats, tmp_path), listed(bundle, users, tmp_path))
