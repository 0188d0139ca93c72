"""Training runs in MLflow: one run for each model and cell, under that of its profile, task and β.

A run is addressed by its id, never through MLflow's process-wide active run, so that the seeds of one Dagster
run can be open side by side. What a run logs is buffered: a cell costs a handful of round trips, not one a
metric. MLflow is imported on first use; nothing in a process that does not train pays for it.

`DIFFCDR_TRACKING=off` (`diffcdr run --no-tracking`) records nothing, and MLflow is not even imported.
"""

import contextlib
import functools
import json
import logging
import math
import os
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import dagster as dg
import tenacity
from pydantic import Field

from assets.state import signals, sqlite
from assets.state.code import OURS
from assets.state.experiment import OPENING_VIEW, PARENT, VARIANT, dress, holder
from assets.state.locks import by_file
from assets.state.store import Store

# MLflow takes at most this many metrics in one request.
BATCH = 1000
# A longer training shows its curves while it runs.
FLUSH_SECONDS = 10.0
# A tag holds no more.
TAG_LENGTH = 5000
# How long a server may take to say that it is there, connecting and answering, in seconds.
ANSWER_SECONDS = (3.0, 4.0)
# No telemetry, no migration log, no progress bars, no link printed for every run.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow would try a server that is down for four minutes before it says so.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

log = logging.getLogger("diffcdr")
_connecting = threading.Lock()


class TrackingError(ConnectionError):
    """MLflow cannot be reached or read; the message says where it was looked for and what to do."""


@dataclass(frozen=True)
class DatasetRecord:
    """A data set that a run read: `source` says where it lies, `context` what for (train, test, ...)."""

    name: str
    digest: str
    source: str
    context: str


class CellRun:
    """One MLflow run of one cell, open until `finish` or `fail`. `url` is its page in the MLflow UI.

    As a context manager it is finished at the end of the block, or failed by an exception, unless it has
    ended before: of several open at once, a failure ends as FAILED only those that were not done.
    """

    def __init__(
        self, tracking: "MlflowTracking", run_id: str, url: str, params: Mapping[str, object]
    ) -> None:
        self.run_id, self.url, self.ended = run_id, url, False
        self.client, self._experiment = tracking.connect()
        self._tracking = tracking
        self._params: list = []
        self.params(params)
        self._metrics: list = []
        self._nonfinite: set[str] = set()
        self._flushed = time.monotonic()

    @property
    def facts(self) -> dict[str, str]:
        """What the manifest of the cell's entry says of the run: nothing where none is recorded."""
        return {"mlflow_run_id": self.run_id, "mlflow_url": self.url}

    def finish(self) -> None:
        """Write what is buffered and end the run as FINISHED; older runs of its cell are superseded."""
        try:
            self.flush()
            with self._tracking.answering():
                self.client.set_terminated(self.run_id, "FINISHED")
                self.ended = True
                _supersede(self.client, self.run_id)
        except Exception as error:
            self.fail(_named(error))
            raise

    def fail(self, reason: str, status: str = "FAILED") -> None:
        """End the run as FAILED, or KILLED, with the tag `reason`; nothing where it has ended already."""
        if self.ended:
            return
        self.ended = True
        # What led here is the error to show; that MLflow cannot be told of it is a line in the log.
        try:
            with self._tracking.answering():
                _end(self.client, self.run_id, reason, status)
            self.flush()
        except Exception as error:
            log.warning("MLflow run %s was not told that %s: %s", self.run_id, reason, _named(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ended:
            return
        if error is None:
            self.finish()
        elif isinstance(error, Exception):
            self.fail(_named(error))
        else:
            self.fail("stopped by Ctrl-C or TERM", "KILLED")

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log `values` at `step` (the epoch, from 1). `ndcg@20` is stored as `ndcg_at_20`, MLflow bans the @.

        An infinite value is stored as NaN, since MLflow's SQL stores would turn it into the largest float,
        and its name is put into the tag `nonfinite`.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for given, value in values.items():
            name, value = given.replace("@", "_at_"), float(value)
            if not math.isfinite(value):
                self._nonfinite.add(name)
                value = math.nan
            self._metrics.append(Metric(name, value, now, step))
        if len(self._metrics) >= BATCH or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def result(
        self, values: Mapping[str, float], everything: Mapping[str, float], on: "DatasetRecord", name: str
    ) -> None:
        """Log how good the trained model `name` is, once: `values` of the test users of the data set `on`, as
        metrics of a logged model; `everything` as the artifact `metrics.json`, since one value is no curve.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        now = int(time.time() * 1000)
        with self._tracking.answering():
            made = self.client.create_logged_model(self._experiment, name=name, source_run_id=self.run_id)
            about = {"model_id": made.model_id, "dataset_name": on.name, "dataset_digest": on.digest}
            finite, lost = {}, []
            for given, value in values.items():
                metric = given.replace("@", "_at_")
                finite[metric] = float(value) if math.isfinite(value) else math.nan
                lost += [] if math.isfinite(value) else [metric]
            self._metrics += [Metric(metric, value, now, 0, **about) for metric, value in finite.items()]
            self._nonfinite.update(lost)
            self.flush()
            self.client.finalize_logged_model(made.model_id, "READY")
            self.client.log_outputs(self.run_id, [LoggedModelOutput(made.model_id, step=0)])
            self.client.log_dict(self.run_id, dict(everything), "metrics.json")

    def params(self, values: Mapping[str, object]) -> None:
        """Add hyper-parameters that were not known when the run began."""
        from mlflow.entities import Param

        self._params += [Param(name, str(value)) for name, value in values.items()]

    def text(self, text: str, name: str) -> None:
        """Attach `text` as the artifact `name`, for example `table.md`."""
        self.client.log_text(self.run_id, text, name)

    def figure(self, png: bytes, name: str) -> None:
        """Attach an image as the artifact `name`, for example `curves.png`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(png)
            self.client.log_artifact(self.run_id, str(path))

    def flush(self) -> None:
        """Write what is buffered; on failure it stays buffered."""
        from mlflow.entities import RunTag

        tags = [RunTag("nonfinite", " ".join(sorted(self._nonfinite)))] if self._nonfinite else []
        if not (self._metrics or self._params or tags):
            return
        # The client splits what exceeds the limit of a request; params and tags go with the first part.
        with self._tracking.answering():
            self.client.log_batch(self.run_id, metrics=self._metrics, params=self._params, tags=tags)
        self._metrics, self._params, self._nonfinite = [], [], set()
        self._flushed = time.monotonic()


class Unrecorded(CellRun):
    """A run that is recorded nowhere: everything is accepted and nothing kept."""

    def __init__(self) -> None:
        self.run_id = self.url = ""
        self.client = None
        self.ended = False

    @property
    def facts(self) -> dict[str, str]:
        return {}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def params(self, values: Mapping[str, object]) -> None: ...

    def result(
        self, values: Mapping[str, float], everything: Mapping[str, float], on: "DatasetRecord", name: str
    ) -> None: ...

    def text(self, text: str, name: str) -> None: ...

    def figure(self, png: bytes, name: str) -> None: ...

    def flush(self) -> None: ...

    def finish(self) -> None:
        self.ended = True

    def fail(self, reason: str, status: str = "FAILED") -> None:
        self.ended = True


class MlflowTracking(dg.ConfigurableResource):
    """Where runs are recorded. Empty settings mean the environment, then the default, when a run starts."""

    tracking_uri: str = Field(
        default="",
        description="MLflow server or database; else MLFLOW_TRACKING_URI, else SQLite under the home.",
    )
    home: str = Field(
        default="", description="State folder; else DIFFCDR_HOME, else .diffcdr in the working folder."
    )
    experiment: str = Field(default="diffcdr", description="MLflow experiment that holds all runs.")
    ui_url: str = Field(
        default="http://127.0.0.1:5000",
        description="Base of the links to runs; a tracking server is its own base.",
    )

    dagster_url: str = Field(
        default="http://127.0.0.1:3000", description="Base of the links back to Dagster runs."
    )

    @property
    def folder(self) -> Path:
        """Where the default database and the artifacts lie."""
        return Store(home=self.home).root / "mlflow"

    @property
    def uri(self) -> str:
        uri = (
            self.tracking_uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or f"sqlite:///{self.folder / 'mlflow.db'}"
        )
        file = _sqlite_file(uri)
        return f"sqlite:///{file}" if file else uri

    @property
    def enabled(self) -> bool:
        """Whether runs are recorded: not where DIFFCDR_TRACKING is `off`."""
        asked = os.environ.get("DIFFCDR_TRACKING") or "on"
        if asked not in ("on", "off"):
            raise ValueError(f"DIFFCDR_TRACKING is {asked!r}: set it to on or off")
        return asked == "on"

    def check(self) -> None:
        """Raise TrackingError, within seconds, where the server that is to record runs does not answer or the
        database cannot be opened."""
        if self.enabled:
            self._check(sqlite.refusal)

    def _check(self, look: Callable[[Path], str]) -> None:
        file = _sqlite_file(self.uri)
        # A home that cannot be one is refused where it is made.
        if file is not None and os.path.exists(file) and (problem := look(file)):
            raise TrackingError(
                f"MLflow's database {file} cannot be read ({problem}); what was computed lies elsewhere and "
                "is safe. Put a copy of it back, or move it away, which loses the records of trainings and "
                "the registered versions; `diffcdr run --no-tracking` works without it"
            )
        if self.uri.startswith("http") and (problem := _silence(self.uri)):
            raise TrackingError(
                f"the MLflow server {_without_password(self.uri)} does not answer ({problem}): start it, set "
                "MLFLOW_TRACKING_URI to another, or run with --no-tracking to record nothing"
            )

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """As `_explaining`; Ctrl-C and TERM wait for the end of what is written into a local database, and
        interrupt what is asked of a server."""
        put_off = contextlib.nullcontext() if _sqlite_file(self.uri) is None else signals.put_off()
        with put_off, self._explaining():
            yield

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn the error of a request into a TrackingError, where the server has gone silent or the database
        is damaged."""
        _mlflow()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError):
            self._check(sqlite.damage)
            raise

    def connect(self) -> tuple[Any, str]:
        """The MlflowClient and the experiment's id, made on first use in this process."""
        with _connecting, self._explaining():
            self._check(sqlite.refusal)
            return _connect(self.uri, self.experiment, self.folder / "artifacts")

    def run(
        self,
        *,
        model: str,
        task: str,
        beta: float,
        seed: int,
        profile: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        inputs: Sequence[DatasetRecord],
        parent: str | None = None,
        variant: str = "",
    ) -> CellRun:
        """Begin to record one training of `model` on a cell; the caller ends the run, or a `with` does.

        When it finishes, every older finished run of the same profile, model, task, beta and seed is tagged
        `superseded=true`, with its nested runs. `tags` carries what the caller knows: dagster.run_id,
        dagster.asset, dagster.partition, code_version.
        parent, variant: for a nested run, the id of the run that holds it and its name among the nested ones.
        A nested run supersedes nothing: another grid may lack its variant, so its fate is its parent's.
        """
        _check_names(model=model, task=task, profile=profile)
        nested = {} if parent is None else _nested(parent, variant)
        if not self.enabled:
            return Unrecorded()
        client, experiment_id = self.connect()
        percent, place = f"b{round(beta * 100):02d}", f"/{variant}" if nested else ""
        where = {"profile": profile, "task": task, "beta": f"{beta:g}"}
        cell = {"group": f"{profile}/{model}/{task}/{percent}{place}", "seed": str(seed), "model": model}
        if not nested:
            scenario, locks = f"{profile}/{task}/{percent}", self.folder / "locks"
            # Which may wait for another run, and can be interrupted.
            with self._explaining():
                nested = {PARENT: holder(client, experiment_id, where, scenario, locks)}
        # Without the query MLflow 3 opens the page that it has for language models.
        query, run = "workflowType=machine_learning", None
        try:
            with self.answering():
                created = client.create_run(
                    experiment_id,
                    run_name=f"{profile}/{task}/{percent}-s{seed}/{model}{place}",
                    tags=where | cell | nested | _git() | dict(tags) | self._note(tags),
                )
                run_id = created.info.run_id
                page = f"{self._ui}/#/experiments/{experiment_id}/runs/{run_id}?{query}"
                run = CellRun(self, run_id, page, params)
                _log_inputs(client, run_id, inputs)
        except BaseException as error:
            if run is not None:
                run.fail(_named(error))
            raise
        return run

    def close_abandoned(self, dagster_run: str, reason: str) -> None:
        """End as FAILED the MLflow runs that a Dagster run, killed, has left open."""
        if not self.enabled or not self.has_runs:
            return
        client, experiment = self.connect()
        left_open = f"tags.`dagster.run_id` = '{dagster_run}' and attributes.status = 'RUNNING'"
        with self.answering():
            for run in client.search_runs([experiment], left_open, max_results=BATCH):
                _end(client, run.info.run_id, reason, "FAILED")

    @property
    def view(self) -> str:
        """The page that the experiment opens on, below the address of the MLflow UI."""
        share = f"workflowType=machine_learning&viewStateShareKey={OPENING_VIEW}"
        return f"#/experiments/{self.connect()[1]}/runs?{share}"

    @property
    def has_runs(self) -> bool:
        """False where nothing can have been recorded, and looking would create the database."""
        file = _sqlite_file(self.uri)
        return file is None or file.exists()

    def _note(self, tags: Mapping[str, str]) -> dict[str, str]:
        """The run's description in the MLflow UI: the way back to the Dagster run."""
        run = tags.get("dagster.run_id")
        link = f"[Dagster run]({self.dagster_url}/runs/{run}) of {tags.get('dagster.asset', '')}"
        return {"mlflow.note.content": link} if run else {}

    @property
    def _ui(self) -> str:
        if not self.uri.startswith("http"):
            return self.ui_url.rstrip("/")
        return _without_password(self.uri).rstrip("/")


def _mlflow() -> ModuleType:
    """MLflow, imported quietly unless the environment says otherwise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    return mlflow


@functools.lru_cache
def _connect(uri: str, experiment: str, artifacts: Path) -> tuple[Any, str]:
    mlflow = _mlflow()
    with _first_contact(uri):
        _create_whole(_sqlite_file(uri))
        client = mlflow.MlflowClient(uri)
        found = _experiment_id(client, uri, experiment, artifacts)
        dress(client, found)
        return client, found


def _create_whole(file: Path | None) -> None:
    """Create a missing SQLite database beside its place: half a schema could never be opened again. An empty
    file is none."""
    if file is None or (file.exists() and file.stat().st_size):
        return
    for left in file.parent.glob(f".{file.name}-*"):
        left.unlink()
    fresh = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    _mlflow().MlflowClient(f"sqlite:///{fresh}").search_experiments()
    os.replace(fresh, file)


def _first_contact(uri: str) -> contextlib.AbstractContextManager:
    """Let one process at a time create or migrate a SQLite database: MLflow's migrations race."""
    file = _sqlite_file(uri)
    if file is None:
        return contextlib.nullcontext()
    return by_file(file.parent, file.name)


def _silence(uri: str) -> str:
    """Why a server does not answer; "" where it does, whatever it says."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS)
    except requests.Timeout:
        return "no answer in time"
    except requests.ConnectionError:
        return "no connection"
    except requests.RequestException as error:
        return str(error)
    return ""


def _without_password(uri: str) -> str:
    """The address as it may stand in messages and in Dagster's metadata."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:TAG_LENGTH]


def _end(client: Any, run_id: str, reason: str, status: str) -> None:
    client.set_tag(run_id, "reason", reason[:TAG_LENGTH])
    client.set_terminated(run_id, status)


def _sqlite_file(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's database, None for any other URI."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _experiment_id(client: Any, uri: str, name: str, artifacts: Path) -> str:
    from mlflow.exceptions import MlflowException

    # A server knows where its artifacts belong; beside a bare database we say it.
    location = None if uri.startswith("http") else artifacts.as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have created it since the look-up.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow experiment {name!r} is deleted: run `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}` or set another `experiment` on the MLflow resource"
        )
    return found.experiment_id


def _lost_race(error: BaseException) -> bool:
    """Whether another process entered the same data set between the server's look-up and its insertion."""
    return getattr(error, "error_code", "") == "BAD_REQUEST"


@tenacity.retry(
    retry=tenacity.retry_if_exception(_lost_race),
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_random(0.05, 0.5),
    reraise=True,
)
def _log_inputs(client: Any, run_id: str, inputs: Sequence[DatasetRecord]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not inputs:
        return
    client.log_inputs(
        run_id,
        [
            DatasetInput(
                Dataset(each.name, each.digest, source_type="local", source=json.dumps({"uri": each.source})),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in inputs
        ],
    )


def _nested(parent: str, variant: str) -> dict[str, str]:
    _check_names(variant=variant)
    return {PARENT: parent, VARIANT: variant}


def _supersede(client: Any, run_id: str) -> None:
    """Tag the older finished runs of a run's cell; a trial's supersedes nothing."""
    run = client.get_run(run_id)
    if VARIANT in run.data.tags:
        return
    experiment = run.info.experiment_id
    same_cell = " and ".join(f"tags.{name} = '{run.data.tags[name]}'" for name in ("group", "seed"))
    for other in client.search_runs([experiment], f"{same_cell} and attributes.status = 'FINISHED'"):
        if other.info.run_id != run_id and "superseded" not in other.data.tags:
            nested = client.search_runs([experiment], f"tags.`{PARENT}` = '{other.info.run_id}'")
            for each in [*nested, other]:
                client.set_tag(each.info.run_id, "superseded", "true")


def _check_names(**names: str) -> None:
    """They become run names and search filters, where a slash or a quote has a meaning of its own."""
    for field, name in names.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{field} {name!r}: use letters, digits, '_', '-' and '.' only")


@functools.lru_cache
def _git() -> dict[str, str]:
    """The tag git.sha of the checkout, `-dirty` where it has changes; no tag outside a checkout."""
    if not (OURS / "pyproject.toml").exists():
        # Installed: a repository around it would be another one.
        return {}
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=OURS, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git.sha": done.stdout.strip()}
