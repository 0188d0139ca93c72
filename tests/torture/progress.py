"""How far the campaign has come, on one line: the same in a terminal, else a line now and then."""

import sys
import time
from typing import TextIO

# Between two lines where there is no terminal.
EVERY = 30.0  # seconds


class Progress:
    """Says `cases 120 of 415, 3 min 10 s gone, about 7 min left` on stderr."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._stream = stream or sys.stderr
        self._start = self._said = time.monotonic()

    def reach(self, done: int) -> None:
        """Say that so many are done."""
        self._done = done
        now, terminal = time.monotonic(), self._stream.isatty()
        if terminal or now - self._said >= EVERY or done == self._total:
            self._said = now
            line, end = (f"\r{self.line}\033[K", "") if terminal else (self.line, "\n")
            print(line, end=end, file=self._stream, flush=True)

    def clear(self) -> None:
        """Make room for a line of another."""
        if self._stream.isatty():
            print("\r\033[K", end="", file=self._stream, flush=True)

    @property
    def line(self) -> str:
        gone = time.monotonic() - self._start
        left = gone / self._done * (self._total - self._done) if self._done else 0.0
        rest = f", about {in_words(left)} left" if self._done else ""
        return f"{self._what} {self._done} of {self._total}, {in_words(gone)} gone{rest}"


def in_words(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
