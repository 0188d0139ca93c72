"""All results as one table: the contract that scripts rely on (`diffcdr results`)."""

import duckdb
import pandas as pd

from assets.store import Store

COLUMNS = ["profile", "task", "beta", "seed", "model", "stage", "objective", "selection", "metric", "value"]


def read_results(store: Store, task: str | None = None, profile: str | None = None) -> pd.DataFrame:
    """One row per metric of every finished cell, with exactly the columns of COLUMNS, sorted by them."""
    pattern = f"models/profile={profile or '*'}/model=*/task={task or '*'}/beta=*/seed=*/metrics.parquet"
    root = store.artifact_root
    files = [str(path) for path in root.glob(pattern)]
    if not files:
        return pd.DataFrame({name: [] for name in COLUMNS})
    types = "{'beta': DOUBLE, 'seed': INTEGER, 'profile': VARCHAR, 'model': VARCHAR, 'task': VARCHAR}"
    with duckdb.connect() as connection:
        if root.protocol not in ("", "file"):
            connection.register_filesystem(root.fs)
        return connection.execute(
            f"""
            SELECT {", ".join(COLUMNS)}
            FROM read_parquet(?, hive_partitioning = true, hive_types = {types}, union_by_name = true)
            ORDER BY ALL
            """,
            [files],
        ).df()
