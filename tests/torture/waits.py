"""How long a run was kept waiting, from the lines that it wrote and when they were seen."""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

# A step that begins; older checkouts have no numbers of steps, and say stages so.
STEP = re.compile(r"^[\d:]+ — (?:step [^:]*: )?([\w/]+)")
_WAITING = re.compile(r"\bwait(?:s|ing) for\b")


class Wait(NamedTuple):
    """A time in seconds, and the line after which it passed."""

    seconds: float
    after: str


NO_WAIT = Wait(0.0, "")


def longest_wait(lines: Sequence[tuple[float, str]], end: float) -> Wait:
    """The longest time in which a run said that it waited, or had not come to its first step.

    lines: (seconds since the start, text); end: when the run ended. What waits may say so again, and which
    dead runs it has closed meanwhile: it waits until the first step, where none has begun, or else until it
    says anything else.
    """
    waits, since, begun = [], (0.0, "the start"), False
    for seconds, text in lines:
        waiting, begun = bool(_WAITING.search(text)), begun or bool(STEP.match(text))
        if since is not None and begun and not waiting:
            waits.append(Wait(seconds - since[0], since[1]))
            since = None
        elif since is None and waiting:
            since = (seconds, text)
    if since is not None:
        waits.append(Wait(end - since[0], since[1]))
    return max(waits)


def longest_silence(lines: Sequence[tuple[float, str]], end: float) -> Wait:
    """The longest time without a line: of work, or of waiting that nobody is told of."""
    marks = [(0.0, "the start"), *lines, (end, "")]
    return max(Wait(then - now, text) for (now, text), (then, _) in itertools.pairwise(marks))
