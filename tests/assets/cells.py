"""Hand-made entries of finished cells, as the model assets write them."""

import pandas as pd

from assets.partitions import Cell
from assets.store import Store, parquet


def finish(
    store: Store,
    model: str,
    key: str,
    metrics: dict[tuple[str, str, str], float],
    profile: str = "paper",
    objective: str = "rating",
    files: dict[str, pd.DataFrame] | None = None,
    **facts: object,
) -> None:
    """Write a model's cell `key`: metrics by (stage, selection, metric), and further tables by file name."""
    rows = [(*where, value, 10) for where, value in metrics.items()]
    frame = pd.DataFrame(rows, columns=["stage", "selection", "metric", "value", "epoch"])
    tables = {"metrics.parquet": frame, **(files or {})}
    contents = {name: parquet(table) for name, table in tables.items()}
    store.model(profile, model, Cell.parse(key), objective).write(contents, "made by hand", **facts)


def errors(mae: float, rmse: float, selection: str = "last") -> dict[tuple[str, str, str], float]:
    """Cold-start metrics, and warm start a tenth better."""
    return {
        ("cold", selection, "mae"): mae,
        ("cold", selection, "rmse"): rmse,
        ("cold", selection, "mae_later"): mae,
        ("cold", selection, "rmse_later"): rmse,
        ("warm", selection, "mae"): 0.9 * mae,
        ("warm", selection, "rmse"): 0.9 * rmse,
    }


def user_errors(absolute: list[float], count: list[int]) -> pd.DataFrame:
    """Errors of users 0, 1, …, whose squares are those of equal errors within a user."""
    squared = [a * a / n for a, n in zip(absolute, count, strict=True)]
    return pd.DataFrame(
        {"user": range(len(absolute)), "absolute": absolute, "squared": squared, "count": count}
    )
