"""Other processes that use the store as this one does."""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

from assets.state.code import OURS

HEAD = """
    import sys, time
    from pathlib import Path
    from assets.settings.axes import Axes
    from assets.settings.catalog import load_catalog
    from assets.state.store import Store
    def entry():
        return Store().split(Axes(load_catalog()).parse("tiny|b20-s0"))
"""


@contextlib.contextmanager
def process(body: str) -> Iterator[subprocess.Popen]:
    """A process that has a `Store` and can make `entry()`; body: what it does. It is killed at the end."""
    command = [sys.executable, "-u", "-c", textwrap.dedent(HEAD) + textwrap.dedent(body)]
    environment = os.environ | {"PYTHONPATH": str(OURS)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as running:
        try:
            yield running
        finally:
            running.kill()
