"""The command as a process: how it starts, ends and is stopped, and what it leaves where."""

import os
import subprocess
import sys
from pathlib import Path

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
