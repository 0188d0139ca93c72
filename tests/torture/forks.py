"""Answers command lines of a checkout, each in a fork of one process that has imported what all need.

Reads one JSON object a line: arguments, folder (working directory), environment, seconds, out (a path, to
which .out and .err are added); writes one line: the exit status, or null where the command was ended for
time. Importing DuckDB, pandas and Dagster takes two seconds, a fork a hundredth. What may be read from
the environment at import (the axes of older checkouts) is imported in the fork.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback


def answer(request: dict) -> int | None:
    child = os.fork()
    if child == 0:
        _become(request)
    end = time.monotonic() + request["seconds"]
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


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
        from pipeline.cli import app

        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import duckdb  # noqa: F401
    import fsspec  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import pipeline.cli  # noqa: F401

    # Where it is in newer checkouts.
    with contextlib.suppress(ImportError):
        import assets.data.own_data  # noqa: F401

    assert "assets.settings.axes" not in sys.modules
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
