"""Table 4: how fast models train and predict."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from assets.report.names import Names
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.summaries import published, summary, table_by_model
from assets.report.table import KIND, Number, Table, counted
from assets.settings.profile import Profile

THROUGHPUT = ["task", "beta", "seed", "model", "device", "replicas"]
THROUGHPUT += ["train_samples", "train_seconds", "test_samples", "test_users", "test_seconds"]
PHASES = {"train": "Training samples", "test": "Test samples", "test_users": "Test users"}
RATE = "{:,.1f}"


def table4_frame(throughput: pd.DataFrame) -> pd.DataFrame:
    """Throughput in thousands per second: task, device, replicas, phase, model, mean, std, cells, paper.

    phase is `train` and `test` (rating rows, as the paper counts) or `test_users`; the mean is over cells.
    """
    rates = {
        "train": throughput["train_samples"] / throughput["train_seconds"],
        "test": throughput["test_samples"] / throughput["test_seconds"],
        "test_users": throughput["test_users"] / throughput["test_seconds"],
    }
    keys = ["task", "device", "replicas", "model"]
    parts = [throughput[keys].assign(phase=phase, value=rate / 1000) for phase, rate in rates.items()]
    # A model that is not trained, or not in this way, has no rate.
    long = pd.concat(parts, ignore_index=True)
    long = long[np.isfinite(long["value"].astype(float))]
    frame = summary(long, [*keys[:3], "phase", "model"]).rename(columns={"seeds": "cells"})
    theirs = published("table4").rename(columns={"thousands": "paper"})
    return frame.merge(theirs, how="left", on=["phase", "model"])


def table4_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × device × phase, columns models; thousands a second."""
    models = _timed(names.profile)
    rows = []
    for task in names.in_order(frame["task"]):
        of_task = frame[frame["task"] == task]
        for (device, replicas), of_device in of_task.groupby(["device", "replicas"]):
            for phase, title in PHASES.items():
                part = of_device[(of_device["phase"] == phase) & of_device["model"].isin(models)]
                head = {"Task": names.task(task), "Device": f"{device}, {_replicas(replicas)}"}
                rows += _rows({**head, "Thousands a second": title}, part.set_index("model"), names)
    return table_by_model("", rows, names, models)


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count:.0f} replicas at once"


def _rows(head: Mapping, part: pd.DataFrame, names: Names) -> list[dict]:
    if part.empty:
        return []
    rows = [{**head, KIND: "ours", **_cells(part["mean"].items(), names), "Cells": counted(part["cells"])}]
    paper = part["paper"].dropna()
    return rows + ([{**head, KIND: "paper", **_cells(paper.items(), names)}] if len(paper) else [])


def _cells(values: Iterable[tuple[str, float]], names: Names) -> dict[str, Number]:
    return {names.model(model): Number(value, RATE) for model, value in values}


def _timed(profile: Profile) -> list[str]:
    return [*profile.models, *profile.ablations]


def table4_part(source: Source) -> Part:
    frame = table4_frame(source.table("throughput.parquet", THROUGHPUT))
    notes = (
        "Thousands a second, mean over cells. Samples are rating rows, as the paper counts. Replicas "
        "(seeds) that are trained at once count together, and of trials that are trained at once each has "
        "its share of the time, by epochs. The paper measured on one core of a 2 GHz Xeon "
        "and a P100 GPU, so its row compares models with each other, not with ours.",
    )
    tables, title = table4_tables(frame, source.names), f"Table 4. Throughput. {source.profile.title}"
    return Part("table4", title, frame, tables, notes, source.gaps(_timed(source.profile), ("rating",)))


TABLE4 = Chapter(
    "table4",
    "Throughput",
    "How fast models train and predict on the device named.",
    "Table 4: training and test throughput.",
    table4_part,
    _timed,
    reproduces=True,
)
