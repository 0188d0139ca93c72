"""Progress and duration of long work: a bar in a terminal, a line in a log."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Steps:
    """How far a chain of steps has come: which of how many begins, and about how long the rest will take.

    planned: (name, weight) in the order in which they come; a weight is a share of the work, whatever its
    unit. What begins and is not planned is not counted.
    """

    def __init__(
        self, planned: Sequence[tuple[str, float]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._planned, self._clock, self._start = list(planned), clock, clock()
        self._begun: list[int] = []

    def begin(self, name: str) -> None:
        """Say that the first planned step of that name which has not begun does so now."""
        places = (i for i, (each, _) in enumerate(self._planned) if each == name and i not in self._begun)
        place = next(places, None)
        if place is None:
            return
        left = self._left()
        self._begun.append(place)
        count = f"step {len(self._begun)} of {len(self._planned)}"
        log.info("— %s%s: %s", count, f", about {left} left" if left else "", name)

    def _left(self) -> str:
        """At the pace of what is done; nothing before a tenth of the work is."""
        total = sum(weight for _, weight in self._planned)
        done = sum(self._planned[place][1] for place in self._begun)
        if done < 0.1 * total:
            return ""
        return in_words((self._clock() - self._start) * (total - done) / done)


def in_words(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`: as exact as an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds / 5)) * 5} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


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
