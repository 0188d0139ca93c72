"""Where everything lies on disk, and how it is written: whole or not at all.

All state is under one folder, `DIFFCDR_HOME` (default `.diffcdr` in the working folder). Files that DuckDB or
a download writes in place stay local; everything else may live behind an fsspec URL (`DIFFCDR_ARTIFACTS`).
Every folder that counts holds a `manifest.json`, written last; a folder without one is not there. The
manifest's fingerprint covers configuration, inputs and code, so that finished work can be told from stale.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import dagster as dg
import pandas as pd
from filelock import FileLock
from upath import UPath

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = Path(__file__).resolve().parents[2]
MANIFEST = "manifest.json"


class NotMaterialized(LookupError):
    """Something upstream has not been computed yet; the message says what to materialize."""


def fingerprint(**parts: object) -> str:
    """A digest of JSON-able parts, equal on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def code_version(*sources: str) -> str:
    """A digest of project source files or folders, given relative to the project root."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        path = PROJECT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def tensors(values: Mapping[str, "Tensor"]) -> bytes:
    from safetensors.torch import save

    return save({name: value.contiguous() for name, value in values.items()})


class Entry:
    """One folder of the store: files plus a manifest that makes them count."""

    def __init__(self, path: UPath, mend: str) -> None:
        self.path = path
        self._mend = mend

    def manifest(self) -> dict | None:
        try:
            return json.loads((self.path / MANIFEST).read_text())
        except FileNotFoundError:
            return None

    def require(self) -> dict:
        """The manifest; raises NotMaterialized with the mend where there is none."""
        manifest = self.manifest()
        if manifest is None:
            raise NotMaterialized(f"{self.path} is not there yet: {self._mend}")
        return manifest

    def require_current(self, fingerprint: str) -> dict:
        """The manifest; raises NotMaterialized where it is not there or was made from something else."""
        manifest = self.require()
        if manifest["fingerprint"] != fingerprint:
            raise NotMaterialized(
                f"{self.path} is out of date, its settings, inputs or code have changed: {self._mend}"
            )
        return manifest

    def stands(self, fingerprint: str) -> bool:
        """Whether the folder is there and was made from exactly this configuration, input and code."""
        manifest = self.manifest()
        return manifest is not None and manifest["fingerprint"] == fingerprint

    def write(self, files: Mapping[str, bytes | Path], fingerprint: str, **facts: object) -> dict:
        """Replace the folder as a whole by `files` and a manifest with `facts`; returns the manifest.

        A file is given by its content, or by the path of a local file that is too large to be held.
        """
        manifest = self._manifest(fingerprint, facts)
        contents = {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}
        if self._local is None:
            self._write_remote(contents)
        else:
            self._write_local(self._local, contents)
        return manifest

    def seal(self, fingerprint: str, **facts: object) -> dict:
        """Add the manifest to files that something else wrote in place; returns the manifest."""
        manifest = self._manifest(fingerprint, facts)
        target = Path(self.path) / MANIFEST
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        _write_durably(temporary, json.dumps(manifest, indent=1).encode())
        os.replace(temporary, target)
        return manifest

    def unseal(self) -> Path:
        """Take the manifest away before files are rewritten in place; returns the local folder, created."""
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        return folder

    def table(self, name: str) -> pd.DataFrame:
        self.require()
        return pd.read_parquet(io.BytesIO((self.path / name).read_bytes()))

    def tensors(self, name: str) -> dict[str, "Tensor"]:
        from safetensors.torch import load

        self.require()
        return load((self.path / name).read_bytes())

    @property
    def _local(self) -> Path | None:
        return Path(self.path) if self.path.protocol in ("", "file") else None

    @staticmethod
    def _manifest(fingerprint: str, facts: Mapping[str, object]) -> dict:
        return {
            "fingerprint": fingerprint,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
        }

    @staticmethod
    def _write_local(folder: Path, contents: Mapping[str, bytes | Path]) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex[:8]
        fresh, old = (folder.with_name(f".{folder.name}-{state}-{mark}") for state in ("new", "old"))
        fresh.mkdir()
        for name, content in contents.items():
            _write_durably(fresh / name, content)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def _write_remote(self, contents: Mapping[str, bytes | Path]) -> None:
        # Object stores have no rename of folders: the manifest goes first and comes last.
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST).unlink(missing_ok=True)
        for name, content in contents.items():
            with (self.path / name).open("wb") as file:
                _copy(content, file)


def _copy(content: bytes | Path, file: BinaryIO) -> None:
    if isinstance(content, bytes):
        file.write(content)
        return
    with content.open("rb") as source:
        shutil.copyfileobj(source, file)


def _write_durably(path: Path, content: bytes | Path) -> None:
    with path.open("wb") as file:
        _copy(content, file)
        file.flush()
        os.fsync(file.fileno())


class Store(dg.ConfigurableResource):
    """The one place that knows paths. Empty settings mean the environment, then the default."""

    home: str = ""
    artifacts: str = ""

    @property
    def root(self) -> Path:
        return Path(self.home or os.environ.get("DIFFCDR_HOME") or ".diffcdr").absolute()

    @property
    def artifact_root(self) -> UPath:
        return UPath(self.artifacts or os.environ.get("DIFFCDR_ARTIFACTS") or self.root / "artifacts")

    def reviews(self, domain: str) -> Entry:
        return Entry(UPath(self.root / f"reviews/domain={domain}"), _mend("reviews", domain))

    def ratings(self, domain: str) -> Entry:
        return Entry(UPath(self.root / f"ratings/domain={domain}"), _mend("ratings", domain))

    def database(self, domain: str) -> Path:
        return self.root / f"ratings/domain={domain}" / "ratings.duckdb"

    def overlap(self, task: str) -> Entry:
        return self._artifact(f"overlap/task={task}", _mend("overlap", task))

    def split(self, cell) -> Entry:
        return self._artifact(f"split/{cell.folder}", _mend("split", cell.key))

    def source_factors(
        self, profile: str, domain: str, config: str, seed: int, objective: str = "rating"
    ) -> Entry:
        """`config` is a digest of the hyper-parameters: tasks that train a domain alike share the factors."""
        place = f"kind=source/objective={objective}/domain={domain}/config={config}/seed={seed}"
        path = f"factors/profile={profile}/{place}"
        return self._artifact(
            path, f"materialize {profile}/source_factors of a task that starts from {domain}"
        )

    def source_effects(self, profile: str, domain: str, seed: int) -> Entry:
        path = f"factors/profile={profile}/kind=effects/domain={domain}/seed={seed}"
        return self._artifact(
            path, f"materialize {profile}/source_effects of a task that starts from {domain}"
        )

    def target_factors(self, profile: str, cell, objective: str = "rating") -> Entry:
        path = f"factors/profile={profile}/kind=target/objective={objective}/{cell.folder}"
        return self._artifact(path, _mend(f"{profile}/target_factors", cell.key))

    def model(self, profile: str, model: str, cell, objective: str = "rating") -> Entry:
        path = f"models/profile={profile}/model={model}/objective={objective}/{cell.folder}"
        return self._artifact(path, _mend(f"{profile}/{model}", cell.key))

    def embeddings(self, profile: str, cell) -> Entry:
        path = f"embeddings/profile={profile}/{cell.folder}"
        return self._artifact(path, _mend(f"{profile}/embeddings", cell.key))

    def search(self, profile: str, cell) -> Entry:
        return self._artifact(f"search/profile={profile}/{cell.folder}", _mend(f"{profile}/search", cell.key))

    def warming(self, profile: str, cell) -> Entry:
        path = f"warming/profile={profile}/{cell.folder}"
        return self._artifact(path, _mend(f"{profile}/warming_up", cell.key))

    def recommendations(self, profile: str, cell) -> Entry:
        path = f"recommendations/profile={profile}/{cell.folder}"
        return self._artifact(path, _mend(f"{profile}/recommendations", cell.key))

    def report(self, *parts: str) -> Path:
        """A folder for finished tables and figures, created."""
        folder = self.root.joinpath("reports", *parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process at a time, for work that two cells share."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            yield

    def _artifact(self, path: str, mend: str) -> Entry:
        return Entry(self.artifact_root / path, mend)


def _mend(asset: str, partition: str) -> str:
    return f"materialize {asset} of partition {partition} first (`diffcdr run` does it)"
