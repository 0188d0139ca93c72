"""All results as tables: `read_results` is the contract that scripts rely on (`diffcdr results`)."""

import logging
from collections.abc import Sequence

import pandas as pd

from assets.state.store import Damaged, Store

log = logging.getLogger("diffcdr")
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


def read_results(store: Store, task: str | None = None, profile: str | None = None) -> pd.DataFrame:
    """One row per metric of every finished cell, with exactly the columns of COLUMNS, sorted by them."""
    return _read(store, "models", "metrics.parquet", COLUMNS, profile=profile, task=task)


def read_throughput(store: Store, profile: str) -> pd.DataFrame:
    """Samples and seconds of every finished cell's training and test for ratings: columns THROUGHPUT."""
    return _read(store, "models", "throughput.parquet", THROUGHPUT, profile=profile, objective="rating")


def read_user_errors(store: Store, profile: str, task: str) -> pd.DataFrame:
    """Each test user's sums of absolute and squared errors and number of ratings: columns USER_ERRORS."""
    return _read(
        store, "models", "user_errors.parquet", USER_ERRORS, profile=profile, objective="rating", task=task
    )


def read_coverage(store: Store, profile: str) -> pd.DataFrame:
    """Sums of each test's errors by bucket of `ml.evaluation.coverage`: columns COVERAGE."""
    return _read(store, "models", "coverage.parquet", COVERAGE, profile=profile, objective="rating")


def read_calibration(store: Store, profile: str) -> pd.DataFrame:
    """Sums of each test's calibration, of models that give a distribution: columns CALIBRATION."""
    return _read(store, "models", "calibration.parquet", CALIBRATION, profile=profile, objective="rating")


def read_validation(store: Store, profile: str) -> pd.DataFrame:
    """Validation errors of every finished cell at the epoch that validation chose: columns VALIDATION.

    Empty for a profile without validation users.
    """
    columns = [*VALIDATION[:4], "epoch", *(f"validation_{metric}" for metric in VALIDATION[4:])]
    curves = _read(store, "models", "curves.parquet", columns, profile=profile, objective="rating")
    curves = curves.dropna(subset="validation_rmse").sort_values("validation_rmse", kind="stable")
    chosen = curves.drop_duplicates(VALIDATION[:4]).rename(columns=lambda c: c.removeprefix("validation_"))
    return chosen[VALIDATION].sort_values(VALIDATION[:4]).reset_index(drop=True)


def read_warming(store: Store, profile: str) -> pd.DataFrame:
    """Errors of test users' later ratings by number of first ratings seen: columns WARMING."""
    return _read(store, "warming", "warming.parquet", WARMING, profile=profile)


def read_distances(store: Store, profile: str) -> pd.DataFrame:
    """Distances of transferred to true user vectors of every analysed cell: columns DISTANCES."""
    return _read(store, "embeddings", "distances.parquet", DISTANCES, profile=profile)


def read_surface(store: Store, profile: str) -> pd.DataFrame:
    """Validation errors of every trial of every searched cell: columns SURFACE."""
    return _read(store, "search", "surface.parquet", SURFACE, profile=profile)


def _read(store: Store, kind: str, name: str, columns: Sequence[str], **wanted: str | None) -> pd.DataFrame:
    """The files `name` of the store's entries of a kind as one frame, the entries' keys as columns."""
    empty = pd.DataFrame({c: pd.Series(dtype=object if c in _WORDS else float) for c in columns})
    frames = []
    for keys, entry in store.entries(kind, **wanted):
        try:
            frames += [entry.table(name).assign(**keys)] if entry.has(name) else []
        except Damaged as error:
            log.warning("%s", error)
    if not frames:
        return empty
    found = pd.concat(frames, ignore_index=True).reindex(columns=list(columns))
    return found.sort_values(list(columns), ignore_index=True)
