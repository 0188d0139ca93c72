"""Accuracy against time: what a better list or better stars cost."""

import numpy as np
import pandas as pd

from assets.report.by_beta import METRICS, drawn, panels_of
from assets.report.forest import FAR, KINDS, REFERENCES, kind, leading
from assets.report.metrics import Metric
from assets.report.names import Names
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import headline, of_metrics, strict_mean, task_betas
from assets.report.table import Number, Table, digits, table
from assets.report.table4 import THROUGHPUT
from assets.state import plots

COLUMNS = ["task", "beta", "metric", "model", "value", "seconds", "users_a_second", "device"]


def cost_frame(source: Source) -> pd.DataFrame:
    """Of each task at its smallest β, for the models that took any time: COLUMNS.

    value: mean over seeds; seconds: of training one cell, without the settings that were tried in vain;
    users_a_second: predicted or listed.
    """
    models, parts = drawn(source.profile), []
    for metric in METRICS:
        speed = source.table("throughput.parquet", THROUGHPUT, metric.objective)
        if speed.empty:
            continue
        speed = speed[speed["beta"] == speed.groupby("task")["beta"].transform("min")]
        speed = speed.assign(
            seconds=speed["train_seconds"] / speed["replicas"],
            users_a_second=speed["test_users"] / speed["test_seconds"],
        )
        keys = ["task", "beta", "model"]
        grouped = speed.groupby(keys)
        means = grouped[["seconds", "users_a_second"]].mean().assign(device=grouped["device"].first())
        values = of_metrics(source.results, [metric], models)
        values = values[values["selection"] == headline(source.profile)]
        values = values.groupby(keys)["value"].agg(strict_mean).rename("value")
        parts.append(means.join(values, how="inner").reset_index().assign(metric=metric.name))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def cost_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task a panel for lists and one for stars: the value by the seconds of training."""
    return each_task(frame, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    figure, off = panels_of(
        frame, "value", "seconds of training a cell", lambda *given: _panel(*given, names)
    )
    devices = " and ".join(sorted(set(frame["device"])))
    beyond = f" Off the scale: {', '.join(off)}." if off else ""
    caption = (
        f"{names.task(task)}, β = {leading(frame):.0%}, on {devices}. Red: ours; blue: trained; grey: "
        f"simple. Of several settings that were tried the time of the chosen one.{beyond}"
    )
    return Picture(f"cost-{task}", caption, plots.formats(figure))


def _panel(axes, frame: pd.DataFrame, metric: Metric, names: Names) -> list[str]:
    frame = frame.dropna(subset=["value"])
    reference = frame.loc[frame["model"] == REFERENCES[metric.name], "value"]
    centre = float(reference.iloc[0] if len(reference) else frame["value"].median())
    low, high = plots.near(frame["value"], centre, FAR)
    inside = frame[frame["value"].between(low, high)]
    # What takes less than the clock can tell apart stands at the left.
    seconds = inside["seconds"].clip(lower=LEAST)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlim(10 ** np.floor(np.log10(seconds.min())), 10 ** np.ceil(np.log10(seconds.max() * 1.2)))
    axes.set_ylim(low, high)
    places = {}
    for row, x in zip(inside.itertuples(), seconds, strict=True):
        colour = KINDS[kind(names.profile, row.model)]
        axes.plot(x, row.value, "o", color=colour, markersize=5)
        places[names.model(row.model)] = (x, row.value, colour)
    plots.label(axes, places)
    return [names.model(name) for name in frame["model"] if name not in set(inside["model"])]


LEAST = 1e-3


def cost_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × metric × model, fastest first: folded."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        for metric in METRICS:
            part = frame[(frame["task"] == task) & (frame["beta"] == beta) & (frame["metric"] == metric.name)]
            rows += [
                {
                    **head,
                    "Metric": metric.title,
                    "Model": names.model(row.model),
                    "Value": Number(row.value, digits(metric.digits)),
                    "Seconds of training": Number(row.seconds, digits(3)),
                    "Users a second": Number(row.users_a_second, "{:,.0f}"),
                }
                for row in part.sort_values("seconds").itertuples()
            ]
    return [table("The numbers behind the picture", rows, keys=4, sections=True, folded=True)] if rows else []


def cost_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    frame = cost_frame(source)
    notes = (
        "Seconds: of training one cell, where several seeds or trials are trained together its share; what "
        "models start from, such as factors, is not counted. Users a second: predictions of stars, or lists.",
    )
    title = f"Accuracy against time. {profile.title}"
    return Part("cost", title, frame, cost_tables(frame, names), notes, "", cost_pictures(frame, names))


COST = Chapter(
    "cost",
    "What it costs",
    "Accuracy against the time of training: the best place is the upper left for lists, the lower left for "
    "stars.",
    "nDCG@20 and RMSE against the seconds of training.",
    cost_part,
    drawn,
)
