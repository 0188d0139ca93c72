"""Small pictures for asset pages, as Markdown images that carry their own bytes."""

import base64
import io
from collections.abc import Mapping

import pandas as pd


def bars(values: Mapping[object, float], x: str, y: str) -> str:
    """A bar chart of `values` as a Markdown image."""
    figure, axes = _axes()
    axes.bar([str(key) for key in values], list(values.values()), color="#3b6ea5")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return as_markdown(png(figure), f"{y} by {x}")


def curves(frames: Mapping[str, pd.DataFrame], x: str, columns: Mapping[str, str]) -> str:
    """A line chart as a Markdown image: a line for each frame (by its label) and column (column -> label)."""
    figure, axes = _axes()
    for name, frame in frames.items():
        for column, label in columns.items():
            if column in frame:
                axes.plot(frame[x], frame[column], marker="o", markersize=3, label=f"{name} {label}")
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return as_markdown(png(figure), f"{', '.join(columns.values())} by {x}")


def as_markdown(image: bytes, title: str) -> str:
    return f"![{title}](data:image/png;base64,{base64.b64encode(image).decode()})"


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _axes():
    # The object interface: pyplot keeps every figure alive and is not safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    return figure, figure.subplots()
