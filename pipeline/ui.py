"""`make ui`: the Dagster UI with its daemon and the MLflow UI, on loopback, until Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from assets.store import PROJECT
from assets.tracking import MlflowTracking

BIN = Path(sys.executable).parent
HOST, DAGSTER_PORT, MLFLOW_PORT = "127.0.0.1", "3000", "5000"


def main() -> None:
    """Start both servers and stop both when either ends."""
    tracking = MlflowTracking()
    tracking.connect()  # creates the database, which two server processes would otherwise race to do
    mlflow = [
        *(str(BIN / "mlflow"), "server", "--host", HOST, "--port", MLFLOW_PORT, "--workers", "1"),
        *("--backend-store-uri", tracking.uri),
        *("--default-artifact-root", (tracking.folder / "artifacts").as_uri()),
    ]
    dagster = [str(BIN / "dagster"), "dev", "-w", "workspace.yaml", "--host", HOST, "--port", DAGSTER_PORT]
    # MLflow's job runner starts eight more processes, and nothing here uses them.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    servers = [subprocess.Popen(command, cwd=PROJECT, env=environment) for command in (mlflow, dagster)]
    print(f"Dagster http://{HOST}:{DAGSTER_PORT}  MLflow http://{HOST}:{MLFLOW_PORT}  (Ctrl-C stops both)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        os.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


if __name__ == "__main__":
    main()
