"""Each textbook version and our fast path end at the same result, given the same draws; and the measuring."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.growth import exponent
from benchmarks.measure import in_child, largest_difference, measured, relative_difference
from benchmarks.paths import PATHS
from benchmarks.paths.path import Options, Work, compare
from benchmarks.paths.path import Path as Hot
from benchmarks.textbook import ranking, reviews, solver

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(quick=True, device="cpu", folder=tmp_path)


@pytest.mark.parametrize("name", PATHS)
def test_both_sides_of_a_path_agree(name, options):
    path = PATHS[name]
    data = path.prepare(options).data
    ours, textbook = path.ours(data)(), path.textbook(data)()
    assert ours
    assert path.difference(ours, textbook) <= path.tolerance


@pytest.mark.parametrize("name", ["diffcdr training", "ptupcdr training", "sscdr training", "lacdr training"])
def test_the_agreement_is_one_of_trained_parameters(name, options):
    path = PATHS[name]
    data = path.prepare(options).data
    trained = path.textbook(data)()
    untrained = {f"{r} {n}": v.numpy() for r, s in enumerate(data.scripts) for n, v in s.initial.items()}
    assert largest_difference(trained, untrained) > 2 * path.tolerance


def test_table_two_covers_every_model_of_the_papers_table(options):
    path = PATHS["table 2 of the demo"]
    values = path.ours(path.prepare(options).data)()
    models = {key.split()[0] for key in values}
    assert models == {"tgt", "cmf", "emcdr", "sscdr", "lacdr", "ptupcdr", "diffcdr"}
    assert all(np.isfinite(value).all() and value.min() > 0 for value in values.values())


def test_the_solver_is_exact_where_the_noise_is_that_of_a_single_point():
    # All data in the point c: x_t = α c + σ ε, so ε(x, t) = (x − α c) / σ and the ODE keeps ε. From x_1 = x
    # it ends at α_0 c + σ_0 ε.
    c, x = torch.tensor([[0.5, -2.0]]).double(), torch.tensor([[1.0, 3.0]]).double()
    start, end = torch.tensor(1.0).double(), torch.tensor(1e-4).double()

    def noise(state, t):
        return (state - solver.alpha(t) * c) / solver.sigma(t)

    expected = solver.alpha(end) * c + solver.sigma(end) * noise(x, start)
    torch.testing.assert_close(solver.sample(noise, x, nfe=30), expected, rtol=1e-9, atol=1e-9)


def test_textbook_reviews_keep_the_latest_of_a_pair(tmp_path):
    import gzip

    lines = [("b", "y", 1, 5), ("a", "x", 2, 9), ("b", "y", 3, 7), ("b", "x", 4, 7), ("a", "x", 5, 9)]
    with gzip.open(tmp_path / "r.json.gz", "wt") as file:
        for user, item, stars, time in lines:
            row = {"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": time}
            file.write(json.dumps(row) + "\n")
    frame = reviews.read_reviews(tmp_path / "r.json.gz")
    assert frame.to_numpy().tolist() == [[0, 0, 5, 9], [1, 1, 3, 7], [1, 0, 4, 7]]


def test_textbook_histories_are_liked_items_by_time():
    frame = pd.DataFrame(
        {
            "user": [0, 0, 0, 1],
            "item": [5, 6, 7, 8],
            "rating": [4.0, 5.0, 3.0, 1.0],
            "timestamp": [9, 2, 1, 1],
        }
    )
    assert reviews.liked_histories(frame, [0, 1]) == [[6, 5], []]


def test_textbook_ranking_is_by_score():
    users, items = np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([[1.0, 5.0], [3.0, 4.0], [2.0, 3.0]])
    assert ranking.top_k(users, items, k=2).tolist() == [[1, 2], [2, 1]]


def test_measured_work_reports_its_own_time_and_memory():
    def side(megabytes: int):
        block = np.ones(megabytes * 2**17)
        return lambda: {"sum": block[:3]}

    run = measured(side, 1, 200)
    assert 190 < run.memory_mb < 260
    assert 0 < run.seconds < 10
    assert run.result["sum"].tolist() == [1, 1, 1]


def test_a_measured_process_that_dies_is_one_clear_error():
    with pytest.raises(RuntimeError, match="ended with code 3"):
        in_child(lambda: os._exit(3))


def test_a_row_scales_the_textbook_to_the_whole_work(options):
    def side(value):
        return lambda: {"value": np.array([float(value)])}

    path = Hot("half", 2, 0.5, lambda _: Work("w", 3, 10, textbook_share=0.5), side, side)
    row = compare(path, options)
    assert row["difference"] == 0
    assert row["ratio"] == pytest.approx(row["textbook"] / row["ours"])
    assert {"path", "work", "ours", "textbook", "ratio", "target", "tolerance", "machine"} <= row.keys()


def test_differences_of_results():
    a, b = {"x": np.array([1.0, 4.0])}, {"x": np.array([1.0, 2.0])}
    assert largest_difference(a, b) == 2
    assert relative_difference(a, b) == 1
    assert largest_difference(a, {"y": a["x"]}) == float("inf")
    assert largest_difference(a, {"x": a["x"][:1]}) == float("inf")


def test_an_exponent_ignores_the_fixed_cost_of_small_sizes():
    sizes = [10, 100, 1000, 10_000]
    assert exponent(sizes, [5, 5, 1e6, 1e8]) == pytest.approx(2)


def test_the_command_prints_a_table_and_leaves_the_results_alone_when_quick():
    results = PROJECT / "benchmarks" / "results.json"
    before = results.read_bytes() if results.exists() else None
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--only", "emcdr training"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "emcdr training" in done.stdout
    assert (results.read_bytes() if results.exists() else None) == before
