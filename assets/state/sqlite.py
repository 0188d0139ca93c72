"""Whether a SQLite database can be read."""

import contextlib
import sqlite3
from pathlib import Path


def refusal(database: Path) -> str:
    """Why a file cannot be opened as a database, "" where it can; its schema is read, not its rows."""
    return _problem(database, "SELECT 'ok' FROM (SELECT count(*) FROM sqlite_master)")


def damage(database: Path) -> str:
    """What is wrong with a database, "" where nothing is; all of it is read."""
    return _problem(database, "PRAGMA quick_check(1)")


def _problem(database: Path, query: str) -> str:
    if database.is_dir():
        return "it is a folder"
    try:
        # A plain path would be created where it is not there.
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(connection):
            [(found,)] = connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        # Another is writing it.
        return "" if "locked" in str(error) else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    # "*** in database main ***", and then what is wrong.
    return "" if found == "ok" else found.rpartition("***")[2].strip()
