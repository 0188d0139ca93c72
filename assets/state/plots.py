"""The one home of matplotlib: the palette, plain axes, and figures as bytes or as Markdown images."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One hue a model, strong enough beside its light variant and apart for colour-blind readers.
COLOURS = ("#7f7f7f", "#4e79a7", "#59a14f", "#b6992d", "#9467bd", "#e07b39", "#c0392b", "#2a9d8f", "#8c564b")
SPARKS = 40  # points of a small line
BLUE, RED, GREY, INK = "#3b6ea5", "#c0392b", "#7f7f7f", "#333333"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. The object interface: pyplot keeps every figure alive and is not safe in
    threads."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bars(values: Mapping[object, float], x: str, y: str) -> str:
    """A bar chart of `values` as a Markdown image."""
    figure = new_figure(5, 3)
    axes = figure.subplots()
    axes.bar([str(key) for key in values], list(values.values()), color=BLUE)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return as_markdown(png(figure), f"{y} by {x}")


def curves(frames: Mapping[str, pd.DataFrame], x: str, columns: Mapping[str, str]) -> str:
    """A line chart as a Markdown image: a line for each frame (by its label) and column (column -> label)."""
    figure = new_figure(5, 3)
    axes = figure.subplots()
    for name, frame in frames.items():
        for column, label in columns.items():
            if column in frame:
                axes.plot(frame[x], frame[column], marker="o", markersize=3, label=f"{name} {label}")
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return as_markdown(png(figure), f"{', '.join(columns.values())} by {x}")


def sparkline(values: Sequence[float], best: int, title: str) -> str:
    """A small line through `values` with a dot at position `best`, as a Markdown image of less than the 1,000
    characters that Dagster's pages show without a click. At least one value is finite; the others are left
    out."""
    shown = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    step = math.ceil(len(shown) / SPARKS) or 1
    shown = [point for n, point in enumerate(shown) if n % step == 0 or point[0] == best]
    low, high = min(value for _, value in shown), max(value for _, value in shown)
    # 6 and 46: top and bottom of the line; 8 and 288: its ends.
    places = {
        i: (8 + 280 * i / max(1, len(values) - 1), 46 - 40 * (value - low) / ((high - low) or 1))
        for i, value in shown
    }
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in places.values())
    dot = "" if best not in places else '<circle cx="{:.0f}" cy="{:.0f}" r="4"/>'.format(*places[best])
    image = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="296" height="52" fill="{RED}">'
        f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>{dot}</svg>'
    )
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(image.encode()).decode()})"


def plain(axes: "Axes", title: str) -> None:
    """Small labels, horizontal lines behind what is drawn, no frame."""
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def lighter(colour: str, strength: float) -> tuple[float, ...]:
    """`colour` mixed with white: unlike transparency it does not show the grid behind."""
    from matplotlib.colors import to_rgb

    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def as_markdown(image: bytes, title: str) -> str:
    return f"![{title}](data:image/png;base64,{base64.b64encode(image).decode()})"


def png(figure: "Figure") -> bytes:
    return _saved(figure, "png", 110)


def formats(figure: "Figure") -> dict[str, bytes]:
    """A figure by file ending, as PNG and as SVG."""
    # What takes most of the time is to lay it out: once for both. A figure that had an engine, even "none",
    # would be drawn twice for each.
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)
    return {"png": _saved(figure, "png", 150), "svg": _saved(figure, "svg", 150)}


def _saved(figure: "Figure", ending: str, dpi: int) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Without a date and with fixed ids, equal numbers give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "diffcdr"}):
        figure.savefig(buffer, format=ending, dpi=dpi, metadata={"Date": None} if ending == "svg" else None)
    return buffer.getvalue()


# A line from a label to its point.
LEADER = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}


def label(axes: "Axes", places: Mapping[str, tuple[float, float, str]], size: float = 6.5) -> None:
    """Name points (x, y, colour) to their right, moved up or down where names would lie on each other; a thin
    line leads from each to its point. The limits and the scale of the axes must be set before."""
    right = axes.transAxes.inverted().transform(
        axes.transData.transform([(x, y) for x, y, _ in places.values()])
    )
    order = sorted(range(len(places)), key=lambda i: right[i][1])
    inches = axes.get_figure().get_size_inches()[1] * axes.get_position().height
    gap = size * 1.25 / 72 / inches
    heights = _apart([float(right[i][1]) for i in order], gap)
    texts = list(places)
    for i, height in zip(order, heights, strict=True):
        x, y, colour = places[texts[i]]
        axes.annotate(
            texts[i],
            (x, y),
            (1.03, height),
            textcoords="axes fraction",
            fontsize=size,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"color": lighter(colour, 0.5), **LEADER},
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights, moved to be `gap` apart: neighbours that touch share their middle."""
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height, 1])
        # A block is its middle and its number of labels.
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (upper, m), (lower, n) = blocks.pop(), blocks.pop()
            blocks.append([(upper * m + lower * n) / (m + n), m + n])
    return [middle + gap * (i - (n - 1) / 2) for middle, n in blocks for i in range(int(n))]


def near(values: "pd.Series", centre: float, far: float) -> tuple[float, float]:
    """Ends of an axis that shows all values but those that are `far` times as far off as is typical."""
    distance = (values - centre).abs()
    reach = far * max(float(distance[distance > 0].median()), 1e-9) if (distance > 0).any() else 1.0
    inside = values[distance <= reach]
    low, high = min(centre, inside.min()), max(centre, inside.max())
    room = 0.06 * ((high - low) or 1.0)
    return float(low - room), float(high + room)
