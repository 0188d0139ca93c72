"""The search for λ and s: its grid, its surface, and the asset on the tiny task."""

import dataclasses
import json
from urllib.parse import urlsplit

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

from assets.settings.profile import load_profiles
from assets.settings.space import Space
from assets.training import search
from assets.training.search import at_best_epoch, choose, grid, heat_maps, search_asset
from assets.training.trials import of_space
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.house import house as built

STRICT = load_profiles()["strict"]


def searching(*, task_weight: tuple, guidance: tuple):
    """The strict profile with another grid."""
    return dataclasses.replace(STRICT, search=Space({"task_weight": task_weight, "guidance": guidance}))


SMALL = searching(task_weight=(0.1, 1.0), guidance=(0.1, 2.0))


def judged(*rows: tuple[float, float, int, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task_weight", "guidance", "epoch", *search.METRICS])


def trials(task_weight: tuple, guidance: tuple):
    """Trials of a grid that were all asked for."""
    asked = of_space(Space({"task_weight": task_weight, "guidance": guidance}), {}, seed=0)
    for _ in range(len(asked)):
        asked.ask()
    return asked


SURFACE = choose(
    judged(
        (0.1, 0.1, 1, 0.80, 1.10),
        (0.1, 0.1, 2, 0.90, 1.05),
        (0.1, 2.0, 1, 0.85, 0.99),
        (0.1, 2.0, 2, 0.86, np.nan),
        (4.0, 0.1, 1, np.inf, np.inf),
        (4.0, 0.1, 2, np.nan, np.nan),
        (4.0, 2.0, 1, 0.79, 1.20),
        (4.0, 2.0, 2, 0.95, 1.00),
    ),
    trials((0.1, 4.0), (0.1, 2.0)),
)


def test_the_papers_grid_is_searched():
    variants = grid(STRICT, CELL).settings
    assert len(variants) == 42
    assert {v["task_weight"] for v in variants} == {0.01, 0.1, 1, 2, 4, 8}
    assert {v["guidance"] for v in variants} == {0.05, 0.1, 0.2, 0.5, 1, 2, 5}
    assert search.PAPER in variants


def test_a_grid_is_sorted_and_free_of_doubles(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: strict\nsearch: {guidance: [2, 0.1, 2.0], task_weight: [1]}"
    )
    twice = load_profiles(str(tmp_path))["mine"]
    assert grid(twice, CELL).settings == [
        {"task_weight": 1.0, "guidance": 0.1},
        {"task_weight": 1.0, "guidance": 2.0},
    ]


def test_the_row_of_the_lowest_finite_rmse_is_chosen():
    [best] = SURFACE[SURFACE["chosen"]].itertuples()
    assert (best.task_weight, best.guidance, best.epoch) == (0.1, 2.0, 1)


def test_of_equal_rows_the_first_is_chosen():
    equal = judged((1, 1, 1, 1, 1), (1, 2, 1, 1, 1), (1, 1, 2, 1, 1), (1, 2, 2, 1, 1))
    assert list(choose(equal, trials((1,), (1, 2)))["chosen"]) == [1, 0, 0, 0]


def test_the_trials_are_told_each_variants_best_epoch():
    asked = trials((1,), (1, 2))
    choose(judged((1, 1, 1, 1, 3), (1, 2, 1, 1, 4), (1, 1, 2, 1, 2), (1, 2, 2, 1, np.nan)), asked)
    told = asked.results[["guidance", "epoch", "validation_rmse", "chosen"]]
    assert told.values.tolist() == [[1, 2, 2, True], [2, 1, 4, False]]


def test_a_search_that_diverged_everywhere_says_so():
    with pytest.raises(ValueError, match="every variant of the search diverged: lower diffcdr's lr"):
        choose(judged((1, 1, 1, np.nan, np.nan), (1, 1, 2, np.inf, np.inf)), trials((1,), (1,)))


def test_each_variant_stands_at_its_best_epoch_by_each_metric():
    mae, rmse = (at_best_epoch(SURFACE, metric) for metric in search.METRICS)
    assert list(mae.index) == [0.1, 4.0]
    assert list(mae.columns) == [0.1, 2.0]
    np.testing.assert_array_equal(mae, [[0.80, 0.85], [np.nan, 0.79]])
    np.testing.assert_array_equal(rmse, [[1.05, 0.99], [np.nan, 1.00]])


def test_a_heat_map_shows_every_value_and_frames_the_best():
    axes = matplotlib.figure.Figure().subplots()
    search._heat_map(axes, at_best_epoch(SURFACE, "validation_mae"), "MAE")
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "0.8", (1, 0): "0.85", (0, 1): "nan", (1, 1): "0.79"}
    [frame] = axes.patches
    assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == (1, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "4"]
    assert heat_maps(SURFACE).startswith(b"\x89PNG")


def test_the_papers_point_is_reported_where_the_grid_has_it():
    assert search._at_paper(SURFACE) == {"validation_mae_at_paper": 0.9, "validation_rmse_at_paper": 1.05}
    assert search._at_paper(SURFACE[SURFACE["task_weight"] > 1]) == {}


class House:
    """A home in which all that a search needs was made for the tiny task."""

    def __init__(self) -> None:
        self.made = built()
        self.store, self.tracking = self.made.store, self.made.tracking

    def search(self, profile) -> dict:
        """The search's asset metadata."""
        done = self.made.make(["strict/search"], CELL.key, search_asset(AXES, profile))
        [event] = done.asset_materializations_for_node("strict__search")
        return {name: entry.value for name, entry in event.metadata.items()}

    def runs(self, query: str) -> list:
        client, experiment = self.tracking.connect()
        return client.search_runs([experiment], f"tags.model = 'search' and {query}")


@pytest.fixture(scope="module")
def house():
    return House()


@pytest.fixture(scope="module")
def metadata(house):
    """Of one search, which cannot ask for the test users: it does without them."""

    def validation_alone(gate, side):
        assert side == "validation"
        return held_out(gate, side)

    held_out = search.Gate.held_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.Gate, "held_out", validation_alone)
        return house.search(SMALL)


def test_every_variant_is_judged_as_if_trained_alone(house, metadata):
    from ml.evaluation.cold_start import measure
    from ml.evaluation.selection import RATING
    from ml.models.registry import build

    surface = house.store.search("strict", CELL).table("surface.parquet")
    settings = STRICT.model("diffcdr", "tiny")
    assert len(surface) == 4 * settings["epochs"]
    made = search.Search(house.store, house.made.compute, house.tracking, CATALOG, SMALL, tags={})
    problem, validation = made._data(CELL)
    for variant in grid(SMALL, CELL).settings:
        alone = build("diffcdr", **settings | variant)
        mine = surface[(surface[list(variant)] == pd.Series(variant)).all(axis=1)].set_index("epoch")
        for epoch in alone.train([problem]):
            users = alone.transfer([validation.users.factors])[0]
            errors = measure(RATING, users, problem.target_items, validation.ratings)
            assert mine.at[epoch.number, "validation_mae"] == pytest.approx(errors["mae"], rel=1e-4)
            assert mine.at[epoch.number, "validation_rmse"] == pytest.approx(errors["rmse"], rel=1e-4)


def test_the_page_shows_the_choice_and_the_papers_point(house, metadata):
    surface = house.store.search("strict", CELL).table("surface.parquet")
    best = surface.loc[surface["validation_rmse"].idxmin()]
    assert surface["chosen"].sum() == 1
    assert bool(best["chosen"])
    assert metadata["λ (task_weight)"] == best["task_weight"]
    assert metadata["s (guidance)"] == best["guidance"]
    assert metadata["epoch"] == best["epoch"]
    assert metadata["validation_rmse"] == best["validation_rmse"]
    assert metadata["validation_rmse"] <= metadata["validation_rmse_at_paper"]
    assert metadata["surface"].startswith("![validation error over λ and s](data:image/png;base64,iVBOR")


def test_the_trials_and_the_study_are_kept(house, metadata):
    entry = house.store.search("strict", CELL)
    tried = entry.table("trials.parquet")
    assert tried[["task_weight", "guidance"]].to_dict("records") == grid(SMALL, CELL).settings
    assert tried.loc[tried["chosen"], "validation_rmse"].tolist() == [metadata["validation_rmse"]]
    assert json.loads(entry.read("study.json"))["sampler"] == "grid"


def test_mlflow_has_a_run_for_the_search_and_one_nested_for_each_variant(house, metadata):
    run_id = urlsplit(urlsplit(metadata["mlflow_run"]).fragment).path.rsplit("/", 1)[1]
    client, _ = house.tracking.connect()
    parent = client.get_run(run_id)
    assert (parent.info.run_name, parent.info.status) == ("strict/tiny/b20-s0/search", "FINISHED")
    assert float(parent.data.params["best_guidance"]) == metadata["s (guidance)"]
    assert parent.data.metrics["validation_rmse"] == metadata["validation_rmse"]
    assert parent.data.params["nfe"] == "30"
    assert "guidance" not in parent.data.params
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["surface.png"]
    nested = house.runs(f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {run.info.status for run in nested} == {"FINISHED"}
    params = [{name: float(value) for name, value in run.data.params.items()} for run in nested]
    assert sorted(params, key=str) == sorted(grid(SMALL, CELL).settings, key=str)
    assert len({run.info.run_name for run in nested}) == 4
    some = next(run for run in nested if run.info.run_name.endswith("/task_weight0.1-guidance2"))
    surface = house.store.search("strict", CELL).table("surface.parquet")
    curve = surface[(surface["task_weight"] == 0.1) & (surface["guidance"] == 2)]["validation_mae"]
    history = client.get_metric_history(some.info.run_id, "validation_mae")
    assert [point.value for point in history] == pytest.approx(list(curve))
    assert not any(name.startswith("test") for run in nested for name in run.data.metrics)


def test_a_finished_cell_is_not_searched_again_and_another_grid_replaces_it(house, metadata):
    entry = house.store.search("strict", CELL)
    before, runs = entry.require(), len(house.runs("attributes.status = 'FINISHED'"))
    again = house.search(SMALL)
    assert again == metadata
    assert entry.require() == before
    assert len(house.runs("attributes.status = 'FINISHED'")) == runs

    house.search(searching(task_weight=(4.0,), guidance=(0.5,)))
    assert entry.require()["fingerprint"] != before["fingerprint"]
    assert set(entry.table("surface.parquet")["task_weight"]) == {4.0}
    old = before["mlflow_run_id"]
    superseded = {run.info.run_id for run in house.runs("tags.superseded = 'true'")}
    nested = {run.info.run_id for run in house.runs(f"tags.`mlflow.parentRunId` = '{old}'")}
    assert superseded == {old} | nested
