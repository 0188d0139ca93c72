"""Ten users beside the lists that they would have been shown."""

import pandas as pd
import pytest

from assets.data.domain import domain_ratings, ids, titles
from assets.report.people import HISTORY, SHOWN, USERS, people_frame, people_part
from assets.report.table import HIT, html
from assets.state.store import Store
from tests.assets.axes import CELL
from tests.assets.cells import finish
from tests.assets.report.sources import TUNED, source_of
from tests.assets.tiny import prepare

MODELS = ("popularity", "user_neighbourhood", "choice_diffusion")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The tiny task, in which every model lists the same items, the best of them what the user rated."""
    store = prepare(Store(home=str(tmp_path_factory.mktemp("people"))))
    overlap = store.overlap("tiny").table("users.parquet")
    target = domain_ratings(store, "tiny_music")
    rows = []
    for user in range(30):
        rated = target.items[target.users == overlap.loc[user, "target_user"]]
        others = [item for item in range(target.n_items) if item not in set(rated)]
        rows.append([user, rated[0], *others[:19]])
    lists = pd.DataFrame(rows, columns=["user", *(f"{place}" for place in range(1, 21))])
    for model in MODELS:
        metrics = {("cold", "validation", "ndcg@20"): 0.1}
        finish(store, model, CELL.key, metrics, "tuned", "ranking", {"lists.parquet": lists})
    return store


def test_histories_and_hits_are_those_of_the_ratings(store):
    frame = people_frame(source_of(TUNED, store))
    assert frame["user"].nunique() == USERS
    assert set(frame["side"]) == {HISTORY, *MODELS}
    overlap = store.overlap("tiny").table("users.parquet").set_index("user_id")
    ratings, called = domain_ratings(store, "tiny_video"), titles(store, "tiny_video")
    names = [title or item for title, item in zip(called, ids(store, "tiny_video", "item"), strict=True)]
    for user, part in frame.groupby("user"):
        rows = ratings.users == overlap.loc[user, "source_user"]
        known = [
            (names[i], stars) for i, stars in zip(ratings.items[rows], ratings.values[rows], strict=True)
        ]
        history = part[part["side"] == HISTORY].sort_values("place")
        assert sorted(zip(history["item"], history["stars"], strict=True)) == sorted(known)
        assert history["stars"].is_monotonic_decreasing
        for model in MODELS:
            listed = part[part["side"] == model].sort_values("place")
            assert listed["hit"].tolist() == [True, *[False] * 19]
            assert listed["stars"].notna().tolist() == listed["hit"].tolist()


def test_the_same_people_are_shown_again(store):
    pd.testing.assert_frame_equal(
        people_frame(source_of(TUNED, store)), people_frame(source_of(TUNED, store))
    )


def test_each_user_is_a_section_with_a_column_for_each_model(store):
    part = people_part(source_of(TUNED, store))
    (table,) = part.tables
    sections = list(table.parts())
    assert len(sections) == USERS
    heading, first = sections[0]
    assert heading.startswith("User ")
    titles = [TUNED.title_of(name) for name in ("choice_diffusion", "user_neighbourhood", "popularity")]
    assert list(first.frame.columns) == ["Has rated", *titles]
    assert len(first.frame) <= SHOWN + 1
    assert list(first.frame.iloc[-1]) == ["", *["1 hit in 20"] * 3]
    assert HIT in str(first.frame.iloc[0, 1])
    assert '<span class="hit">' in html(first, "x")
    assert part.sentences[0].startswith(
        f"Something that they did choose is in the list of 20 for {USERS} of these"
    )


def test_without_lists_there_are_no_people(tmp_path):
    part = people_part(source_of(TUNED, Store(home=str(tmp_path))))
    assert (len(part.frame), list(part.tables), list(part.sentences)) == (0, [], [])
