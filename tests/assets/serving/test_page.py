"""What the page of `diffcdr serve` finds by name: users, items by id or title, histories."""

from dataclasses import replace

import numpy as np
import pytest

from assets.serving.page import FOUND, MOST_LEVELS, Served
from assets.serving.versions import Version

ITEMS = ["B1", "b10", "C2", "D3"]
TITLES = {"B1": "The Wall", "C2": "Wallpaper"}


def served(values=(5.0, 1.0, 3.0, 4.0, 2.0), **changes) -> Served:
    """Ann rated D3 and C2, Bob nothing, Carl B1, C2 and b10."""
    version = Version("diffcdr-x", "3", "nowhere", {"forced": "it is bad"})
    lists = {"name": "ours"}
    recommender = {"lists": lists, "stars": None, "shared": True, "scale": [1.0, 5.0]}
    config = {"cell": "x|b20-s0", "profile": "tuned", "source_scale": [1.0, 5.0], "recommender": recommender}
    parts = {
        "users": ["ann", "Bob", "carl"],
        "items": ITEMS,
        "target_items": ["t1"],
        "titles": {"source": TITLES, "target": {"t1": "A target"}},
        "offsets": np.array([0, 2, 2, 5]),
        "rated": np.array([3, 2, 0, 2, 1]),
        "values": np.array(values, np.float32),
    }
    return Served(version, config, **parts | changes)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("wall", ["C2", "B1"]),
        ("the wall", ["B1"]),
        ("WALLPAPER", ["C2"]),
        ("b1", ["B1", "b10"]),
        ("b10", ["b10"]),
        ("", ["C2", "B1", "b10", "D3"]),
        ("nothing", []),
    ],
)
def test_items_are_found_by_id_and_title(text, items):
    found = served().find_items(text)
    assert [each["item"] for each in found] == items
    assert all(each.get("title") == TITLES.get(each["item"]) for each in found)


def test_without_titles_items_are_found_by_id():
    found = served(titles={"source": {}, "target": {}}).find_items("c2")
    assert found == [{"item": "C2"}]


def test_users_come_with_how_much_is_known_of_them():
    expected = [{"id": "carl", "ratings": 3}, {"id": "ann", "ratings": 2}, {"id": "Bob", "ratings": 0}]
    assert served().find_users("") == expected
    assert served().find_users("BO") == expected[2:]
    many = served(users=[f"u{n}" for n in range(90)], offsets=np.zeros(91, int))
    assert len(many.find_users("u")) == FOUND


def test_a_history_is_shown_the_latest_first():
    assert served().history("ann") == [
        {"item": "C2", "title": "Wallpaper", "rating": 1.0},
        {"item": "D3", "rating": 5.0},
    ]
    assert served().history("Bob") == []
    assert served().history("nobody") is None


def test_times_are_shown_in_seconds_where_the_lists_follow_them():
    days = np.array([100, 16_000.5, 1, 2, 3], np.float32)
    timed = served(times=days)
    assert [each["timestamp"] for each in timed.history("ann")] == [16_000 * 86_400 + 43_200, 8_640_000]
    assert (timed.about()["timed"], served().about()["timed"]) == (True, False)


def test_the_example_is_a_user_as_most_are_and_a_history_the_oldest_first():
    example = served().example()
    assert example["user"] in ("ann", "carl")
    assert [each["item"] for each in example["history"]] in (["D3", "C2"], ["B1", "C2", "b10"])


def test_ratings_to_choose_from_are_those_given_unless_too_many():
    assert served().ratings == [1, 2, 3, 4, 5]
    fine = served(values=np.linspace(1, 5, 50), rated=np.zeros(50, int), offsets=np.array([0, 0, 0, 50]))
    assert len(fine.ratings) == MOST_LEVELS
    assert (fine.ratings[0], fine.ratings[-1]) == (1, 5)


def test_models_are_shown_by_their_titles_and_those_of_users_by_their_names():
    models = {"lists": {"name": "emcdr"}, "stars": {"name": "ours"}, "shared": False, "scale": [1.0, 5.0]}
    page = served()
    assert page.about()["model_titles"] == {}
    assert replace(page, config={**page.config, "recommender": models}).about()["model_titles"] == {
        "emcdr": "EMCDR"
    }


def test_the_page_is_told_of_force_and_of_titles():
    about = served().about()
    assert (about["lists"], about["stars"], about["forced"]) == ("ours", "ours", "it is bad")
    assert about["synthetic"] is False
    assert about["titles"] == {"t1": "A target"}
