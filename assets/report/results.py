"""All results as tables: `read_results` is the contract that scripts rely on (`diffcdr results`)."""

from collections.abc import Mapping, Sequence

import duckdb
import pandas as pd
from upath import UPath

from assets.state.store import Store

COLUMNS = ["profile", "task", "beta", "seed", "model", "stage", "objective", "selection", "metric", "value"]
THROUGHPUT = ["task", "beta", "seed", "model", "device", "replicas"]
THROUGHPUT += ["train_samples", "train_seconds", "test_samples", "test_users", "test_seconds"]
USER_ERRORS = ["task", "beta", "seed", "model", "user", "absolute", "squared", "crps", "count"]
CALIBRATION = ["task", "beta", "seed", "model", "kind", "level", "bin", "count", "stated", "observed"]
WARMING = ["task", "beta", "seed", "method", "n", "users", "ratings", "mae", "rmse", "crps"]
VALIDATION = ["task", "beta", "seed", "model", "mae", "rmse", "crps"]
COVERAGE = ["task", "beta", "seed", "model", "by", "bucket", "position", "count"]
COVERAGE += ["absolute", "squared", "predicted", "actual", "outside"]
DISTANCES = ["task", "beta", "seed", "model", "side", "nfe", "frechet", "mmd", "euclidean", "cosine"]
DISTANCES += ["undefined"]
SURFACE = ["task", "beta", "seed", "task_weight", "guidance", "epoch", "validation_mae", "validation_rmse"]
SURFACE += ["chosen"]
_WORDS = {
    "profile",
    "task",
    "model",
    "stage",
    "objective",
    "selection",
    "metric",
    "device",
    "by",
    "bucket",
    "kind",
    "method",
    "side",
    "undefined",
}
_KEYS = {
    "profile": "VARCHAR",
    "model": "VARCHAR",
    "objective": "VARCHAR",
    "task": "VARCHAR",
    "beta": "DOUBLE",
    "seed": "INTEGER",
}


def read_results(store: Store, task: str | None = None, profile: str | None = None) -> pd.DataFrame:
    """One row per metric of every finished cell, with exactly the columns of COLUMNS, sorted by them."""
    folder = f"models/profile={profile or '*'}/model=*/objective=*/task={task or '*'}"
    return _read(store.artifact_root, folder, "metrics.parquet", COLUMNS, _KEYS)


def read_throughput(store: Store, profile: str) -> pd.DataFrame:
    """Samples and seconds of every finished cell's training and test for ratings: columns THROUGHPUT."""
    folder = f"models/profile={profile}/model=*/objective=rating/task=*"
    return _read(store.artifact_root, folder, "throughput.parquet", THROUGHPUT, _KEYS)


def read_user_errors(store: Store, profile: str, task: str) -> pd.DataFrame:
    """Each test user's sums of absolute and squared errors and number of ratings: columns USER_ERRORS."""
    folder = f"models/profile={profile}/model=*/objective=rating/task={task}"
    return _read(store.artifact_root, folder, "user_errors.parquet", USER_ERRORS, _KEYS)


def read_coverage(store: Store, profile: str) -> pd.DataFrame:
    """Sums of each test's errors by bucket of `ml.evaluation.coverage`: columns COVERAGE."""
    folder = f"models/profile={profile}/model=*/objective=rating/task=*"
    return _read(store.artifact_root, folder, "coverage.parquet", COVERAGE, _KEYS)


def read_calibration(store: Store, profile: str) -> pd.DataFrame:
    """Sums of each test's calibration, of models that give a distribution: columns CALIBRATION."""
    folder = f"models/profile={profile}/model=*/objective=rating/task=*"
    return _read(store.artifact_root, folder, "calibration.parquet", CALIBRATION, _KEYS)


def read_validation(store: Store, profile: str) -> pd.DataFrame:
    """Validation errors of every finished cell at the epoch that validation chose: columns VALIDATION.

    Empty for a profile without validation users.
    """
    folder = f"models/profile={profile}/model=*/objective=rating/task=*"
    columns = [*VALIDATION[:4], "epoch", *(f"validation_{metric}" for metric in VALIDATION[4:])]
    curves = _read(store.artifact_root, folder, "curves.parquet", columns, _KEYS)
    curves = curves.dropna(subset="validation_rmse").sort_values("validation_rmse", kind="stable")
    chosen = curves.drop_duplicates(VALIDATION[:4]).rename(columns=lambda c: c.removeprefix("validation_"))
    return chosen[VALIDATION].sort_values(VALIDATION[:4]).reset_index(drop=True)


def read_warming(store: Store, profile: str) -> pd.DataFrame:
    """Errors of test users' later ratings by number of first ratings seen: columns WARMING."""
    keys = {key: kind for key, kind in _KEYS.items() if key not in ("model", "objective")}
    return _read(store.artifact_root, f"warming/profile={profile}/task=*", "warming.parquet", WARMING, keys)


def read_distances(store: Store, profile: str) -> pd.DataFrame:
    """Distances of transferred to true user vectors of every analysed cell: columns DISTANCES."""
    keys = {key: kind for key, kind in _KEYS.items() if key not in ("model", "objective")}
    folder = f"embeddings/profile={profile}/task=*"
    return _read(store.artifact_root, folder, "distances.parquet", DISTANCES, keys)


def read_surface(store: Store, profile: str) -> pd.DataFrame:
    """Validation errors of every trial of every searched cell: columns SURFACE."""
    keys = {key: kind for key, kind in _KEYS.items() if key not in ("model", "objective")}
    return _read(store.artifact_root, f"search/profile={profile}/task=*", "surface.parquet", SURFACE, keys)


def _read(
    root: UPath, folder: str, name: str, columns: Sequence[str], keys: Mapping[str, str]
) -> pd.DataFrame:
    """The files `name` of every cell under `folder` as one frame, the keys in their paths as columns."""
    files = [str(path) for path in root.glob(f"{folder}/beta=*/seed=*/{name}")]
    if not files:
        return pd.DataFrame({c: pd.Series(dtype=object if c in _WORDS else float) for c in columns})
    types = ", ".join(f"'{key}': {kind}" for key, kind in keys.items())
    table = f"read_parquet($files, hive_partitioning = true, hive_types = {{{types}}}, union_by_name = true)"
    with duckdb.connect() as connection:
        if root.protocol not in ("", "file"):
            connection.register_filesystem(root.fs)
        given = {"files": files}
        there = {row[0] for row in connection.execute(f"DESCRIBE FROM {table}", given).fetchall()}
        # Cells of an older version may lack a column.
        chosen = ", ".join(f'"{column}"' for column in columns if column in there)
        found = connection.execute(f"SELECT {chosen} FROM {table} ORDER BY ALL", given).df()
    return found.reindex(columns=list(columns))
