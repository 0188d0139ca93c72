"""A Spark of its own for a piece of work: a JVM that is started for it, says nothing and ends with it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOCAL = "local[*]"
JAVA = 17  # the oldest that Spark 4 runs on
SECONDS = 30  # that a JVM has to end by itself
_QUIET = {
    "spark.app.name": "diffcdr",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.catalogImplementation": "in-memory",
    # Factors are what comes back, and they are as large as they are.
    "spark.driver.maxResultSize": "0",
}
_LOOPBACK = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}


class SparkUnavailable(RuntimeError):
    """Spark cannot be used here; the message says what to install or to set."""


def is_local(master: str) -> bool:
    """Whether Spark works in this machine's one JVM, and not on a cluster."""
    return master == "local" or master.startswith("local[")


def require_spark() -> None:
    """Raise SparkUnavailable where pyspark or a Java that it runs on is missing."""
    if importlib.util.find_spec("pyspark") is None:
        raise SparkUnavailable(
            f"Spark's ALS needs pyspark and Java {JAVA} or 21, and pyspark is not installed: "
            "pip install 'diffcdr[spark]'"
        )
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    found = "no java on PATH" if program is None else _version(program)
    if not isinstance(found, int) or found < JAVA:
        found = f"Java {found} at {program}" if isinstance(found, int) else found
        raise SparkUnavailable(
            f"Spark's ALS needs Java {JAVA} or 21 beside pyspark (pip install 'diffcdr[spark]'), and there "
            f"is {found}: install one, or set JAVA_HOME to its folder"
        )


def _version(program: str) -> int | str:
    """The major version of a java, or what is wrong with it."""
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return f"no java that starts at {program}"
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else f"no version in what {program} says of itself"


@contextlib.contextmanager
def spark_session(master: str = LOCAL) -> Iterator[SparkSession]:
    """A session at `master`, whose JVM has ended when the block has.

    Whatever else Spark can be told is read from its own places, `spark-defaults.conf` in SPARK_CONF_DIR and
    PYSPARK_SUBMIT_ARGS. A local Spark listens on loopback alone. What the JVM writes goes nowhere, but for
    the reason where it does not start. Raises SparkUnavailable, also where this process has a Spark already.
    """
    require_spark()
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    if SparkContext._active_spark_context is not None:
        raise SparkUnavailable("this process has a Spark already: stop it first")
    settings = {**_QUIET, **(_LOOPBACK if is_local(master) else {}), "spark.master": master}
    with tempfile.TemporaryFile() as said, _folder() as checkpoints, contextlib.ExitStack() as stack:
        try:
            context = _context(SparkConf().setAll(list(settings.items())), said, stack)
        except Exception as error:
            raise SparkUnavailable(f"Spark at {master} did not start: {_reason(said, error)}") from error
        context.setLogLevel("OFF")
        if is_local(master):
            # Else each sweep carries the plan of all before it, and with many the JVM's stack ends.
            context.setCheckpointDir(checkpoints)
        yield SparkSession(context)


def _folder() -> tempfile.TemporaryDirectory:
    # The JVM may still remove files in it.
    return tempfile.TemporaryDirectory(prefix="diffcdr-spark-", ignore_cleanup_errors=True)


def _context(conf, said: BinaryIO, stack: contextlib.ExitStack):
    """A SparkContext on a JVM of its own that writes into `said`; `stack` ends both."""
    from pyspark import SparkContext
    from pyspark.java_gateway import launch_gateway

    # One that a process before it has used has ended.
    SparkContext._gateway = SparkContext._jvm = None
    gateway = launch_gateway(conf, {"stdout": said, "stderr": said})
    stack.callback(_end, gateway)
    before = signal.getsignal(signal.SIGINT)
    context = SparkContext(conf=conf, gateway=gateway)
    if threading.current_thread() is threading.main_thread():
        # It has put its own in place.
        signal.signal(signal.SIGINT, before)
    stack.callback(context.stop)
    return context


def _end(gateway) -> None:
    from pyspark import SparkContext

    gateway.shutdown()
    SparkContext._gateway = SparkContext._jvm = None
    process = gateway.proc
    if process is not None:
        # It ends when its standard input does.
        process.stdin.close()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(said: BinaryIO, error: Exception) -> str:
    """What a JVM that did not start wrote last, or the error where it wrote nothing."""
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("at ") and "WARN" not in line]
    return " ".join(telling[-2:]) or str(error)
