"""A changed source file sets off exactly the stale work: the sensor, the conditions, and runs of them."""

import gzip
import http.server
import os
import re
import threading
from pathlib import Path

import dagster as dg
import fsspec
import pytest
import yaml

from assets.data.reviews import change, obtain, source_state
from assets.settings.axes import Axes
from assets.settings.catalog import load_catalog
from assets.state.store import Store
from ml import synthetic
from pipeline.automation import change_sensor, changed_domains, weekly_schedule
from pipeline.chain import Chain
from pipeline.definitions import build_defs, defs
from tests.assets.axes import CATALOG

CELL = "tiny|b20-s0"
FACTORS = [dg.AssetKey(["strict", name]) for name in ("source_factors", "target_factors")]
TRAINED = [dg.AssetKey("split"), *FACTORS, dg.AssetKey(["strict", "emcdr"])]


class House:
    """A home with one trained cell, its source files, and the state of the automation."""

    def __init__(self, home: Path, files: dict[str, Path], instance: dg.DagsterInstance) -> None:
        self.home, self.files, self.instance = home, files, instance
        self.store, self.cursor = Store(home=str(home)), None
        self.catalog = load_catalog()
        self.defs = build_defs(Axes(self.catalog))

    def tick(self) -> dict[str, set]:
        """The partitions that one evaluation requests, by asset."""
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        asked = {
            key.to_user_string(): result.get_requested_partitions(key)
            for key in self.defs.resolve_asset_graph().materializable_asset_keys
        }
        return {key: partitions for key, partitions in asked.items() if partitions}

    def polled(self) -> list[tuple[str, str]]:
        context = dg.build_sensor_context(self.instance, resources={"store": self.store})
        sensor = change_sensor(self.catalog)
        return [(request.partition_key, request.run_key) for request in sensor(context)]

    def run(self, job: str, partition: str, assets: list[dg.AssetKey] | None = None) -> None:
        job_def = self.defs.resolve_job_def(job)
        assert job_def.execute_in_process(
            partition_key=partition, instance=self.instance, asset_selection=assets
        ).success

    def written(self) -> dict[str, int]:
        """When each artifact was written, by path."""
        paths = self.home.glob("artifacts/**/manifest.json")
        return {path.parent.relative_to(self.home).as_posix(): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    home = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setenv("DIFFCDR_HOME", str(home))
        files = {name: home / f"{name}.json.gz" for name in ("tiny_video", "tiny_music")}
        written = yaml.safe_load(Path(os.environ["DIFFCDR_CATALOG"]).read_text())
        for name, file in files.items():
            synthetic.write_reviews(name.removeprefix("tiny_"), "tiny", file, seed=0)
            written["domains"][name]["url"] = str(file)
        (home / "catalog.yaml").write_text(yaml.safe_dump(written))
        patch.setenv("DIFFCDR_CATALOG", str(home / "catalog.yaml"))
        for step in Chain(["tiny"], [0.2], [0], ["strict"], ["emcdr"]).steps():
            step.perform(instance)
        yield House(home, files, instance)


@pytest.fixture(autouse=True)
def home(house, monkeypatch):
    monkeypatch.setenv("DIFFCDR_HOME", str(house.home))


def test_a_changed_file_recomputes_the_stale_cell_and_nothing_else(house):
    assert house.tick() == {}
    assert house.polled() == []

    drop_a_review(house.files["tiny_music"])
    [(domain, key)] = house.polled()
    assert domain == "tiny_music"
    assert house.polled() == [(domain, key)]  # Dagster runs one key once
    house.run("ingest", domain)
    assert house.polled() == []

    assert house.tick() == {"overlap": {"tiny"}}
    before = house.written()
    house.run("pair", "tiny")

    # Only the profile, the model, the β and the seed that had been trained, and the table of the overlaps.
    cells = {key.to_user_string(): {CELL} for key in TRAINED}
    assert house.tick() == {**cells, "table1": {None}, "report": {None}}
    assert house.tick() == {}  # asked for once
    house.run("train_strict", CELL, TRAINED)

    # The source domain is as it was, so its factors are not trained again.
    after = house.written()
    assert set(after) == set(before)
    assert {path for path in before if after[path] == before[path]} == {
        path for path in before if re.search("/(source_factors|reviews|ratings)/", path)
    }

    asked = house.tick()
    assert {"strict/table2", "report"} <= set(asked)
    assert not set(cells) & set(asked)


def test_a_touched_file_with_the_same_content_sets_nothing_off(house):
    house.tick()
    os.utime(house.files["tiny_video"])
    [(domain, _)] = house.polled()
    house.run("ingest", domain)
    assert house.tick() == {}


def test_a_failed_run_is_not_asked_for_again(house):
    house.tick()
    drop_a_review(house.files["tiny_video"])
    house.run("ingest", "tiny_video")
    assert house.tick() == {"overlap": {"tiny"}}
    assert house.tick() == {}


def test_the_weekly_schedule_asks_for_the_same_as_the_sensor(house):
    os.utime(house.files["tiny_music"])
    context = dg.build_schedule_context(house.instance, resources={"store": house.store})
    schedule = weekly_schedule(house.catalog)
    assert [(r.partition_key, r.run_key) for r in schedule(context)] == house.polled() != []


def test_nothing_runs_by_itself_until_it_is_switched_on():
    repository = defs().get_repository_def()
    assert {sensor.default_status for sensor in repository.sensor_defs} == {dg.DefaultSensorStatus.STOPPED}
    assert {s.default_status for s in repository.schedule_defs} == {dg.DefaultScheduleStatus.STOPPED}
    assert all(each.description for each in [*repository.sensor_defs, *repository.schedule_defs])


def test_a_source_that_was_never_read_is_not_asked(house, monkeypatch):
    monkeypatch.setattr("assets.data.reviews.source_state", lambda url: pytest.fail(f"asked {url}"))
    assert list(changed_domains(Store(home=str(house.home / "other")), CATALOG)) == []


def test_a_source_that_is_gone_leaves_its_copy_valid(tmp_path):
    store, file = Store(home=str(tmp_path / "home")), tmp_path / "own.csv"
    file.write_text("user,item,rating\nu,i,3\n")
    domain = CATALOG.domains["tiny_video"].model_copy(update={"url": str(file)})
    record = obtain(store, domain)
    file.unlink()
    assert change(store, domain) is None
    assert obtain(store, domain) == record


def test_a_failed_fetch_leaves_the_copy_at_hand(tmp_path):
    store, file = Store(home=str(tmp_path / "home")), tmp_path / "own.csv.gz"
    file.write_bytes(gzip.compress(b"user,item,rating\nu,i,3\n"))
    domain = CATALOG.domains["tiny_video"].model_copy(update={"url": str(file)})
    record = obtain(store, domain)
    file.write_bytes(b"rubbish")
    with pytest.raises(Exception, match="not a gzip file"):
        obtain(store, domain)
    assert store.reviews(domain.name).require() == record


@pytest.mark.parametrize("header", ["Last-Modified", "ETag"])
def test_the_state_of_an_http_source_follows_its_header(header):
    versions = {"value": "Wed, 01 Jan 2025 00:00:00 GMT"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.send_header(header, versions["value"])
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/own.csv"
        first = source_state(url)
        assert source_state(url) == first == ["7", versions["value"]]
        versions["value"] = "Thu, 02 Jan 2025 00:00:00 GMT"
        assert source_state(url) != first
        server.shutdown()
    assert source_state(url) is None  # nobody answers


def test_the_state_of_an_fsspec_source_follows_its_file():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/automation.csv", b"a")
    first = source_state("memory://automation.csv")
    assert source_state("memory://automation.csv") == first
    memory.pipe_file("/automation.csv", b"ab")
    assert source_state("memory://automation.csv") != first
    memory.rm("/automation.csv")
    assert source_state("memory://automation.csv") is None


def drop_a_review(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))
