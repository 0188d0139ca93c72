"""Where everything lies on disk, and how it is written: whole or not at all.

All state is under one folder, `home()`; entries may live behind an fsspec URL (`DIFFCDR_ARTIFACTS`), shared
by many machines that keep copies of what they read in their own homes. An entry is a folder of files that
counts by its `manifest.json`, written last and in one step; without one nothing is there. The manifest names
the generation of files that counts and has the size and digest of each, the fingerprint of what it was made
from (settings, inputs, code), and the entry's keys.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd
from pydantic import PrivateAttr
from upath import UPath

from assets.state import locks
from assets.state.folders import Content, LocalFolder, described, draft, folder_of, places

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("diffcdr")
# A later change of folder does not move the home.
_STARTED_IN = Path.cwd()
MANIFEST = "manifest.json"
# Of manifests: what is written in another one is not read, but made anew.
FORMAT = 2
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
_OWN_FACTS = ("digest", "format", "generation", "previous", "keys", "files", "fingerprint", "written_at")
# Files on disk that were found to be as written, by path, size and time of change: read once a process.
_found_whole: set[tuple[str, int, int]] = set()


class NotMaterialized(LookupError):
    """Something upstream has not been computed yet; the message says what to materialize."""


class Damaged(NotMaterialized):
    """A file of an entry is missing or not what was written; the message names it and says what to do."""


class CannotWrite(OSError):
    """A disk is full or closed; the message names it and says what is safe and what to do."""

    def __str__(self) -> str:
        return self.args[1]


def home() -> Path:
    """Where all state lives: `DIFFCDR_HOME`, else `.diffcdr` in the folder where the program was started."""
    return _STARTED_IN / (os.environ.get("DIFFCDR_HOME") or ".diffcdr")


@contextlib.contextmanager
def writing(path: Path | UPath) -> Iterator[None]:
    """Say in one sentence why `path` cannot be written, and what is safe. Raises CannotWrite."""
    try:
        yield
    except CannotWrite:
        raise
    except Exception as error:
        code = getattr(error, "errno", None)
        # DuckDB has an error of its own for it.
        if code in _FULL or os.strerror(errno.ENOSPC) in str(error):
            raise CannotWrite(
                code or errno.ENOSPC,
                f"the disk is full: {path} was not written. What was finished before is safe; "
                "free some space and run again",
            ) from error
        where = str(getattr(error, "filename", None) or path)
        # Some systems have folders in which nothing can be made, and say that it is not there.
        closed = code in _CLOSED or (code == errno.ENOENT and not path.exists())
        if closed and (where.startswith(str(path)) or str(path).startswith(where)):
            raise CannotWrite(
                code,
                f"{where} cannot be written ({error.strerror}); what is there is as it was. Make it "
                "writable, or set DIFFCDR_HOME, and DIFFCDR_ARTIFACTS if you use it, to a place that is",
            ) from error
        raise


def fingerprint(**parts: object) -> str:
    """A digest of JSON-able parts, equal on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def tensors(values: Mapping[str, "Tensor"]) -> bytes:
    from safetensors.torch import save

    return save({name: value.contiguous() for name, value in values.items()})


class Entry:
    """One folder of the store: the files of one generation, and a manifest that makes them count.

    `manifest`, `require` and `is_current` look at what is there now. What is read after that comes from the
    generation that they found, though another may have been written since, so that files of one Entry always
    belong together. Every file is checked against its digest when it is read.

    path: on disk or behind an fsspec URL. hint: how to make it, for messages. keys: what it is the entry of.
    cache: a local folder for copies of remote files.
    """

    def __init__(
        self, path: UPath, hint: str, keys: Mapping[str, object] | None = None, cache: Path | None = None
    ) -> None:
        self.path, self.hint, self.keys = path, hint, dict(keys or {})
        self._folder, self._cache = folder_of(path, cache), cache
        self._found: dict | None = None

    def manifest(self) -> dict | None:
        """The manifest; None where there is none, or where a file is missing or of another size."""
        try:
            return self.require()
        except NotMaterialized:
            return None

    def require(self) -> dict:
        """The manifest; raises NotMaterialized with the hint where there is none, Damaged as `manifest`."""
        self._found = None
        self._found = self._look()
        return self._found

    def require_current(self, fingerprint: str) -> dict:
        """The manifest; raises NotMaterialized where it is not there or was made from something else."""
        manifest = self.require()
        if manifest["fingerprint"] != fingerprint:
            raise NotMaterialized(
                f"{self.path} is out of date, its settings, inputs or code have changed: {self.hint}"
            )
        return manifest

    def is_current(self, fingerprint: str) -> bool:
        """Whether the entry is whole and was made from exactly this configuration, input and code.

        On disk every file's digest is checked, once a process; an object store keeps digests itself, so there
        sizes are.
        """
        try:
            manifest = self.require()
            if manifest["fingerprint"] != fingerprint:
                return False
            if isinstance(self._folder, LocalFolder):
                for name in manifest["files"]:
                    self._check_on_disk(name)
        except Damaged as error:
            log.warning("%s", error)
            return False
        except NotMaterialized:
            return False
        except FileNotFoundError:
            # Another has written it anew since the manifest was read.
            return self.is_current(fingerprint)
        return True

    def files(self) -> list[str]:
        """The names of the entry's files; raises NotMaterialized."""
        return sorted(self._manifest()["files"])

    def has(self, name: str) -> bool:
        """Whether the entry is there and holds a file of that name."""
        try:
            return name in self._manifest()["files"]
        except NotMaterialized:
            return False

    def read(self, name: str) -> bytes:
        """A file's content. Raises NotMaterialized where there is no such file, Damaged."""
        content = self._again(self._read, name)
        self._compare(name, described(content))
        return content

    def path_of(self, name: str) -> Path:
        """A checked file's place on this machine, for readers that want one: a copy's where the entry is
        remote. It may only be read. Raises as `read`."""
        self._again(self._check_on_disk if isinstance(self._folder, LocalFolder) else self._copy_here, name)
        return self._on_disk(name)

    def folder(self) -> Path:
        """A folder on this machine with all files of the entry, each checked; as `path_of`."""
        paths = [self.path_of(name) for name in self.files()]
        return paths[0].parent

    @property
    def place(self) -> str:
        """Where the files that count lie, to be shown; raises NotMaterialized."""
        return str(self.path / self._manifest()["generation"])

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(io.BytesIO(self.read(name)))

    def tensors(self, name: str) -> dict[str, "Tensor"]:
        from safetensors.torch import load

        return load(self.read(name))

    def write(self, files: Mapping[str, Content], fingerprint: str, **facts: object) -> dict:
        """Replace the entry as a whole by `files` and a manifest with `facts`; returns the manifest.

        A file is given by its content, or by the path of a local file that is too large to be held. What was
        there before stays on disk until the next time, for those who are reading it. Raises CannotWrite.
        """
        with self._generation() as generation:
            written = {name: self._folder.put(f"{generation}/{name}", files[name]) for name in files}
            return self._publish(generation, written, fingerprint, facts, keep=True)

    @contextlib.contextmanager
    def draft(self) -> Iterator["Draft"]:
        """A local folder in which files are written in place, and which becomes the entry by `publish`.

        What was there before is removed then, for such files may be large: who has one open reads on. Without
        `publish` all is as before. Raises CannotWrite.
        """
        if isinstance(self._folder, LocalFolder):
            with self._generation() as generation:
                yield Draft(self, self._folder.path / generation, generation)
            return
        with contextlib.ExitStack() as held:
            held.enter_context(writing(self.path))
            if self._cache is None:
                folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
            else:
                folder = held.enter_context(draft(self._cache))
            yield Draft(self, folder, None)

    # Reading

    def _manifest(self) -> dict:
        return self._found if self._found is not None else self.require()

    def _look(self) -> dict:
        """The manifest of a generation whose files are there, in their sizes."""
        before = None
        while True:
            manifest = self._parsed()
            try:
                self._compare_sizes(manifest)
            except Damaged:
                # A writer may have replaced it after the manifest was read.
                if manifest["generation"] == before:
                    raise
                before = manifest["generation"]
            else:
                return manifest

    def _parsed(self) -> dict:
        try:
            manifest = json.loads(self._folder.read(MANIFEST))
        except FileNotFoundError:
            raise NotMaterialized(f"{self.path} is not there yet: {self.hint}") from None
        except ValueError:
            raise self._damaged(MANIFEST, "it is not JSON") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise NotMaterialized(
                f"{self.path} was written by another version of diffcdr and is not read: {self.hint}"
            )
        # Manifests have had it only since some version of this format.
        if manifest.pop("digest", None) not in (None, _digest(manifest)):
            raise self._damaged(MANIFEST, "its content is not what was written")
        if manifest["keys"] != self.keys:
            keys = ", ".join(f"{key}={value}" for key, value in manifest["keys"].items())
            raise NotMaterialized(f"{self.path} is a copy of another entry, {keys}: {self.hint}")
        return manifest

    def _compare_sizes(self, manifest: dict) -> None:
        sizes = self._folder.sizes(manifest["generation"])
        for name, facts in manifest["files"].items():
            if name not in sizes:
                raise self._damaged(f"{manifest['generation']}/{name}", "it is missing")
            if sizes[name] != facts["size"]:
                reason = f"it has {sizes[name]:,} bytes in place of {facts['size']:,}"
                raise self._damaged(f"{manifest['generation']}/{name}", reason)

    def _compare(self, name: str, found: Mapping[str, int | str]) -> None:
        if found != self._facts(name):
            raise self._damaged(
                f"{self._manifest()['generation']}/{name}", "its content is not what was written"
            )

    def _facts(self, name: str) -> dict[str, int | str]:
        files = self._manifest()["files"]
        if name not in files:
            raise NotMaterialized(f"{self.path} holds no {name}: {self.hint}")
        return files[name]

    def _again(self, read: Callable, name: str):
        """`read(name)`; anew where the generation was removed meanwhile and nobody knows yet which it is."""
        known = self._found is not None
        self._facts(name)
        before = self._manifest()["generation"]
        try:
            return read(name)
        except FileNotFoundError:
            # Raises Damaged where the manifest still names this generation.
            if self.require()["generation"] == before:
                raise
            if known:
                raise NotMaterialized(
                    f"{self.path} was written anew while it was read: start again"
                ) from None
        self._facts(name)
        return read(name)

    def _read(self, name: str) -> bytes:
        return self._folder.read(f"{self._manifest()['generation']}/{name}")

    def _on_disk(self, name: str) -> Path:
        root = self._folder.path if isinstance(self._folder, LocalFolder) else self._cache
        if root is None:
            raise ValueError(f"{self.path} is remote: an Entry without a cache has no local files")
        return root / self._manifest()["generation"] / name

    def _check_on_disk(self, name: str) -> None:
        path = self._on_disk(name)
        state = path.stat()
        seen = (str(path), state.st_size, state.st_mtime_ns)
        if seen not in _found_whole:
            self._compare(name, described(path))
            _found_whole.add(seen)

    def _copy_here(self, name: str) -> None:
        path = self._on_disk(name)
        with contextlib.suppress(FileNotFoundError, Damaged):
            self._check_on_disk(name)
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{uuid.uuid4().hex}")
            try:
                self._folder.fetch(f"{self._manifest()['generation']}/{name}", temporary)
                self._compare(name, described(temporary))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        self._forget_other_copies()

    def _keep_copies(self, files: Mapping[str, Path]) -> None:
        """Move files that were just written to a remote entry to where copies of them are looked for."""
        for name, file in files.items():
            path = self._on_disk(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, path)
        self._forget_other_copies()

    def _forget_other_copies(self) -> None:
        copies = LocalFolder(self._cache)
        for other in copies.generations():
            if other != self._manifest()["generation"]:
                copies.remove(other)

    def _damaged(self, file: str, reason: str) -> Damaged:
        return Damaged(f"{self.path / file} is damaged, {reason}; the entry counts as not there: {self.hint}")

    # Writing

    @contextlib.contextmanager
    def _generation(self) -> Iterator[str]:
        """A generation that is removed again unless it is published."""
        with writing(self.path), self._folder.generation() as generation:
            try:
                yield generation
            finally:
                # Where writing failed, so may this; it is tried again at the next.
                with contextlib.suppress(OSError):
                    if self._before().get("generation") != generation:
                        self._folder.remove(generation)

    def _publish(
        self,
        generation: str,
        files: Mapping[str, Mapping[str, int | str]],
        fingerprint: str,
        facts: Mapping[str, object],
        keep: bool,
    ) -> dict:
        reserved = sorted(set(facts) & set(_OWN_FACTS))
        if reserved:
            raise ValueError(
                f"{self.path}: {', '.join(reserved)} are the manifest's own, name the facts otherwise"
            )
        before = self._before()
        manifest = {
            "format": FORMAT,
            "generation": generation,
            "previous": before.get("generation") if keep else None,
            "keys": self.keys,
            "files": dict(files),
            "fingerprint": fingerprint,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
        }
        # As it will be read: a fact may become another kind of value in JSON.
        manifest = json.loads(json.dumps(manifest))
        text = json.dumps({**manifest, "digest": _digest(manifest)}, indent=1)
        self._folder.replace(MANIFEST, text.encode())
        # From here on it is written: what cannot be cleaned up now is next time.
        with contextlib.suppress(OSError):
            self._clean_up(before, manifest)
        self._found = manifest
        return self._found

    def _before(self) -> dict:
        """The manifest that is about to be replaced, of whatever version; empty where there is none."""
        try:
            manifest = json.loads(self._folder.read(MANIFEST))
        except (FileNotFoundError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def _names(self, generation: str) -> bool:
        """Whether the manifest that is there now still needs the generation."""
        now = self._before()
        return generation in (now.get("generation"), now.get("previous"))

    def _clean_up(self, before: Mapping, manifest: Mapping) -> None:
        done = {before.get("generation"), before.get("previous")} - {manifest["previous"]}
        for other in self._folder.generations():
            if other in (manifest["generation"], manifest["previous"]):
                continue
            # Whose writer is at work no more has been published, if ever, by the time that this looks.
            if other in done or (self._folder.is_abandoned(other) and not self._names(other)):
                self._folder.remove(other)
        if before and before.get("format") != FORMAT:
            # Versions without generations had their files here.
            for name in self._folder.files():
                if name != MANIFEST and not name.startswith("."):
                    self._folder.remove(name)


class Draft:
    """Files of an entry to be. folder: where they are written; it is gone after the `with` block."""

    def __init__(self, entry: Entry, folder: Path, generation: str | None) -> None:
        self.folder = folder
        self._entry, self._generation = entry, generation

    def publish(self, fingerprint: str, **facts: object) -> dict:
        """Make the entry of the files in the folder and a manifest with `facts`; returns the manifest."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.folder).as_posix(): path for path in paths}
        if self._generation is None:
            manifest = self._entry.write(names, fingerprint, **facts)
            if self._entry._cache is not None:
                self._entry._keep_copies(names)
            return manifest
        written = {name: self._entry._folder.settle(f"{self._generation}/{name}") for name in names}
        return self._entry._publish(self._generation, written, fingerprint, facts, keep=False)


class Store(dg.ConfigurableResource):
    """The one place that knows paths. Empty settings mean the environment, then the default."""

    home: str = ""
    artifacts: str = ""
    _postgres: str = PrivateAttr(default="")

    @property
    def root(self) -> Path:
        return Path(self.home).absolute() if self.home else home()

    @property
    def artifact_root(self) -> UPath:
        return UPath(self.artifacts or os.environ.get("DIFFCDR_ARTIFACTS") or self.root / "artifacts")

    def reviews(self, domain: str) -> Entry:
        return self._entry("reviews", _hint("reviews", domain), domain=domain)

    def ratings(self, domain: str) -> Entry:
        return self._entry("ratings", _hint("ratings", domain), domain=domain)

    def overlap(self, task: str) -> Entry:
        return self._entry("overlap", _hint("overlap", task), task=task)

    def split(self, cell) -> Entry:
        return self._entry("split", _hint("split", cell.key), **_keys(cell))

    def source_factors(
        self, profile: str, domain: str, config: str, seed: int, objective: str = "rating"
    ) -> Entry:
        """`config` is a digest of the hyper-parameters: tasks that train a domain alike share the factors."""
        hint = f"materialize {profile}/source_factors of a task that starts from {domain}"
        keys = {"profile": profile, "objective": objective, "domain": domain, "config": config, "seed": seed}
        return self._entry("source_factors", hint, **keys)

    def source_effects(self, profile: str, domain: str, seed: int) -> Entry:
        hint = f"materialize {profile}/source_effects of a task that starts from {domain}"
        return self._entry("source_effects", hint, profile=profile, domain=domain, seed=seed)

    def target_factors(self, profile: str, cell, objective: str = "rating") -> Entry:
        hint = _hint(f"{profile}/target_factors", cell.key)
        return self._entry("target_factors", hint, profile=profile, objective=objective, **_keys(cell))

    def model(self, profile: str, model: str, cell, objective: str = "rating") -> Entry:
        hint = _hint(f"{profile}/{model}", cell.key)
        return self._entry("models", hint, profile=profile, model=model, objective=objective, **_keys(cell))

    def embeddings(self, profile: str, cell) -> Entry:
        return self._entry(
            "embeddings", _hint(f"{profile}/embeddings", cell.key), profile=profile, **_keys(cell)
        )

    def search(self, profile: str, cell) -> Entry:
        return self._entry("search", _hint(f"{profile}/search", cell.key), profile=profile, **_keys(cell))

    def warming(self, profile: str, cell) -> Entry:
        return self._entry(
            "warming", _hint(f"{profile}/warming_up", cell.key), profile=profile, **_keys(cell)
        )

    def first_choices(self, profile: str, cell) -> Entry:
        hint = _hint(f"{profile}/warming_up_lists", cell.key)
        return self._entry("first_choices", hint, profile=profile, **_keys(cell))

    def recommendations(self, profile: str, cell) -> Entry:
        hint = _hint(f"{profile}/recommendations", cell.key)
        return self._entry("recommendations", hint, profile=profile, **_keys(cell))

    def entries(self, kind: str, **wanted: object) -> Iterator[tuple[dict[str, object], Entry]]:
        """Keys and entry of everything of a kind ("models", "warming", ...) that is there and whole in size.

        `wanted` are keys and the values that they must have, None for any. Keys are what manifests say, not
        what folders are called; an entry that is damaged, or stands where its keys do not belong, is said in
        the log and left out.
        """
        root = self.artifact_root / kind
        for place in places(root, MANIFEST, wanted):
            keys = _keys_in(root / place)
            entry = self._entry(kind, f"make {kind}/{place} again (`diffcdr run` does it)", **keys)
            if entry.path != root / place:
                # Damaged, of another version, or a copy: the reason is what it says as the entry of nothing.
                entry = Entry(root / place, entry.hint)
            try:
                entry.require()
            except NotMaterialized as error:
                log.warning("%s", error)
                continue
            if all(keys.get(key) == value for key, value in wanted.items() if value is not None):
                yield keys, entry

    def incoming(self, domain: str) -> Path:
        """Where the domain's download waits until it is whole, to be gone on with after an interruption."""
        return self.root / "incoming" / f"domain={domain}"

    def report(self, *parts: str) -> Path:
        """A folder for finished tables and figures, created."""
        folder = self.root.joinpath("reports", *parts)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def share_report(self, *parts: str) -> None:
        """Make the files of a report's folder an entry for other machines, where the store is theirs, too."""
        if not isinstance(folder_of(self.artifact_root), LocalFolder):
            files = {file.name: file for file in self.report(*parts).iterdir() if file.is_file()}
            contents = {name: described(file) for name, file in files.items()}
            self._shared_report(parts).write(files, fingerprint(files=contents))

    def fetch_report(self, *parts: str) -> Path:
        """The report's folder with the files that another machine may have made."""
        folder = self.report(*parts)
        if not isinstance(folder_of(self.artifact_root), LocalFolder):
            entry = self._shared_report(parts)
            for name in entry.files() if entry.manifest() else []:
                LocalFolder(folder).replace(name, entry.read(name))
        return folder

    def _shared_report(self, parts: tuple[str, ...]) -> Entry:
        place = "/".join(parts)
        return self._entry("reports", f"materialize {place}", place=place.replace("/", "."))

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        # Only there where Dagster's storage is Postgres.
        self._postgres = getattr(context.instance.run_storage, "postgres_url", "") if context.instance else ""

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process at a time, for work that two cells share.

        Where Dagster keeps its runs in Postgres, runs of all machines exclude each other; else processes of
        this home do.
        """
        with contextlib.ExitStack() as held:
            if self._postgres:
                held.enter_context(locks.by_postgres(self._postgres, str(self.artifact_root), name))
            else:
                folder = self.root / "locks"
                with writing(folder):
                    held.enter_context(locks.by_file(folder, name))
            yield

    def _entry(self, kind: str, hint: str, **keys: object) -> Entry:
        place = "/".join([kind, *(f"{key}={value}" for key, value in keys.items())])
        path = self.artifact_root / place
        return Entry(path, hint, {"kind": kind, **keys}, self.root / "cache" / place)


def _keys(cell) -> dict[str, object]:
    return {"task": cell.task, "beta": cell.beta, "seed": cell.seed}


def _digest(manifest: Mapping[str, object]) -> str:
    """Of a manifest's own content, without the digest itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _keys_in(path: UPath) -> dict[str, object]:
    """The keys that a manifest names, the kind apart; empty for one that cannot be read."""
    try:
        manifest = json.loads(folder_of(path).read(MANIFEST))
        return {key: value for key, value in manifest["keys"].items() if key != "kind"}
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _hint(asset: str, partition: str) -> str:
    return f"materialize {asset} of partition {partition} first (`diffcdr run` does it)"
