"""Processes that run command lines of a checkout."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FORKS = Path(__file__).with_name("forks.py")
PROGRAM = [sys.executable, "-c", "from pipeline.cli import app; app()"]
# What trains and serves, imported once, before the forks; the last two are one module's places in newer and
# older checkouts.
HEAVY = ("pipeline.chain", "torch", "mlflow", "matplotlib.figure", "assets.training.run", "assets.models")


class ForkServer:
    """A process of a checkout that has imported much and answers command lines in forks; see forks.py."""

    def __init__(self, checkout: Path, modules: Sequence[str] = (), **environment: str) -> None:
        ours = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(FORKS), *modules],
            env=without_settings() | ours | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{checkout} cannot be imported")

    def run(
        self, arguments: Sequence[str], environment: dict, folder: Path, out: Path, seconds: float, **stop
    ) -> dict:
        """What forks.py answers. stop: signal and after or once, and alone."""
        asked = {"arguments": list(arguments), "environment": environment, "seconds": seconds, **stop}
        self._process.stdin.write(json.dumps({**asked, "folder": str(folder), "out": str(out)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def heavy(checkout: Path) -> ForkServer:
    """One for commands of the tiny task that train or serve."""
    return ForkServer(checkout, HEAVY, **tiny(checkout))


def tiny(checkout: Path) -> dict[str, str]:
    """The environment in which there is the tiny task, and nothing is sent home."""
    catalog = str(checkout / "tests" / "catalog.yaml")
    return {"DIFFCDR_CATALOG": catalog, "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


class LiveServer:
    """`diffcdr serve` of a home's champion; address: where it answers, None where it does not."""

    def __init__(self, checkout: Path, home: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.main", "serve", "--task", "tiny", "--port", "0"],
            cwd=home.parent,
            env=without_settings()
            | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "DIFFCDR_HOME": str(home)}
            | tiny(checkout),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address: tuple[str, int] | None = None
        for line in self._process.stdout:
            if "curl" in line:
                host, _, port = line.split("http://")[1].split("/")[0].rpartition(":")
                self.address = (host, int(port))
                break

    def close(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience(15))
        self._process.kill()
        self._process.communicate()


def copied(checkout: Path, place: Path) -> Path:
    """A copy of a checkout's code in another place."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    return Path(shutil.copytree(checkout, place, ignore=ignored))


def said(out: Path) -> list[str]:
    """What a command of a ForkServer wrote on stdout and stderr."""
    return [Path(f"{out}.{part}").read_text(errors="replace") for part in ("out", "err")]


def patience(seconds: float) -> float:
    """How long to wait for what takes so long on an idle machine: longer where others are at work."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def without_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("DIFFCDR_", "MLFLOW_", "DAGSTER_"))}
