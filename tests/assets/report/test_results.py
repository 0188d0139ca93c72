"""The one reader: what is unfinished, stale or diverged never enters a mean, and is named."""

import json
import math
import time

import pandas as pd
import pytest

from assets.report.results import COLUMNS, MISSING, read_results
from assets.report.table2 import table2_frame
from assets.state.store import MANIFEST, Store
from tests.assets.axes import AXES, CATALOG
from tests.assets.cells import errors, finish
from tests.assets.report.sources import CURRENT, STRICT, TUNED, source_of

MAE = ("cold", "last", "mae")
KEYS = ("tiny|b20-s0", "tiny|b20-s1")


def means(source):
    frame = table2_frame(source.results, source.names)
    frame = frame[(frame["metric"] == "mae") & (frame["selection"] == "last")]
    return frame.set_index("model")[["mean", "seeds"]]


def states(source, model="emcdr", objective="rating"):
    frame = source.states
    frame = frame[(frame["model"] == model) & (frame["objective"] == objective) & (frame["task"] == "tiny")]
    return {(row.beta, row.seed): row.state for row in frame.itertuples() if row.state != MISSING}


def test_no_results_give_the_contracts_columns():
    assert list(source_of().results.columns) == COLUMNS
    assert list(read_results([source_of()]).columns) == COLUMNS


@pytest.mark.parametrize("artifacts", ["", "memory://results/artifacts"])
def test_results_come_from_every_finished_cell(artifacts):
    store = Store(artifacts=artifacts)
    finish(store, "emcdr", "tiny|b20-s0", {MAE: 0.5})
    finish(store, "emcdr", "tiny|b50-s1", {MAE: 0.75}, objective="ranking")
    finish(store, "tgt", "tiny|b20-s0", {MAE: 0.25}, profile="strict")
    frame = read_results([source_of(store=store)], task="tiny")
    assert list(frame.columns) == COLUMNS
    assert frame[["profile", "model", "objective", "beta", "seed", "value"]].values.tolist() == [
        ["paper", "emcdr", "rating", 0.2, 0, 0.5],
        ["paper", "emcdr", "ranking", 0.5, 1, 0.75],
    ]
    both = read_results([source_of(store=store), source_of(STRICT, store)])
    assert both["profile"].tolist() == ["paper", "paper", "strict"]
    assert read_results([source_of(store=store)], task="other").empty


def test_a_half_written_cell_does_not_count():
    store = Store()
    for key in KEYS:
        finish(store, "emcdr", key, {MAE: 1.0 if key == KEYS[0] else 9.0})
    entry = store.model("paper", "emcdr", AXES.parse(KEYS[1]))
    (entry.path / MANIFEST).unlink()
    source = source_of()
    assert means(source).loc["emcdr"].tolist() == [1.0, 1]
    assert states(source) == {(0.2, 0): "finished"}


def test_after_a_change_of_settings_a_rerun_seed_is_not_averaged_with_the_old_ones():
    store = Store()
    for key in KEYS:
        finish(store, "emcdr", key, {MAE: 9.0}, fingerprint="settings of yesterday")
    finish(store, "emcdr", KEYS[1], {MAE: 1.0})
    source = source_of()
    assert means(source).loc["emcdr"].tolist() == [1.0, 1]
    assert states(source) == {(0.2, 0): "stale", (0.2, 1): "finished"}
    assert "1 of 4 cells of EMCDR stale" in source.gaps(["emcdr"])
    assert "2 of 4 cells of EMCDR missing" in source.gaps(["emcdr"])


def test_a_cell_whose_inputs_are_gone_does_not_count():
    finish(Store(), "emcdr", KEYS[0], {MAE: 1.0})
    source = source_of(expected=lambda *where: None)
    assert source.results.empty
    assert states(source) == {(0.2, 0): "stale"}


def test_a_damaged_cell_is_missing(caplog):
    store = Store()
    finish(store, "emcdr", KEYS[0], {MAE: 1.0})
    path = store.model("paper", "emcdr", AXES.parse(KEYS[0])).path_of("metrics.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    source = source_of()
    assert source.results.empty
    assert states(source) == {}
    assert "metrics.parquet" in caplog.text


def test_the_fingerprint_is_asked_of_each_model_cell_and_objective():
    store, asked = Store(), []

    def expected(profile, name, cell, objective):
        asked.append((profile.name, name, cell.key, objective))
        return CURRENT if objective == "rating" else "another"

    finish(store, "emcdr", KEYS[0], {MAE: 1.0})
    finish(store, "emcdr", KEYS[0], {MAE: 2.0}, objective="ranking")
    assert source_of(expected=expected).results["value"].tolist() == [1.0]
    # Of what is not there nothing is asked.
    assert sorted(asked) == [("paper", "emcdr", KEYS[0], o) for o in ("ranking", "rating")]


def test_a_diverged_cell_is_named_and_makes_its_mean_undefined():
    store = Store()
    finish(store, "emcdr", KEYS[0], errors(1.0, 1.2))
    finish(store, "emcdr", KEYS[1], errors(math.nan, math.nan))
    source = source_of()
    assert states(source) == {(0.2, 0): "finished", (0.2, 1): "diverged"}
    assert math.isnan(means(source).loc["emcdr", "mean"])
    assert "1 of 4 cells of EMCDR diverged" in source.gaps(["emcdr"])


def test_validated_is_what_models_are_compared_by_and_nan_where_the_criterion_is_not_finite():
    for key, rmse in zip(KEYS, (1.0, math.inf), strict=True):
        files = {"validation.parquet": pd.DataFrame({"mae": [2.0], "rmse": [rmse], "task": [9.0]})}
        finish(Store(), "emcdr", key, {MAE: 1.0}, profile="tuned", files=files)
    frame = source_of(TUNED).validated()
    assert frame["task"].tolist() == ["tiny", "tiny"]
    assert frame.loc[0, ["mae", "rmse"]].tolist() == [2.0, 1.0]
    assert frame.loc[1, ["mae", "rmse"]].isna().all()


def test_there_are_gaps_only_in_tasks_that_were_begun():
    assert source_of().gaps(["emcdr", "tgt"]) == ""
    finish(Store(), "emcdr", KEYS[0], {MAE: 1.0})
    gaps = source_of().gaps(["emcdr", "tgt"])
    assert gaps.startswith("Tiny: video → music: 3 of 4 cells of EMCDR missing (rating)")
    assert "4 of 4 cells of TGT missing" in gaps
    assert "4 of 4 cells of every model missing (ranking)" in gaps


def test_a_thousand_cells_take_seconds():
    store, catalog = Store(), CATALOG.model_copy(update={"seeds": tuple(range(500))})
    finish(store, "emcdr", KEYS[0], errors(1.0, 1.2))
    template = store.model("paper", "emcdr", AXES.parse(KEYS[0]))
    source = source_of()
    source = type(source)(store, catalog, source.profile, source.expected)
    manifest, content = template.require(), template.read("metrics.parquet")
    for cell in source.cells:
        entry = store.model("paper", "emcdr", cell)
        if cell.task == "tiny" and not entry.path.exists():
            folder = entry.path / manifest["generation"]
            folder.mkdir(parents=True)
            (folder / "metrics.parquet").write_bytes(content)
            text = json.dumps({**manifest, "keys": entry.keys})
            (entry.path / MANIFEST).write_text(text)
    start = time.perf_counter()
    assert len(source.results) == 6 * 1000
    assert time.perf_counter() - start < 10
