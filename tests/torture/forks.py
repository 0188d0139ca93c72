"""Answers command lines of a checkout, each in a fork of one process that has imported what all need.

Reads one JSON object a line: arguments, folder (working directory), environment, seconds, out (a path, to
which .out and .err are added), and, to stop the command, signal with after (seconds) or once (a text of
stdout after which it is sent), and alone (to the process, not to its group as a terminal does). Writes one
line: code (the exit status, null where the command was ended for time), seconds, stopped (whether the signal
was sent), ended (seconds from the signal to the end), lines (of stderr: when it was seen, in seconds, and its
beginning) and left (how many processes of the group outlived it). Importing DuckDB, pandas and Dagster takes
two seconds, torch and MLflow five, a fork a hundredth. What may be read from the environment at import (the
axes of older checkouts) is imported in the fork. Arguments name more modules to import; one that is not there
is left out.
"""

import contextlib
import glob
import importlib
import json
import os
import signal
import sys
import time
import traceback
from io import FileIO

# Characters of a line that are passed on, and how long the children of a command have to end after it.
LINE, LINGER = 300, 5.0


def answer(request: dict) -> dict:
    # Made anew before the fork: what a command before it said is not this one's.
    with open(f"{request['out']}.out", "wb+", 0) as out, open(f"{request['out']}.err", "wb+", 0) as err:
        child = os.fork()
        if child == 0:
            _become(request)
        return _watched(request, child, out, err)


def _watched(request: dict, child: int, out: FileIO, err: FileIO) -> dict:
    start, sent, lines, rest = time.monotonic(), None, [], b""
    while (now := time.monotonic() - start) < request["seconds"]:
        done, status = os.waitpid(child, os.WNOHANG)
        *whole, rest = (rest + err.read()).split(b"\n")
        lines += [[round(now, 2), line[:LINE].decode(errors="replace")] for line in whole]
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if sent is None and _is_due(request, now, out):
            # The group is there as soon as the child has made it.
            with contextlib.suppress(ProcessLookupError):
                (os.kill if request.get("alone") else os.killpg)(child, request["signal"])
                sent = now
        time.sleep(0.01)
    else:
        code = None
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {
        "code": code,
        "seconds": now,
        "stopped": sent is not None,
        "ended": now - sent if sent is not None else 0.0,
        "lines": lines,
        "left": _outlived(child),
    }


def _is_due(request: dict, now: float, out: FileIO) -> bool:
    if "signal" not in request:
        return False
    if "once" not in request:
        return now >= request["after"]
    return request["once"].encode() in os.pread(out.fileno(), 1 << 20, 0)


def _outlived(group: int, seconds: float = LINGER) -> int:
    """How many processes of a group still run so long after its first has ended; they are ended."""
    end = time.monotonic() + seconds
    while (count := _living(group)) and time.monotonic() < end:
        time.sleep(0.02)
    if count:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    return count


def _living(group: int) -> int:
    """Its processes, but for those that nobody has asked for their exit status."""
    count = 0
    for file in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(file) as stat:
            state, _, of_group = stat.read().rpartition(")")[2].split()[:3]
            count += int(of_group) == group and state not in "ZX"
    return count


def _become(request: dict) -> None:
    """Run the command line and end; never returns."""
    code = 1
    try:
        os.setsid()
        for number, suffix in ((1, "out"), (2, "err")):
            handle = os.open(f"{request['out']}.{suffix}", os.O_WRONLY | os.O_APPEND)
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
