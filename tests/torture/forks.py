"""Answers command lines of a checkout, each in a fork of one process that has imported what all need.

Reads one JSON object a line: arguments, folder (working directory), environment, seconds, out (a path, to
which .out and .err are added), and, to stop the command, signal and after (seconds). Writes one line: code
(the exit status, null where the command was ended for time), seconds, stopped (whether the signal was sent)
and ended (seconds from the signal to the end). Importing DuckDB, pandas and Dagster takes two seconds, torch
and MLflow five, a fork a hundredth. What may be read from the environment at import (the axes of older
checkouts) is imported in the fork. Arguments name more modules to import; one that is not there is left out.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback


def answer(request: dict) -> dict:
    child = os.fork()
    if child == 0:
        _become(request)
    start = time.monotonic()
    stop = start + request["after"] if "signal" in request else None
    sent = None
    while (now := time.monotonic()) < start + request["seconds"]:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if stop is not None and sent is None and now >= stop:
            # The whole group, as a terminal does; it is there as soon as the child has made it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, request["signal"])
                sent = now
        time.sleep(0.01)
    else:
        code = None
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {
        "code": code,
        "seconds": now - start,
        "stopped": sent is not None,
        "ended": now - sent if sent is not None else 0.0,
    }


def _become(request: dict) -> None:
    """Run the command line and end; never returns."""
    code = 1
    try:
        os.setsid()
        for number, suffix in ((1, "out"), (2, "err")):
            handle = os.open(f"{request['out']}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = ["diffcdr", *request["arguments"]]
        _command()()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command():
    try:
        from pipeline.main import main
    except ImportError:
        # Older checkouts.
        from pipeline.cli import app as main
    return main


def main(modules: list[str]) -> None:
    import duckdb  # noqa: F401
    import fsspec  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import pipeline.cli  # noqa: F401

    for module in ["assets.data.own_data", *modules]:
        # Where it is in newer checkouts.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)

    assert modules or "assets.settings.axes" not in sys.modules
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
