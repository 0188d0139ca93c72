"""The command as a process: how it starts, ends and is stopped, and what it leaves where."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assets.settings.profile import load_profiles
from pipeline.cli import COMMANDS, app

ROOMS = ("pipeline", "assets", "ml")
PROJECT = Path(__file__).resolve().parent.parent


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python on the checkout and return what it printed."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
    )


def test_the_interpreter_ends_without_leaks():
    """Dagster keeps assets, and with them all that their functions are annotated with, beyond the end of the
    interpreter; a DuckDB type among that makes nanobind print forty lines."""
    done = python("-c", "import pipeline.definitions, torch")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_waits_for_no_library():
    """Dagster, pandas and pydantic take a second to import, which only commands that use them spend."""
    slow = "{'dagster', 'mlflow', 'pandas', 'pydantic', 'torch', 'duckdb'}"
    done = python("-c", f"import sys, pipeline.main, pipeline.cli; print({slow} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stdout


def test_the_module_is_the_command():
    done = python("-m", "pipeline.main", "--help")
    assert done.returncode == 0
    assert "recommend" in done.stdout


def test_unknown_names_come_with_the_known_ones():
    for option, known in (("--task", "tiny"), ("--profile", "tuned")):
        done = python("-m", "pipeline.main", "results", option, "nope")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: UnknownName: unknown {option[2:]}: nope; known are ")
        assert known in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_task_of_own_files_is_found_without_their_catalogue(tmp_path):
    file = tmp_path / "own_data.yaml"
    domain = "{url: /x.csv, kind: csv, columns: {user: u, item: i, rating: r}}"
    file.write_text(
        f"domains: {{a: {domain}, b: {domain}}}\ntasks: {{a_b: {{source: a, target: b}}}}\n", encoding="utf-8"
    )
    for task, told in (("a_b", True), ("c_d", False)):
        asked = ("-m", "pipeline.main", "register", "--task", task)
        done = python(*asked, DIFFCDR_HOME=str(tmp_path), DIFFCDR_CATALOG="")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert done.stderr.startswith(f"error: UnknownName: unknown task: {task}; known are ")
        assert done.stderr.rstrip().endswith(f"export DIFFCDR_CATALOG={file}") == told


def test_every_command_has_an_example_and_known_letters():
    """As people know them: -t, -p, -f where a format is asked for, -V and a dry run."""
    commands = [name for group in COMMANDS.values() for name in group]
    asked = {
        "run": ("-t", "-p", "-b", "-s", "-m", "-n"),
        "results": ("-t", "-p", "-f"),
        "status": ("-t", "-f"),
    }
    asked |= {"recommend": ("-t", "-u", "-o", "-k"), "register": ("-t", "-p"), "verdict": ("-t", "-p")}
    for command in commands:
        shown = CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
        assert f" diffcdr {command}" in shown, command
        assert all(f" {letter} " in shown for letter in asked.get(command, ())), command


def test_the_version_is_said():
    said = {CliRunner().invoke(app, [option]).output for option in ("--version", "-V")}
    assert said == {f"diffcdr {importlib.metadata.version('diffcdr')}\n"}


def test_list_names_tasks_profiles_and_models():
    done = python("-m", "pipeline.main", "list")
    assert {"tiny", "tiny_video", "paper", "diffcdr"} <= set(done.stdout.split())
    listed = [line.split()[:2] for line in done.stdout.splitlines() if line.strip()]
    for profile in load_profiles().values():
        for model in profile.trained:
            assert [profile.name, model] in listed


def test_a_dead_tracking_server_is_said_before_anything_is_done(home):
    dead = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "DIFFCDR_HOME": str(home)}
    done = python("-m", "pipeline.main", "run", "-t", "tiny", **dead)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "http://127.0.0.1:9 does not answer" in line
    assert "--no-tracking" in line
    assert not home.exists()


def test_without_tracking_a_cell_is_trained_and_mlflow_not_asked(home):
    dead = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "DIFFCDR_HOME": str(home)}
    one_cell = ["-t", "tiny", "-p", "strict", "-b", "0.2", "-s", "0", "-m", "emcdr", "--no-tracking"]
    done = python("-m", "pipeline.main", "run", *one_cell, **dead)
    assert done.returncode == 0, done.stderr
    trained = [path.read_text() for path in home.glob("artifacts/models/**/manifest.json")]
    assert len(trained) == 2  # for ratings and for lists
    assert not any("mlflow" in manifest for manifest in trained)
    assert not (home / "mlflow").exists()
    assert "leaked" not in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of a wheel that is unpacked as pip does it; dependencies come from this environment."""
    folder, place = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site-packages")
    offline = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    build = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(PROJECT)]
    assert python("-m", "pip", *build).returncode == 0
    [wheel] = folder.glob("*.whl")
    assert python("-m", "pip", "install", *offline, "--target", str(place), str(wheel)).returncode == 0
    return place


def test_an_installed_command_keeps_its_state_in_the_working_folder(installed, tmp_path):
    """Also of `run`, whose first stages are enough here: they open Dagster's history and read a file."""
    before = set(installed.rglob("*"))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(installed),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path / "user"),
        "DIFFCDR_CATALOG": os.environ["DIFFCDR_CATALOG"],
    }
    work = tmp_path / "work"
    work.mkdir()

    def diffcdr(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipeline.main", *arguments]
        done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "recommend" in diffcdr("--help")
    assert diffcdr("results", "--format", "csv").startswith("profile,task,")
    assert not list(work.iterdir())
    assert "tiny_video" in diffcdr("inspect", "--task", "tiny")
    assert [path.name for path in work.iterdir()] == [".diffcdr"]
    assert (work / ".diffcdr/dagster/history/runs.db").exists()
    assert set(installed.rglob("*")) == before


def test_the_wheel_has_all_that_is_no_code(installed):
    here = {path.relative_to(PROJECT) for room in ROOMS for path in (PROJECT / room).rglob("*")}
    data = {path for path in here if path.suffix not in ("", ".py", ".pyc")}
    assert data
    assert not [path for path in data if not (installed / path).exists()]


def test_an_empty_home_is_said_to_be_empty_and_what_fills_it():
    status, verdict = (
        CliRunner().invoke(app, [command, "--task", "tiny", "--profile", "tuned"])
        for command in ("status", "verdict")
    )
    assert status.stdout == "nothing yet of tuned: 1 of 1 tasks\n"
    assert verdict.exit_code == 1
    assert "run `diffcdr run --task tiny --profile tuned` first" in verdict.stderr
