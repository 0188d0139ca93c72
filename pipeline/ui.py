"""`make ui`: the Dagster UI with its daemon and the MLflow UI, on loopback, until Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from assets.state.store import PROJECT
from assets.state.tracking import MlflowTracking

BIN = Path(sys.executable).parent
HOST, DAGSTER_PORT, MLFLOW_PORT = "127.0.0.1", "3000", "5000"
# Without it MLflow opens its pages on language models, where there are no training runs.
TRAINING = "workflowType=machine_learning"


def main() -> None:
    """Start the servers and stop all when one ends."""
    tracking = MlflowTracking()
    options = ["--host", HOST, "--port", DAGSTER_PORT, "--log-level", "warning"]
    commands = [[str(BIN / "dagster"), "dev", "-w", "workspace.yaml", *options]]
    if tracking.uri.startswith("http"):
        print(f"MLflow {tracking.uri}")
    else:
        commands.append(_mlflow_server(tracking))
        print(f"MLflow http://{HOST}:{MLFLOW_PORT}/#/experiments/{tracking.connect()[1]}/runs?{TRAINING}")
    print(f"Dagster http://{HOST}:{DAGSTER_PORT}  (Ctrl-C stops)", flush=True)
    # MLflow's job runner starts eight more processes, and nothing here uses them.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    servers = [subprocess.Popen(command, cwd=PROJECT, env=environment) for command in commands]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        os.wait()
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait()


def _mlflow_server(tracking: MlflowTracking) -> list[str]:
    tracking.connect()  # creates the database, which the server's processes would race to do
    return [
        *(str(BIN / "mlflow"), "server", "--host", HOST, "--port", MLFLOW_PORT, "--workers", "1"),
        *("--backend-store-uri", tracking.uri),
        *("--default-artifact-root", (tracking.folder / "artifacts").as_uri()),
    ]


if __name__ == "__main__":
    main()
