"""Databases that are damaged: MLflow's, Dagster's history."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.torture.case import TINY, Case
from tests.torture.judge import Refused, Sound

MLFLOW = "mlflow/mlflow.db"
# Of Dagster: runs, and what it has seen of schedules and sensors.
HISTORY = ("dagster/history/runs.db", "dagster/schedules/schedules.db")


def databases() -> list[Case]:
    """Whichever way a database is damaged, who needs it says which file it is and what to do; who does not
    goes on; and what it says is tried."""
    return [*_of_mlflow(), *_of_dagster()]


def _of_mlflow() -> list[Case]:
    harms = {"rubbish": _rubbish, "cut": _cut, "a folder": _folder, "whole in its first page": _after_a_page}
    commands = {
        "run": ("run", *TINY, "--beta", "0.2", "--seed", "1", "--model", "emcdr"),
        "register": ("register", *TINY, "--force"),
        "serve": ("serve", "--task", "tiny", "--port", "0"),
        "recommend": ("recommend", "--task", "tiny", "--users", "users.csv", "--output", "out.csv"),
    }

    def case(harm: str, command: str) -> Case:
        # A server and a training take long, and what answers without a champion is another profile.
        mend = _away if command == "register" else None
        prepare = _damaging(MLFLOW, harms[harm])
        name = f"databases/MLflow's is {harm}, {command}"
        return Case(name, Refused((MLFLOW,)), commands[command], prepare, lived=True, mend=mend, seconds=40)

    return [
        *(case(harm, "run") for harm in harms),
        *(case("cut", each) for each in commands if each != "run"),
    ]


def _of_dagster() -> list[Case]:
    harms = {"rubbish": _rubbish, "cut": _cut, "empty": _empty, "whole in its first page": _after_a_page}
    inspect = ("inspect", "--task", "tiny", "--format", "json")
    return [
        Case(
            f"databases/{Path(file).name} is {harm}",
            Sound((file,), leaves=True),
            inspect,
            _damaging(file, damage),
            lived=True,
            mend=lambda home: shutil.rmtree(home / "dagster"),
            seconds=40,
        )
        for file in HISTORY
        for harm, damage in harms.items()
    ]


def _damaging(file: str, harm: Callable[[Path], None]):
    def prepare(folder: Path, _draw: object) -> None:
        (folder / "users.csv").write_text("user_id\nnobody\n")
        harm(folder / "home" / file)

    return prepare


def _rubbish(file: Path) -> None:
    file.write_bytes(b"rubbish" * 999)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 8192 * 4096)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _after_a_page(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def _away(home: Path) -> None:
    (home / MLFLOW).rename(home / MLFLOW.replace("mlflow.db", "away.db"))
