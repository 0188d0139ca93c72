"""The whole house on the tiny task: through Dagster, from the command line, across a kill in training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from dagster import DagsterInstance
from typer.testing import CliRunner

from assets.report.results import COLUMNS, read_results, source
from assets.settings.catalog import load_catalog
from assets.settings.profile import load_profiles
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from pipeline.asked import UnknownName
from pipeline.chain import Chain
from pipeline.cli import app
from pipeline.definitions import build_defs, defs

PAPER_MODELS = ["tgt", "cmf", "emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr"]
RUN = ["run", "--task", "tiny", "--beta", "0.2", "--profile", "strict"]


class House:
    """A home in which the tiny task was run once, and the Dagster instance that ran it."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.home, self.instance, self.store = home, instance, Store(home=str(home))

    def run(self, **asked) -> None:
        asked = {"tasks": ["tiny"], "betas": [0.2], "seeds": [], "profiles": ["strict"], "models": []} | asked
        for step in Chain(**asked).steps():
            step.perform(self.instance)

    def results(self, profile: str = "strict") -> pd.DataFrame:
        return read_results([source(self.store, load_catalog(), load_profiles()[profile])])

    def manifests(self) -> dict[str, dict]:
        return {str(p): json.loads(p.read_text()) for p in self.home.glob("artifacts/**/manifest.json")}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    home = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setenv("DIFFCDR_HOME", str(home))
        house = House(home, instance)
        house.run()
        yield house


@pytest.fixture(autouse=True)
def home(house, monkeypatch):
    monkeypatch.setenv("DIFFCDR_HOME", str(house.home))


def test_every_model_has_both_errors_under_every_selection_rule(house):
    frame = house.results()
    assert list(frame.columns) == COLUMNS
    cold = frame[(frame["stage"] == "cold") & (frame["objective"] == "rating")]
    for seed in (0, 1):
        for model in PAPER_MODELS:
            cell = cold[(cold["seed"] == seed) & (cold["model"] == model)]
            rules = cell[cell["metric"].isin(["mae", "rmse"])].set_index(["selection", "metric"])["value"]
            assert set(rules.index) >= {
                (rule, metric)
                for rule in ("validation", "last", "best_on_test")
                for metric in ("mae", "rmse")
            }
            assert (rules > 0).all()
            assert rules["best_on_test", "mae"] <= min(rules["last", "mae"], rules["validation", "mae"])


def test_every_model_makes_lists_that_are_judged_under_every_selection_rule(house):
    frame = house.results()
    lists = frame[(frame["stage"] == "cold") & (frame["objective"] == "ranking")]
    found = lists.set_index(["seed", "model", "metric", "selection"])["value"].sort_index()
    for seed in (0, 1):
        for model in PAPER_MODELS:
            for metric in ("ndcg@20", "recall@20", "hr@20"):
                rules = found[seed, model, metric]
                assert 0 <= max(rules["last"], rules["validation"]) <= rules["best_on_test"] <= 1
    # Some training makes better lists on its way than at its end, and the rule sees that.
    assert (found[:, :, "ndcg@20", "best_on_test"] > found[:, :, "ndcg@20", "last"]).any()


def test_table2_is_the_mean_over_the_seeds(house):
    table = pd.read_parquet(house.store.report("strict", "table2") / "table2.parquet")
    results = house.results()
    row = table.set_index(["model", "metric", "selection"]).loc[("diffcdr", "mae", "validation")]
    values = results[
        (results["model"] == "diffcdr")
        & (results["metric"] == "mae")
        & (results["selection"] == "validation")
        & (results["stage"] == "cold")
    ]["value"]
    assert row["seeds"] == 2
    assert row["mean"] == pytest.approx(values.mean())
    assert "TGT" in (house.store.report("strict", "table2") / "table2.md").read_text()


def test_an_untrained_user_vector_is_worse_than_a_mapped_one(house):
    frame = house.results()
    last = frame[(frame["selection"] == "last") & (frame["metric"] == "mae") & (frame["stage"] == "cold")]
    by_model = last.groupby("model")["value"].mean()
    assert by_model["tgt"] > by_model.drop("tgt").max()


def test_dagster_knows_each_cell_with_its_metrics_and_mlflow_run(house):
    key = dg.AssetKey(["strict", "diffcdr"])
    assert set(house.instance.get_materialized_partitions(key)) == {"tiny|b20-s0", "tiny|b20-s1"}
    event = house.instance.get_latest_materialization_event(key)
    metadata = event.asset_materialization.metadata
    assert metadata["validation_mae"].value > 0
    assert metadata["mlflow_run_rating"].url.startswith("http://127.0.0.1:5000/#/experiments/")
    assert "data:image/png;base64," in metadata["curves_rating"].md_str
    # So much Markdown a page shows without a click.
    assert "data:image/svg+xml;base64," in metadata["curve_rating"].md_str
    assert len(metadata["curve_rating"].md_str) < 1000


def test_mlflow_has_one_finished_run_a_model_and_cell(house):
    client, experiment = MlflowTracking(home=str(house.home)).connect()
    runs = client.search_runs([experiment], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = {f"strict/tiny/b20-s{seed}/{model}" for model in PAPER_MODELS for seed in (0, 1)}
    assert {run.info.run_name for run in runs if run.data.tags.get("model") in PAPER_MODELS} == names
    diffcdr = next(run for run in runs if run.info.run_name == "strict/tiny/b20-s0/diffcdr")
    assert diffcdr.data.params["guidance"] == "0.1"
    curve = client.get_metric_history(diffcdr.info.run_id, "test_mae")
    assert [point.step for point in curve] == list(range(1, 11))
    assert {d.dataset.name for d in diffcdr.inputs.dataset_inputs} == {"tiny_video", "tiny_music"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run.info.run_name in names} == {
        next(run.info.run_id for run in runs if run.info.run_name == "strict/tiny/b20")
    }
    # One value is not a curve: a predictor without epochs has its errors, and nothing by epoch.
    mean = next(run for run in runs if run.info.run_name == "strict/tiny/b20-s0/item_mean")
    assert set(mean.data.metrics) >= {"mae", "rmse"}
    assert not any(name.startswith(("test_", "validation_")) for name in mean.data.metrics)


def test_the_blocking_checks_ran_and_passed(house):
    records = house.instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(event_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    )
    evaluations = [r.event_log_entry.dagster_event.asset_check_evaluation_data for r in records]
    assert {e.check_name for e in evaluations} == {
        "roles_partition_the_overlap",
        "split_is_reproducible",
        "no_held_out_rating_in_training",
        "ratings_are_whole",
        "factors_are_whole",
        "metrics_are_possible",
        "beats_the_best_simple_predictor",
    }
    assert all(e.passed for e in evaluations if e.check_name != "beats_the_best_simple_predictor")


def test_a_model_stands_beside_the_best_simple_predictor(house):
    """On its page and in a check, which warns and blocks nothing: the paper's models do not beat the mean."""
    key = dg.AssetKey(["strict", "emcdr"])
    event = house.instance.get_latest_materialization_event(key)
    shown = event.asset_materialization.metadata
    best = shown["best_simple_by_rmse"].value
    simple = house.results()
    simple = simple[(simple["model"] == best) & (simple["metric"] == "rmse") & (simple["stage"] == "cold")]
    simple = simple[simple["selection"] == "validation"].set_index("seed")["value"]
    seed = int(event.asset_materialization.partition[-1])
    assert shown["best_simple_rmse"].value == pytest.approx(simple[seed], abs=1e-6)
    records = house.instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(event_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    )
    found = [r.event_log_entry.dagster_event.asset_check_evaluation_data for r in records]
    [check] = [e for e in found if e.asset_key == key and e.check_name.startswith("beats")][:1]
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert not check.blocking
    assert f"of {best} (mean of 2 cells)" in check.metadata["rating"].value
    assert not check.passed


def test_runs_of_the_command_line_can_be_started_again_from_the_ui(house):
    """The UI looks for the job of a run where its origin says."""
    runs = house.instance.get_runs()
    assert runs
    for run in runs:
        place = run.remote_job_origin.repository_origin
        assert place.code_location_origin.location_name == "diffcdr"
        assert run.tags[".dagster/repository"] == f"{place.repository_name}@diffcdr"
        assert run.remote_job_origin.job_name == run.job_name


def test_what_is_up_to_date_is_not_done_again(house):
    before = house.manifests()
    house.run()
    assert house.manifests() == before


def test_another_beta_adds_cells_and_reuses_the_source_factors(house):
    before = house.manifests()
    house.run(betas=[0.5], seeds=[1], models=["emcdr"])
    new = {Path(path).parent.relative_to(house.home / "artifacts").as_posix() for path in house.manifests()}
    new -= {Path(path).parent.relative_to(house.home / "artifacts").as_posix() for path in before}
    place, objectives = "task=tiny/beta=0.5/seed=1", ("rating", "ranking")
    assert new == {
        f"split/{place}",
        *(f"target_factors/profile=strict/objective={each}/{place}" for each in objectives),
        *(f"models/profile=strict/model=emcdr/objective={each}/{place}" for each in objectives),
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tasks": ["nope"]}, "unknown task: nope; known are .*tiny"),
        ({"betas": [0.3]}, "unknown beta: 0.3; known are 0.2, 0.5"),
        ({"seeds": [9]}, "unknown seed: 9"),
        ({"profiles": ["nope"]}, "unknown profile: nope; known are paper, strict"),
        ({"models": ["nope"]}, "unknown model of profile strict: nope"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(house, asked, message):
    with pytest.raises(UnknownName, match=message):
        house.run(**asked)


def test_status_and_a_dry_run_say_what_is_finished_and_what_is_not(house):
    shown = json.loads(CliRunner().invoke(app, ["status", "-t", "tiny", "-p", "strict", "-f", "json"]).output)
    begun = {(row["beta"], row["seed"]): row for row in shown}
    assert {cell for cell in begun if cell[0] == 0.2} == {(0.2, 0), (0.2, 1)}
    whole = begun[0.2, 0]
    assert (whole["missing"], whole["stale"], whole["not finished"]) == (0, 0, "")
    before = house.manifests()
    nothing = CliRunner().invoke(app, ["run", "-t", "tiny", "-p", "strict", "-b", "0.2", "--dry-run"])
    assert "everything is up to date" in nothing.output
    planned = CliRunner().invoke(app, ["run", "-t", "tiny", "-p", "tuned", "-b", "0.5", "-m", "emcdr", "-n"])
    assert "tuned on tiny, β 0.5, seed 0, 1" in planned.output
    assert "missing: emcdr" in planned.output
    assert house.manifests() == before


def test_numbers_are_printed_with_six_digits(house):
    shown = CliRunner().invoke(app, ["results", "-t", "tiny", "-p", "strict", "-f", "csv"]).output
    values = [line.rsplit(",", 1)[1] for line in shown.splitlines()[1:]]
    assert values
    assert all(float(f"{float(value):.6g}") == float(value) for value in values if value)


def test_a_run_makes_only_what_its_models_need(house):
    house.run(profiles=["tuned"], models=["item_mean"])
    made = [path for path in house.manifests() if "profile=tuned" in path]
    assert {path.split("model=")[1].split("/")[0] for path in made} == {"item_mean"}


def test_the_verdict_is_on_the_command_line(house):
    done = CliRunner().invoke(app, ["verdict", "--task", "tiny", "--profile", "strict"])
    assert done.exit_code == 0, done.output
    assert "Which stars would this user give?" in done.output
    assert "95 % interval" in done.output


def test_a_verdict_without_cells_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFCDR_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["verdict", "--task", "tiny"])
    assert done.exit_code == 1
    assert "diffcdr run --task tiny --profile tuned" in done.stderr


def test_every_asset_is_described(house):
    graph = build_defs().resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert node.description, key
        assert node.group_name != "default", key
        assert node.kinds, key
        assert node.owners, key
        assert node.code_version, key


def test_a_check_fails_when_a_held_out_rating_gets_into_training(house, monkeypatch):
    import numpy as np

    from assets.data import checks

    def everything(store, profile, cell):
        return np.ones(len(checks.domain_ratings(store, "tiny_music").users), dtype=bool)

    monkeypatch.setattr(checks, "training_rows", everything)
    job = defs().resolve_job_def("train_strict")
    done = job.execute_in_process(
        partition_key="tiny|b20-s0", asset_selection=[dg.AssetKey("split")], raise_on_error=False
    )
    assert not done.success
    failed = [e for e in done.get_asset_check_evaluations() if not e.passed]
    assert [e.check_name for e in failed] == ["no_held_out_rating_in_training"]
    assert failed[0].metadata["found"].value == len(load_profiles())  # one problem for each


def test_a_run_killed_in_training_ends_with_the_same_tables(house, tmp_path):
    environment = command_line_environment(tmp_path)
    killed = subprocess.Popen(
        diffcdr(*RUN), env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    models = tmp_path / "home" / "artifacts" / "models"
    wait_until(lambda: len(list(models.glob("*/*/*/*/*/*/manifest.json"))) >= 4, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in models.glob("*/*/*/*/*/*/manifest.json")}
    assert 0 < len(finished) < 2 * len(PAPER_MODELS)

    subprocess.run(diffcdr(*RUN), env=environment, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    csv = subprocess.run(
        diffcdr("results", "--format", "csv"), env=environment, check=True, capture_output=True, text=True
    ).stdout
    from io import StringIO

    resumed = pd.read_csv(StringIO(csv))
    whole = house.results()
    whole = whole[whole["beta"] == 0.2].reset_index(drop=True)
    pd.testing.assert_frame_equal(resumed, whole, rtol=1e-4, check_dtype=False)

    client, experiment = MlflowTracking(home=environment["DIFFCDR_HOME"]).connect()
    assert {run.info.status for run in client.search_runs([experiment])} <= {"FINISHED", "FAILED"}
    with DagsterInstance.from_config(f"{environment['DIFFCDR_HOME']}/dagster") as instance:
        statuses = [run.status.value for run in instance.get_runs() if run.job_name == "train_strict"]
        assert sorted(statuses) == ["FAILURE", "SUCCESS"]


def test_one_clear_line_says_what_is_wrong(tmp_path):
    done = subprocess.run(
        diffcdr("run", "--task", "nope"),
        env=command_line_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: UnknownName: unknown task: nope; known are ")
    assert "Traceback" not in done.stderr


def diffcdr(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from pipeline.cli import app; app()", *arguments]


def command_line_environment(folder: Path) -> dict[str, str]:
    root = Path(__file__).parent.parent
    return {**os.environ, "DIFFCDR_HOME": str(folder / "home"), "PYTHONPATH": str(root)}


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "the run did not get far enough to be killed"
        time.sleep(0.005)
