"""The campaign's short version, and that its rules can tell good answers from bad."""

import io
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

from tests.torture import forks, kills
from tests.torture.cases import cases, short
from tests.torture.homes import Home
from tests.torture.judge import Accepted, Answer, Refused, Replied, Reply, Sound, Stopped, judge
from tests.torture.mutations import mutated
from tests.torture.progress import Progress
from tests.torture.runner import Runner
from tests.torture.servers import patience
from tests.torture.waits import longest_silence, longest_wait

GOOD = "error: FileError: /x/a.csv, line 3: 7 is outside the scale; correct the row\n"


def test_a_sample_of_the_campaign_finds_nothing(tmp_path, request):
    outcomes = list(Runner(request.config.rootpath, tmp_path, 0).run(short(), patience(60)))
    assert len(outcomes) == 20
    assert [(each.case.name, each.why, each.said) for each in outcomes if each.verdict != "good"] == []


@pytest.mark.timeout(900)
def test_a_few_kills_lose_nothing(tmp_path, request):
    """And two checkouts finish the home together."""
    killer = kills.Killer(request.config.rootpath, tmp_path, 0, run=kills.ONE_MODEL, flips=1, short=True)
    try:
        list(killer.kill(3))
    finally:
        killer.close()
    assert list(killer.tally.told()) == []
    assert (killer.tally.kills.total(), killer.tally.flips, killer.tally.together) == (3, 1, 1)


def test_what_a_kill_left_is_counted(tmp_path):
    """In a home in which a run, an entry and a temporary file were left, and an entry was lost."""
    home, killer = Home(tmp_path), kills.Killer(tmp_path, tmp_path, 0)
    before, now = home.path / "models" / "task=a", home.path / "models" / "task=b"
    for entry in (before, now):
        (entry / "gen-20260101T000000-0a1b2c3d").mkdir(parents=True)
        (entry / "manifest.json").write_text("{}")
    known, files = killer._compare_entries(home, {}, 0), home.files()
    (before / "manifest.json").write_text("{} ")
    (now / "manifest.json").unlink()
    (now / "gen-20260101T000001-11111111").mkdir()
    (now / ".0123456789abcdef").touch()
    killer._compare_entries(home, known, 1)
    assert killer.tally.found["lost"] == [
        "kill 1: models/task=a/manifest.json",
        "kill 1: models/task=b/manifest.json",
    ]
    assert home.files() - files == {"models/task=b/.*", "models/task=b/gen-**, number 2"}
    with sqlite3.connect(home.path / "runs.db") as connection:
        connection.execute("CREATE TABLE runs (run_id, status)")
        connection.executemany("INSERT INTO runs VALUES (?, ?)", [("a", "STARTED"), ("b", "FAILURE")])
    assert home.open_runs() == ["runs.db: a STARTED"]


def test_what_an_entry_was_before_is_no_leftover(tmp_path):
    home = Home(tmp_path)
    entry = home.path / "models" / "task=a"
    for number in range(3):
        (entry / f"gen-20260101T00000{number}-0a1b2c3d").mkdir(parents=True)
    files = {"models", "models/task=a", "models/task=a/gen-**", "models/task=a/manifest.json"}
    (entry / "manifest.json").write_text('{"previous": "gen-20260101T000001-0a1b2c3d"}')
    assert home.files() - files == {"models/task=a/gen-**, number 2"}
    shutil.rmtree(entry / "gen-20260101T000000-0a1b2c3d")
    assert home.files() == files


STEPS = ((1.0, "10:00:01 — step 1 of 2: reviews"), (3.0, "10:00:03 — step 2 of 2: strict/emcdr"))
ASKS = "10:00:04 strict__emcdr waits for a slot of pool gpu: strict__emcdr of run 1 has it, process 7"


@pytest.mark.parametrize(
    ("lines", "wait", "silence"),
    [
        (STEPS, 1.0, 7.0),
        ((), 10.0, 10.0),
        ([(4.0, ASKS), (9.0, STEPS[0][1])], 9.0, 5.0),
        ([*STEPS, (4.0, ASKS), (6.0, ASKS), (9.0, "10:00:09 strict/emcdr: 10 epochs")], 5.0, 3.0),
        ([*STEPS, (4.0, "10:00:04 waiting for the lock own_data, held by process 7")], 6.0, 6.0),
    ],
)
def test_waits_are_timed(lines, wait, silence):
    """From the start to the first step, and from a line that says so to the next that does not."""
    assert (longest_wait(lines, 10.0).seconds, longest_silence(lines, 10.0).seconds) == (wait, silence)


def test_a_wait_of_more_than_half_a_minute_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "patience", lambda seconds: seconds)
    killer = kills.Killer(tmp_path, tmp_path, 0)
    for seconds in (29.0, 31.0):
        answer = {"lines": [[1.0, STEPS[0][1]], [2.0, ASKS]], "seconds": 2 + seconds}
        killer._time(Home(tmp_path), answer, two=False)
    said = f"{tmp_path.name}, start 2: waited for 31 s after {ASKS!r}"
    assert killer.tally.found["waits"] == [said, said.replace("waited", "said nothing")]
    assert (killer.tally.wait.seconds, killer.tally.starts) == (31.0, 2)


def test_a_process_that_outlives_a_command_is_counted():
    command = "import subprocess; subprocess.Popen(['sleep', '60'])"
    leader = subprocess.Popen([sys.executable, "-c", command], start_new_session=True)
    leader.wait()
    assert forks._outlived(leader.pid, 0.1) == 1
    assert forks._outlived(leader.pid, 5.0) == 0


def test_progress_is_said_with_the_time_left(monkeypatch):
    clock, stream = iter((0.0, 60.0, 60.0, 61.0, 100.0, 100.0)), io.StringIO()
    monkeypatch.setattr("tests.torture.progress.time.monotonic", lambda: next(clock))
    progress = Progress("cases", 400, stream)
    progress.reach(100)
    progress.reach(101)
    progress.reach(400)
    assert stream.getvalue().splitlines() == [
        "cases 100 of 400, 1 min 00 s gone, about 3 min 00 s left",
        "cases 400 of 400, 1 min 40 s gone, about 0 s left",
    ]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"code": -9, "stopped": True}, ""),
        ({"code": 0, "stopped": True}, ""),
        ({"code": 1, "stopped": True}, "faults"),
        ({"code": 1, "stopped": False}, "faults"),
        ({"code": None, "stopped": True}, "hangs"),
        ({"code": -9, "stopped": True, "ended": 1e6}, "hangs"),
        ({"code": -9, "stopped": True, "left": 2}, "leftovers"),
    ],
)
def test_how_a_run_ended_is_judged(tmp_path, answer, fault):
    for part in ("out", "err"):
        (tmp_path / f".said.{part}").touch()
    killer = kills.Killer(tmp_path, tmp_path, 0)
    ended = {"ended": 0.1, "lines": [], "left": 0, **answer}
    killer._judge_kill(Home(tmp_path), ended, signal.SIGKILL, 1.0)
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


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(143, "", "stopped by TERM\n"), "good"),
        (Answer(143, "", "12:00:00 serving\nstopped by TERM\n"), "good"),
        (Answer(143, "", ""), "unclear"),
        (Answer(143, "", "stopped by TERM\nat last\n"), "unclear"),
        (Answer(130, "", "stopped by Ctrl-C\n"), "unclear"),
        (Answer(143, "", "stopped by TERM\n", outlived=1), "unclear"),
        (Answer(143, "", "stopped by TERM\n", lost=("models/manifest.json",)), "silent"),
        (Answer(0, "", ""), "silent"),
        (Answer(-15, "", ""), "traceback"),
        (Answer(None, "", ""), "hang"),
    ],
)
def test_an_end_by_a_signal_is_judged_by_rules(answer, verdict):
    assert judge(Stopped(signal.SIGTERM), answer)[0] == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (Reply(400, "k is 0, give 1 to 1000"), "good"),
        (Reply(200, '{"predictions": [{"error": "inputs[0].k is 0"}]}'), "good"),
        (Reply(200, '{"predictions": [{"items": [], "k": 0}]}'), "silent"),
        (Reply(400, "wrong"), "unclear"),
        (Reply(404, "k"), "unclear"),
        (Reply(500, "k"), "traceback"),
        (Reply(400, "k: Traceback (most recent call last)"), "traceback"),
        (Reply(400, "k" * 5000), "unclear"),
        (Reply(None, ""), "hang"),
        (Reply(None, "", closed=False), "hang"),
    ],
)
def test_a_reply_is_judged_by_rules(reply, verdict):
    assert Replied((400,), ("k",)).judge(reply)[0] == verdict


def test_a_connection_may_be_closed_where_nothing_whole_has_come():
    expected = Replied((408,), closes=True)
    assert expected.judge(Reply(None, ""))[0] == "good"
    assert expected.judge(Reply(None, "", closed=False))[0] == "hang"


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
    assert len(cases()) >= 400
