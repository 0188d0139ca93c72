"""The example runs as a reader would run it, with `ml` alone, and prints what can be computed otherwise."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ml.splits import TEST, assign_roles
from ml.synthetic import SCALES, ratings_frame, truth_of

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "transfer.py"


@pytest.fixture(scope="module")
def printed() -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(EXAMPLE)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def errors(printed: str, name: str) -> tuple[int, float, float]:
    """Ratings, MAE and RMSE that the example prints for a predictor."""
    number = r"(\d+\.\d+)"
    found = re.search(rf"^{name}, (\d+) ratings: MAE {number}, RMSE {number}$", printed, re.MULTILINE)
    return int(found[1]), float(found[2]), float(found[3])


def cold_and_other_stars() -> tuple[np.ndarray, np.ndarray]:
    """Music stars of the example's cold users and of everybody else, picked by person and not by row."""
    video, music = (truth_of(domain, "demo").people for domain in ("video", "music"))
    both = sorted(set(video.tolist()) & set(music.tolist()))
    cold = np.array(both)[assign_roles(len(both), 0.2, 0, "example", validation=0) == TEST]
    frame = ratings_frame("music", "demo")
    hidden = np.isin(music[frame.users], cold)
    return frame.stars[hidden].astype(float), frame.stars[~hidden].astype(float)


def test_the_example_uses_ml_alone():
    imports = [node for node in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(node, ast.Import)]
    froms = [n for n in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(n, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {node.module for node in froms}
    assert {name.split(".")[0] for name in names} == {"ml", "numpy", "torch"}


def test_the_example_counts_its_users_and_ratings(printed):
    sizes, shared = SCALES["demo"].sizes, SCALES["demo"].overlaps["video", "music"]
    assert (
        f"{sizes['video'].ratings} video and {sizes['music'].ratings} music ratings, {shared} users in both"
    ) in printed
    assert f"{shared * 4 // 5} training users and {shared // 5} cold users" in printed


def test_all_trainings_of_the_example_learn(printed):
    epochs = {"video": 30, "music": 30, "diffcdr": 10}
    for name, loss in (("video", "MSE"), ("music", "MSE"), ("diffcdr", "dim"), ("diffcdr", "task")):
        line = rf"^{name}, epoch \d+ of {epochs[name]}:.* ?{loss} (\d+\.\d+)"
        values = re.findall(line, printed, re.MULTILINE)
        assert len(values) == epochs[name]
        assert float(values[-1]) < float(values[0])


def test_the_mean_predictor_of_the_example_is_the_mean_of_what_may_be_seen(printed):
    cold, others = cold_and_other_stars()
    error = cold - others.mean()
    count, mae, rmse = errors(printed, "mean rating")
    assert count == len(cold)
    assert (mae, rmse) == pytest.approx((np.abs(error).mean(), np.square(error).mean() ** 0.5), abs=1e-3)


def test_the_transferred_users_of_the_example_beat_stars_at_random(printed):
    cold, _ = cold_and_other_stars()
    at_random = np.abs(cold[:, None] - np.arange(1, 6)).mean()
    count, mae, rmse = errors(printed, "diffcdr")
    assert count == len(cold)
    assert 0 < mae < at_random
    assert mae <= rmse


def test_the_sample_files_are_what_their_script_writes(tmp_path):
    from examples.make_sample import main

    main(tmp_path)
    for name in ("movies.csv", "albums.csv", "users.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / "data" / name).read_bytes()


def test_the_short_example_recommends_and_judges():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "recommend.py")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=600)
    assert re.search(r"user320 +1 +a\d+ +0\.\d+", done.stdout)
    assert re.search(r"stars +rmse +item_mean +\d\.\d+", done.stdout)


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    """Its cells as a kernel runs them, one after the other in one namespace."""
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads((ROOT / "examples" / "recommend.ipynb").read_text())["cells"]
    namespace: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert len(namespace["lists"]) == 80 * 5
    assert namespace["recommender"].n_shared_ == 320
