"""What several tables have in common: means over seeds, the best of a row, the paper's values beside ours.

Where several seeds were run, `mean` is over them, `std` is their sample standard deviation (null for one),
and `seeds` their number. A diverged cell (NaN) makes its mean NaN; it is not left out in silence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from assets.report.metrics import BY_NAME, OF_THE_PAPER, Metric
from assets.report.names import Names
from assets.report.table import KIND, Number, Table, digits, table
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile

PUBLISHED = Path(__file__).parent / "published"
SELECTIONS = {
    "validation": "selected on validation users",
    "last": "last epoch",
    "best_on_test": "best epoch on the test users, each metric apart (as the paper reports)",
}
BEST_CONTROL = "Best control"
BEATEN_NOTE = (
    "‡ Not better than the best control: a predictor that knows nothing of the user's taste, or only simple "
    "statistics of their source ratings."
)


def headline(profile: Profile) -> str:
    """The selection rule by which a profile is judged."""
    return "validation" if profile.validation else "last"


def summary(results: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """mean, std and number of the values of each group."""
    grouped = results.groupby(list(keys), dropna=False)["value"]
    columns = {"mean": grouped.agg(strict_mean), "std": grouped.agg(_strict_std), "seeds": grouped.size()}
    return pd.DataFrame(columns).reset_index()


def strict_mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def _strict_std(values: pd.Series) -> float:
    return float(values.std(skipna=False))


def of_metrics(
    results: pd.DataFrame, metrics: Iterable[Metric], models: Sequence[str], stage: str = "cold"
) -> pd.DataFrame:
    """The results of a stage in these metrics, each from the objective it is measured for."""
    objective = results["metric"].map({metric.name: metric.objective for metric in metrics})
    return results[
        (results["stage"] == stage) & (results["objective"] == objective) & results["model"].isin(models)
    ]


def best_rows(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Of each group the row with the best `mean` by its `metric`, which must be one of `keys`."""
    higher = frame["metric"].map(lambda name: BY_NAME[name].higher_is_better).astype(bool)
    cost = frame["mean"].where(~higher, -frame["mean"]).dropna()
    return frame.loc[cost.groupby([frame[key] for key in keys]).idxmin()]


def best_other(means: pd.Series, ours: str, metric: Metric) -> str | None:
    """The best model by its mean that is not ours, of means by model; None without one."""
    others = means.drop(ours, errors="ignore").dropna()
    if others.empty:
        return None
    return str(others.idxmax() if metric.higher_is_better else others.idxmin())


def paired_seeds(part: pd.DataFrame, ours: str, other: str) -> pd.DataFrame:
    """Values of two models (ours, other) by seed, for the seeds that both have."""
    by_model = {model: rows.set_index("seed")["value"] for model, rows in part.groupby("model")}
    return pd.concat([by_model[ours], by_model[other]], axis=1, keys=["ours", "other"], join="inner")


def published(name: str) -> pd.DataFrame:
    """A table of the paper, its metrics under our names."""
    frame = pd.read_csv(PUBLISHED / f"{name}.csv")
    return frame.replace({"metric": OF_THE_PAPER}) if "metric" in frame else frame


def beside_the_papers(
    frame: pd.DataFrame, theirs: pd.DataFrame, catalog: Catalog, keys: Sequence[str]
) -> pd.DataFrame:
    """`frame` with the paper's columns, null where the task is not one of the paper's."""
    numbers = {task.name: task.paper for task in catalog.tasks.values()}
    numbered = frame.assign(paper_task=frame["task"].map(numbers).astype(float))
    theirs = theirs.rename(columns={"task": "paper_task"})
    return numbered.merge(theirs, how="left", on=["paper_task", *keys]).drop(columns="paper_task")


# How they are shown.


def groups(
    frame: pd.DataFrame, names: Names, metrics: Iterable[Metric]
) -> Iterator[tuple[dict, Metric, pd.DataFrame]]:
    """Each task × β × metric that has rows, in reading order: its key cells, the metric and the rows."""
    parts = {key: part for key, part in frame.groupby(["task", "beta", "metric"])}
    for task, beta, head in task_betas(frame, names):
        for metric in metrics:
            if (task, beta, metric.name) in parts:
                yield {**head, "Metric": metric.title}, metric, parts[task, beta, metric.name]


def task_betas(frame: pd.DataFrame, names: Names) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Each task and β of a frame in reading order, and their key cells."""
    for task in names.in_order(frame["task"]):
        for beta in sorted(frame.loc[frame["task"] == task, "beta"].unique()):
            yield task, beta, {"Task": names.task(task), "β": f"{beta:.0%}"}


def model_cells(
    part: pd.DataFrame, names: Names, models: Sequence[str], metric: Metric, controls: Sequence[str] = ()
) -> dict[str, Number]:
    """Means and spreads by model, the best marked, and what one of `controls` beats."""
    by_model = part.set_index("model")
    present = [model for model in models if model in by_model.index]
    means = by_model.loc[present, "mean"]
    best, control = metric.best(means), metric.best(means[means.index.isin(controls)])
    return {
        names.model(model): Number(
            means[model],
            digits(metric.digits),
            spread=by_model.loc[model, "std"],
            best=means[model] == best,
            beaten=model not in controls and metric.is_beaten(means[model], control),
        )
        for model in present
    }


def table_by_model(
    caption: str, rows: Sequence[Mapping], names: Names, models: Sequence[str], notes: Sequence[str] = ()
) -> list[Table]:
    """A table whose first three columns are keys, then the kind of row and one column a model; none without
    rows."""
    if not rows:
        return []
    order = [*list(rows[0])[:3], KIND, *(names.model(model) for model in models)]
    return [table(caption, rows, order, keys=3, sections=True, notes=notes)]
