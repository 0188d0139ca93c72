"""A home in which two models of the tiny task are trained under the strict profile, made once a session."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import dagster as dg
import duckdb
import pandas as pd

from assets.data.ratings import ratings_asset
from assets.data.reviews import reviews_asset
from assets.data.splits import overlap_asset, split_asset
from assets.data.tables import attach
from assets.settings.profile import load_profiles
from assets.state.compute import Compute
from assets.state.store import Store, parquet
from assets.state.tracking import MlflowTracking
from assets.training.factors import factor_assets
from assets.training.fingerprints import expected_fingerprint
from assets.training.models import model_asset
from tests.assets.axes import AXES, CATALOG, CELL

MODELS = ("emcdr", "ptupcdr")
STRICT = dataclasses.replace(
    load_profiles()["strict"], objectives=("rating",), models=MODELS, ablations=(), controls=()
)


class House:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(home=str(home))
        self.tracking = MlflowTracking(tracking_uri=f"sqlite:///{home}/mlflow.db", home=str(home))
        self.compute = Compute(device="cpu")
        self.upstream = [make(AXES) for make in (reviews_asset, ratings_asset, overlap_asset, split_asset)]
        self.upstream += [*factor_assets(AXES, STRICT), *(model_asset(AXES, STRICT, n) for n in MODELS)]
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
        cell, known = AXES.parse(key), load_profiles()[profile]
        expected = expected_fingerprint(self.store, CATALOG, known, name, cell, "rating")
        self.store.model(profile, name, cell).write({"curves.parquet": parquet(curves)}, expected)

    def query(self, domain: str, sql: str) -> list:
        with duckdb.connect() as connection:
            attach(connection, self.store.ratings(domain).folder())
            return connection.execute(sql).fetchall()


@functools.cache
def house() -> House:
    folder = tempfile.TemporaryDirectory(prefix="diffcdr-house-")
    made = House(Path(folder.name))
    made.folder = folder  # removed with the last reference
    return made
