"""Dagster's state lies in the home; every deployment file is a valid instance configuration."""

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.workspace.load_target import WorkspaceFileTarget

from pipeline import instance as instances
from pipeline.instance import WORKSPACE

PROJECT = Path(__file__).resolve().parent.parent
DEPLOYMENTS = sorted(path.parent.name for path in PROJECT.glob("deploy/*/dagster.yaml"))


@pytest.fixture
def instance(home):
    with instances.dagster_instance() as made:
        yield made


def test_state_stays_in_the_home(instance, home):
    run = instance.create_run_for_job(_job())
    assert instance.get_run_by_id(run.run_id).run_id == run.run_id
    assert list((home / "dagster/history").rglob("runs.db"))
    assert [path.name for path in home.iterdir()] == ["dagster"]
    assert not instance.telemetry_enabled


def test_a_history_that_is_damaged_within_is_named_when_it_is_used(home):
    """It can be opened: only its table of tags is rubbish."""
    with instances.dagster_instance() as made:
        made.create_run_for_job(_job(), tags={"a": "b"})
    [file] = (home / "dagster" / "history").glob("runs.db")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        place = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'run_tags'").fetchone()
        [(size,)] = connection.execute("PRAGMA page_size").fetchall()
    with file.open("r+b") as opened:
        opened.seek((place[0] - 1) * size)
        opened.write(b"rubbish" * (size // 7))
    said = rf"{file} is damaged \(.*\): remove {home / 'dagster'}, which loses Dagster's history and nothing"
    with (
        pytest.raises(instances.UnreadableHistory, match=said),
        instances.dagster_instance() as made,
    ):
        made.get_runs(dg.RunsFilter(tags={"a": "b"}))


def test_a_changed_dagster_yaml_is_kept(home):
    (instances.dagster_home() / "dagster.yaml").write_text("telemetry: {enabled: true}\n")
    with instances.dagster_instance() as made:
        assert made.telemetry_enabled


def test_dagster_home_wins(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    assert instances.dagster_home() == tmp_path / "elsewhere"
    assert not home.exists()


def test_dagsters_own_commands_find_the_history_of_the_default_home(tmp_path, monkeypatch):
    """They read dagster.yaml of the current folder, here the checkout's, and make a throw-away home."""
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assets.state.store._STARTED_IN", tmp_path)
    monkeypatch.delenv("DIFFCDR_HOME")
    reference = InstanceRef.from_dir(str(tmp_path / "thrown-away"), config_dir=str(tmp_path))
    with DagsterInstance.from_ref(reference) as made:
        run = made.create_run_for_job(_job())
        theirs = made.get_settings("run_monitoring"), made.get_concurrency_config()
    with instances.dagster_instance() as ours:
        assert ours.get_run_by_id(run.run_id) is not None
        assert (ours.get_settings("run_monitoring"), ours.get_concurrency_config()) == theirs
    assert {path.name for path in tmp_path.iterdir()} == {"dagster.yaml", ".diffcdr"}


def test_both_configurations_say_the_same_but_for_folders():
    ours, theirs = (
        yaml.safe_load(path.read_text()) for path in (instances.CONFIGURATION, PROJECT / "dagster.yaml")
    )
    folders = ("storage", "local_artifact_storage", "compute_logs")
    assert {name: value for name, value in theirs.items() if name not in folders} == ours


def test_pools_are_serial_and_runs_are_queued(instance):
    pools = instance.get_concurrency_config().pool_config
    assert (pools.default_pool_limit, pools.pool_granularity.value, pools.op_granularity_run_buffer) == (
        1,
        "op",
        1,
    )
    assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 4
    assert instance.run_monitoring_enabled
    assert instance.run_retries_max_retries == 1


def test_the_workspace_is_the_definitions_module(monkeypatch):
    monkeypatch.chdir(PROJECT)
    [origin] = WorkspaceFileTarget(["workspace.yaml"]).create_origins()
    assert origin.location_name == "diffcdr"
    assert origin.loadable_target_origin.module_name == "pipeline.definitions"
    assert Path(origin.loadable_target_origin.working_directory).absolute() == PROJECT
    [installed] = WorkspaceFileTarget([str(WORKSPACE)]).create_origins()
    assert installed.location_name == "diffcdr"
    assert installed.loadable_target_origin.module_name == "pipeline.definitions"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_is_a_valid_instance(name, tmp_path, monkeypatch):
    for variable in ("DAGSTER_PG_URL", "RAY_ADDRESS", "DIFFCDR_PROJECT"):
        monkeypatch.setenv(variable, f"value-of-{variable}")
    reference = InstanceRef.from_dir(str(tmp_path), config_dir=str(PROJECT / "deploy" / name))
    written = yaml.safe_load((PROJECT / "deploy" / name / "dagster.yaml").read_text())
    assert reference.run_launcher_data.class_name == written["run_launcher"]["class"]
    assert reference.run_storage_data.class_name == "PostgresRunStorage"
    assert reference.settings["telemetry"] == {"enabled": False}


def test_deployments_with_settings_of_their_own_are_there():
    assert DEPLOYMENTS == ["docker", "ray"]  # on Kubernetes Dagster's chart writes them


def test_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "dagster.yaml").write_text("run_launchers: {}\n")
    with pytest.raises(Exception, match="run_launchers"):
        InstanceRef.from_dir(str(tmp_path))


def _job():
    @dg.job
    def nothing():
        pass

    return nothing


def test_workers_of_ray_are_given_every_setting_but_those_of_a_machine():
    """A variable that is set where Dagster runs and not passed on would be another setting on the nodes."""
    known = set(re.findall(r"`(DIFFCDR_\w+|MLFLOW_\w+)`", (PROJECT / "README.md").read_text()))
    settings = yaml.safe_load((PROJECT / "deploy/ray/dagster.yaml").read_text())
    passed = set(settings["run_launcher"]["config"]["ray"]["env_vars"])
    assert "DIFFCDR_SPARK" in known & passed
    assert known - passed == {"DIFFCDR_HOME", "DIFFCDR_DEVICE"}
