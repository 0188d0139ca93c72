"""Coverage: where the errors are, by what is known of the item and of the user, and calibration."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from assets.report.metrics import ERRORS, Metric
from assets.report.names import Names, compared
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import BEST_CONTROL, SELECTIONS, headline, table_by_model, task_betas
from assets.report.table import KIND, Number, Table, digits, fold
from assets.settings.profile import Profile
from assets.state import plots

COLUMNS = ["task", "beta", "seed", "model", "by", "bucket", "position", "count"]
COLUMNS += ["absolute", "squared", "predicted", "actual", "outside"]
BY = {
    "all": "All",
    "item": "Training ratings of the item",
    "history": "Liked source items of the user",
}


def coverage_frame(sums: pd.DataFrame) -> pd.DataFrame:
    """Where each model's errors are, by bucket of `ml.evaluation.coverage`, pooled over seeds.

    Columns: task, beta, by, position, bucket, model, count, mae, rmse, predicted, actual, outside.
    count is the number of predictions in the bucket; predicted and actual are their means, outside the share
    that was outside the scale before clipping. `by` is all, item (training ratings of the item), history
    (liked source items of the user) or prediction (for calibration).
    """
    keys = ["task", "beta", "by", "position", "bucket", "model"]
    columns = ["count", "absolute", "squared", "predicted", "actual", "outside"]
    # A sum leaves NaN out, but not infinity: a diverged seed must not be pooled away.
    total = sums.fillna(np.inf).groupby(keys)[columns].sum().replace(np.inf, np.nan)
    means = total.drop(columns="count").div(total["count"], axis=0)
    means = means.rename(columns={"absolute": "mae", "squared": "rmse"})
    means["rmse"] **= 0.5
    return means.assign(count=total["count"]).reset_index()


def coverage_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """MAE and RMSE by bucket, then the share outside the scale: rows task × β × bucket, columns models."""
    models, controls = names.profile.models, names.profile.controls
    known = frame[frame["by"].isin(BY) & frame["model"].isin([*models, *controls])]
    tables = []
    for metric in ERRORS:
        rows = []
        for head, part in _buckets(known, names):
            cells = _cells(part.set_index("model")[metric.name], names, metric)
            rows.append({**head, **cells, "Ratings": Number(part["count"].max(), "{:,.0f}")})
        tables += table_by_model(f"{metric.title} by support", rows, names, models)
    outside = [
        {**head, **{names.model(r.model): Number(r.outside, "{:.1%}") for r in part.itertuples()}}
        for head, part in _buckets(known[known["by"] == "all"], names)
    ]
    caption = "Share of predictions outside the scale, before clipping"
    return fold([*tables, *table_by_model(caption, outside, names, [*models, *controls])])


def _buckets(frame: pd.DataFrame, names: Names) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Each task × β × bucket in reading order: its key cells and its rows."""
    for task, beta, head in task_betas(frame, names):
        part = frame[(frame["task"] == task) & (frame["beta"] == beta)]
        for by, title in BY.items():
            for (_, bucket), rows in part[part["by"] == by].groupby(["position", "bucket"]):
                yield {**head, "By": title, KIND: str(bucket)}, rows


def _cells(values: pd.Series, names: Names, metric: Metric) -> dict[str, Number]:
    profile, style = names.profile, digits(metric.digits)
    present = [model for model in profile.models if model in values.index]
    best = metric.best(values[present])
    cells = {names.model(m): Number(values[m], style, best=values[m] == best) for m in present}
    of_controls = values[values.index.isin(profile.controls)].dropna()
    if len(of_controls):
        least = of_controls.idxmin()
        cells[BEST_CONTROL] = Number(of_controls[least], style, who=names.model(least))
    return cells


def calibration_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """For each task the mean rating by what was predicted: one panel for each β, one line for each model; a
    calibrated model lies on the diagonal."""
    binned = frame[(frame["by"] == "prediction") & frame["model"].isin(names.profile.models)]
    return each_task(binned, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    betas = sorted(frame["beta"].unique())
    figure = plots.new_figure(max(4.6, 3.2 * len(betas)), 3.4)
    panels = figure.subplots(1, len(betas), squeeze=False)[0]
    ends = frame["actual"].min(), frame["actual"].max()
    for axes, beta in zip(panels, betas, strict=True):
        axes.plot(ends, ends, color=plots.INK, linewidth=0.8, linestyle=":")
        for position, model in enumerate(names.profile.models):
            line = frame[(frame["beta"] == beta) & (frame["model"] == model)].sort_values("position")
            label = names.model(model) if len(line) else None
            colour = plots.COLOURS[position % len(plots.COLOURS)]
            axes.plot(line["predicted"], line["actual"], ".-", color=colour, linewidth=1, label=label)
        plots.plain(axes, f"β = {beta:.0%}")
        # What unclipped models predict far outside the scale would press the curves together.
        axes.set_xlim(ends[0] - 0.5, ends[1] + 0.5)
        axes.set_xlabel("mean prediction", fontsize=8)
    panels[0].set_ylabel("mean rating", fontsize=8)
    panels[0].legend(fontsize=6)
    caption = f"Calibration. {names.task(task)}: mean rating by mean prediction, in bins of the prediction."
    return Picture(f"calibration-{task}", caption, plots.formats(figure))


def _rated(profile: Profile) -> list[str]:
    return [name for name in compared(profile) if "rating" in profile.objectives_of(name)]


def coverage_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    frame = coverage_frame(source.table("coverage.parquet", COLUMNS))
    listed = profile.validation and "ranking" in profile.objectives
    notes = (
        "Pooled over seeds, test users' ratings. Training ratings of the item: those that the cell's models "
        "may learn from. Best control: the lowest of each row apart. Epochs: "
        f"{SELECTIONS[headline(profile)]}.",
        *(["Lists by popularity of the item and length of the history: in the chapter on ranking."] * listed),
    )
    tables, pictures = coverage_tables(frame, names), calibration_pictures(frame, names)
    gaps = source.gaps(_rated(profile), ("rating",))
    return Part("coverage", f"Coverage. {profile.title}", frame, tables, notes, gaps, pictures)


COVERAGE = Chapter(
    "coverage",
    "Coverage",
    "Where the errors are: a user's mean over items hides those that nobody rated in training. Compare a "
    "model with the best control in the same row, and its curve with the diagonal.",
    "Errors by what is known of the item and of the user, and calibration.",
    coverage_part,
    _rated,
)
