"""The logged DiffCDR says the same as the trained one, from its own files alone."""

import ast
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save

from assets.state.tracking import SERVING_REQUIREMENTS, MlflowTracking, _mlflow, log_diffcdr
from ml.data import History, Problem, Ratings, SourceUsers
from ml.models.registry import build

USERS, WIDTH = 12, 4

CLIENT = """
import json, sys
import mlflow.pyfunc, numpy as np, pandas as pd
users = np.array(json.loads(sys.argv[2]), dtype=np.float32)
model = mlflow.pyfunc.load_model(sys.argv[1])
try:
    model.predict(users[:, 1:])
except Exception as error:
    refused = str(error)
print(json.dumps({
    "array": model.predict(users).tolist(),
    "frame": model.predict(pd.DataFrame(users)).tolist(),
    "refused": refused,
    "ml": [module.__file__ for name, module in sys.modules.items() if name == "ml" or name.startswith("ml.")],
}))
"""


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / 2

    history = History(torch.zeros(USERS + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    rows = torch.arange(3 * USERS)
    ratings = Ratings(rows % USERS, rows % 5, draw(len(rows)) + 3)
    return Problem(
        SourceUsers(draw(USERS, WIDTH), history, draw(6, WIDTH)),
        draw(USERS, WIDTH),
        draw(5, WIDTH),
        ratings,
        0,
    )


@pytest.fixture(scope="module")
def trained(problem):
    return build("diffcdr", epochs=2, hidden=8, nfe=6).trained([problem])


@pytest.fixture
def served(trained, tmp_path):
    _mlflow()
    from assets.serving.pyfunc_diffcdr import ServedDiffCDR

    (tmp_path / "weights").write_bytes(save(trained.state_dict()))
    config = {"model": "diffcdr", "hyperparameters": trained.hyperparameters(), "width": WIDTH}
    (tmp_path / "config").write_text(json.dumps(config))
    model = ServedDiffCDR()
    model.load_context(
        SimpleNamespace(artifacts={name: str(tmp_path / name) for name in ("weights", "config")})
    )
    return model


def test_it_predicts_what_the_trained_model_transfers(served, trained, problem):
    users = problem.source.factors.numpy()
    expected = trained.transfer([problem.source])[0].numpy()
    np.testing.assert_array_equal(served.predict(None, users), expected)
    np.testing.assert_array_equal(served.predict(None, pd.DataFrame(users)), expected)
    np.testing.assert_array_equal(served.predict(None, users.astype(np.float64)), expected)
    assert served.predict(None, users[:0]).shape == (0, WIDTH)
    assert np.abs(expected - users).max() > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, WIDTH + 1)), r"shape \(3, 5\), expected \(users, 4\)"),
        (np.zeros(WIDTH), r"shape \(4,\), expected \(users, 4\)"),
        (pd.DataFrame(np.zeros((2, WIDTH - 1))), r"shape \(2, 3\), expected \(users, 4\)"),
        (pd.DataFrame({"a": ["x"], "b": [1], "c": [2], "d": [3]}), "must be numbers: .*'x'"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]), "row 1 is not finite"),
        (np.array([[np.inf, 0, 0, 0], [0, 0, 0, 0]]), "row 0 is not finite"),
    ],
)
def test_what_it_cannot_use_is_refused_in_one_sentence(served, given, message):
    with pytest.raises(ValueError, match=message):
        served.predict(None, given)


def test_it_loads_elsewhere_from_its_own_files(trained, problem, tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    resource = MlflowTracking(tracking_uri=f"sqlite:///{home}/mlflow.db", home=str(home))
    cell = {"model": "diffcdr", "task": "video_music", "beta": 0.2, "seed": 0, "profile": "paper"}
    with resource.run(**cell, params={}, tags={}, inputs=()) as run:
        uri = log_diffcdr(
            run,
            weights=save(trained.state_dict()),
            hyperparameters=trained.hyperparameters(),
            widths=problem.widths,
        )
        assert sys.modules["mlflow"].active_run() is None
    outputs = resource.connect()[0].get_run(run.run_id).outputs.model_outputs
    assert [f"models:/{output.model_id}" for output in outputs] == [uri]

    [model] = home.rglob("MLmodel")
    assert not list(home.rglob("*.pkl"))
    pinned = {line.split("==")[0] for line in (model.parent / "requirements.txt").read_text().split()}
    assert pinned == set(SERVING_REQUIREMENTS)

    answer = call_in_process(uri, problem.source.factors, elsewhere, resource.uri)
    expected = trained.transfer([problem.source])[0].numpy()
    np.testing.assert_allclose(answer["array"], expected, rtol=1e-5, atol=1e-6)
    assert answer["frame"] == answer["array"]
    assert "(12, 3) does not match expected shape (-1, 4)" in answer["refused"]
    code = model.parent / "code" / "ml"
    assert all(file.startswith(str(code)) for file in answer["ml"])
    assert imported([*answer["ml"], model.parent / "pyfunc_diffcdr.py"]) <= pinned


def call_in_process(uri: str, users: torch.Tensor, folder, tracking_uri: str) -> dict:
    """What a user's own process gets, started where neither this project nor its modules can be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-c", CLIENT, uri, json.dumps(users.tolist())]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def imported(files) -> set[str]:
    """The third-party packages that `files` import by name."""
    names = set()
    for file in files:
        with open(file) as source:
            for node in ast.walk(ast.parse(source.read())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"ml"}
