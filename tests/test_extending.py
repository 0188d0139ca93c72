"""What docs/extending.md shows is done here, file by file, on a copy of the project; one run shows it all."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from pipeline.cli import app; app()"]
MODELS = ("shift", "emcdr", "mean_and_bias")
LOOK = """
from pipeline.definitions import defs
from assets.state.tracking import MlflowTracking
for key in defs().resolve_asset_graph().materializable_asset_keys:
    print("asset", key.to_user_string())
client, experiment = MlflowTracking().connect()
for run in client.search_runs([experiment], "tags.model = 'shift'"):
    print("run", run.info.run_name, run.data.params["lr"], run.data.params["epochs"])
"""


class House:
    """A copy of the project with all that the page adds, in which its profile was run on the tiny task."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reports = folder, folder / "home" / "reports"
        for package in ("pipeline", "assets", "ml"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "profiles").mkdir()
        follow((ROOT / "docs" / "extending.md").read_text(), folder)
        asked = ["run", "--task", "tiny", "--beta", "0.2", "--profile", "mine"]
        self.python(*COMMAND[1:], *asked, *(word for name in MODELS for word in ("--model", name)))

    def python(self, *arguments: str) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "DIFFCDR_PROFILES": str(self.folder / "profiles"),
            "DIFFCDR_HOME": str(self.folder / "home"),
        }
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.reports / "mine" / name / f"{name}.csv")


def follow(page: str, folder: Path) -> None:
    """Write the page's files, and apply its changes; both are blocks that begin with the name of a file."""
    for kind, name, text in re.findall(r"```(\w+)\n# ([\w/]+\.\w+)(.*?)```", page, re.DOTALL):
        file, lines = folder / name, text.splitlines()[1:]
        old = file.read_text() if file.exists() else ""
        file.write_text(changed(old, lines) if kind == "diff" else "\n".join([old, *lines, ""]))


def changed(text: str, change: list[str]) -> str:
    """`text` with each line of `change` that begins with + put behind the line that stands before it."""
    before = ""
    for line in change:
        sign, content = line[0], f"{line[1:]}\n"
        if sign == "+":
            text = text.replace(before, before + content)
        assert text.count(content) == 1, content
        before = content
    return text


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("extended"))


def test_the_documented_model_is_in_the_tables_the_ui_and_mlflow(house):
    table = house.table("table2")
    mae = table[(table["metric"] == "mae") & (table["selection"] == "last")].set_index("model")["mean"]
    assert set(mae.index) == set(MODELS)
    assert (mae > 0).all()
    seen = house.python("-c", LOOK).splitlines()
    assert {"asset mine/shift", "asset mine/mean_and_bias", "asset mine/spread"} <= set(seen)
    runs = sorted(line for line in seen if line.startswith("run "))
    assert runs == ["run mine/tiny/b20-s0/shift 0.05 5", "run mine/tiny/b20-s1/shift 0.05 5"]


def test_the_documented_control_is_what_models_are_held_to(house):
    table = house.table("table2")
    trained = table[table["model"].isin(["shift", "emcdr"]) & (table["metric"] == "rmse")]
    assert set(trained["control"]) == {"mean_and_bias"}
    assert trained["control_mean"].gt(0).all()
    assert "Mean + bias" in (house.reports / "mine" / "table2" / "table2.md").read_text()


def test_the_documented_table_is_a_chapter_of_the_report(house):
    spread = house.table("spread").set_index("model")
    results = house.python(*COMMAND[1:], "results", "--profile", "mine", "--format", "csv")
    (house.folder / "results.csv").write_text(results)
    cells = pd.read_csv(house.folder / "results.csv")
    cells = cells[cells["metric"].eq("rmse") & cells["selection"].eq("last") & cells["stage"].eq("cold")]
    by_model = cells.groupby("model")["value"]
    for name in MODELS:
        assert spread.loc[name, "low"] == pytest.approx(by_model.get_group(name).min(), rel=1e-5)
        assert spread.loc[name, "high"] == pytest.approx(by_model.get_group(name).max(), rel=1e-5)
    report = (house.reports / "report" / "report.html").read_text()
    assert '<section id="spread">' in report
    assert '<section id="table2">' in report


def test_the_documented_metric_is_in_table_2(house):
    table = house.table("table2")
    assert (table.loc[table["metric"] == "mae_macro", "mean"] > 0).sum() >= len(MODELS)
    assert "MAE, by user" in (house.reports / "mine" / "table2" / "table2.md").read_text()
