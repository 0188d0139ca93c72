"""Locks with a name, held by one process at a time: of a machine by files, of several by Postgres.

Who waits for long says so in the log, and for whom; an interrupt ends the waiting at once. A lock is free
when its holder is dead.
"""

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger("diffcdr")
# Before a log says that a lock is waited for, and before it says so again.
SAY_AFTER, SAY_AGAIN = 1.0, 60.0  # seconds
# How often Postgres is asked again; a wait within its client would be deaf to signals.
ASK_EVERY = 0.3  # seconds
# A holder whose machine has vanished keeps its lock until Postgres notices: after a minute, not two hours. A
# Postgres that does not answer is not waited for as long as the system would.
KEEPALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
SERVER_KEEPALIVE = (
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
)


@contextlib.contextmanager
def by_file(folder: Path, name: str) -> Iterator[None]:
    """The lock of that name of all processes that have the folder, which is created, on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / f"{name}.lock"), folder / f"{name}.holder"
    _acquire(lock, name, holder)
    try:
        # Not in the lock's own file: opening it for waiting may empty it.
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(f"{_this_process()} since {since}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, name: str, holder: Path) -> None:
    patience = SAY_AFTER
    while True:
        try:
            lock.acquire(timeout=patience)
            return
        except Timeout:
            _say(name, _read(holder))
            patience = SAY_AGAIN


@contextlib.contextmanager
def by_postgres(url: str, scope: str, name: str) -> Iterator[None]:
    """The lock of that name within a scope of all processes that reach a Postgres database.

    It is an advisory lock of a connection that is open for so long, and Postgres frees it when that ends. A
    holder whose connection is cut goes on without it: two may then do the same work, of which the last one's
    result counts, whole. Raises sqlalchemy.exc.OperationalError where the database cannot be reached.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    # Postgres cuts it at 63 bytes.
    connect = {"application_name": f"diffcdr {_this_process()}"[:63], **KEEPALIVE}
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=connect)
    with engine.connect() as connection:
        connection.exec_driver_sql(SERVER_KEEPALIVE)
        key = int.from_bytes(hashlib.sha256(f"{scope}\n{name}".encode()).digest()[:8], "big", signed=True)
        say_at = time.monotonic() + SAY_AFTER
        while not _take(connection, key):
            if time.monotonic() > say_at:
                _say(name, _postgres_holder(connection, key))
                say_at = time.monotonic() + SAY_AGAIN
            time.sleep(ASK_EVERY)
        # Closing the connection gives it back.
        yield


def _take(connection: "Connection", key: int) -> bool:
    return connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({key})").scalar_one()


def _postgres_holder(connection: "Connection", key: int) -> str | None:
    high, low = (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF
    return connection.exec_driver_sql(
        "SELECT replace(application_name, 'diffcdr ', '') || ' since ' || backend_start::timestamptz(0) "
        "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
        f"AND objsubid = 1 AND classid = {high} AND objid = {low}"
    ).scalar()


def _say(name: str, holder: str | None) -> None:
    log.info("waiting for the lock %s, held by %s", name, holder or "an unknown process")


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
