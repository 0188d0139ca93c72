"""The example of docs/extending.md: one file and one line of YAML, and the model is everywhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
LOOK = """
from pipeline.definitions import defs
from assets.state.tracking import MlflowTracking
keys = {key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys}
print("in the graph:", "mine/shift" in keys)
client, experiment = MlflowTracking().connect()
runs = client.search_runs([experiment], "tags.model = 'shift'")
print("in MLflow:", sorted(run.info.run_name for run in runs), runs[0].data.params["lr"])
"""


@pytest.fixture
def environment(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    python, profile = (
        re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL).group(1) for kind in ("python", "yaml")
    )
    (tmp_path / "shift.py").write_text(python)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text(profile)
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "DIFFCDR_PROFILES": str(tmp_path / "profiles"),
        "DIFFCDR_HOME": str(tmp_path / "home"),
        "DAGSTER_HOME": str(tmp_path / "dagster"),
    }


def test_the_documented_model_is_in_the_tables_the_ui_and_mlflow(environment, tmp_path):
    run = "from pipeline.cli import app; app()"
    asked = ["run", "--task", "tiny", "--beta", "0.2", "--seed", "0", "--profile", "mine"]
    command = [sys.executable, "-c", run, *asked, "--model", "shift", "--model", "emcdr"]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=ROOT)

    table = pd.read_csv(tmp_path / "home" / "reports" / "mine" / "table2" / "table2.csv")
    mae = table[(table["metric"] == "mae") & (table["selection"] == "last")].set_index("model")["mean"]
    assert set(mae.index) >= {"shift", "emcdr"}
    assert (mae > 0).all()

    look = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "in the graph: True" in look.stdout
    assert "in MLflow: ['shift/tiny/b20-s0'] 0.05" in look.stdout
