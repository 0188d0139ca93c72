"""Runs that are killed, stopped or kept waiting: the next one goes on, and nothing says they still run."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status

from pipeline import processes
from pipeline.instance import dagster_instance
from pipeline.recovery import close_dead_runs
from tests.torture.servers import patience

PROJECT = Path(__file__).resolve().parent.parent
ONE_CELL = ["run", "-t", "tiny", "-p", "strict", "-b", "0.2", "-s", "0", "-m", "emcdr"]
OTHER, REUSED, AGAIN = (str(uuid.UUID(int=number, version=4)) for number in range(1, 4))
# Begins a run, takes the slot of the pool, says which run it is, and waits to be killed.
HOLDER = """
import time
import dagster as dg
from dagster._core.utils import make_new_run_id
from pipeline import processes
from pipeline.instance import dagster_instance

@dg.job
def holding(): ...

with dagster_instance() as instance:
    name = make_new_run_id()
    run = instance.create_run_for_job(
        holding, run_id=name, tags=processes.tags(name), status=dg.DagsterRunStatus.STARTED
    )
    instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
    assert instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "training").is_claimed
    print(run.run_id, flush=True)
    time.sleep(600)
"""


def start(home: Path, *arguments: str) -> subprocess.Popen:
    """Python on the checkout with a home, its output on one pipe."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "DIFFCDR_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def send(process: subprocess.Popen, number: signal.Signals) -> None:
    """To all of its group, as a terminal does."""
    os.killpg(process.pid, number)


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def holder(home):
    """A living process whose run has the one slot of the pool `gpu`; its run_id is what it printed."""
    process = start(home, "-c", HOLDER)
    process.run_id = process.stdout.readline().strip()
    assert process.run_id, process.stdout.read()
    yield process
    kill(process)


@pytest.fixture
def diffcdr(home):
    """Starts the command; whatever is left of it at the end of the test is killed."""
    started = []

    def begin(*arguments: str) -> subprocess.Popen:
        started.append(start(home, "-m", "pipeline.main", *arguments))
        return started[-1]

    yield begin
    for process in started:
        kill(process)


def read_until(process: subprocess.Popen, words: str) -> str:
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"the command ended without {words!r}")


def statuses() -> dict[str, Status]:
    with dagster_instance() as instance:
        return {run.job_name: run.status for run in reversed(instance.get_runs())}


def gpu():
    with dagster_instance() as instance:
        return instance.event_log_storage.get_concurrency_info("gpu")


def test_a_killed_run_is_closed_and_gives_its_slot_back(holder):
    kill(holder)
    with dagster_instance() as instance:
        close_dead_runs(instance)
        assert instance.get_run_by_id(holder.run_id).status == Status.FAILURE
        [event] = instance.all_logs(holder.run_id, of_type=dg.DagsterEventType.PIPELINE_FAILURE)
        assert (
            f"its process ({holder.pid}) ended without a word: it was killed" in event.dagster_event.message
        )
        storage = instance.event_log_storage
        assert storage.claim_concurrency_slot("gpu", "another", "step").is_claimed


def test_a_living_run_and_one_of_another_machine_are_left_alone(holder):
    with dagster_instance() as instance:
        elsewhere = {**processes.tags(OTHER), processes.HOST: "another", processes.PROCESS: "1"}
        instance.add_run_tags(holder.run_id, {})
        other = instance.create_run_for_job(_job(), run_id=OTHER, tags=elsewhere, status=Status.STARTED)
        close_dead_runs(instance)
        assert instance.get_run_by_id(holder.run_id).status == Status.STARTED
        assert instance.get_run_by_id(other.run_id).status == Status.STARTED
        assert [claim.run_id for claim in gpu().claimed_slots] == [holder.run_id]


def test_another_process_of_the_same_id_is_not_the_run(home):
    with dagster_instance() as instance:
        reused = {**processes.tags(REUSED), processes.STARTED: "before the last boot"}
        run = instance.create_run_for_job(_job(), run_id=REUSED, tags=reused, status=Status.STARTED)
        close_dead_runs(instance)
        assert instance.get_run_by_id(run.run_id).status == Status.FAILURE


def test_a_run_that_is_started_again_is_not_taken_for_the_dead_one(home):
    """It inherits the tags of the first, and has no process of its own until it begins."""
    with dagster_instance() as instance:
        dead = {**processes.tags(OTHER), processes.STARTED: "before the last boot"}
        again = instance.create_run_for_job(_job(), run_id=AGAIN, tags=dead, status=Status.STARTING)
        close_dead_runs(instance)
        assert instance.get_run_by_id(again.run_id).status == Status.STARTING


def test_a_run_that_was_being_canceled_is_canceled(holder):
    kill(holder)
    with dagster_instance() as instance:
        instance.report_run_canceling(instance.get_run_by_id(holder.run_id))
        close_dead_runs(instance)
        assert instance.get_run_by_id(holder.run_id).status == Status.CANCELED


def test_slots_of_runs_that_are_finished_or_deleted_come_back(home):
    with dagster_instance() as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("gpu")
        done = instance.create_run_for_job(_job(), status=Status.SUCCESS)
        storage.claim_concurrency_slot("gpu", done.run_id, "step")
        storage.claim_concurrency_slot("gpu", "deleted", "step")
        close_dead_runs(instance)
        assert (gpu().claimed_slots, gpu().pending_steps) == ([], [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_waiting_says_for_whom_and_ends_at_once_on_a_signal(holder, diffcdr, number, code):
    waiting = diffcdr(*ONE_CELL)
    line = read_until(waiting, "waits for a slot of pool gpu")
    assert f"training of run {holder.run_id[:8]} has it, process {holder.pid}" in line
    send(waiting, number)
    sent = time.monotonic()
    said = waiting.communicate()[0].splitlines()
    assert waiting.returncode == code
    assert time.monotonic() - sent < patience(15)  # most of it the end of the interpreter
    assert [line.split(":")[0] for line in said] == ["stopped by " + ("TERM" if code == 143 else "Ctrl-C")]
    assert statuses()["train_strict"] == Status.CANCELED
    assert {claim.run_id for claim in [*gpu().claimed_slots, *gpu().pending_steps]} == {holder.run_id}


def test_a_pool_that_nobody_may_use_is_said_to_be(home, diffcdr):
    with dagster_instance() as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 0)
    waiting = diffcdr(*ONE_CELL)
    assert "its limit is 0" in read_until(waiting, "waits for a slot of pool gpu")
    send(waiting, signal.SIGTERM)
    waiting.communicate()
    assert waiting.returncode == 143


def test_who_waits_goes_on_when_the_holder_is_killed(holder, diffcdr):
    waiting = diffcdr(*ONE_CELL)
    read_until(waiting, "waits for a slot of pool gpu")
    kill(holder)
    said = waiting.communicate()[0]
    assert waiting.returncode == 0, said
    assert f"closed run {holder.run_id[:8]} of holding" in said
    assert set(statuses().values()) == {Status.SUCCESS, Status.FAILURE}
    assert statuses()["holding"] == Status.FAILURE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_any_phase_with_one_line(diffcdr, number, code):
    for words in ("reviews and ratings of", "overlap of", "strict on tiny"):
        running = diffcdr(*ONE_CELL)
        read_until(running, words)
        send(running, number)
        said = running.communicate()[0]
        assert running.returncode == code, said
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("stopped by")
    assert set(statuses().values()) <= {Status.SUCCESS, Status.CANCELED}


def test_a_signal_during_the_start_ends_it_in_one_line(diffcdr):
    for seconds in (0.3, 0.6, 1.0, 2.0):
        starting = diffcdr(*ONE_CELL)
        time.sleep(seconds)
        send(starting, signal.SIGINT)
        said = starting.communicate()[0]
        assert starting.returncode == 130, said
        assert "Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_beside_the_commands_work_ends_it_in_one_line(home, number, code):
    script = """
        import os, sys, typer, pipeline.cli, pipeline.main
        pipeline.cli.app = typer.Typer()
        pipeline.cli.app.command()(lambda: os.kill(os.getpid(), int(os.environ["NUMBER"])))
        sys.argv = ["diffcdr"]
        pipeline.main.main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "NUMBER": str(int(number))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert done.stderr == f"stopped by {'TERM' if code == 143 else 'Ctrl-C'}\n"


def _job() -> dg.JobDefinition:
    @dg.job
    def nothing(): ...

    return nothing
