"""Dagster's instance: its runs, events and logs lie in the home like all state, under `dagster`.

The folder is a DAGSTER_HOME with a dagster.yaml of its own, so that Dagster's commands work on it, too:
`DAGSTER_HOME=.diffcdr/dagster dagster …`. It is written once; who changes it keeps the change.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from assets.state.store import Store

CONFIGURATION = Path(__file__).with_name("dagster.yaml")
# What the UI shows, and where runs of the command line say that they belong.
WORKSPACE = Path(__file__).with_name("workspace.yaml")


def dagster_home() -> Path:
    """DAGSTER_HOME where it is set, else the home's, made ready."""
    if given := os.environ.get("DAGSTER_HOME"):
        return Path(given).absolute()
    folder = Store().root / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIGURATION.name).exists():
        shutil.copy(CONFIGURATION, folder)
    return folder


@contextlib.contextmanager
def dagster_instance() -> Iterator:
    """The instance of `dagster_home`."""
    from dagster import DagsterInstance

    folder = dagster_home()
    # Two first runs would both create the databases.
    with FileLock(folder / ".opening.lock"):
        opened = DagsterInstance.from_config(str(folder))
        opened.get_runs_count()
        opened.event_log_storage.get_concurrency_keys()
    with opened as instance:
        yield instance
