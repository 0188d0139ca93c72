"""Ctrl-C and TERM: which of them came, also while Dagster has handlers of its own in place."""

import logging
import os
import signal
import sys
import threading
from types import FrameType

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "TERM"}


class Stopped(KeyboardInterrupt):
    """One of the two signals came.

    Of its own kind since Python, once a plain KeyboardInterrupt has passed through code that C has started,
    as some imports do, kills the process at the end by the signal, whatever its exit code.
    """


# Until a signal that Python dropped comes again, in seconds.
_AGAIN = 0.1
# The reading end of the pipe into which Python writes the number of each signal that it handles.
_pipe: int | None = None
_first: signal.Signals | None = None
# Whether the command has said that it was stopped.
told = False


def listen() -> None:
    """From now on both signals raise Stopped, and `received` knows which came first."""
    global _pipe
    # An interrupted statement's cursor cannot be closed any more, of which it would log the traceback.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    _pipe, writing = os.pipe()
    for end in (_pipe, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def received() -> signal.Signals | None:
    """The first of the two signals that came since `listen`, whoever handled it."""
    global _first
    if _first is None and _pipe is not None:
        try:
            numbers = os.read(_pipe, 4096)
        except BlockingIOError:
            numbers = b""
        _first = next((signal.Signals(number) for number in numbers if number in SIGNALS), None)
    return _first


def raise_if_received() -> None:
    """Raise Stopped for a signal that Dagster took and forgot."""
    if received() is not None:
        raise Stopped


def line(sentence: str = "") -> str:
    """What a stopped command says, once: `told` from then on."""
    global told
    told = True
    number = received()
    return ("stopped" + (f" by {SIGNALS[number]}" if number else "")) + (f": {sentence}" if sentence else "")


def exit_code(number: signal.Signals | None) -> int:
    """What a shell expects of a command that ended by this signal; Ctrl-C where none was seen."""
    return 128 + (number or signal.SIGINT)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


def _unraisable(dropped) -> None:
    """An exception in an object's last moments is dropped by Python, which prints it. That of a signal, ours
    or Dagster's, is no error: the signal comes again."""
    number = received()
    names = {kind.__name__ for kind in dropped.exc_type.__mro__}
    if number is None or not names & {"KeyboardInterrupt", "DagsterExecutionInterruptedError"}:
        sys.__unraisablehook__(dropped)
        return
    if told:
        return
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
