"""What a home holds: entries, files, and runs that are said to be going on."""

import contextlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

OPEN_IN_DAGSTER = ("QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING")
# Of single runs: they are the record of those that were killed, too.
_RECORDS = ("dagster/storage/", "mlflow/artifacts/", "dagster/history/runs/")
_RANDOM = re.compile(r"\d{8}T\d{6}-|[0-9a-f]{4,}")


class Home:
    """A home below `folder`, which also holds what is said; its entries are in it, or below `store` (s3://…)."""

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder, self.path = folder, folder / "home"
        self.store = f"{store}/{folder.name}" if store else ""

    @property
    def environment(self) -> dict[str, str]:
        there = {"DIFFCDR_HOME": str(self.path)}
        return there | ({"DIFFCDR_ARTIFACTS": self.store} if self.store else {})

    def all(self) -> Iterator[tuple[str, Path]]:
        """Every file and folder, by its place in the home or in the store."""
        yield from ((path.relative_to(self.path).as_posix(), path) for path in sorted(self.path.rglob("*")))
        if self.store:
            from upath import UPath

            root = UPath(self.store)
            root.fs.invalidate_cache()
            for place in sorted(root.fs.find(root.path)):
                name = place.removeprefix(root.path).strip("/")
                yield f"store/{name}", root / name

    def manifests(self) -> dict[str, bytes]:
        """What makes entries count, by its place."""
        return {place: path.read_bytes() for place, path in self.all() if path.name == "manifest.json"}

    def entry_files(self) -> dict[str, Path]:
        """Files that belong to entries, by their places, with something in them."""
        entries = tuple(place.removesuffix("manifest.json") for place in self.manifests())
        found = {place: path for place, path in self.all() if place.startswith(entries) and path.is_file()}
        return {place: path for place, path in found.items() if path.stat().st_size}

    def files(self) -> set[str]:
        """Places, random parts of their names left out; logs and artifacts of single runs apart, and what an
        entry was before it was last written, which stays for its readers.

        Of an entry's generations each is counted, so that one too many is another place.
        """
        kept, seen, found = self._previous(), Counter(), set()
        for place, path in self.all():
            if place.startswith((*_RECORDS, *kept)):
                continue
            name = _RANDOM.sub("*", place)
            seen[name] += 1
            # An object store has no folders: each file of another generation stands for it.
            repeats = seen[name] > 1 and (place.startswith("store/") or path.is_dir())
            found.add(f"{name}, number {seen[name]}" if repeats else name)
        return found

    def _previous(self) -> list[str]:
        found = []
        for place, content in self.manifests().items():
            with contextlib.suppress(ValueError):
                if previous := json.loads(content).get("previous"):
                    found.append(place.replace("manifest.json", previous))
        return found

    def open_runs(self) -> list[str]:
        """Runs of Dagster and MLflow that are said to be going on."""
        marks = ", ".join("?" * len(OPEN_IN_DAGSTER))
        asked = {
            "runs.db": (f"SELECT run_id, status FROM runs WHERE status IN ({marks})", OPEN_IN_DAGSTER),
            "mlflow.db": ("SELECT run_uuid, status FROM runs WHERE status = ?", ("RUNNING",)),
        }
        found = []
        for name, (query, values) in asked.items():
            for file in self.path.rglob(name):
                with contextlib.closing(sqlite3.connect(file)) as connection:
                    rows = connection.execute(query, values).fetchall()
                found += [f"{file.name}: {run} {status}" for run, status in rows]
        return found
