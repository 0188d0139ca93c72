"""Two rating files as they come: find their format and columns, check them, enter them in a catalogue.

Files are judged by content, not by name. Nothing in the store is touched before both files and their overlap
have passed: they are read into scratch databases first.
"""

import csv
import dataclasses
import gzip
import json
import os
import re
import tempfile
import unicodedata
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import duckdb
import yaml

from assets.data import ingest
from assets.data.download import is_gzip
from assets.data.overview import Report, inspect_databases
from assets.settings.catalog import BUILT_IN, Catalog, Columns, Domain, load_catalog
from assets.state.store import Store

HEAD = 100  # rows looked at
# Common names, best first, in small letters and digits alone: `user_id`, `userId` and `User-ID` are one.
COMMON = {
    "user": "user userid userids reviewerid uid customerid customer memberid accountid visitorid",
    "item": "item itemid parentasin asin productid product sku movieid movie bookid book isbn trackid track "
    "songid song albumid album artistid artist gameid game businessid articleid",
    "rating": "rating overall stars starrating score ratingvalue userrating bookrating ratings",
    "timestamp": "timestamp time unixreviewtime date datetime createdat ratedat ts",
}
OPTIONS = {"user": "--user-col", "item": "--item-col", "rating": "--rating-col", "timestamp": "--time-col"}
MILLISECONDS_FROM = 10**11  # as seconds, the year 5138
MICROSECONDS_FROM = 10**14


class OwnDataError(ValueError):
    """The files cannot be used as they are; the message names the file, what is wrong and the hint."""


@dataclass(frozen=True)
class Options:
    """What was said about the files. columns: names to look for first, by user, item, rating, timestamp."""

    columns: Mapping[str, Sequence[str]]
    scale: tuple[float, float] = (1.0, 5.0)


@dataclass(frozen=True)
class Head:
    """The beginning of a file. names: of its columns; rows: the first ones, values as text."""

    path: Path
    kind: str
    names: list[str]
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Pair:
    """Two files as domains. notes: what a reader should know of how they were understood."""

    source: Domain
    target: Domain
    notes: list[str]


def read_pair(store: Store, source: Path, target: Path, options: Options) -> Pair:
    """Understand the heads of both files. Raises OwnDataError."""
    if source.resolve() == target.resolve():
        raise OwnDataError(f"{source}: source and target are the same file; give two")
    if options.scale[0] >= options.scale[1]:
        low, high = options.scale
        raise OwnDataError(f"--scale {low:g} {high:g}: the scale must rise; give the lowest rating first")
    heads = [read_head(source), read_head(target)]
    _refuse_absent(heads, options)
    domains, notes = [], []
    taken = dict(_catalog(store).domains)
    for head in heads:
        name = _domain_name(head.path, taken)
        domain, note = _domain(head, name, options)
        taken[name] = domain
        domains.append(domain)
        notes += note
    return Pair(*domains, notes)


def examine(pair: Pair) -> Report:
    """Read both files whole into scratch databases and report on them.

    Raises OwnDataError where they share no user or one's ratings are all equal, IngestError for bad content.
    """
    with tempfile.TemporaryDirectory(prefix="diffcdr-") as scratch:
        domains = (pair.source, pair.target)
        databases = [Path(scratch, f"{domain.name}.duckdb") for domain in domains]
        facts = [_ingest(*both) for both in zip(domains, databases, strict=True)]
        report = inspect_databases(*domains, facts, databases)
        _refuse_useless(report, databases)
    return dataclasses.replace(report, warnings=[*pair.notes, *report.warnings])


def enter(store: Store, pair: Pair) -> tuple[str, Path]:
    """Enter the pair in the home's catalogue of own data; returns the task's name and that file."""
    file = catalog_file(store)
    with store.lock("own_data"):
        task = _task_name(pair, _catalog(store))
        entries = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
        for domain in (pair.source, pair.target):
            entry = domain.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
            entries.setdefault("domains", {})[domain.name] = entry
        title = f"{pair.source.title} → {pair.target.title}"
        sides = {"source": pair.source.name, "target": pair.target.name}
        entries.setdefault("tasks", {})[task] = {"title": title, **sides}
        fresh = file.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(fresh, file)
    return task, file


def catalog_file(store: Store) -> Path:
    """Where own data are entered. Raises OwnDataError where DIFFCDR_CATALOG names another file."""
    file, other = store.root / "own_data.yaml", os.environ.get("DIFFCDR_CATALOG")
    if other and Path(other).resolve() != file.resolve():
        raise OwnDataError(
            f"DIFFCDR_CATALOG is {other}, and only one catalogue can hold: enter the two files there as "
            "domains and run with --task, or unset DIFFCDR_CATALOG"
        )
    return file


def _catalog(store: Store) -> Catalog:
    file = catalog_file(store)
    return load_catalog(file if file.exists() else BUILT_IN)


# Heads


def read_head(path: Path) -> Head:
    """Format, columns and first rows of a file. Raises OwnDataError where it cannot be read."""
    if not path.is_file():
        raise OwnDataError(f"{path}: there is no such file; correct the path (URLs go through a catalogue)")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return _parquet_head(path)
    lines = _first_lines(path)
    if lines[0].lstrip().startswith("{"):
        return _json_head(path, lines)
    return _delimited_head(path, lines)


def _parquet_head(path: Path) -> Head:
    try:
        with duckdb.connect() as connection:
            found = connection.execute("FROM read_parquet(?) LIMIT ?", [str(path), HEAD])
            names, rows = [column[0] for column in found.description], found.fetchall()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise OwnDataError(f"{path}: not a readable Parquet file ({reason}); write it again") from error
    if not rows:
        raise OwnDataError(f"{path}: the file is empty: it has columns and no rows")
    return Head(path, "parquet", names, [_texts(zip(names, row, strict=True)) for row in rows])


def _json_head(path: Path, lines: list[str]) -> Head:
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_texts(dict(json.loads(line)).items()))
        except ValueError as error:
            raise OwnDataError(
                f"{path}: row {number} is not a JSON object ({error}); write one object a line"
            ) from error
    names = list(dict.fromkeys(name for record in records for name in record))
    return Head(path, "json", names, records)


def _delimited_head(path: Path, lines: list[str]) -> Head:
    kind = "tsv" if "\t" in lines[0] else "csv"
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {"delimiter": ","}
    names, *rows = csv.reader(lines, **dialect)
    if not rows:
        raise OwnDataError(f"{path}: the file is empty: it has a header and no rows")
    return Head(path, kind, names, [_texts(zip(names, row, strict=False)) for row in rows])


def _first_lines(path: Path) -> list[str]:
    opener = gzip.open if is_gzip(path) else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = list(islice((line for line in file if line.strip()), HEAD + 1))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OwnDataError(f"{path}: the gzip stream is broken ({error}); get the file again") from error
    if not lines:
        raise OwnDataError(f"{path}: the file is empty; write it again")
    if lines[0].startswith("PAR1"):
        raise OwnDataError(f"{path}: a Parquet file within gzip; unpack it with gunzip")
    if "\ufffd" in lines[0] or "\0" in lines[0]:
        raise OwnDataError(f"{path}: not UTF-8 text; convert it, for example with iconv -f latin1 -t utf-8")
    if lines[0].lstrip().startswith("["):
        raise OwnDataError(f"{path}: a JSON array; write one object a line, for example with jq -c '.[]'")
    return lines


def _texts(pairs) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in pairs}


# Columns


def _refuse_absent(heads: list[Head], options: Options) -> None:
    """A name given must be in one of the files, for it may be meant for only one."""
    for key, asked in options.columns.items():
        for name in asked:
            if not any(name in head.names for head in heads):
                lists = "; ".join(f"{head.path} has {', '.join(head.names)}" for head in heads)
                raise OwnDataError(f"{OPTIONS[key]} {name}: no such column in either file: {lists}")


def _domain(head: Head, name: str, options: Options) -> tuple[Domain, list[str]]:
    columns = {key: _column(head, key, options.columns.get(key, ())) for key in COMMON}
    for key in ("user", "item", "rating"):
        if columns[key] is None:
            raise OwnDataError(
                f"{head.path}: no column for the {key}; the file has {', '.join(head.names)}. "
                f"Name it with {OPTIONS[key]}{_without_header(head)}"
            )
    columns["timestamp"], unit, notes = _time(head, name, columns["timestamp"], options)
    domain = Domain(
        name=name,
        title=_stem(head.path),
        url=str(head.path.resolve()),
        kind=head.kind,
        columns=Columns(**columns),
        scale=options.scale,
        timestamp_unit=unit,
    )
    return domain, notes


def _column(head: Head, key: str, asked: Sequence[str]) -> str | None:
    given = next((name for name in asked if name in head.names), None)
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(head.names)}
    return given or next((plain[name] for name in COMMON[key].split() if name in plain), None)


def _without_header(head: Head) -> str:
    numeric = head.kind in ("csv", "tsv") and any(re.fullmatch(r"[\d.]+", name) for name in head.names)
    return "; if these are values, put a header line first" if numeric else ""


def _time(head: Head, name: str, column: str | None, options: Options) -> tuple[str | None, str, list[str]]:
    """(column, unit, notes) of the time; no column where its values are not times."""
    values = [row[column] for row in head.rows if row.get(column)] if column else []
    unit = _unit(values)
    if column is None or unit is not None:
        return column, unit or "s", []
    problem = f"column {column!r} holds {values[0]!r}" if values else f"column {column!r} is empty"
    wanted = "seconds or milliseconds since 1970 nor an ISO 8601 time"
    if column in options.columns.get("timestamp", ()):
        raise OwnDataError(f"{head.path}: {problem}, neither {wanted}; convert it, or leave out --time-col")
    return None, "s", [f"{name}: {problem}, neither {wanted}: its times are not used"]


def _unit(values: Sequence[str]) -> str | None:
    if not values:
        return None
    if all(re.fullmatch(r"-?\d+(\.0*)?", value) for value in values):
        largest = max(float(value) for value in values)
        return "s" if largest < MILLISECONDS_FROM else "ms" if largest < MICROSECONDS_FROM else None
    return "iso" if all(map(_is_iso, values)) else None


def _is_iso(value: str) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except ValueError:
        return False


# Names


def _domain_name(path: Path, taken: Mapping[str, Domain]) -> str:
    """A file keeps the name under which it was entered before."""
    url = str(path.resolve())
    before = next((name for name, domain in taken.items() if domain.url == url), None)
    plain = unicodedata.normalize("NFKD", _stem(path)).encode("ascii", "ignore").decode().lower()
    return before or _distinct(re.sub("[^a-z0-9]+", "_", plain).strip("_") or "domain", taken)


def _task_name(pair: Pair, catalog: Catalog) -> str:
    sides = (pair.source.name, pair.target.name)
    before = next((t.name for t in catalog.tasks.values() if (t.source, t.target) == sides), None)
    return before or _distinct("_".join(sides), catalog.tasks)


def _distinct(name: str, taken: Collection[str]) -> str:
    names = [name, *(f"{name}_{number}" for number in range(2, len(taken) + 3))]
    return next(candidate for candidate in names if candidate not in taken)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return re.sub(r"\.(csv|tsv|txt|jsonl?|ndjson|parquet|pq)$", "", name, flags=re.IGNORECASE)


# Checks


def _ingest(domain: Domain, database: Path) -> dict:
    try:
        return dataclasses.asdict(ingest.ingest(Path(domain.url), database, domain))
    except ingest.BadRowError as error:
        if "outside the scale" not in str(error):
            raise
        raise OwnDataError(f"{error}, or give the files' own scale: --scale LOW HIGH") from error


def _refuse_useless(report: Report, databases: list[Path]) -> None:
    for side in (report.source, report.target):
        if side.lowest == side.highest:
            raise OwnDataError(
                f"{side.file}: all {side.ratings:,} ratings are {side.lowest:g}, so there is nothing to "
                f"predict; give another file, or another column with {OPTIONS['rating']}"
            )
    if report.overlap == 0:
        examples = " and ".join(repr(_first_user(database)) for database in databases)
        raise OwnDataError(
            f"no user of {report.source.file} is also in {report.target.file}: transfer needs users with "
            f"ratings in both, under the same ids (they begin with {examples}); "
            f"name the column with {OPTIONS['user']}"
        )


def _first_user(database: Path) -> str:
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute('SELECT user_id FROM users WHERE "user" = 0').fetchone()[0]
