"""Every test sees the tiny catalogue and a home of its own; none sees the project's state or the network."""

import os
from pathlib import Path

import pytest
import torch

# Before anything of the project is imported: the partition axes are built from the catalogue at import.
os.environ["DIFFCDR_CATALOG"] = str(Path(__file__).with_name("catalog.yaml"))
os.environ.pop("DIFFCDR_PROFILES", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Small tensors: threads cost more than they give, and results must not depend on how many there are.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty DIFFCDR_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("DIFFCDR_HOME", str(folder))
    return folder
