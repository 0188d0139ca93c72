"""Lists after first choices on the tiny task: what is computed of a cell, and how the report shows it."""

import dataclasses

import pytest

from assets.report.first_choices import COLUMNS, FIRST_CHOICES
from assets.report.results import source
from assets.settings.profile import load_profiles
from assets.state.store import NotMaterialized, Store
from assets.training.first_choices import judge_lists, list_models
from tests.assets.axes import CATALOG, CELL
from tests.assets.tiny import prepare, train

TUNED = load_profiles()["tuned"]
NAMES = ("collective_als", "popularity", "user_neighbourhood", "random", "item_regression")


@pytest.fixture(scope="module")
def profile():
    entries = {name: dataclasses.replace(TUNED.entries[name], trials=()) for name in NAMES}
    return dataclasses.replace(
        TUNED,
        objectives=("ranking",),
        models=NAMES[:1],
        ours=NAMES[:1],
        ablations=(),
        controls=NAMES[1:],
        entries=entries,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory, profile):
    made = prepare(Store(home=str(tmp_path_factory.mktemp("home"))))
    train(made, profile, profile.trained)
    judge_lists(made, CATALOG, profile, CELL)
    return made


def test_lines_are_what_learns_of_choices_and_what_knows_nobody(profile):
    assert list_models(profile) == ["collective_als", "popularity", "user_neighbourhood"]
    for name in ("paper", "strict"):
        assert list_models(load_profiles()[name]) == []
    assert "choice_diffusion" in list_models(TUNED)


def test_all_are_judged_on_the_same_users_for_every_n(store, profile):
    frame = source(store, CATALOG, profile).analysis("first_choices", "first_choices.parquet", COLUMNS)
    assert set(frame["model"]) == set(list_models(profile))
    assert frame["users"].nunique() == 1
    assert {0, 1} <= set(frame["n"])
    assert frame["ndcg@20"].between(0, 1).all()
    assert (frame.groupby("model")["n"].nunique() == frame["n"].nunique()).all()


def test_the_report_has_a_line_for_each_model(store, profile):
    part = FIRST_CHOICES.build(source(store, CATALOG, profile))
    [picture], [table] = part.pictures, part.tables
    assert picture.formats["png"].startswith(b"\x89PNG")
    assert len(table.frame) == part.frame["n"].nunique()


def test_what_is_current_is_kept_and_what_is_not_trained_is_named(store, profile, tmp_path):
    before = store.first_choices("tuned", CELL).require()
    assert judge_lists(store, CATALOG, profile, CELL) == before
    with pytest.raises(NotMaterialized, match="collective_als"):
        judge_lists(prepare(Store(home=str(tmp_path))), CATALOG, profile, CELL)
