"""Warming up: the error of a user's later ratings by how many of the first have been seen."""

import pandas as pd

from assets.report.by_count import draw_by_count
from assets.report.metrics import shown_in
from assets.report.names import Names
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import strict_mean, task_betas
from assets.report.table import Number, Table, table
from assets.state import plots
from assets.training.warming import sampling_models

METRICS = shown_in("warming")
COLUMNS = ["task", "beta", "seed", "method", "n", "users", "ratings", "mae", "rmse", "crps"]
METHODS = {
    "fine_tuned": "Fine-tuning",
    "gaussian_prior": "Ridge + user's shift",
    "shrunk_bias": "Item + shrunk bias",
}


def warming_frame(sums: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: task, beta, method, n, mae, rmse, crps, ratings (of all seeds together), seeds."""
    grouped = sums.groupby(["task", "beta", "method", "n"], sort=False)
    means = grouped[[metric.name for metric in METRICS]].agg(strict_mean)
    return means.assign(ratings=grouped["ratings"].sum(), seeds=grouped.size()).reset_index()


def _title(method: str, names: Names) -> str:
    return METHODS.get(method, names.model(method))


def warming_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × n, columns methods, each with MAE, RMSE and CRPS."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        part = frame[(frame["task"] == task) & (frame["beta"] == beta)]
        for n, of_n in part.groupby("n"):
            cells = {
                (_title(record.method, names), metric.title): Number(getattr(record, metric.name), "{:.3f}")
                for record in of_n.itertuples()
                for metric in METRICS
            }
            ratings = Number(of_n["ratings"].iloc[0], "{:,.0f}")
            rows.append({**head, "Ratings seen": f"{n:.0f}", **cells, "Ratings": ratings})
    return (
        [table("Errors by number of ratings seen", rows, keys=2, sections=True, folded=True)] if rows else []
    )


def warming_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task the errors by number of ratings seen, a line for each method."""
    return each_task(frame, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    figure = plots.new_figure(max(4.6, 3.2 * frame["beta"].nunique()), 2.4 * len(METRICS))
    panels = draw_by_count(
        figure, frame, METRICS, "method", lambda method: _title(method, names), "ratings seen"
    )
    panels[0, 0].legend(fontsize=6)
    caption = (
        f"Warming up. {names.task(task)}: errors of test users' later ratings, the same for every n, after "
        "their first n have been seen. Means over seeds; lower is better."
    )
    return Picture(f"warming-{task}", caption, plots.formats(figure))


def warming_part(source: Source) -> Part:
    names = source.names
    sampled = ", ".join(map(names.model, sampling_models(names.profile)))
    frame = warming_frame(source.analysis("warming", "warming.parquet", COLUMNS))
    notes = (
        "Of each test user with enough target ratings the first n are seen, by time where there is time, and "
        f"the same later ones predicted for every n. {sampled}: 512 samples of the user's vector, "
        "weighted by the likelihood of what was seen; nothing is trained. Fine-tuning: ten gradient steps on "
        "one vector, the rate chosen on validation users. The two simple predictors add a user's shrunk "
        "residuals; their distributions are normals cut into levels, which costs them in MAE and CRPS, so "
        "compare them by RMSE.",
    )
    tables, pictures = warming_tables(frame, names), warming_pictures(frame, names)
    return Part("warming", f"Warming up. {source.profile.title}", frame, tables, notes, "", pictures)


WARMING = Chapter(
    "warming",
    "Warming up without training",
    "What a user's first target ratings are worth, where samples of the user are reweighted by them.",
    "Error by number of target ratings seen.",
    warming_part,
    lambda profile: ["warming_up"],
    lambda profile: bool(sampling_models(profile)),
)
