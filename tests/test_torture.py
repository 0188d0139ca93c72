"""The campaign's short version, and that its rules can tell good answers from bad."""

import signal
import sqlite3

import pytest

from tests.torture import kills
from tests.torture.cases import cases, short
from tests.torture.judge import Accepted, Answer, Refused, Sound, judge
from tests.torture.mutations import mutated
from tests.torture.runner import Runner
from tests.torture.servers import patience

ONE_MODEL = ("run", "-t", "tiny", "-p", "strict", "-b", "0.2", "-s", "0", "-m", "emcdr")
GOOD = "error: FileError: /x/a.csv, line 3: 7 is outside the scale; correct the row\n"


def test_a_sample_of_the_campaign_finds_nothing(tmp_path, request):
    outcomes = list(Runner(request.config.rootpath, tmp_path, 0).run(short(), patience(60)))
    assert len(outcomes) == 20
    assert [(each.case.name, each.why, each.said) for each in outcomes if each.verdict != "good"] == []


def test_a_few_kills_lose_nothing(tmp_path, request):
    killer = kills.Killer(request.config.rootpath, tmp_path, 0, run=ONE_MODEL, flips=1)
    try:
        list(killer.kill(3))
    finally:
        killer.close()
    assert list(killer.tally.told()) == []
    assert (killer.tally.kills.total(), killer.tally.flips) == (3, 1)


def test_what_a_kill_left_is_counted(tmp_path):
    """In a home in which a run, an entry and a temporary file were left, and an entry was lost."""
    home = tmp_path / "home"
    killer = kills.Killer(tmp_path, tmp_path, 0)
    before, now = home / "models" / "task=a", home / "models" / "task=b"
    for entry in (before, now):
        (entry / "gen-20260101T000000-0a1b2c3d").mkdir(parents=True)
        (entry / "manifest.json").write_text("{}")
    known, files = killer._compare_entries(home, {}, 0), kills._files(home)
    (before / "manifest.json").write_text("{} ")
    (now / "manifest.json").unlink()
    (now / "gen-20260101T000001-11111111").mkdir()
    (now / ".0123456789abcdef").touch()
    killer._compare_entries(home, known, 1)
    assert killer.tally.lost == ["kill 1: models/task=a/manifest.json", "kill 1: models/task=b/manifest.json"]
    assert kills._files(home) - files == {"models/task=b/.*", "models/task=b/gen-**, number 2"}
    with sqlite3.connect(home / "runs.db") as connection:
        connection.execute("CREATE TABLE runs (run_id, status)")
        connection.executemany("INSERT INTO runs VALUES (?, ?)", [("a", "STARTED"), ("b", "FAILURE")])
    assert kills._open_runs(home) == ["runs.db: a STARTED"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"code": -9, "stopped": True}, ""),
        ({"code": 0, "stopped": True}, ""),
        ({"code": 1, "stopped": True}, "faults"),
        ({"code": 1, "stopped": False}, "faults"),
        ({"code": None, "stopped": True}, "hangs"),
        ({"code": -9, "stopped": True, "ended": 1e6}, "hangs"),
    ],
)
def test_how_a_run_ended_is_judged(tmp_path, answer, fault):
    for part in ("out", "err"):
        (tmp_path / f".said.{part}").touch()
    killer = kills.Killer(tmp_path, tmp_path, 0)
    killer._judge_kill(tmp_path / "home", {"ended": 0.1, **answer}, signal.SIGKILL, 1.0)
    assert [each.partition(":")[0] for each in killer.tally.told()] == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(1, "", GOOD), "good"),
        (Answer(1, "", "12:00:00 reading\n" + GOOD), "good"),
        (Answer(2, "", "Usage: diffcdr\n╭─ Error ─╮\n│ a.csv, line 3 │\n╰─╯\n"), "good"),
        (Answer(0, "", GOOD), "silent"),
        (Answer(None, "", "", ("ratings",)), "silent"),
        (Answer(None, "", ""), "hang"),
        (Answer(-11, "", ""), "traceback"),
        (Answer(1, "", "Traceback (most recent call last)\n" + GOOD), "traceback"),
        (Answer(1, "", GOOD.replace("line 3", "somewhere")), "unclear"),
        (Answer(1, "", GOOD.replace("; correct the row", "")), "unclear"),
        (Answer(1, "", GOOD + GOOD), "unclear"),
        (Answer(1, "", GOOD, ("own_data.yaml",)), "unclear"),
        (Answer(1, "", GOOD.replace("7", "7" * 5000)), "unclear"),
        (Answer(1, "", GOOD.replace("7", "\x1b[0m")), "unclear"),
        (Answer(7, "", GOOD), "unclear"),
        (Answer(1, "", ""), "unclear"),
    ],
)
def test_a_refusal_is_judged_by_rules(answer, verdict):
    assert judge(Refused(("a.csv", "line 3")), answer)[0] == verdict


def test_what_is_accepted_must_be_right():
    report = '{"warnings": ["times are odd"], "source": {"ratings": 3}}'
    assert judge(Accepted({"source.ratings": 3}, ("times",)), Answer(0, report, ""))[0] == "good"
    assert judge(Accepted({"source.ratings": 4}), Answer(0, report, ""))[0] == "silent"
    assert judge(Accepted({}, ("scale",)), Answer(0, report, ""))[0] == "silent"
    assert judge(Accepted(), Answer(1, "", GOOD))[0] == "unclear"


def test_counts_of_a_damaged_file_must_add_up():
    side = '{"rows_read": 5, "ratings": 3, "repeated": 1, "quarantined": 1, "dropped_by_core": 0}'
    report = f'{{"warnings": [], "source": {side}, "target": {side}}}'
    assert judge(Sound(("a.csv",)), Answer(0, report, ""))[0] == "good"
    assert (
        judge(Sound(("a.csv",)), Answer(0, report.replace('"ratings": 3', '"ratings": 2'), ""))[0] == "silent"
    )


def test_a_seed_makes_the_same_campaign():
    import random

    first, second = ([mutated(b"abc" * 50, random.Random(n)) for n in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 45
    assert len(cases()) >= 300
