"""The one home of matplotlib: the palette, plain axes, and figures as bytes or as Markdown images."""

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One hue a model, strong enough beside its light variant and apart for colour-blind readers.
COLOURS = ("#7f7f7f", "#4e79a7", "#59a14f", "#b6992d", "#9467bd", "#e07b39", "#c0392b", "#2a9d8f", "#8c564b")
BLUE, INK = "#3b6ea5", "#333333"


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
    return {"png": _saved(figure, "png", 150), "svg": _saved(figure, "svg", 150)}


def _saved(figure: "Figure", ending: str, dpi: int) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Without a date and with fixed ids, equal numbers give equal files.
    with matplotlib.rc_context({"svg.hashsalt": "diffcdr"}):
        figure.savefig(buffer, format=ending, dpi=dpi, metadata={"Date": None} if ending == "svg" else None)
    return buffer.getvalue()
