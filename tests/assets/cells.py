"""Hand-made entries of finished cells, as the model assets write them."""

import pandas as pd

from assets.state.store import Store, parquet
from tests.assets.axes import AXES


def finish(
    store: Store,
    model: str,
    key: str,
    metrics: dict[tuple[str, str, str], float],
    profile: str = "paper",
    objective: str = "rating",
    files: dict[str, pd.DataFrame] | None = None,
    fingerprint: str = "made by hand",
    **facts: object,
) -> None:
    """Write a model's cell `key`: metrics by (stage, selection, metric), and further tables by file name."""
    rows = [(*where, value, 10) for where, value in metrics.items()]
    frame = pd.DataFrame(rows, columns=["stage", "selection", "metric", "value", "epoch"])
    tables = {"metrics.parquet": frame, **(files or {})}
    contents = {name: parquet(table) for name, table in tables.items()}
    store.model(profile, model, AXES.parse(key), objective).write(contents, fingerprint, **facts)


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


def support(absolute: list[float], count: list[int]) -> pd.DataFrame:
    """Coverage by item and by prediction, in two buckets each, where errors within a bucket are equal."""
    rows = [
        {"by": by, "bucket": bucket, "position": position, "count": n, "absolute": a, "squared": a * a / n}
        | {"predicted": 4.0 * n, "actual": 3.0 * n + position, "outside": 1.0}
        for by, buckets in (("item", ("0", "1–4")), ("prediction", ("1.00–1.25", "1.25–1.50")))
        for position, (bucket, a, n) in enumerate(zip(buckets, absolute, count, strict=True))
    ]
    whole = pd.DataFrame(rows).query("by == 'item'").sum(numeric_only=True)
    return pd.DataFrame([*rows, {"by": "all", "bucket": "all", **whole, "position": 0}])
