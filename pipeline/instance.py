"""Dagster's instance: its runs, events and logs lie in the home like all state, under `dagster`.

The folder is a DAGSTER_HOME with a dagster.yaml of its own, so that Dagster's commands work on it, too:
`DAGSTER_HOME=.diffcdr/dagster dagster …`. It is written once; who changes it keeps the change.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from assets.state.locks import by_file
from assets.state.sqlite import damage
from assets.state.store import Store, writing

CONFIGURATION = Path(__file__).with_name("dagster.yaml")
# What the UI shows, and where runs of the command line say that they belong.
WORKSPACE = Path(__file__).with_name("workspace.yaml")


def dagster_home() -> Path:
    """DAGSTER_HOME where it is set, else the home's, made ready."""
    if given := os.environ.get("DAGSTER_HOME"):
        return Path(given).absolute()
    folder = Store().root / "dagster"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CONFIGURATION.name).exists():
            shutil.copy(CONFIGURATION, folder)
    return folder


class UnreadableHistory(RuntimeError):
    """Dagster's settings or databases are damaged; the message names the file and says what to do."""


@contextlib.contextmanager
def dagster_instance() -> Iterator:
    """The instance of `dagster_home`. Raises UnreadableHistory, CannotWrite."""
    from dagster import DagsterInstance

    folder = dagster_home()
    # Two first runs would both create the databases.
    with writing(folder), _settings(folder), _databases(folder), by_file(folder, ".opening"):
        opened = DagsterInstance.from_config(str(folder))
        opened.get_runs_count()
        opened.event_log_storage.get_concurrency_keys()
    with opened as instance, _databases(folder):
        yield instance


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    import yaml
    from dagster import DagsterInvalidConfigError

    try:
        yield
    except (yaml.YAMLError, DagsterInvalidConfigError) as error:
        raise UnreadableHistory(
            f"{folder / CONFIGURATION.name}: {error}; correct it, or remove it to have the usual one"
        ) from error


@contextlib.contextmanager
def _databases(folder: Path) -> Iterator[None]:
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except DatabaseError as error:
        for file in sorted(folder.rglob("*.db")):
            if problem := damage(file):
                raise UnreadableHistory(
                    f"{file} is damaged ({problem}): remove {folder}, which loses Dagster's history and "
                    "nothing that was computed"
                ) from error
        raise
