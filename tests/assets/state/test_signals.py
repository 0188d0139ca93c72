"""Signals that wait for the end of a block."""

import signal
import threading

import pytest

from assets.state.signals import STOPPING, put_off


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_comes_when_the_block_has_ended(number):
    came, done = [], []

    def handler(which, _frame):
        came.append((which, list(done)))

    signal.signal(number, handler)
    with put_off():
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("transaction")
    assert came == [(number, ["transaction"])]
    assert signal.getsignal(number) is handler


def test_what_the_handler_raises_comes_out_of_the_block():
    with pytest.raises(KeyboardInterrupt), put_off():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_is_kept():
    with pytest.raises(ZeroDivisionError), put_off():
        _ = 1 / 0


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with put_off():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
