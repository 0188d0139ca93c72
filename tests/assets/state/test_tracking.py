"""Runs land in MLflow complete, whatever runs beside them, and say how they ended."""

import contextlib
import json
import math
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest

from assets.state import tracking
from assets.state.code import OURS
from assets.state.experiment import dress
from assets.state.tracking import DatasetRecord, MlflowTracking, TrackingError

CELL = {"model": "diffcdr", "beta": 0.2, "seed": 0, "profile": "paper"}
NOTHING = {"params": {}, "tags": {}, "inputs": ()}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def mlflow_resource(home):
    """One database for all tests: creating the schema takes a second. Tests differ by their task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        resource = MlflowTracking(home=str(home))
        resource.connect()
        yield resource


@pytest.fixture(scope="module")
def client(mlflow_resource):
    return mlflow_resource.connect()[0]


def record(resource, task, metrics=None, **changes):
    """One finished run of `task`; returns its id."""
    with resource.run(**CELL | {"task": task} | changes, **NOTHING) as run:
        run.metrics(metrics or {"loss": 1.0}, step=1)
    return run.run_id


def test_a_run_holds_all_that_was_said_about_it(mlflow_resource, client):
    inputs = [DatasetRecord("video/split", "abc", "artifacts/split", "train")]
    tags = {"dagster.run_id": "d1", "dagster.asset": "paper/diffcdr", "code_version": "7"}
    params = {"lr": 0.001, "activation": None}
    with mlflow_resource.run(**CELL, task="whole", params=params, tags=tags, inputs=inputs) as run:
        for epoch in (1, 2, 3):
            run.metrics({"loss": 1 / epoch, "ndcg@20": epoch / 10}, step=epoch)
    found = client.get_run(run.run_id)
    assert found.info.run_name == "paper/whole/b20-s0/diffcdr"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.001", "activation": "None"}
    assert found.data.metrics == {"loss": pytest.approx(1 / 3), "ndcg_at_20": 0.3}
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [
        (1, 1),
        (2, 0.5),
        (3, 1 / 3),
    ]
    expected = {"model": "diffcdr", "task": "whole", "beta": "0.2", "seed": "0", "profile": "paper"}
    assert found.data.tags.items() >= {**expected, "group": "paper/diffcdr/whole/b20", **tags}.items()
    [read] = found.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("video/split", "abc")
    assert json.loads(read.dataset.source) == {"uri": "artifacts/split"}
    assert [(tag.key, tag.value) for tag in read.tags] == [("mlflow.data.context", "train")]
    page = f"{found.info.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    assert run.url == f"http://127.0.0.1:5000/#/experiments/{page}"
    assert "(http://127.0.0.1:3000/runs/" in found.data.tags["mlflow.note.content"]


def test_how_good_a_model_is_stands_once_with_the_model_and_its_data(mlflow_resource, client):
    on = DatasetRecord("music", "abc", "artifacts/music", "target")
    everything = {"cold.validation.rmse": 0.9, "cold.validation.ndcg@20": math.inf, "cold.last.rmse": 0.95}
    with mlflow_resource.run(**CELL, task="good", **NOTHING | {"inputs": [on]}) as run:
        run.metrics({"loss": 2.0}, step=1)
        run.result({"rmse": 0.9, "ndcg@20": math.inf}, everything, on, "paper-diffcdr-rating")
    found = client.get_run(run.run_id)
    assert found.data.metrics["rmse"] == 0.9
    assert math.isnan(found.data.metrics["ndcg_at_20"])
    assert found.data.tags["nonfinite"] == "ndcg_at_20"
    assert set(found.data.metrics) == {"loss", "rmse", "ndcg_at_20"}
    [made] = found.outputs.model_outputs
    model = client.get_logged_model(made.model_id)
    assert (model.name, model.status, model.source_run_id) == ("paper-diffcdr-rating", "READY", run.run_id)
    of_model = {metric.key: (metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    assert of_model == dict.fromkeys(("rmse", "ndcg_at_20"), ("music", "abc"))
    file = client.download_artifacts(run.run_id, "metrics.json")
    assert json.loads(Path(file).read_text()) == everything


def test_the_experiment_is_described_and_opens_on_its_current_cells_by_model(mlflow_resource, client):
    _, experiment = mlflow_resource.connect()
    tags = client.get_experiment(experiment).tags
    assert "profile/task/β" in tags["mlflow.note.content"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    key = mlflow_resource.view.partition("viewStateShareKey=")[2]
    view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    state = json.loads(view["state"])
    assert {"metrics.`rmse`", "metrics.`ndcg_at_20`"} <= set(state["selectedColumns"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`ndcg_at_20`", False)
    [by] = state["groupBy"]["groupByKeys"]
    done = record(mlflow_resource, "viewed")
    older = record(mlflow_resource, "viewed", seed=1)
    record(mlflow_resource, "viewed", seed=1)
    runs = client.search_runs([experiment], state["searchFilter"])
    listed = {run.info.run_id: run.data.tags[by["groupByData"]] for run in runs}
    assert listed[done] == "paper/diffcdr/viewed/b20"
    assert older not in listed


def test_what_a_person_has_written_of_the_experiment_stays(mlflow_resource, client):
    _, experiment = mlflow_resource.connect()
    client.set_experiment_tag(experiment, "mlflow.note.content", "mine")
    dress(client, experiment)
    assert client.get_experiment(experiment).tags["mlflow.note.content"] == "mine"


def test_an_exception_ends_the_run_as_failed_and_keeps_its_metrics(mlflow_resource, client):
    opened = []

    def train():
        with mlflow_resource.run(**CELL, task="fails", **NOTHING | {"params": {"k": 10}}) as run:
            opened.append(run.run_id)
            run.metrics({"loss": 3.0}, step=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    found = client.get_run(opened[0])
    assert found.info.status == "FAILED"
    assert found.data.metrics == {"loss": 3.0}
    assert found.data.params == {"k": "10"}


def test_what_cannot_be_written_fails_the_run(mlflow_resource, client):
    with (
        pytest.raises(Exception, match="bad"),
        mlflow_resource.run(**CELL, task="unwritable", **NOTHING) as run,
    ):
        run.metrics({"bad?name": 1.0})
    assert client.get_run(run.run_id).info.status == "FAILED"


def test_a_finished_run_supersedes_the_older_ones_of_its_cell_only(mlflow_resource, client):
    def superseded(run_id):
        return client.get_run(run_id).data.tags.get("superseded")

    first = record(mlflow_resource, "again")
    others = [
        record(mlflow_resource, "again", seed=1),
        record(mlflow_resource, "again", beta=0.5),
        record(mlflow_resource, "again", profile="strict"),
        record(mlflow_resource, "again", model="emcdr"),
        record(mlflow_resource, "again2"),
    ]
    with (
        pytest.raises(RuntimeError),
        mlflow_resource.run(**CELL, task="again", **NOTHING),
    ):
        raise RuntimeError
    assert superseded(first) is None
    second, third = record(mlflow_resource, "again"), record(mlflow_resource, "again")
    assert [superseded(run) for run in (first, second, third)] == ["true", "true", None]
    assert [superseded(run) for run in others] == [None] * 5


def test_runs_open_at_once_stay_apart(mlflow_resource, client):
    import mlflow

    with (
        mlflow_resource.run(**CELL, task="left", **NOTHING) as left,
        mlflow_resource.run(**CELL, task="right", **NOTHING) as right,
    ):
        assert mlflow.active_run() is None
        for step in range(3):
            left.metrics({"loss": step}, step)
            right.metrics({"loss": -step}, step)
    assert [m.value for m in client.get_metric_history(left.run_id, "loss")] == [0, 1, 2]
    assert [m.value for m in client.get_metric_history(right.run_id, "loss")] == [0, -1, -2]


def test_values_that_are_not_finite_are_nan_and_named(mlflow_resource, client):
    values = {"a": math.inf, "b": -math.inf, "c": math.nan, "d": 0.5}
    with mlflow_resource.run(**CELL, task="diverges", **NOTHING) as run:
        run.metrics(values, step=1)
        run.metrics(values, step=2)
    found = client.get_run(run.run_id)
    assert {name for name, value in found.data.metrics.items() if math.isnan(value)} == {"a", "b", "c"}
    assert found.data.metrics["d"] == 0.5
    assert found.data.tags["nonfinite"] == "a b c"
    assert len(client.get_metric_history(run.run_id, "a")) == 2


def test_more_metrics_than_one_request_takes(mlflow_resource, client):
    with mlflow_resource.run(**CELL, task="many", **NOTHING) as run:
        for step in range(30):
            run.metrics({f"m{index}": step for index in range(70)}, step)
    found = client.get_run(run.run_id)
    assert found.data.metrics == {f"m{index}": 29 for index in range(70)}
    assert len(client.get_metric_history(run.run_id, "m69")) == 30


def test_a_long_training_shows_its_curve_while_it_runs(mlflow_resource, client, monkeypatch):
    def seen(run):
        return client.get_run(run.run_id).data.metrics

    with mlflow_resource.run(**CELL, task="slow", **NOTHING) as run:
        run.metrics({"loss": 2.0}, step=1)
        assert seen(run) == {}
        monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0)
        run.metrics({"loss": 1.0}, step=2)
        assert seen(run) == {"loss": 1.0}


def test_artifacts_lie_under_the_home(mlflow_resource, home):
    with mlflow_resource.run(**CELL, task="artifacts", **NOTHING) as run:
        run.text("| a |", "table.md")
        run.figure(b"\x89PNG", "curve.png")
    folder = home / "mlflow" / "artifacts" / run.run_id / "artifacts"
    assert (folder / "table.md").read_text() == "| a |"
    assert (folder / "curve.png").read_bytes() == b"\x89PNG"


def test_a_lost_race_for_the_experiment_is_no_error(mlflow_resource, client, monkeypatch):
    identity = client.create_experiment("raced")
    look_up, misses = type(client).get_experiment_by_name, [None]

    def late(self, name):
        return misses.pop() if misses else look_up(self, name)

    monkeypatch.setattr(type(client), "get_experiment_by_name", late)
    raced = MlflowTracking(home=mlflow_resource.home, experiment="raced")
    assert raced.connect()[1] == identity
    assert misses == []


def test_a_deleted_experiment_says_how_to_restore_it(mlflow_resource, client):
    identity = client.create_experiment("gone")
    client.delete_experiment(identity)
    with pytest.raises(ValueError, match=f"'gone' is deleted.*restore --experiment-id {identity}"):
        MlflowTracking(home=mlflow_resource.home, experiment="gone").connect()


@pytest.mark.parametrize("field", ["model", "task", "profile"])
def test_a_name_with_a_quote_is_refused_before_a_run_starts(mlflow_resource, client, field):
    with (
        pytest.raises(ValueError, match=f'{field} "o\'b/20": use letters'),
        mlflow_resource.run(**CELL | {"task": "named"} | {field: "o'b/20"}, **NOTHING),
    ):
        pass


def test_settings_come_from_the_environment_when_a_run_starts(monkeypatch, tmp_path):
    resource = MlflowTracking()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DIFFCDR_HOME", str(tmp_path))
    assert resource.uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@tracking:5000/")
    assert resource.uri == "http://user:secret@tracking:5000/"
    assert resource._ui == "http://tracking:5000"
    assert MlflowTracking(tracking_uri="http://other:1").uri == "http://other:1"
    monkeypatch.chdir(tmp_path)
    assert MlflowTracking(tracking_uri="sqlite:///here.db").uri == f"sqlite:///{tmp_path}/here.db"


def test_an_asset_links_to_its_run(mlflow_resource, client):
    @dg.asset
    def trained(context: dg.AssetExecutionContext, mlflow: MlflowTracking) -> dg.MaterializeResult:
        tags = {"dagster.run_id": context.run.run_id}
        with mlflow.run(**CELL, task="asset", **NOTHING | {"tags": tags}) as run:
            run.metrics({"mae": 0.7})
        return dg.MaterializeResult(metadata={"mlflow": dg.MetadataValue.url(run.url)})

    result = dg.materialize([trained], resources={"mlflow": mlflow_resource})
    [event] = result.asset_materializations_for_node("trained")
    run_id = urlsplit(urlsplit(event.metadata["mlflow"].url).fragment).path.rsplit("/", 1)[1]
    assert client.get_run(run_id).data.tags["dagster.run_id"] == result.run_id


def train_in_process(uri: str, worker: int, ready) -> None:
    # Imports take a different time in each process; the database must be reached by all at once.
    tracking._mlflow()
    ready.wait(120)
    resource = MlflowTracking(tracking_uri=uri)
    for seed in range(5):
        metrics = {f"m{index}": worker + index for index in range(20)}
        record(resource, "shared", metrics, seed=seed, model=f"worker{worker}")


def test_processes_that_start_on_a_fresh_database_lose_nothing(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(4)
    workers = [spawn.Process(target=train_in_process, args=(uri, worker, ready)) for worker in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0, 0, 0, 0]
    client, experiment = MlflowTracking(tracking_uri=uri).connect()
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    cells = {f"paper/shared/b20-s{seed}/worker{worker}" for worker in range(4) for seed in range(5)}
    assert set(found) == {*cells, "paper/shared/b20"}
    assert len(client.search_runs([experiment])) == 21  # one holds them all, whoever came first
    holder = found["paper/shared/b20"].info.run_id
    assert {found[cell].data.tags["mlflow.parentRunId"] for cell in cells} == {holder}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["paper/shared/b20-s4/worker3"].data.metrics == {
        f"m{index}": 3 + index for index in range(20)
    }


def test_nested_runs_have_names_of_their_own_and_are_superseded_with_their_parent(mlflow_resource, client):
    def search(*variants):
        with mlflow_resource.run(**CELL, task="nests", **NOTHING) as parent:
            nested = [record(mlflow_resource, "nests", parent=parent.run_id, variant=v) for v in variants]
        return parent.run_id, nested

    def tags(run_id):
        return client.get_run(run_id).data.tags

    parent, nested = search("s0.1", "s2")
    names = [client.get_run(run).info.run_name for run in (parent, *nested)]
    cell = "paper/nests/b20-s0/diffcdr"
    assert names == [cell, f"{cell}/s0.1", f"{cell}/s2"]
    assert [tags(run)["mlflow.parentRunId"] for run in nested] == [parent, parent]
    assert tags(nested[1])["group"] == "paper/diffcdr/nests/b20/s2"
    assert "superseded" not in tags(parent)
    later, others = search("s2")
    assert all(tags(run)["superseded"] == "true" for run in (parent, *nested))
    assert not any("superseded" in tags(run) for run in (later, *others))


def test_a_nested_run_needs_a_name(mlflow_resource):
    with (
        pytest.raises(ValueError, match="variant '': use letters"),
        mlflow_resource.run(**CELL, task="nests", **NOTHING, parent="0"),
    ):
        pass


def test_of_several_open_runs_a_failure_ends_only_those_that_are_not_done(mlflow_resource, client):
    opened = []

    def train():
        with contextlib.ExitStack() as stack:
            for seed in range(3):
                run = mlflow_resource.run(**CELL | {"task": "side", "seed": seed}, **NOTHING)
                opened.append(stack.enter_context(run))
            opened[0].finish()
            opened[1].fail("diverged")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        train()
    found = [client.get_run(run.run_id) for run in opened]
    assert [run.info.status for run in found] == ["FINISHED", "FAILED", "FAILED"]
    reasons = [run.data.tags.get("reason") for run in found]
    assert reasons == [None, "diverged", "OSError: the disk is full"]


def test_a_stopped_run_is_killed(mlflow_resource, client):
    with (
        pytest.raises(KeyboardInterrupt),
        mlflow_resource.run(**CELL, task="stopped", **NOTHING) as run,
    ):
        raise KeyboardInterrupt
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["reason"]) == ("KILLED", "stopped by Ctrl-C or TERM")


def test_what_a_killed_dagster_run_left_open_is_closed(mlflow_resource, client):
    def begin(dagster_run):
        tags = {"dagster.run_id": dagster_run}
        return mlflow_resource.run(**CELL, task="abandoned", **NOTHING | {"tags": tags})

    mine, other, done = begin("dead"), begin("alive"), begin("dead")
    done.finish()
    mlflow_resource.close_abandoned("dead", "it was killed")
    found = [client.get_run(run.run_id) for run in (mine, other, done)]
    assert [run.info.status for run in found] == ["FAILED", "RUNNING", "FINISHED"]
    assert found[0].data.tags["reason"] == "it was killed"


def test_closing_makes_no_database(tmp_path):
    MlflowTracking(home=str(tmp_path)).close_abandoned("dead", "it was killed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_is_down_is_said_soon_and_with_a_choice(answers):
    """Nobody listens at the port, or somebody who never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if not answers:
            listening.close()
        resource = MlflowTracking(tracking_uri=f"http://user:secret@127.0.0.1:{port}")
        start = time.monotonic()
        with pytest.raises(TrackingError, match=r"does not answer .*start it.*--no-tracking") as raised:
            resource.run(**CELL, task="down", **NOTHING)
        assert time.monotonic() - start < 10
        assert "secret" not in str(raised.value)


def test_a_server_that_goes_down_while_a_run_is_open_is_named(mlflow_resource, monkeypatch, client):
    from mlflow.exceptions import MlflowException

    def refuse(*_, **__):
        raise MlflowException("API request failed")

    run = mlflow_resource.run(**CELL, task="lost", **NOTHING)
    run.metrics({"loss": 1.0})
    run._tracking = MlflowTracking(tracking_uri="http://127.0.0.1:9")
    monkeypatch.setattr(type(client), "log_batch", refuse)
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9 does not answer"):
        run.flush()


def rubbish(file):
    file.write_bytes(b"rubbish" * 999)


def cut(file):
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE many AS SELECT randomblob(9999) FROM json_each('[1, 2, 3, 4]')")
        connection.commit()
    os.truncate(file, 8192)


@pytest.mark.parametrize("harm", [rubbish, cut, Path.mkdir])
def test_a_database_that_cannot_be_opened_is_named_before_anything_is_done(tmp_path, harm):
    resource = MlflowTracking(home=str(tmp_path))
    file = tmp_path / "mlflow" / "mlflow.db"
    file.parent.mkdir()
    harm(file)
    for use in (resource.check, resource.connect, lambda: resource.close_abandoned("dead", "killed")):
        with pytest.raises(TrackingError, match=r"mlflow\.db cannot be read \(.*safe.*move it away"):
            use()


def test_a_database_that_is_damaged_within_is_named_when_it_is_used(tmp_path):
    """Its schema can be read."""
    resource = MlflowTracking(home=str(tmp_path))
    file = tmp_path / "mlflow" / "mlflow.db"
    record(resource, "before")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        place = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs'").fetchone()
        [(size,)] = connection.execute("PRAGMA page_size").fetchall()
    with file.open("r+b") as opened:
        opened.seek((place[0] - 1) * size)
        opened.write(b"rubbish" * (size // 7))
        # The counter of changes: what this process has read before counts no more.
        opened.seek(24)
        opened.write(b"\xff\xff\xff\xff")
    resource.check()
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be read \(.*move it away"):
        record(resource, "after")


def test_an_empty_database_is_made_anew(tmp_path):
    resource = MlflowTracking(home=str(tmp_path))
    resource.folder.mkdir()
    (resource.folder / "mlflow.db").touch()
    resource.check()
    record(resource, "first")
    assert {path.name for path in resource.folder.glob("*mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


def test_without_tracking_nothing_is_written_and_everything_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCDR_TRACKING", "off")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    resource = MlflowTracking(home=str(tmp_path))
    resource.check()
    with resource.run(**CELL, task="unseen", **NOTHING) as run:
        run.metrics({"mae": 1.0}, 1)
        run.params({"k": 10})
        run.text("words", "words.txt")
        run.figure(b"", "curve.png")
        run.flush()
    assert (run.facts, run.ended) == ({}, True)
    resource.close_abandoned("dead", "it was killed")
    assert list(tmp_path.iterdir()) == []


def test_tracking_is_on_or_off(monkeypatch):
    monkeypatch.setenv("DIFFCDR_TRACKING", "maybe")
    with pytest.raises(ValueError, match="'maybe': set it to on or off"):
        MlflowTracking().check()


def test_a_data_set_that_another_process_enters_first_is_no_error(mlflow_resource, client, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    log_inputs, losses = type(client).log_inputs, [None, None]

    def raced(self, *given):
        if losses:
            losses.pop()
            raise MlflowException("UNIQUE constraint failed: datasets.name", error_code=BAD_REQUEST)
        return log_inputs(self, *given)

    monkeypatch.setattr(type(client), "log_inputs", raced)
    inputs = [DatasetRecord("video", "abc", "artifacts/split", "train")]
    with mlflow_resource.run(**CELL, task="raced", **NOTHING | {"inputs": inputs}) as run:
        pass
    assert [each.dataset.name for each in client.get_run(run.run_id).inputs.dataset_inputs] == ["video"]


def test_half_a_database_of_a_killed_process_is_not_opened(tmp_path):
    (tmp_path / ".mlflow.db-1").write_bytes(b"half")
    resource = MlflowTracking(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    resource.connect()
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_a_new_database_is_made_without_a_word(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-c", "from assets.state.tracking import MlflowTracking as M; M().connect()"]
    done = subprocess.run(
        command,
        env=environment | {"PYTHONPATH": str(OURS), "DIFFCDR_HOME": str(tmp_path)},
        text=True,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("", "")
