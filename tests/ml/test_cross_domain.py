"""The estimator: answers are the models' own, frames go in and out whole, hidden ratings stay hidden."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from ml import CrossDomainRecommender
from ml.cross_domain import PURPOSE
from ml.frames import COLUMNS, Domain
from ml.splits import TEST, assign_roles

FAST = {"lists": "item_regression", "stars": "item_source_bias"}
ALONE = 5  # users of the source who are not in the target


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two taste groups, each choosing from its half of either catalogue; the target has 120 of 125 users."""
    rng = np.random.default_rng(0)

    def drawn(people: int, items: int, prefix: str, each: int) -> pd.DataFrame:
        users = np.repeat(np.arange(people), each)
        half = items // 2
        chosen = rng.integers(half, size=len(users)) + half * (users % 2)
        stars = rng.integers(1, 6, size=len(users)).astype(float)
        stars[:5] = [1, 2, 3, 4, 5]
        named = {"user": users, "item": [f"{prefix}{i}" for i in chosen], "rating": stars}
        return pd.DataFrame(named).drop_duplicates(["user", "item"], ignore_index=True)

    return drawn(120 + ALONE, 60, "film", 12), drawn(120, 40, "song", 8)


@pytest.fixture(scope="module")
def fitted(frames) -> CrossDomainRecommender:
    return CrossDomainRecommender(**FAST).fit(*frames)


def group(item: str, items: int) -> int:
    return int(item[4:]) >= items // 2


def test_strangers_are_shown_what_their_group_chooses(fitted):
    lists = fitted.recommend(k=10)
    assert lists["user"].unique().tolist() == list(range(120, 120 + ALONE))
    assert lists["user"].dtype == np.int64
    assert lists["rank"].tolist() == list(range(1, 11)) * ALONE
    hits = [group(row.item, 40) == row.user % 2 for row in lists.itertuples()]
    assert np.mean(hits) > 0.9


def test_known_users_are_not_shown_what_they_rated(fitted, frames):
    rated = set(zip(frames[1]["user"], frames[1]["item"], strict=True))
    lists = fitted.recommend(users=[3, 1], k=15)
    assert lists["user"].unique().tolist() == [3, 1]
    assert not rated & set(zip(lists["user"], lists["item"], strict=True))


def test_a_history_gets_the_list_of_the_known_user_who_has_it(fitted, frames):
    mine = frames[0][frames[0]["user"] == 121].assign(user="somebody")
    known, typed = fitted.recommend(users=[121], k=10), fitted.recommend(histories=mine, k=10)
    assert typed["user"].unique().tolist() == ["somebody"]
    assert typed["item"].tolist() == known["item"].tolist()
    np.testing.assert_allclose(typed["score"], known["score"], rtol=1e-5)


def test_reasons_are_of_the_users_own_history(fitted, frames):
    lists = fitted.recommend(users=[120], k=5, because=True)
    mine = set(frames[0].loc[frames[0]["user"] == 120, "item"])
    assert all(set(reasons) <= mine for reasons in lists["because"])
    assert lists["because"].str.len().max() > 0


def test_predictions_keep_the_index_and_agree_with_the_lists(fitted):
    lists = fitted.recommend(users=[122], k=4).set_index(pd.Index(list("abcd")))
    predicted = fitted.predict(lists)
    assert predicted.index.tolist() == list("abcd")
    np.testing.assert_allclose(predicted, lists["rating"], rtol=1e-6)


def test_rows_in_another_order_change_nothing(fitted, frames):
    shuffled = [frame.sample(frac=1, random_state=1) for frame in frames]
    again = CrossDomainRecommender(**FAST).fit(*shuffled)
    pd.testing.assert_frame_equal(again.recommend(k=5), fitted.recommend(k=5), rtol=1e-5)


def test_evaluation_sees_the_taste_that_carries_over(fitted):
    found = fitted.evaluate(beta=0.3, against=("popularity", "item_mean")).set_index(["metric", "model"])
    ours, popular = found.loc["ndcg@20", "item_regression"], found.loc["ndcg@20", "popularity"]
    assert popular["gain"] == pytest.approx(ours["value"] - popular["value"])
    assert 0 < popular["low"] < popular["gain"] < popular["high"]
    rmse = found.loc[("rmse", "item_mean")]
    assert rmse["gain"] == pytest.approx(found.loc[("rmse", "item_source_bias")]["value"] - rmse["value"])


def test_what_held_out_users_rated_is_not_learned(fitted, frames, monkeypatch):
    """Other target ratings of the test users change how they are judged, not what is predicted."""
    shared = np.arange(120)
    test = shared[assign_roles(120, 0.3, 0, PURPOSE, 0.1) == TEST]
    source, target = frames
    hidden = target["user"].isin(test)
    other = target.assign(rating=target["rating"].where(~hidden, 6 - target["rating"]))
    predicted = []
    monkeypatch.setattr(
        "ml.cross_domain.crps_of",
        lambda shown, ratings: predicted.append(shown.mean) or (shown.mean - ratings.values).abs().double(),
    )
    for frame in (target, other):
        CrossDomainRecommender(**FAST).fit(source, frame).evaluate(0.3, against=())
    np.testing.assert_array_equal(*predicted)


@pytest.mark.parametrize("stars", ["emcdr", "star_diffusion"])
def test_models_of_factors_and_of_effects_are_trained_too(frames, stars):
    recommender = CrossDomainRecommender("user_neighbourhood", stars).fit(*frames)
    predicted = recommender.predict(frames[1].head(20))
    assert predicted.notna().all()
    assert recommender.recommend(users=[0], k=3)["rating"].between(1, 5).all()


def test_it_is_an_estimator(fitted):
    assert repr(fitted) == "CrossDomainRecommender(lists='item_regression', stars='item_source_bias')"
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "recommender_")


def test_columns_and_scales_are_as_they_are_called(frames):
    renamed = [f.rename(columns={"user": "who", "item": "what", "rating": "stars"}) for f in frames]
    columns = {"user": "who", "item": "what", "rating": "stars"}
    recommender = CrossDomainRecommender(**FAST, columns=columns, target_scale=(0, 10)).fit(*renamed)
    assert (recommender.source_.scale, recommender.target_.scale) == ((1, 5), (0, 10))


def test_the_latest_of_two_ratings_counts(frames):
    source, target = frames
    first = source.iloc[[0]].assign(rating=5.0, timestamp=1)
    timed = pd.concat([source.iloc[1:].assign(timestamp=2), first.assign(rating=1.0, timestamp=9), first])
    domain = CrossDomainRecommender(**FAST).fit(timed, target).source_
    rows = (domain.ratings.users == 0) & (domain.ratings.items == domain.items.get_loc(first["item"].iloc[0]))
    assert domain.ratings.values[rows].tolist() == [1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s.drop(columns="rating"), t), "source has no column 'rating'"),
        (lambda s, t: (s, t.assign(user=t["user"].where(t.index != 4))), "target, row 4: user is missing"),
        (lambda s, t: (s.assign(rating="good"), t), "source: rating is (str|object), no number"),
        (lambda s, t: (s.head(0), t), "source has no row"),
        (lambda s, t: (s, t.assign(user=t["user"] + 1000)), "0 users are in source and target"),
        (lambda s, t: (s.to_numpy(), t), "source is a ndarray; give a pandas DataFrame"),
    ],
)
def test_a_frame_that_cannot_be_used_is_named(frames, change, message):
    with pytest.raises(ValueError, match=message):
        CrossDomainRecommender(**FAST).fit(*change(*frames))


def test_a_rating_outside_the_scale_is_named(frames):
    with pytest.raises(ValueError, match=r"source, row 4: rating is 5\.0, outside the scale 1 to 4"):
        CrossDomainRecommender(**FAST, source_scale=(1, 4)).fit(*frames)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"lists": "nope"}, "unknown model 'nope'"),
        ({"lists": "star_diffusion"}, "star_diffusion is trained for rating, not for ranking"),
        ({"stars": "popularity"}, "popularity is trained for ranking, not for rating"),
        ({"lists": "emcdr"}, "emcdr makes lists from factors of choices"),
        ({"stars": "permuted_source"}, "a model that needs model is trained by the pipeline alone"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(frames, models, message):
    with pytest.raises(ValueError, match=message):
        CrossDomainRecommender(**{**FAST, **models}).fit(*frames)


def test_users_and_items_nobody_knows_are_named(fitted):
    with pytest.raises(ValueError, match="users: user '999' has no rating in the domain"):
        fitted.recommend(users=[0, 999])
    with pytest.raises(ValueError, match="pairs: item 'film1' has no rating in the domain"):
        fitted.predict(pd.DataFrame({"user": [0], "item": ["film1"]}))
    history = pd.DataFrame({"user": ["a"], "item": ["nothing"], "rating": [3.0]})
    with pytest.raises(ValueError, match="histories: item 'nothing' has no rating in the domain"):
        fitted.recommend(histories=history)
    with pytest.raises(ValueError, match="give `users` or `histories`, not both"):
        fitted.recommend(users=[0], histories=history)


def test_a_history_is_read_as_the_domain_is(frames):
    """By time, whatever the order of its rows; of two ratings of one item the latest counts."""
    source = frames[0].assign(timestamp=np.random.default_rng(1).permutation(len(frames[0])) * 86_400)
    domain = Domain.of(source, "source")
    mine = source[source["user"] == 7]
    again = mine.head(1).assign(rating=6 - mine["rating"], timestamp=mine["timestamp"] - 1)
    users, found = domain.histories(pd.concat([mine, again]), "histories", COLUMNS)
    assert users.tolist() == [7]
    known = domain.ratings.users == 7
    assert found.items.tolist() == domain.ratings.items[known].tolist()
    assert found.values.tolist() == domain.ratings.values[known].tolist()
    assert found.times.tolist() == domain.ratings.times[known].tolist()


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_datetimes_and_unix_seconds_are_the_same_times(unit):
    seconds = [86_400 * 9, 86_400 * 3, 86_400 * 5]
    frame = pd.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "a"], "rating": 1.0, "timestamp": seconds})
    dated = frame.assign(timestamp=pd.to_datetime(frame["timestamp"], unit="s").astype(f"datetime64[{unit}]"))
    zoned = dated.assign(timestamp=dated["timestamp"].dt.tz_localize("UTC"))
    for each in (frame, dated, zoned):
        domain = Domain.of(each, "source")
        assert domain.ratings.times.tolist() == [3, 9, 5]
        assert domain.histories(each, "histories", COLUMNS)[1].times.tolist() == [3, 9, 5]
    for times in ([None, 1, 2], ["a", "b", "c"]):
        assert Domain.of(frame.assign(timestamp=times), "source").ratings.times is None
    assert Domain.of(frame.drop(columns="timestamp"), "source").ratings.times is None
