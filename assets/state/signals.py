"""Ctrl-C and TERM, put off for the moment of a transaction."""

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Let both signals wait until the block has ended, whoever handles them then.

    An exception in the middle of a SQLite transaction leaves its connection, and so the lock on the database,
    to a cursor that nobody can close any more. Only the main thread meets signals; in others nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda which, _frame: came.append(which)) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
