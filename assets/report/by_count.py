"""Pictures of what is said of users by how many of their target ratings or choices are known."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.report.metrics import Metric
from assets.state import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_by_count(
    figure: "Figure",
    frame: pd.DataFrame,
    metrics: Sequence[Metric],
    by: str,
    label: Callable[[str], str],
    what: str,
) -> np.ndarray:
    """Draw a row of panels for each metric, one for each β, with a line over n for each value of the column
    `by`, called `label` of it; what: the n are. Returns the panels (metrics, β)."""
    betas = sorted(frame["beta"].unique())
    panels = figure.subplots(len(metrics), len(betas), squeeze=False)
    for row, metric in zip(panels, metrics, strict=True):
        for axes, beta in zip(row, betas, strict=True):
            _panel(axes, frame[frame["beta"] == beta], metric, by, label)
            plots.plain(axes, f"{metric.title}, β = {beta:.0%}")
    for axes in panels[-1]:
        axes.set_xlabel(what, fontsize=8)
    return panels


def _panel(axes, frame: pd.DataFrame, metric: Metric, by: str, label: Callable[[str], str]) -> None:
    for position, name in enumerate(dict.fromkeys(frame[by])):
        line = frame[frame[by] == name].sort_values("n")
        colour, steps = plots.COLOURS[-1 - position % len(plots.COLOURS)], range(len(line))
        style = {"color": colour, "linewidth": 1.2, "markersize": 3}
        axes.plot(steps, line[metric.name], "o-", label=label(name), **style)
        axes.set_xticks(steps, [f"{n:.0f}" for n in line["n"]])
