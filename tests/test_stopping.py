"""A signal that falls into an object's last moments, where Python drops what its handler raises."""

import subprocess
import sys
import textwrap

import pytest

from assets.state.code import OURS


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_python_drops_still_stops_the_command_without_a_trace(name):
    code = textwrap.dedent(f"""
        import signal, time
        from pipeline import stopping

        class Last:
            def __del__(self):
                signal.raise_signal(signal.{name})
                sum(range(10))  # where the handler runs

        stopping.listen()
        Last()
        try:
            time.sleep(20)
            print("slept")
        except stopping.Stopped:
            print(stopping.line(), stopping.exit_code(stopping.received()))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=OURS, capture_output=True, text=True, timeout=60, check=True
    )
    said = {"SIGINT": "stopped by Ctrl-C 130", "SIGTERM": "stopped by TERM 143"}[name]
    assert (done.stdout.strip(), done.stderr) == (said, "")


def test_other_errors_there_are_printed():
    code = textwrap.dedent("""
        from pipeline import stopping

        class Last:
            def __del__(self):
                raise ValueError("broken")

        stopping.listen()
        Last()
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=OURS, capture_output=True, text=True, timeout=60, check=True
    )
    assert "ValueError: broken" in done.stderr


def test_a_signal_that_comes_while_handlers_are_put_in_place_is_answered():
    code = textwrap.dedent("""
        import signal, sys
        from pipeline import main, stopping

        def put(number, handler, put=signal.signal):
            put(number, handler)
            if handler is stopping._interrupt and number == signal.SIGTERM:
                signal.raise_signal(number)

        signal.signal = put
        main.main()
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=OURS, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (143, "stopped by TERM\n")
