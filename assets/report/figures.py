"""Pictures of the report: Figure 3, and those that other assets have drawn."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from assets.report.formats import Picture
from assets.report.layouts import Names, method_title
from assets.report.tables import ERRORS, Metric

# One hue a model, strong enough beside its light variant and apart for colour-blind readers.
COLOURS = ("#7f7f7f", "#4e79a7", "#59a14f", "#b6992d", "#9467bd", "#e07b39", "#c0392b", "#2a9d8f", "#8c564b")
TALL = 2.0  # bars higher than this many medians would press the others flat: they are cut and labelled


def figure3(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Picture]:
    """Figure 3 of each task of `frame` (as `tables.figure3` gives it): cold in light, warm in dark colours.

    One panel for each metric and β; error bars are the sample standard deviation over seeds.
    """
    return [
        _of_task(frame[frame["task"] == task], task, names, models) for task in names.in_order(frame["task"])
    ]


def _of_task(frame: pd.DataFrame, task: str, names: Names, models: Sequence[str]) -> Picture:
    # The object interface: pyplot keeps every figure alive and is not safe in threads.
    from matplotlib.figure import Figure

    betas = sorted(frame["beta"].unique())
    present = [model for model in models if model in set(frame["model"])]
    size = (max(4.6, 3.6 * len(betas)), 2.3 * len(ERRORS) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(ERRORS), len(betas), squeeze=False)
    for i, metric in enumerate(ERRORS):
        for j, beta in enumerate(betas):
            part = frame[(frame["metric"] == metric.name) & (frame["beta"] == beta)]
            _panel(panels[i, j], part, names, present, metric)
            panels[i, j].set_title(f"{metric.title}, β = {beta:.0%}", fontsize=9)
    caption = (
        f"Figure 3. {names.task(task)}: cold start (light) and warm start (dark) on the same later half of "
        "each test user's ratings; bars are means and lines standard deviations over seeds. Lower is "
        "better."
    )
    return Picture(f"figure3-{task}", caption, formats(figure))


def _panel(axes, part: pd.DataFrame, names: Names, models: Sequence[str], metric: Metric) -> None:
    by_stage = {stage: rows.set_index("model") for stage, rows in part.groupby("stage")}
    top = _top(part["mean"])
    for offset, stage, strength in ((-0.2, "cold", 0.45), (0.2, "warm", 1.0)):
        rows = by_stage.get(stage)
        for position, model in enumerate(models):
            if rows is None or model not in rows.index or pd.isna(rows.loc[model, "mean"]):
                continue
            mean, std = rows.loc[model, ["mean", "std"]]
            axes.bar(
                position + offset,
                mean,
                0.38,
                color=_lighter(COLOURS[position % len(COLOURS)], strength),
                yerr=None if pd.isna(std) else std,
                error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            )
            if mean > top:
                axes.text(
                    position + offset, top, f"{mean:.2f}", rotation=90, fontsize=6.5, ha="center", va="top"
                )
    axes.set_ylim(0, top if np.isfinite(top) else None)
    axes.set_xticks(range(len(models)), [names.model(model) for model in models], fontsize=7, rotation=30)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def calibration(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Picture]:
    """For each task of `frame` (as `tables.support` gives it) the mean rating by what was predicted.

    One panel for each β, one line for each model; a calibrated model lies on the diagonal.
    """
    binned = frame[(frame["by"] == "prediction") & frame["model"].isin(models)]
    return [
        _calibration(binned[binned["task"] == task], task, names, models)
        for task in names.in_order(binned["task"])
    ]


def _calibration(frame: pd.DataFrame, task: str, names: Names, models: Sequence[str]) -> Picture:
    from matplotlib.figure import Figure

    betas = sorted(frame["beta"].unique())
    figure = Figure(figsize=(max(4.6, 3.2 * len(betas)), 3.4), layout="constrained")
    panels = figure.subplots(1, len(betas), squeeze=False)[0]
    ends = frame["actual"].min(), frame["actual"].max()
    for axes, beta in zip(panels, betas, strict=True):
        axes.plot(ends, ends, color="#333333", linewidth=0.8, linestyle=":")
        for position, model in enumerate(models):
            line = frame[(frame["beta"] == beta) & (frame["model"] == model)].sort_values("position")
            label = names.model(model) if len(line) else None
            colour = COLOURS[position % len(COLOURS)]
            axes.plot(line["predicted"], line["actual"], ".-", color=colour, linewidth=1, label=label)
        _plain_axes(axes, f"β = {beta:.0%}")
        # What unclipped models predict far outside the scale would press the curves together.
        axes.set_xlim(ends[0] - 0.5, ends[1] + 0.5)
        axes.set_xlabel("mean prediction", fontsize=8)
    panels[0].set_ylabel("mean rating", fontsize=8)
    panels[0].legend(fontsize=6)
    caption = f"Calibration. {names.task(task)}: mean rating by mean prediction, in bins of the prediction."
    return Picture(f"calibration-{task}", caption, formats(figure))


def reliability(sums: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Picture]:
    """Of each task of `sums` (columns CALIBRATION, pooled over seeds here): stated against observed
    P(r ≥ level), and the histogram of the PIT; a calibrated model lies on the diagonal and on the line."""
    pooled = sums.groupby(["task", "beta", "model", "kind", "bin"])[["count", "stated", "observed"]].sum()
    pooled = pooled.reset_index()
    return [
        _reliability(pooled[pooled["task"] == task], task, names, models)
        for task in names.in_order(pooled["task"])
    ]


def _reliability(pooled: pd.DataFrame, task: str, names: Names, models: Sequence[str]) -> Picture:
    from matplotlib.figure import Figure

    betas = sorted(pooled["beta"].unique())
    figure = Figure(figsize=(max(4.6, 3.2 * len(betas)), 5.4), layout="constrained")
    panels = figure.subplots(2, len(betas), squeeze=False)
    present = [model for model in models if model in set(pooled["model"])]
    for j, beta in enumerate(betas):
        curve, histogram = panels[0, j], panels[1, j]
        curve.plot((0, 1), (0, 1), color="#333333", linewidth=0.8, linestyle=":")
        for position, model in enumerate(present):
            colour = COLOURS[-1 - position % len(COLOURS)]
            mine = pooled[(pooled["beta"] == beta) & (pooled["model"] == model)]
            level = mine[(mine["kind"] == "level") & (mine["count"] > 0)]
            x, y = level["stated"] / level["count"], level["observed"] / level["count"]
            curve.plot(x, y, ".-", color=colour, linewidth=1, label=names.model(model))
            pit = mine[mine["kind"] == "pit"].sort_values("bin")["count"]
            bins = len(pit)
            histogram.stairs(pit / pit.sum() * bins, np.linspace(0, 1, bins + 1), color=colour)
        histogram.axhline(1, color="#333333", linewidth=0.8, linestyle=":")
        _plain_axes(curve, f"β = {beta:.0%}")
        _plain_axes(histogram, "")
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
    return Picture(f"reliability-{task}", caption, formats(figure))


def warming(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task of `frame` (as `tables.warming` gives it) RMSE and CRPS by number of ratings seen."""
    return [_warming(frame[frame["task"] == task], task, names) for task in names.in_order(frame["task"])]


def _warming(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    from matplotlib.figure import Figure

    betas, methods = sorted(frame["beta"].unique()), list(dict.fromkeys(frame["method"]))
    titles = {"rmse": "RMSE", "mae": "MAE", "crps": "CRPS"}
    figure = Figure(figsize=(max(4.6, 3.2 * len(betas)), 7.2), layout="constrained")
    panels = figure.subplots(len(titles), len(betas), squeeze=False)
    for i, (metric, title) in enumerate(titles.items()):
        for j, beta in enumerate(betas):
            for position, method in enumerate(methods):
                line = frame[(frame["beta"] == beta) & (frame["method"] == method)].sort_values("n")
                style = {"color": COLOURS[-1 - position % len(COLOURS)], "label": method_title(method, names)}
                panels[i, j].plot(range(len(line)), line[metric], "o-", linewidth=1.2, markersize=3, **style)
                panels[i, j].set_xticks(range(len(line)), [f"{n}" for n in line["n"]])
            _plain_axes(panels[i, j], f"{title}, β = {beta:.0%}")
    for axes in panels[-1]:
        axes.set_xlabel("target ratings seen", fontsize=8)
    panels[0, 0].legend(fontsize=6)
    caption = (
        f"Warming up. {names.task(task)}: error of test users' later ratings, the same for every n, after "
        "their first n have been seen. Means over seeds; lower is better."
    )
    return Picture(f"warming-{task}", caption, formats(figure))


def optimism(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Picture]:
    """MAE's and RMSE's optimism of each task of `frame` (as `tables.table2` gives it) that was validated."""
    validated = frame[frame["optimism"].notna() & (frame["selection"] == "validation")]
    validated = validated[
        validated["model"].isin(models) & validated["metric"].isin([m.name for m in ERRORS])
    ]
    return [
        _optimism(validated[validated["task"] == task], task, names, models)
        for task in names.in_order(validated["task"])
    ]


def _optimism(frame: pd.DataFrame, task: str, names: Names, models: Sequence[str]) -> Picture:
    from matplotlib.figure import Figure

    betas = sorted(frame["beta"].unique())
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(ERRORS)), ERRORS, strict=True):
        for position, beta in enumerate(betas):
            part = frame[(frame["metric"] == metric.name) & (frame["beta"] == beta)].set_index("model")
            heights = part["optimism"].reindex(models)
            width = 0.8 / len(betas)
            places = np.arange(len(models)) + (position - (len(betas) - 1) / 2) * width
            colour = _lighter("#3b6ea5", (position + 1) / len(betas))
            axes.bar(places, heights, width, color=colour, label=f"β = {beta:.0%}")
        axes.set_xticks(range(len(models)), [names.model(model) for model in models], fontsize=7, rotation=30)
        _plain_axes(axes, metric.title)
        axes.legend(fontsize=6)
    caption = (
        f"Optimism. {names.task(task)}: error at the best epoch on the test users minus error at the epoch "
        "chosen on validation users; 0 is honest."
    )
    return Picture(f"optimism-{task}", caption, formats(figure))


def _plain_axes(axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def _lighter(colour: str, strength: float) -> tuple[float, ...]:
    """`colour` mixed with white: unlike transparency it does not show the grid behind."""
    from matplotlib.colors import to_rgb

    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def _top(means: pd.Series) -> float:
    """The upper end of the axis: a little above the highest bar that is not TALL."""
    finite = means[np.isfinite(means)]
    return float(finite[finite <= TALL * finite.median()].max() * 1.12) if len(finite) else np.nan


def formats(figure) -> Mapping[str, bytes]:
    """A figure as PNG and as SVG."""
    return {"png": _save(figure, "png"), "svg": _save(figure, "svg")}


def _save(figure, ending: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Without a date and with fixed ids, equal numbers give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "diffcdr"}):
        figure.savefig(buffer, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
    return buffer.getvalue()
