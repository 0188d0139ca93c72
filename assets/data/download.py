"""Fetch one file, from anywhere, whole or not at all.

What arrives is written beside its place as `<name>.part` and moved there only after its length, its gzip
stream and its sha256 are checked. An interrupted http download goes on where it stopped.
"""

import errno
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import requests
import tenacity
import urllib3
from tqdm import tqdm

from assets.data.files import FileError, check_gzip, is_gzip, problem
from assets.state.locks import by_file

logger = logging.getLogger("diffcdr")

CHUNK = 1 << 16  # what a broken connection can cost, bytes
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
LOG_EVERY = 15  # seconds to the first line and between two where there is no terminal for a progress bar

backoff = tenacity.wait_exponential_jitter(initial=1, max=60)


class DownloadError(RuntimeError):
    """The file could not be had, or is not what was promised; the message names the URL and the hint."""


class _Interrupted(Exception):
    """A failure that may pass: tried again, going on from what has arrived."""


@dataclass(frozen=True)
class Fetched:
    """Where a file came from. size: bytes; sha256: hex digest; fetched_at: ISO 8601, UTC."""

    source: str
    size: int
    sha256: str
    fetched_at: str


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    attempts: int = 5,
    progress: bool = True,
    wait: Callable[[tenacity.RetryCallState], float] = backoff,
) -> Fetched:
    """Bring `url` (http, https, file, a plain path or any fsspec scheme) to `path`, replacing what is there.

    A local file is copied, so that later changes to it do not reach what was fetched. Connection errors,
    short bodies, and statuses 429 and 5xx are tried again, `wait` seconds apart; `attempts` counts all tries.
    Raises DownloadError; an interrupted download stays as `<path>.part` for the next call, a file that
    failed its check as `<path>.bad`.
    """
    part = _beside(path, ".part")
    # Two processes that append to one partial file would interleave their bytes.
    with by_file(path.parent, path.name):
        if url.startswith(("http://", "https://")):
            _download(url, part, attempts, progress, wait)
        else:
            _copy(url, part, progress)
        digest = _verify(url, part, _beside(path, ".bad"), sha256)
        size = part.stat().st_size
        _publish(part, path)
        _beside(path, ".bad").unlink(missing_ok=True)
    return Fetched(url, size, digest, datetime.now(UTC).isoformat(timespec="seconds"))


def local_path(url: str) -> Path | None:
    """The file that an absolute path or a file: URL names, literally; None for every other URL."""
    plain = re.sub("^(file|local):(//(?=/))?", "", url)
    return Path(plain) if plain.startswith("/") else None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# http


def _download(url: str, part: Path, attempts: int, progress: bool, wait: Callable) -> None:
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=wait,
        retry=tenacity.retry_if_exception_type(_Interrupted),
        before_sleep=lambda state: logger.warning("%s; trying again", state.outcome.exception()),
        reraise=True,
    )
    try:
        retrying(_attempt, url, part, progress)
    except _Interrupted as error:
        kept = part.stat().st_size if part.exists() else 0
        raise DownloadError(
            f"{error} (tried {attempts} times; {kept:,} bytes are kept in {part}). "
            "Run again to go on from there"
        ) from error


def _attempt(url: str, part: Path, progress: bool) -> None:
    headers = {"Accept-Encoding": "identity"}
    validator = _validator(part, url)
    start = part.stat().st_size if validator and part.exists() else 0
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            _receive(url, part, response, start, progress)
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _Interrupted(f"{url}: the connection failed: {error}") from error
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {error}; check the domain's url in the catalogue") from error


def _receive(url: str, part: Path, response: requests.Response, start: int, progress: bool) -> None:
    first, total = _content_range(response)
    if response.status_code == 416 and total == start:
        return  # stopped after the last byte, before the check
    _check_status(url, part, response)
    if response.status_code == 206:
        if first != start or _response_validator(response) != _validator(part, url):
            _discard(part)
            raise _Interrupted(f"{url}: the file changed while it was downloaded; starting over")
    else:
        start, total = 0, _number(response.headers.get("Content-Length", ""))
        _remember(part, url, _response_validator(response))
    # Bytes as sent: a server that labels a .gz file as an encoding would have it unpacked here.
    chunks = response.raw.stream(CHUNK, decode_content=False)
    _write(chunks, part, start, total, progress)
    size = part.stat().st_size
    if total is not None and size != total:
        raise _Interrupted(f"{url}: got {size:,} of {total:,} bytes")


def _check_status(url: str, part: Path, response: requests.Response) -> None:
    status = f"HTTP {response.status_code} {response.reason}"
    if response.status_code == 416:
        _discard(part)
        raise _Interrupted(f"{url}: the server no longer has the rest of the file; starting over")
    if response.status_code == 429 or response.status_code >= 500:
        raise _Interrupted(f"{url}: {status}")
    if response.status_code not in (200, 206):
        raise DownloadError(f"{url}: {status}; check the domain's url in the catalogue")


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and total length from `Content-Range: bytes 5-9/10`."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    return _number(span.partition("-")[0]), _number(total)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _response_validator(response: requests.Response) -> str | None:
    """What tells this version of the file from another. If-Range takes no weak ETag (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _validator(part: Path, url: str) -> str | None:
    """The validator under which the partial file began, where it began with this `url`."""
    note = _beside(part, ".json")
    began = json.loads(note.read_text()) if note.exists() else {}
    return began.get("validator") if began.get("url") == url else None


def _remember(part: Path, url: str, validator: str | None) -> None:
    # The old bytes go first: they must never be paired with the validator of a new version.
    part.unlink(missing_ok=True)
    _beside(part, ".json").write_text(json.dumps({"url": url, "validator": validator}))


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _beside(part, ".json").unlink(missing_ok=True)


# Everything else


def _copy(url: str, part: Path, progress: bool) -> None:
    _discard(part)
    local = local_path(url)
    wrong = problem(local) if local else None
    if wrong:
        raise DownloadError(f"{url}: {wrong}; check the domain's url in the catalogue")
    try:
        # A local name goes past fsspec, to which `::` and `#` in it would mean something.
        with local.open("rb") if local else fsspec.open(url, "rb") as file:
            total = local.stat().st_size if local else getattr(file, "size", None)
            _write(iter(lambda: file.read(CHUNK), b""), part, 0, total, progress)
    except ImportError as error:
        scheme = urlsplit(url).scheme
        raise DownloadError(f"{url}: reading {scheme}: needs another package: {error}") from error
    except (OSError, ValueError) as error:
        raise DownloadError(f"{url}: {error}; check the domain's url in the catalogue") from error


def _write(chunks: Iterator[bytes], part: Path, start: int, total: int | None, progress: bool) -> None:
    """Write `chunks` into `part` from byte `start` on."""
    with part.open("ab" if start else "wb") as file, _meter(part, start, total, progress) as meter:
        for chunk in chunks:
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                advice = "free some space" if error.errno == errno.ENOSPC else "correct that"
                raise DownloadError(
                    f"cannot write {part}: {error.strerror}; {advice} and run again"
                ) from error
            meter.update(len(chunk))


def _meter(part: Path, start: int, total: int | None, progress: bool) -> tqdm:
    bar = {"total": total, "initial": start, "unit": "B", "unit_scale": True, "desc": part.stem}
    if progress and not sys.stderr.isatty():
        return tqdm(file=_LogFile(), delay=LOG_EVERY, mininterval=LOG_EVERY, ncols=80, ascii=True, **bar)
    return tqdm(disable=not progress, **bar)


class _LogFile:
    """Turns a progress bar's redraws into log lines."""

    def write(self, text: str) -> None:
        if line := text.strip():
            logger.info(line)

    def flush(self) -> None:
        pass


def _verify(url: str, part: Path, bad: Path, sha256: str | None) -> str:
    """The file's sha256; a file that is not what was promised is set aside and never used."""
    try:
        return _digest(url, part, sha256)
    except DownloadError:
        os.replace(part, bad)
        _discard(part)
        raise


def _digest(url: str, part: Path, expected: str | None) -> str:
    if part.stat().st_size == 0:
        raise DownloadError(f"{url}: the file is empty; check the domain's url in the catalogue")
    if is_gzip(part):
        _check_gzip(part, url)
    elif urlsplit(url).path.endswith(".gz"):
        with part.open("rb") as file:
            head = file.read(40)
        raise DownloadError(
            f"{url}: not a gzip file, it begins with {head!r}; check the domain's url in the catalogue"
        )
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and digest != expected.lower():
        raise DownloadError(
            f"{url}: sha256 is {digest}, the catalogue expects {expected}; "
            "the file changed at its source, or the catalogue's sha256 is wrong"
        )
    return digest


def _check_gzip(part: Path, url: str) -> None:
    try:
        check_gzip(part, url)
    except FileError as error:
        raise DownloadError(str(error)) from error


def _publish(part: Path, path: Path) -> None:
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    _discard(part)
