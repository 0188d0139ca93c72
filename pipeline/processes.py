"""Which process executes a Dagster run, and whether it still lives.

A process is known by the machine, its id there and when it started: an id alone is soon another process's.
"""

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Dagster shows no tag that begins so: nobody who reads a list of runs has use for them.
HIDDEN = ".dagster/diffcdr/"
HOST, PROCESS, STARTED = f"{HIDDEN}host", f"{HIDDEN}process", f"{HIDDEN}started"
# A run that is started again from the UI inherits the tags of the first, which speak of another process.
RUN = f"{HIDDEN}run"


def tags(run: str) -> dict[str, str]:
    """Tags of the run with this id that name this process."""
    return {RUN: run, HOST: host(), PROCESS: str(os.getpid()), STARTED: started(os.getpid()) or ""}


def host() -> str:
    """This machine; a container that shares its name but not its process ids counts as another."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(space)}" if space.is_symlink() else socket.gethostname()


def is_gone(run: str, named: Mapping[str, str]) -> bool:
    """Whether the process that these tags of a run name has ended; False where only another machine can tell,
    and where the run has no process yet."""
    mine = named.get(RUN) == run and named.get(HOST) == host()
    return mine and started(int(named[PROCESS])) != named[STARTED]


def started(process: int) -> str | None:
    """When a process of this machine started, in words that are only good for comparing; None if it ended."""
    if Path("/proc/self/stat").exists():
        return _started_on_linux(process)
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(process)], capture_output=True, text=True)
    return shown.stdout.strip() or None


def _started_on_linux(process: int) -> str | None:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may hold anything. After it the state is the first field, the start
    # the twentieth.
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    # Ticks since the machine started, which a corrected clock does not move.
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
