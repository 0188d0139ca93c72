"""What a measured path consists of, and its measurement."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

from benchmarks.measure import Result, Run, Side, largest_difference, machine, measured


@dataclass(frozen=True)
class Options:
    """quick: a size for tests and warming up; device: where tensors live; folder: for files."""

    quick: bool
    device: str
    folder: Folder


@dataclass(frozen=True)
class Work:
    """description: what is done; data: what both sides get; samples: how many of what the path counts.

    textbook_share: the part of the work that the textbook does; its time and samples are scaled by it.
    """

    description: str
    data: Any
    samples: int
    textbook_share: float = 1.0


@dataclass(frozen=True)
class Path:
    """One hot path. target: the least wanted ratio; tolerance: of `difference` between the two results."""

    name: str
    target: float
    tolerance: float
    prepare: Callable[[Options], Work]
    ours: Side
    textbook: Side
    difference: Callable[[Result, Result], float] = largest_difference
    repeats: int = 3
    note: str = ""


def compare(path: Path, options: Options) -> dict:
    """Run both sides in turns, ours first, and return the row of `results.json`: medians, in seconds."""
    small = path.prepare(Options(True, options.device, options.folder))
    work = small if options.quick else path.prepare(options)
    ours, textbook = [], []
    for turn in range(1 if options.quick else path.repeats):
        ours.append(measured(path.ours, small.data, work.data))
        textbook.append(measured(path.textbook, small.data, work.data))
        print(
            f"{path.name}, turn {turn + 1}: "
            f"ours {ours[-1].seconds:.4g} s, textbook {textbook[-1].seconds:.4g} s",
            file=sys.stderr,
            flush=True,
        )
    return _row(path, work, ours, textbook, machine(options.device))


def _row(path: Path, work: Work, ours: list[Run], textbook: list[Run], where: str) -> dict:
    our_seconds = _median(ours, "seconds")
    their_seconds = _median(textbook, "seconds") / work.textbook_share
    return {
        "path": path.name,
        "work": work.description,
        "samples": work.samples,
        "ours": our_seconds,
        "textbook": their_seconds,
        "ratio": their_seconds / our_seconds,
        "target": path.target,
        "tolerance": path.tolerance,
        "difference": path.difference(ours[-1].result, textbook[-1].result),
        "ours_wall": _median(ours, "wall"),
        "textbook_wall": _median(textbook, "wall") / work.textbook_share,
        "ours_memory_mb": _median(ours, "memory_mb"),
        "textbook_memory_mb": _median(textbook, "memory_mb"),
        "machine": where,
        "note": path.note,
    }


def _median(runs: list[Run], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)
