"""Tables from hand-made results: means, spreads, the paper's values, and what is missing."""

import pandas as pd
import pytest

from assets import tables
from assets.catalog import load_catalog
from assets.results import COLUMNS, read_results
from assets.store import Store, parquet

TITLES = {"emcdr": "EMCDR", "diffcdr": "DiffCDR"}


@pytest.fixture
def catalog():
    return load_catalog()


def results(*rows):
    """Rows (task, beta, seed, model, selection, metric, value) as the results contract has them."""
    full = [("paper", t, b, s, m, "cold", "rating", sel, metric, v) for t, b, s, m, sel, metric, v in rows]
    return pd.DataFrame(full, columns=COLUMNS)


def test_table2_by_hand(catalog):
    frame = tables.table2(
        results(
            ("video_music", 0.2, 0, "emcdr", "last", "mae", 1.0),
            ("video_music", 0.2, 1, "emcdr", "last", "mae", 2.0),
            ("video_music", 0.2, 0, "diffcdr", "last", "mae", 1.2),
            ("tiny", 0.2, 0, "diffcdr", "last", "mae", 0.9),
        ),
        catalog,
    ).set_index(["task", "model"])
    emcdr = frame.loc[("video_music", "emcdr")]
    assert (emcdr["mean"], emcdr["seeds"], emcdr["paper"]) == (1.5, 2, 1.3596)
    assert emcdr["std"] == pytest.approx(0.5**0.5)
    assert frame.loc[("video_music", "diffcdr"), "paper"] == 1.0435
    assert pd.isna(frame.loc[("video_music", "diffcdr"), "std"])
    assert pd.isna(frame.loc[("tiny", "diffcdr"), "paper"])


def test_table2_layout_marks_the_best_and_prints_the_papers_row_below(catalog):
    frame = tables.table2(
        results(
            ("video_music", 0.2, 0, "emcdr", "last", "mae", 1.0),
            ("video_music", 0.2, 0, "diffcdr", "last", "mae", 1.2),
        ),
        catalog,
    )
    ours, paper = tables.table2_layout(frame, "last", ["emcdr", "diffcdr"], TITLES).to_dict("records")
    assert (ours["EMCDR"], ours["DiffCDR"], ours["Improve"]) == ("**1.0000**", "1.2000", "-20.0%")
    assert (paper["EMCDR"], paper["DiffCDR"], paper[""]) == ("1.3596", "**1.0435**", "paper")
    assert paper["Improve"] == "23.2%"


def test_the_published_improvement_follows_from_the_published_values():
    published = pd.read_csv(tables.PUBLISHED / "table2.csv")
    first = published[(published["task"] == 1) & (published["beta"] == 0.2) & (published["metric"] == "mae")]
    assert tables.improvement(first.set_index("model")["value"]) == "6.0%"
    assert len(published) == 3 * 3 * 4 * 7


def test_improvement_needs_another_model():
    assert tables.improvement(pd.Series({"diffcdr": 1.0})) == ""
    assert tables.improvement(pd.Series({"emcdr": 1.0})) == ""


def test_missing_cells_are_counted_for_tasks_that_have_any(catalog):
    have = results(
        ("tiny", 0.2, 0, "emcdr", "last", "mae", 1.0),
        ("tiny", 0.2, 0, "emcdr", "last", "rmse", 1.0),
        ("tiny", 0.5, 0, "emcdr", "last", "mae", 1.0),
    )
    gaps = tables.missing(have, catalog.tasks.values(), catalog, ["emcdr", "diffcdr"])
    assert gaps == {"tiny": "6 of 8 cells missing"}


def test_no_results_give_the_contracts_columns():
    assert list(read_results(Store()).columns) == COLUMNS


@pytest.mark.parametrize("artifacts", ["", "memory://results/artifacts"])
def test_results_come_from_every_finished_cell(artifacts):
    from assets.partitions import Cell

    store = Store(artifacts=artifacts)
    row = {"stage": "cold", "objective": "rating", "selection": "last", "metric": "mae", "epoch": 10}
    for key, value in (("tiny|b20-s0", 0.5), ("tiny|b50-s1", 0.75)):
        metrics = parquet(pd.DataFrame([{**row, "value": value}]))
        store.model("paper", "emcdr", Cell.parse(key)).write({"metrics.parquet": metrics}, "f")
    frame = read_results(store, task="tiny")
    assert list(frame.columns) == COLUMNS
    assert frame[["profile", "model", "beta", "seed", "value"]].values.tolist() == [
        ["paper", "emcdr", 0.2, 0, 0.5],
        ["paper", "emcdr", 0.5, 1, 0.75],
    ]
    assert read_results(store, task="other").empty
