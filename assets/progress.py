"""Progress of long work: a bar in a terminal, a line in a log."""

import logging
import time
from collections.abc import Iterable, Iterator
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
