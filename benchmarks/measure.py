"""Time and peak memory of a piece of work, alone in a process of its own on one core."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Result = dict[str, np.ndarray]
# A side does its work and returns how to collect the result, which is not timed.
Side = Callable[[Any], Callable[[], Result]]


@dataclass(frozen=True)
class Run:
    """seconds: processor time, which on an idle core is the wall time, and which other programs disturb
    less; wall: wall time; memory_mb: growth of the process's peak resident memory, in MiB."""

    seconds: float
    wall: float
    memory_mb: float
    result: Result


def measured(side: Side, small: Any, work: Any) -> Run:
    """`side(work)` in a fork that has just done `side(small)`, so that neither imports nor first calls count.

    Inputs in `work` are shared with the parent and not in the memory.
    """

    def measure() -> Run:
        use_one_core()
        side(small)
        gc.collect()
        before = peak_mb()
        wall, processor = time.perf_counter(), time.process_time()
        collect = side(work)
        seconds, wall = time.process_time() - processor, time.perf_counter() - wall
        memory = peak_mb() - before
        return Run(seconds, wall, memory, collect())

    return in_child(measure)


def in_child(work: Callable[[], T]) -> T:
    """`work()` computed in a fork of this process; raises RuntimeError where the fork does not survive it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(work, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(
            f"a measured process ended with code {child.exitcode}: its own error stands above; "
            "without one it ran out of memory"
        ) from None
    finally:
        child.join()


def _send(work: Callable[[], T], sender: Connection) -> None:
    sender.send(work())


def use_one_core() -> None:
    """Keep this process, its threads and its forks on one core, where the system can."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def peak_mb() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def largest_difference(ours: Result, textbook: Result) -> float:
    """The largest absolute difference of two results; infinite where names or shapes differ."""
    if ours.keys() != textbook.keys() or any(ours[n].shape != textbook[n].shape for n in ours):
        return float("inf")
    return max(
        float(np.abs(ours[n].astype(np.float64) - textbook[n].astype(np.float64)).max(initial=0))
        for n in ours
    )


def relative_difference(ours: Result, textbook: Result) -> float:
    """`largest_difference` in units of the textbook's largest value."""
    largest = max(float(np.abs(values).max(initial=0)) for values in textbook.values())
    return largest_difference(ours, textbook) / largest


def machine(device: str) -> str:
    """The processor (and the GPU where one was used), the cores used and the library versions."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    return f"{processor()}, one core, {versions}"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
