"""`diffcdr demo` on the tiny task, with a few quick models: all stages, the champion, the last lines."""

import functools

import pytest
from typer.testing import CliRunner

from assets.serving.registry import champion, register
from assets.settings.profile import load_profiles
from assets.state.tracking import MlflowTracking
from assets.training.choose import rivals
from pipeline import demo
from pipeline.cli import app

QUICK = ("popularity", "user_neighbourhood", "item_regression", "item_mean", "item_source_bias")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What it prints, and the version that is the champion then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFCDR_HOME", str(tmp_path_factory.mktemp("demo")))
        patch.setattr(demo, "TASK", "tiny")
        patch.setattr(demo, "models", lambda profile: list(QUICK))
        # Simple rows alone do not beat the simple rows.
        patch.setattr(demo, "register", functools.partial(register, force=True))
        ended = CliRunner().invoke(app, ["demo", "--debug"], catch_exceptions=False)
        assert ended.exit_code == 0
        return ended.output, champion(MlflowTracking(), "tiny")


def test_it_leaves_a_champion(shown):
    bundle, version = shown[1]
    assert version == "1"
    assert bundle.recommender.lists.name in QUICK
    assert "diffcdr-tiny version 1" in " ".join(shown[0].split())


def test_it_ends_with_both_answers_a_user_and_three_commands(shown):
    text = " ".join(shown[0].split())
    assert "nDCG@20" in text
    assert "RMSE" in text
    assert "is shown this music by" in text
    lines = shown[0].rstrip().splitlines()
    report, pages, server = (line.split("#")[0].split() for line in lines[-3:])
    assert report[-1].startswith("file://")
    assert report[-1].endswith("report.html")
    assert pages[-1] == "ui"
    assert server[-3:] == ["serve", "--task", "tiny"]


def test_it_says_which_step_of_how_many(shown):
    counted = [line for line in shown[0].splitlines() if "— step " in line]
    total = int(counted[0].split(" of ")[1].split(":")[0].split(",")[0])
    assert len(counted) == total
    assert f"— step {total} of {total}" in counted[-1]


def test_every_row_that_a_champion_must_beat_is_trained():
    profile = load_profiles()[demo.PROFILE]
    trained = set(demo.models(profile))
    assert {name for objective in profile.objectives for name in rivals(profile, objective)} <= trained
    assert set(demo.LEARNED) <= trained
