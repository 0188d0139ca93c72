"""`diffcdr ui`: the Dagster UI with its daemon and the MLflow UI, on loopback, until Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from assets.state.tracking import MlflowTracking
from pipeline.instance import WORKSPACE, dagster_home

BIN = Path(sys.executable).parent
HOST, DAGSTER_PORT, MLFLOW_PORT = "127.0.0.1", "3000", "5000"
DAGSTER, MLFLOW = f"http://{HOST}:{DAGSTER_PORT}", f"http://{HOST}:{MLFLOW_PORT}"
# How long the servers may take to end before they are killed.
END_SECONDS = 10


def serve() -> None:
    """Start the servers, print where they answer, and stop all when one ends or on a signal."""
    tracking = MlflowTracking()
    # The pages' addresses are to be seen: of lesser things than errors the servers keep silent.
    options = ["--host", HOST, "--port", DAGSTER_PORT, "--log-level", "error"]
    commands = {DAGSTER: [str(BIN / "dagster"), "dev", "-w", str(WORKSPACE), *options]}
    pages = {DAGSTER: f"Dagster {DAGSTER}"}
    if tracking.uri.startswith("http"):
        print(f"MLflow {tracking.uri}")
    elif tracking.enabled:
        commands[MLFLOW] = _mlflow_server(tracking)
        pages[MLFLOW] = f"MLflow {MLFLOW}/{tracking.view}"
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(dagster_home()),
        # Servers start others by name, also where the environment is not activated.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        # MLflow's job runner starts eight more processes, and nothing here uses them.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # What libraries warn of in each other, of which no reader can mend anything.
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning,ignore::UserWarning"),
    }
    servers: list[subprocess.Popen] = []
    try:
        # Each leads a group of its own: a signal comes to us alone, and we end the groups.
        servers += [
            subprocess.Popen(command, env=environment, start_new_session=True)
            for command in commands.values()
        ]
        _announce(pages, servers)
        os.wait()
    finally:
        _stop(servers)


def _announce(pages: dict[str, str], servers: Sequence[subprocess.Popen]) -> None:
    """Print each page once its server answers; return when all do or one has ended."""
    silent = dict(pages)
    while silent and all(server.poll() is None for server in servers):
        for address in list(silent):
            with contextlib.suppress(requests.RequestException):
                requests.get(address, timeout=5)
                print(silent.pop(address), "" if silent else " (Ctrl-C stops)", flush=True)
        time.sleep(0.5)


def _stop(servers: Sequence[subprocess.Popen]) -> None:
    """End the servers and all that they have started."""
    for server in servers:
        server.terminate()
    end = time.monotonic() + END_SECONDS
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(max(0.0, end - time.monotonic()))
        # What is left of its group: a code server would look for its parent for another minute.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _mlflow_server(tracking: MlflowTracking) -> list[str]:
    tracking.connect()  # creates the database, which the server's processes would race to do
    return [
        *(str(BIN / "mlflow"), "server", "--host", HOST, "--port", MLFLOW_PORT, "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
        *("--backend-store-uri", tracking.uri),
        *("--default-artifact-root", (tracking.folder / "artifacts").as_uri()),
    ]
