"""How an entry's files are kept, on a disk or behind an fsspec URL.

A folder holds generations, each a folder of files that is written once and never changed, and one small file
that is replaced as a whole and says which generation counts. So a writer that is killed leaves what counted,
two writers end with one of the two, and a reader that has begun goes on with what it began.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

from upath import UPath

PREFIX = "gen-"
# Of folders and files of a writer that is at work, where it has locked them.
WRITING, DRAFT = ".writing-", ".draft-"
_STAMP = "%Y%m%dT%H%M%S"
# Between making a folder and locking it.
_LOCKED_AFTER = timedelta(seconds=10)
# No single entry is written for longer, where no lock can tell whether its writer lives.
_WRITTEN_WITHIN = timedelta(days=1)
Content = bytes | Path


class Folder(Protocol):
    """One entry's folder; names are relative to it. A file is given as bytes, or by a local file's path."""

    def generation(self) -> contextlib.AbstractContextManager[str]:
        """A new generation's name, as long as its writer is at work."""

    def put(self, name: str, content: Content) -> dict[str, int | str]:
        """Write a file that is not there yet; returns its size in bytes and sha256."""

    def replace(self, name: str, content: bytes) -> None:
        """Write a file in one step: at any moment a reader sees the old one or the new one, whole."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of each file below a folder; none where it is not there."""

    def generations(self) -> list[str]: ...

    def is_abandoned(self, generation: str) -> bool:
        """Whether the writer of a generation that does not count is known to be gone."""

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens where it is not there."""

    def files(self) -> list[str]:
        """Files that are in no generation."""


def folder_of(path: UPath, here: Path | None = None) -> "LocalFolder | RemoteFolder":
    """here: a folder on this machine, where writers of a remote one are known by."""
    local = path.protocol in ("", "file", "local")
    return LocalFolder(Path(path.path)) if local else RemoteFolder(path, here)


def places(root: UPath, name: str, wanted: Mapping[str, object]) -> list[str]:
    """The folders below `root`, relative to it, that hold a file `name`, generations apart.

    Folders are called key=value; those of other values than `wanted` has for their keys are passed over.
    """
    folder = folder_of(root)
    if isinstance(folder, RemoteFolder):
        return [place for place in folder.holding(name) if _may_hold(place.split("/"), wanted)]
    found = []
    for place, folders, files in os.walk(folder.path):
        if name in files:
            found.append(Path(place).relative_to(folder.path).as_posix())
        folders[:] = sorted(each for each in folders if _may_hold([each], wanted))
    return found


def _may_hold(parts: list[str], wanted: Mapping[str, object]) -> bool:
    pairs = [part.partition("=")[::2] for part in parts]
    others = any(str(wanted[key]) != value for key, value in pairs if wanted.get(key) is not None)
    return not others and not any(part.startswith(PREFIX) for part in parts)


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def generation(self) -> Iterator[str]:
        name = _new_name()
        with _held(self.path / f".{name}", self.path / name):
            yield name

    def put(self, name: str, content: Content) -> dict[str, int | str]:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            _copy(content, file)
            file.flush()
            os.fsync(file.fileno())
        return described(content)

    def settle(self, name: str) -> dict[str, int | str]:
        """As `put`, for a file that is in its place already."""
        with (self.path / name).open("rb") as file:
            os.fsync(file.fileno())
        return described(self.path / name)

    def replace(self, name: str, content: bytes) -> None:
        temporary = self.path / f".{uuid.uuid4().hex}"
        try:
            self.put(temporary.name, content)
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def sizes(self, name: str) -> dict[str, int]:
        folder = self.path / name
        found = {}
        for place, _, files in os.walk(folder):
            for file in files:
                path = Path(place, file)
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(folder).as_posix()] = path.stat().st_size
        return found

    def generations(self) -> list[str]:
        return [name for name in _listed(self.path) if name.removeprefix(".").startswith(PREFIX)]

    def is_abandoned(self, generation: str) -> bool:
        held = is_held(self.path / generation)
        if held is None:
            return _age(generation) > _WRITTEN_WITHIN
        return not held and (not generation.startswith(".") or _age(generation) > _LOCKED_AFTER)

    def remove(self, name: str) -> None:
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def files(self) -> list[str]:
        return [name for name in _listed(self.path) if (self.path / name).is_file()]


class RemoteFolder:
    """Object stores replace a file in one step. Listings may come from a cache, so that is emptied first.

    They have no locks: a writer of this machine holds one in the folder `here`, others are judged by age.
    """

    def __init__(self, path: UPath, here: Path | None = None) -> None:
        self._fs, self._root, self._here = path.fs, path.path.rstrip("/"), here

    @contextlib.contextmanager
    def generation(self) -> Iterator[str]:
        name = _new_name()
        if self._here is None:
            yield name
            return
        mark = self._mark(name)
        with _held(self._here / f".{uuid.uuid4().hex}", mark):
            try:
                yield name
            finally:
                _remove_mark(mark)

    def put(self, name: str, content: Content) -> dict[str, int | str]:
        path = self._at(name)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(content, Path):
            self._fs.put_file(str(content), path)
        else:
            self._fs.pipe_file(path, content)
        return described(content)

    def replace(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(self._at(name), content)

    def read(self, name: str) -> bytes:
        return self._fs.cat_file(self._at(name))

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to `path` on this machine, however large. Raises FileNotFoundError."""
        self._fs.get_file(self._at(name), str(path))

    def sizes(self, name: str) -> dict[str, int]:
        folder = self._at(name)
        return {path[len(folder) + 1 :]: facts["size"] for path, facts in self._find(folder).items()}

    def generations(self) -> list[str]:
        tops = {path[len(self._root) + 1 :].split("/")[0] for path in self._find(self._root)}
        # Of some, nothing has arrived yet.
        marked = {name.removeprefix(WRITING) for name in _listed(self._here) if name.startswith(WRITING)}
        return sorted(marked | {name for name in tops if name.startswith(PREFIX)})

    def is_abandoned(self, generation: str) -> bool:
        mark = self._mark(generation)
        held = is_held(mark) if mark is not None and mark.exists() else None
        return _age(generation) > _WRITTEN_WITHIN if held is None else not held

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._at(name), recursive=True)
        if (mark := self._mark(name)) is not None:
            _remove_mark(mark)

    def _mark(self, generation: str) -> Path | None:
        return self._here / f"{WRITING}{generation}" if self._here is not None else None

    def files(self) -> list[str]:
        names = [path[len(self._root) + 1 :] for path in self._find(self._root)]
        return [name for name in names if "/" not in name]

    def holding(self, name: str) -> list[str]:
        """The folders within that hold a file `name`."""
        found = sorted(path[len(self._root) + 1 :] for path in self._find(self._root))
        return [path.rpartition("/")[0] for path in found if path.rpartition("/")[2] == name]

    def _find(self, folder: str) -> dict[str, dict]:
        self._fs.invalidate_cache()
        found = self._fs.find(folder, detail=True)
        # Some stores give paths with a leading slash and some without.
        return {path if path.startswith(folder) else f"/{path}": facts for path, facts in found.items()}

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def _remove_mark(mark: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        mark.rmdir()


@contextlib.contextmanager
def _held(hidden: Path, path: Path) -> Iterator[None]:
    """A new folder that is locked until its writer is done or dead; others tell by it whether they may clean
    up after it. So it is called `hidden` until it is locked."""
    hidden.mkdir(parents=True)
    descriptor = os.open(hidden, os.O_RDONLY)
    try:
        # Not every network disk has locks; `is_held` cannot tell then.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool | None:
    """Whether who made a locked folder is at work, as far as is known; None where there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def draft(beside: Path) -> Iterator[Path]:
    """A folder for files in the making, which is removed; so are those of writers that were killed."""
    beside.mkdir(parents=True, exist_ok=True)
    for left in beside.glob(f"{DRAFT}*"):
        if is_held(left) is False:
            shutil.rmtree(left, ignore_errors=True)
    name = uuid.uuid4().hex
    folder = beside / f"{DRAFT}{name}"
    with _held(beside / f".{name}", folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def described(content: Content) -> dict[str, int | str]:
    """Size in bytes and sha256 of a file."""
    if isinstance(content, bytes):
        return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with content.open("rb") as file:
        return {"size": content.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _copy(content: Content, file: BinaryIO) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with content.open("rb") as source:
        shutil.copyfileobj(source, file)


def _listed(folder: Path | None) -> list[str]:
    try:
        return sorted(os.listdir(folder)) if folder is not None else []
    except (FileNotFoundError, NotADirectoryError):
        return []


def _new_name() -> str:
    return f"{PREFIX}{datetime.now(UTC).strftime(_STAMP)}-{uuid.uuid4().hex[:8]}"


def _age(generation: str) -> timedelta:
    stamp = generation.removeprefix(".").removeprefix(PREFIX).partition("-")[0]
    return datetime.now(UTC) - datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
