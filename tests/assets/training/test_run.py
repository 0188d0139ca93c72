"""The training loop on the tiny task: what a cell leaves; all models are judged by the same rules."""

import dataclasses
import gc
import json
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from assets.data.cell import Gate, training_rows
from assets.data.domain import domain_ratings
from assets.settings.profile import load_profiles
from assets.settings.space import Range, Space
from assets.state.compute import Compute
from assets.state.store import NotMaterialized, Store
from assets.state.tracking import MlflowTracking
from assets.training import run as training_run
from assets.training.factors import train_source, train_target
from assets.training.fingerprints import Fingerprints, expected_fingerprint
from assets.training.outcome import LISTED
from assets.training.run import Training, restored_model
from ml.evaluation.ratings import rating_errors
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.tiny import measured, prepare, train, training_of

PAPER = load_profiles()["paper"]
STRICT = dataclasses.replace(load_profiles()["strict"], objectives=("rating",))
CONTROLS = [name for name in STRICT.controls if STRICT.objectives_of(name)]
RULES = ("validation", "last", "best_on_test")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A home with DiffCDR, TGT, CMF and every control of one cell."""
    made = prepare(Store(home=str(tmp_path_factory.mktemp("home"))))
    train(made, STRICT, ["diffcdr", "tgt", "cmf", *CONTROLS])
    return made


def test_every_control_has_results_under_every_rule(store):
    for name in ("diffcdr", "tgt", "cmf", *CONTROLS):
        for rule in RULES:
            assert {"mae", "rmse"} <= set(measured(store, STRICT, name, rule))


def test_diffcdr_without_its_users_source_is_worse(store):
    rmse = {
        name: measured(store, STRICT, name, "validation")["rmse"] for name in ("diffcdr", "permuted_source")
    }
    assert rmse["permuted_source"] > rmse["diffcdr"]


def test_simple_predictors_are_ordered_by_what_they_know(store):
    names = ("ridge_source", "item_mean", "global_mean")
    rmse = [measured(store, STRICT, name, "validation")["rmse"] for name in names]
    assert rmse == sorted(rmse)


def test_tgt_is_the_target_factorization_as_it_was_judged(store):
    factors = store.target_factors("strict", CELL).table("curves.parquet")
    curves = store.model("strict", "tgt", CELL).table("curves.parquet")
    assert curves["test_rmse"].tolist() == factors["test_rmse"].tolist()
    held = Gate(store, STRICT, CELL, needs=()).held_out("test")
    factors = store.target_factors("strict", CELL).tensors("factors.safetensors")
    users = factors["users"][held.users.target_rows]
    predicted = (users[held.ratings.users] * factors["items"][held.ratings.items]).sum(1)
    rmse = rating_errors(predicted, held.ratings.values, held.ratings.users)["rmse"]
    assert rmse == pytest.approx(curves["test_rmse"].iloc[-1], rel=1e-6)


@pytest.mark.parametrize(
    "name", ["diffcdr", "cmf", "ridge_source", "shared_vector", "permuted_source", "tgt"]
)
def test_what_is_restored_predicts_what_was_measured(store, name):
    """A model is written and read back as it was at the epoch that validation chose."""
    model = restored_model(store, STRICT, name, CELL, "rating")
    held = Gate(store, STRICT, CELL, needs=("ratings", "factors")).held_out("test")
    scale = CELL.target.scale if STRICT.clips(name) else None
    predicted = model.predict(held.users, held.ratings).clipped(scale).mean
    errors = rating_errors(predicted, held.ratings.values, held.ratings.users)
    if name == "tgt":  # its vectors are those of the last epoch
        assert errors["rmse"] == pytest.approx(measured(store, STRICT, name, "last")["rmse"], rel=1e-5)
    else:
        assert errors["rmse"] == pytest.approx(measured(store, STRICT, name, "validation")["rmse"], rel=1e-5)


def test_errors_by_user_and_by_support_add_up_to_the_clipped_error(store):
    entry, reported = (
        store.model("strict", "ridge_source", CELL),
        measured(store, STRICT, "ridge_source", "last"),
    )
    errors = entry.table("user_errors.parquet")
    assert errors["absolute"].sum() / errors["count"].sum() == pytest.approx(reported["mae"], rel=1e-6)
    coverage = entry.table("coverage.parquet").set_index("by")
    whole = coverage.loc["all"]
    assert whole["absolute"] == pytest.approx(errors["absolute"].sum(), rel=1e-6)
    model = restored_model(store, STRICT, "ridge_source", CELL, "rating")
    held = Gate(store, STRICT, CELL).held_out("test")
    raw = model.predict(held.users, held.ratings)
    assert whole["outside"] == (raw.mean != raw.clipped(CELL.target.scale).mean).sum().item()


def test_coverage_knows_the_training_ratings_and_the_histories(store):
    frame = store.model("strict", "diffcdr", CELL).table("coverage.parquet")
    target = domain_ratings(store, "tiny_music")
    counts = np.bincount(target.items[training_rows(store, STRICT, CELL)], minlength=target.n_items)
    ratings = Gate(store, STRICT, CELL).held_out("test").ratings
    known = counts[ratings.items]
    by_item = frame[frame["by"] == "item"].set_index("bucket")["count"].to_dict()
    expected = {"0": known == 0, "1–4": (known > 0) & (known < 5), "≥ 5": known >= 5}
    assert by_item == {bucket: int(rows.sum()) for bucket, rows in expected.items() if rows.any()}
    assert frame[frame["by"] == "history"]["count"].sum() == len(ratings)


def test_controls_are_not_warmed_up(store):
    assert set(store.model("strict", "item_mean", CELL).table("metrics.parquet")["stage"]) == {"cold"}
    assert "warm" in set(store.model("strict", "diffcdr", CELL).table("metrics.parquet")["stage"])


def test_lists_are_kept_for_every_test_user(store):
    train(store, PAPER, ["popularity", "random"])
    entry = store.model("paper", "popularity", CELL, "ranking")
    lists, scores = entry.table("lists.parquet"), entry.table("list_scores.parquet")
    held = Gate(store, PAPER, CELL).held_out("test")
    assert (len(lists), lists.shape[1]) == (len(held), LISTED + 1)
    assert (lists.drop(columns="user").nunique() == 1).all()  # the same for everyone
    metrics = entry.table("metrics.parquet").set_index(["selection", "metric"])["value"]
    for name in ("ndcg@10", "ndcg@20", "recall@20", "hr@20", "mrr@20"):
        assert scores[name].mean() == pytest.approx(metrics["last", name], rel=1e-9)
    groups = entry.table("list_groups.parquet")
    assert set(groups["by"]) == {"all", "popularity", "history"}
    random = store.model("paper", "random", CELL, "ranking").table("metrics.parquet")
    assert metrics["last", "ndcg@20"] > random.set_index("selection").loc["last"]["value"].min()


def test_every_device_is_named_alike(store):
    """Table 4 groups by device: one name for all models, or rivals do not stand beside each other."""
    devices = set()
    for name in ("diffcdr", "cmf", "item_mean", "shared_vector"):
        devices |= set(store.model("strict", name, CELL).table("throughput.parquet")["device"])
    assert devices == {"CPU, 1 thread"}


def test_what_is_current_is_not_trained_again(store, monkeypatch):
    monkeypatch.setattr(Training, "_fit", lambda *_: pytest.fail("trained again"))
    training_of(store, STRICT, "diffcdr").run([CELL])


def test_another_setting_makes_it_stale(store):
    entries = {
        **STRICT.entries,
        "diffcdr": dataclasses.replace(STRICT.entries["diffcdr"], settings={"nfe": 5}),
    }
    other = dataclasses.replace(STRICT, entries=entries)
    recorded = store.model("strict", "diffcdr", CELL).require()["fingerprint"]
    assert expected_fingerprint(store, CATALOG, STRICT, "diffcdr", CELL, "rating") == recorded
    assert expected_fingerprint(store, CATALOG, other, "diffcdr", CELL, "rating") != recorded
    # What is made of it is stale with it, what is not is not.
    for name, stale in (("permuted_source", True), ("cmf", False)):
        old, new = (expected_fingerprint(store, CATALOG, p, name, CELL, "rating") for p in (STRICT, other))
        assert (old != new) == stale


def test_a_stale_input_is_refused_and_named(store):
    """A model trained on a split of other settings would carry a fingerprint that lies."""
    other = CATALOG.model_copy(update={"split": CATALOG.split.model_copy(update={"validation": 0.3})})
    training = dataclasses.replace(training_of(store, STRICT, "emcdr"), catalog=other)
    with pytest.raises(NotMaterialized, match=r"split.*out of date.*materialize split"):
        training.run([CELL])


def test_nothing_is_expected_where_the_raw_files_are_not(tmp_path):
    empty = Store(home=str(tmp_path / "empty"))
    assert expected_fingerprint(empty, CATALOG, STRICT, "emcdr", CELL, "rating") is None


def test_a_cell_that_cannot_be_written_fails_alone(tmp_path, monkeypatch):
    """Its neighbours are trained: they are written, and their MLflow runs finish."""
    cells = [AXES.parse(f"tiny|b20-s{seed}") for seed in (0, 1)]
    made = prepare(Store(home=str(tmp_path / "home")), cells)
    tracking = MlflowTracking(home=str(tmp_path / "home"))
    write = Training._write

    def failing(self, gate, *arguments):
        if gate.cell.seed == 0:
            raise OSError("no space left")
        write(self, gate, *arguments)

    monkeypatch.setattr(Training, "_write", failing)
    with pytest.raises(OSError, match="no space left"):
        training_of(made, STRICT, "item_mean", tracking=tracking).run(cells)
    assert made.model("strict", "item_mean", cells[0]).manifest() is None
    assert made.model("strict", "item_mean", cells[1]).manifest() is not None
    client, experiment = tracking.connect()
    found = [run for run in client.search_runs([experiment]) if "seed" in run.data.tags]
    runs = {run.data.tags["seed"]: run.info.status for run in found}
    assert runs == {"0": "FAILED", "1": "FINISHED"}


def test_the_paper_profile_has_no_validation_users_to_shrink_by(store):
    strict, paper = (Gate(store, profile, CELL).data for profile in (STRICT, PAPER))
    assert paper.validation is None
    assert len(paper.target) > len(strict.target)
    assert not torch.isin(strict.validation.users.target_rows, strict.target.users).any()


def test_source_statistics_are_those_of_the_users_own_ratings(store):
    train_users = Gate(store, STRICT, CELL).data.train
    ratings = domain_ratings(store, "tiny_video")
    row = 11
    mine = ratings.values[ratings.users == int(train_users.source_rows[row])]
    expected = [mine.std(), (mine == 5).mean(), (mine <= 2).mean(), np.log1p(len(mine))]
    assert train_users.statistics[row, 1:].tolist() == pytest.approx(expected, rel=1e-6)


def test_fingerprints_of_seeds_differ_and_of_betas_share_the_source(store):
    prints = Fingerprints(store, CATALOG, STRICT)
    one, two = AXES.parse("tiny|b20-s0"), AXES.parse("tiny|b50-s0")
    assert prints.source_factors(one, "rating") == prints.source_factors(two, "rating")
    assert prints.target_factors(one, "rating") != prints.target_factors(two, "rating")


def test_what_a_cell_gives_up_does_not_depend_on_its_neighbour(tmp_path):
    """Two cells trained as one program, and one of them alone: the same trials, each for the same epochs."""
    cells = [AXES.parse(f"tiny|b20-s{seed}") for seed in (0, 1)]
    trials = tuple({"lr": lr} for lr in (1e-3, 1e-2, 1e-1, 1e-4))
    entry = dataclasses.replace(STRICT.entries["lacdr"], settings={"epochs": 7}, trials=trials)
    profile = dataclasses.replace(STRICT, entries={**STRICT.entries, "lacdr": entry}, controls=())
    tables = []
    for group in (cells, cells[1:]):
        made = prepare(Store(home=str(tmp_path / f"home{len(group)}")), group)
        for cell in group:
            train_source(made, Compute(device="cpu"), CATALOG, profile, [cell], "rating")
            train_target(made, Compute(device="cpu"), CATALOG, profile, [cell], "rating")
        training_of(made, profile, "lacdr").run(group)
        tables.append(made.model("strict", "lacdr", cells[1]).table("trials.parquet"))
    together, alone = tables
    assert together["epochs"].tolist() == alone["epochs"].tolist()
    assert together["validation_rmse"].tolist() == pytest.approx(alone["validation_rmse"].tolist(), rel=1e-5)
    assert alone["epochs"].iloc[0] == 7
    assert alone["epochs"].min() == 3


@pytest.mark.parametrize(
    ("name", "settings", "trials"),
    [
        ("lacdr", {}, [{"lr": lr, "latent": n} for n in (2, 4) for lr in (1e-3, 1e-2, 1e-1, 1e-4)]),
        (
            "diffcdr",
            {"hidden": 16},
            [
                *({"guidance": s, "task_weight": w} for s in (0.1, 1.0) for w in (0.1, 4.0)),
                {"start": "noise"},
                {"start": "noise", "task_weight": 2.0},
            ],
        ),
    ],
)
def test_trials_as_replicas_are_trials_one_by_one(tmp_path, monkeypatch, name, settings, trials):
    """The same are given up after the same epochs, the same is chosen, and what is reported is equal."""
    cells = [AXES.parse(f"tiny|b20-s{seed}") for seed in (0, 1)]
    entry = dataclasses.replace(
        STRICT.entries[name], settings={**settings, "epochs": 7}, trials=tuple(trials)
    )
    profile = dataclasses.replace(STRICT, entries={**STRICT.entries, name: entry}, controls=())
    programs, fit = [], Training._fit

    def counted(self, replicas):
        programs[-1].append(len(replicas))
        return fit(self, replicas)

    monkeypatch.setattr(Training, "_fit", counted)
    homes = []
    for home in ("together", "alone"):
        if home == "alone":
            monkeypatch.setattr(training_run, "varied_of", lambda kind: ())
        made = prepare(Store(home=str(tmp_path / home)), cells)
        train_source(made, Compute(device="cpu"), CATALOG, profile, cells, "rating")
        train_target(made, Compute(device="cpu"), CATALOG, profile, cells, "rating")
        programs.append([])
        training_of(made, profile, name).run(cells)
        homes.append(made)
    together, alone = programs
    assert sum(together) == sum(alone) == len(cells) * len(trials)
    assert (len(together), len(alone)) == (2, len(trials))
    for cell in cells:
        entries = [made.model("strict", name, cell) for made in homes]
        for table in ("trials.parquet", "metrics.parquet"):
            mine, expected = (entry.table(table) for entry in entries)
            pd.testing.assert_frame_equal(mine, expected, rtol=1e-4)
        mine, expected = (entry.table("throughput.parquet").iloc[0] for entry in entries)
        counts = ["replicas", "train_samples", "test_samples", "test_users"]
        assert mine[counts].tolist() == expected[counts].tolist()
        epochs = entries[0].table("trials.parquet")["epochs"]
        assert epochs.min() < epochs.max() == 7


def test_a_space_is_searched_by_optuna_each_trial_a_nested_run(tmp_path):
    """Seeded by the cell, judged on validation users, the study kept beside the trials."""
    made = prepare(Store(home=str(tmp_path / "home")))
    space = Space({"lr": Range(low=1e-4, high=1e-2, log=True), "latent": (2, 4)}, count=3)
    entry = dataclasses.replace(STRICT.entries["lacdr"], settings={"epochs": 2}, trials=space)
    profile = dataclasses.replace(
        STRICT, objectives=("rating",), entries={**STRICT.entries, "lacdr": entry}, controls=()
    )
    tracking = MlflowTracking(home=str(tmp_path / "home"))
    train(made, profile, ["lacdr"], tracking=tracking)
    written = made.model("strict", "lacdr", CELL)
    trials, study = written.table("trials.parquet"), json.loads(written.read("study.json"))
    assert len(trials) == study["trials"] == 3
    assert study["seed"] == CELL.seed
    assert trials.loc[trials["chosen"], "validation_rmse"].item() == trials["validation_rmse"].min()
    assert trials["lr"].between(1e-4, 1e-2).all()
    assert set(trials["latent"]) <= {2, 4}
    client, experiment = tracking.connect()
    parent = written.require()["mlflow_run_id"]
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.params["lr"] for run in nested} == {str(lr) for lr in trials["lr"]}
    assert {run.info.status for run in nested} == {"FINISHED"}


def test_cells_too_large_for_one_program_are_trained_one_by_one_with_the_same_results(tmp_path, monkeypatch):
    cells = [CELL, AXES.parse("tiny|b20-s1")]
    found, programs = [], []
    fit = Training._fit
    monkeypatch.setattr(Training, "_fit", lambda self, rs: programs[-1].append(len(rs)) or fit(self, rs))
    for limit in (training_run.TOGETHER, 1):
        monkeypatch.setattr(training_run, "TOGETHER", limit)
        made = prepare(Store(home=str(tmp_path / str(limit))), cells)
        for side in (train_source, train_target):
            side(made, Compute(device="cpu"), CATALOG, PAPER, cells, "rating")
        programs.append([])
        training_of(made, PAPER, "emcdr").run(cells)
        found.append([measured(made, PAPER, "emcdr", "last", cell)["rmse"] for cell in cells])
    assert programs == [[2], [1, 1]]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_cell_that_is_trained_is_gone_from_memory_before_the_next_one(tmp_path, monkeypatch):
    """By itself: Python looks for cycles too seldom where a few tensors are all there is."""
    cells = [CELL, AXES.parse("tiny|b20-s1")]
    made = prepare(Store(home=str(tmp_path)), cells)
    for side in (train_source, train_target):
        side(made, Compute(device="cpu"), CATALOG, PAPER, cells, "rating")
    monkeypatch.setattr(training_run, "TOGETHER", 1)
    known, still_there, fit = [], [], Training._fit

    def watched(self, replicas):
        still_there.append([data() is not None for data in known])
        known.append(weakref.ref(replicas[0].gate.data))
        return fit(self, replicas)

    monkeypatch.setattr(Training, "_fit", watched)
    gc.disable()
    try:
        training_of(made, PAPER, "emcdr").run(cells)
    finally:
        gc.enable()
    assert still_there == [[], [False]]
