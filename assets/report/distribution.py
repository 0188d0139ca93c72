"""Predicted distributions: their scores, and whether they are calibrated."""

import numpy as np
import pandas as pd

from assets.report.metrics import shown_in
from assets.report.names import Names, gives_distribution, trained_for
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import headline, summary, task_betas
from assets.report.table import Number, Table, table
from assets.settings.profile import Profile
from assets.state import plots

METRICS = shown_in("distribution")
# Beside ours, which is red.
OTHERS = [colour for colour in plots.COLOURS if colour != plots.RED]
CALIBRATION = ["task", "beta", "seed", "model", "kind", "level", "bin", "count", "stated", "observed"]


def distribution_frame(results: pd.DataFrame, selection: str) -> pd.DataFrame:
    """Scores of the models that predict a distribution: task, beta, metric, model, mean, std, seeds."""
    cold = results[(results["stage"] == "cold") & (results["selection"] == selection)]
    distributions = cold.loc[cold["metric"] == "crps", "model"].unique()
    chosen = cold[cold["model"].isin(distributions) & cold["metric"].isin([m.name for m in METRICS])]
    return summary(chosen, ["task", "beta", "metric", "model"])


def distribution_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × model, columns the scores; the best of each β is marked."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        part = frame[(frame["task"] == task) & (frame["beta"] == beta)]
        means = part.pivot(index="model", columns="metric", values="mean")
        best = {metric.name: metric.best(means[metric.name]) for metric in METRICS if metric.name in means}
        for model in (name for name in names.profile.trained if name in means.index):
            values = means.loc[model, list(best)].dropna()
            cells = {
                metric.title: Number(values[metric.name], best=values[metric.name] == best[metric.name])
                for metric in METRICS
                if metric.name in values
            }
            rows.append({**head, "Model": names.model(model), **cells})
    return [table("", rows, keys=3, sections=True)] if rows else []


def reliability_pictures(sums: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task, seeds pooled: stated against observed P(r ≥ level), and the histogram of the PIT; a
    calibrated model lies on the diagonal and on the line."""
    models = _distributions(names.profile)
    sums = sums[sums["model"].isin(models)]
    keys = ["task", "beta", "model", "kind", "bin"]
    pooled = sums.groupby(keys)[["count", "stated", "observed"]].sum().reset_index()
    return each_task(pooled, names, _picture)


def _picture(pooled: pd.DataFrame, task: str, names: Names) -> Picture:
    betas = sorted(pooled["beta"].unique())
    if len(betas) == 1:
        figure = plots.new_figure(9.2, 3.0)
        panels = figure.subplots(1, 2).reshape(2, 1)
    else:
        figure = plots.new_figure(3.2 * len(betas), 5.4)
        panels = figure.subplots(2, len(betas))
    present = [model for model in _distributions(names.profile) if model in set(pooled["model"])]
    for (curve, histogram), beta in zip(panels.T, betas, strict=True):
        curve.plot((0, 1), (0, 1), color=plots.INK, linewidth=0.8, linestyle=":")
        for position, model in enumerate(present):
            colour = plots.RED if model in names.profile.ours else OTHERS[position % len(OTHERS)]
            mine = pooled[(pooled["beta"] == beta) & (pooled["model"] == model)]
            level = mine[(mine["kind"] == "level") & (mine["count"] > 0)]
            x, y = level["stated"] / level["count"], level["observed"] / level["count"]
            curve.plot(x, y, ".-", color=colour, linewidth=1, label=names.model(model))
            pit = mine[mine["kind"] == "pit"].sort_values("bin")["count"]
            edges = np.linspace(0, 1, len(pit) + 1)
            histogram.stairs(pit / pit.sum() * len(pit), edges, color=colour)
        histogram.axhline(1, color=plots.INK, linewidth=0.8, linestyle=":")
        plots.plain(curve, f"β = {beta:.0%}")
        plots.plain(histogram, "")
        histogram.set_ylim(0.7, 1.3)
        curve.set_xlabel("stated P(r ≥ level)", fontsize=8)
        histogram.set_xlabel("probability integral transform", fontsize=8)
    panels[0, 0].set_ylabel("observed share", fontsize=8)
    panels[1, 0].set_ylabel("density", fontsize=8)
    panels[0, 0].legend(fontsize=6)
    caption = (
        f"Calibration of the distributions. {names.task(task)}: stated against observed probability of a "
        "rating at or above a level, and the probability integral transform, flat where calibrated. "
        "Seeds pooled."
    )
    return Picture(f"reliability-{task}", caption, plots.formats(figure))


def _distributions(profile: Profile) -> list[str]:
    return [name for name in trained_for(profile, "rating") if gives_distribution(profile, name)]


def distribution_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    frame = distribution_frame(source.results, headline(profile))
    notes = (
        "Means over seeds; lower is better, but for the joint log-likelihood (of all of a user's ratings "
        "together, for each rating) higher. MAE is of the median, which minimizes it, RMSE of the mean. CRPS "
        "and log loss score the distribution itself; the CRPS of a point would be its MAE. Calibration "
        "error: mean distance between stated and observed P(r ≥ level). Gaussian and mean vector: the same "
        "model with the diffusion replaced by the Gaussian it starts from, or by that Gaussian's mean alone; "
        f"what {names.our_title()} gains over them is what diffusion adds.",
    )
    pictures = reliability_pictures(source.table("calibration.parquet", CALIBRATION), names)
    gaps = source.gaps(_distributions(profile), ("rating",))
    tables, title = distribution_tables(frame, names), f"Distributions. {profile.title}"
    return Part("distribution", title, frame, tables, notes, gaps, pictures)


DISTRIBUTION = Chapter(
    "distribution",
    "Distributions",
    "A cold-start user's rating is uncertain, and a distribution says how much: its mean serves RMSE, its "
    "median MAE. The logit is the simple model to beat, one rating at a time.",
    "Predicted distributions: CRPS, log loss and calibration, and what the diffusion adds.",
    distribution_part,
    lambda profile: trained_for(profile, "rating"),
    lambda profile: bool(_distributions(profile)),
)
