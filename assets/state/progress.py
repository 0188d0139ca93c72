"""Progress and duration of long work: a bar in a terminal, a line in a log."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger("diffcdr")
Step = TypeVar("Step")


def epochs(steps: Iterable[Step], total: int, title: str) -> Iterator[Step]:
    """Pass on the epochs of a training, with a bar, and say at the end how long it took."""
    start = time.perf_counter()
    # `disable=None` draws nothing where standard error is not a terminal; the closing line is always logged.
    yield from tqdm(steps, desc=title, total=total, unit="epoch", leave=False, disable=None)
    log.info("%s: %d epochs in %.1f s", title, total, time.perf_counter() - start)


class Stopwatch:
    """Adds up wall-clock seconds, in a `with` block or while waiting for the next of some steps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start

    def time(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Pass the steps on; only producing them counts, not what the caller does with them."""
        steps = iter(steps)
        while True:
            with self:
                step = next(steps, None)
            if step is None:
                return
            yield step


def fastest(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of a few runs: the first also pays for what is not in any cache."""
    seconds = []
    for _ in range(times):
        with Stopwatch() as watch:
            work()
        seconds.append(watch.seconds)
    return min(seconds)
