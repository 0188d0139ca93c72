"""Rating files as they lie on a disk: is it a file, how does it begin, how is it named to DuckDB.

A path comes from a person and is taken literally: `movies[1].csv` is a file and no pattern.
"""

import csv
import errno
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

NOT_UTF8 = "not UTF-8 text; convert it, for example with iconv -f latin1 -t utf-8"
DELIMITERS = {"csv": ",", "tsv": "\t"}
# Python's own limit is 128 KB a field; DuckDB's of 2 MB a line holds for every row, and names the line.
csv.field_size_limit(1 << 30)

_KINDS = {
    stat.S_IFDIR: "a folder; name one file in it",
    stat.S_IFIFO: "a pipe, which can be read only once; write it to a file first",
    stat.S_IFSOCK: "a socket; name a file",
    stat.S_IFCHR: "a device; name a file",
    stat.S_IFBLK: "a device; name a file",
}
_REASONS = {
    errno.ENOENT: "there is no such file; correct the path",
    errno.ENOTDIR: "there is no such file, for a part of its path is no folder; correct the path",
    errno.ELOOP: "a symbolic link that leads back to itself; name the file itself",
    errno.ENAMETOOLONG: "the name is too long for a file; correct the path",
    errno.EACCES: "a folder above it is closed to you; open it with chmod +x",
}


class FileError(ValueError):
    """A file cannot be read; the message names it, what is wrong and the hint."""


def problem(path: Path) -> str | None:
    """Why the path does not name a readable file, and the hint; None where it does. Opens nothing."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8 text; rename the file"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            return f"a symbolic link to {os.readlink(path)}, which is not there; name the file itself"
        return _REASONS.get(error.errno, f"cannot be read ({error.strerror}); correct the path")
    if not stat.S_ISREG(mode):
        return _KINDS.get(stat.S_IFMT(mode), "no regular file; name one")
    return None if os.access(path, os.R_OK) else "closed to you; open it with chmod +r"


def check_file(path: Path) -> None:
    """Raise FileError where the path does not name a readable file."""
    wrong = problem(path)
    if wrong:
        raise FileError(f"{path}: {wrong}")


def check_parquet(path: Path) -> None:
    """Raise FileError where the path does not name a file that begins as Parquet does."""
    check_file(path)
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise FileError(f"{path}: not a Parquet file; write it as one")


def check_output(path: Path, inputs: Mapping[str, Path]) -> None:
    """Raise FileError where `path` cannot be written, or is an input (by option) that it would replace."""
    if not path.parent.is_dir():
        raise FileError(f"--output {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise FileError(f"--output {path}: a folder or a device; name a file")
    for option, given in inputs.items():
        if path.exists() and given.exists() and path.samefile(given):
            raise FileError(f"--output {path}: the same file as {option}, which would be lost; name another")


def literal(path: str | Path) -> str:
    """SQL text of a path for DuckDB's readers, which would take `*`, `?` and `[` as patterns."""
    return "'" + re.sub(r"([*?[])", r"[\1]", str(path)).replace("'", "''") + "'"


def first_lines(path: Path, count: int) -> list[str]:
    """The first lines that are not blank, bytes that are not UTF-8 replaced. Raises FileError for none."""
    opener = gzip.open if is_gzip(path) else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = list(islice((line for line in file if line.strip()), count))
    except (EOFError, gzip.BadGzipFile, zlib.error):
        check_gzip(path, str(path))
        raise
    if not lines:
        raise FileError(f"{path}: the file is empty; get it again from its source")
    return lines


def check_gzip(path: Path, name: str) -> None:
    """Read a gzip file through to its trailer. Raises FileError saying how much of `name` can be read."""
    size = lines = 0
    try:
        with gzip.open(path) as file:
            # read1, as read would lose what came before the error within the same chunk.
            while chunk := file.read1(1 << 16):
                size += len(chunk)
                lines += chunk.count(b"\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = "ends early" if isinstance(error, EOFError) else f"is corrupt ({error})"
        raise FileError(
            f"{name}: the gzip stream {reason}: its {path.stat().st_size:,} bytes unpack to {size:,} bytes, "
            f"{lines:,} whole lines. The file is not used; get it again from its source"
        ) from error


def is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def records(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The fields of each line; in tab-separated text a quote is a character like any other."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    return list(csv.reader(lines, delimiter=delimiter, quoting=quoting))


def refuse_alike(path: Path, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise FileError where a column that is wanted could be either of two."""
    for name in wanted:
        if names.count(name) > 1:
            raise FileError(
                f"{path}: {names.count(name)} columns are called {short(name)!r}; rename all but one of them"
            )


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first ones, each in full up to a point."""
    shown = ", ".join(map(short, names[:20]))
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20:,} more"


def short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length] + "…"
