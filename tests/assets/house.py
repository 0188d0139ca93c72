"""A home in which two models of the tiny task are trained under the strict profile, made once a session."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import dagster as dg
import duckdb
import pandas as pd

from assets.data.ratings import ratings
from assets.data.reviews import reviews
from assets.data.splits import overlap, split
from assets.settings.axes import Cell
from assets.settings.profile import load_profiles
from assets.state.compute import Compute
from assets.state.store import Store, parquet
from assets.state.tracking import MlflowTracking
from assets.training.factors import factor_assets
from assets.training.models import model_asset

CELL = Cell.parse("tiny|b20-s0")
MODELS = ("emcdr", "ptupcdr")
STRICT = dataclasses.replace(load_profiles()["strict"], models=MODELS, ablations=(), controls=())


class House:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(home=str(home))
        self.tracking = MlflowTracking(tracking_uri=f"sqlite:///{home}/mlflow.db", home=str(home))
        self.compute = Compute(device="cpu")
        self.upstream = [reviews, ratings, overlap, split, *factor_assets(STRICT)]
        self.upstream += [model_asset(STRICT, name) for name in MODELS]
        for partition in ("tiny_video", "tiny_music"):
            self.make(["reviews", "ratings"], partition)
        self.make(["overlap"], "tiny")
        trained = [f"strict/{name}" for name in ("source_factors", "target_factors", *MODELS)]
        self.make(["split", *trained], CELL.key)

    def make(self, names: list[str], partition: str, *others, config: dict | None = None):
        return dg.materialize(
            [*self.upstream, *others],
            resources={"store": self.store, "compute": self.compute, "tracking": self.tracking},
            partition_key=partition,
            selection=dg.AssetSelection.assets(*(dg.AssetKey(name.split("/")) for name in names)),
            run_config=config,
        )

    def judge(self, name: str, *rmse: float, profile: str = "strict", key: str = CELL.key) -> None:
        """Write a model's cell by hand, with the given validation RMSE by epoch."""
        curves = pd.DataFrame({"epoch": range(1, len(rmse) + 1), "validation_rmse": rmse})
        entry = self.store.model(profile, name, Cell.parse(key))
        entry.write({"curves.parquet": parquet(curves)}, "made by hand")

    def query(self, domain: str, sql: str) -> list:
        with duckdb.connect(str(self.store.database(domain)), read_only=True) as connection:
            return connection.execute(sql).fetchall()


@functools.cache
def house() -> House:
    folder = tempfile.TemporaryDirectory(prefix="diffcdr-house-")
    made = House(Path(folder.name))
    made.folder = folder  # removed with the last reference
    return made
