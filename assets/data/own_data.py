"""Two rating files as they come: find their format and columns, check them, enter them in a catalogue.

Files are judged by content, not by name. Nothing in the store is touched before both files and their overlap
have passed: they are read into scratch folders first.
"""

import dataclasses
import json
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import yaml

from assets.data import ingest
from assets.data.files import DELIMITERS, NOT_UTF8, check_file, first_lines, listed, literal, records, short
from assets.data.overview import Report, inspect_tables, stripped
from assets.data.tables import attach
from assets.settings.catalog import BUILT_IN, OWN_DATA, Catalog, Columns, Domain, check_scale, load_catalog
from assets.state.store import Store, writing

HEAD = 100  # rows looked at
# Common names, best first, in small letters and digits alone: `user_id`, `userId` and `User-ID` are one.
COMMON = {
    "user": "user userid userids reviewerid uid customerid customer memberid accountid visitorid",
    "item": "item itemid parentasin asin productid product sku movieid movie bookid book isbn trackid track "
    "songid song albumid album artistid artist gameid game businessid articleid",
    "rating": "rating overall stars starrating score ratingvalue userrating bookrating ratings",
    "timestamp": "timestamp time unixreviewtime date datetime createdat ratedat ts",
    # A plain `title` is a review's as often as an item's.
    "title": "itemtitle itemname producttitle productname movietitle booktitle tracktitle trackname "
    "songtitle songname albumtitle albumname gametitle gamename",
}
OPTIONS = {
    "user": "--user-col",
    "item": "--item-col",
    "rating": "--rating-col",
    "timestamp": "--time-col",
    "title": "--title-col",
}
MILLISECONDS_FROM = 10**11  # as seconds, the year 5138
MICROSECONDS_FROM = 10**14
SIDES = ("source", "target")
# What stands between fields elsewhere, and cannot be read here: MovieLens of 2003 writes two colons.
FOREIGN_DELIMITERS = ("::", "|")


class OwnDataError(ValueError):
    """The files cannot be used as they are; the message names the file, what is wrong and the hint."""


@dataclass(frozen=True)
class Options:
    """What was said about the files.

    columns: names to look for first, by user, item, rating, timestamp, title. scale: of both files; scales:
    of the source or the target where it has another. on_bad_rows: as in the catalogue, for both files.
    """

    columns: Mapping[str, Sequence[str]]
    scale: tuple[float, float] = (1.0, 5.0)
    scales: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    on_bad_rows: str = "fail"

    def check(self) -> None:
        """Raise OwnDataError for a scale that is none."""
        for option, ends in (("--scale", self.scale), *((f"--{s}-scale", e) for s, e in self.scales.items())):
            try:
                check_scale(*ends)
            except ValueError as error:
                raise OwnDataError(f"{option}: {error}") from None


@dataclass(frozen=True)
class Head:
    """The beginning of a file. names: of its columns; rows: the first ones, values as text."""

    path: Path
    kind: str
    names: list[str]
    rows: list[dict[str, str]]
    delimiter: str = ","


@dataclass(frozen=True)
class Pair:
    """Two files as domains. notes: what a reader should know of how they were understood."""

    source: Domain
    target: Domain
    notes: list[str]


def read_pair(store: Store, source: Path, target: Path, options: Options) -> Pair:
    """Understand the heads of both files. Raises OwnDataError, and FileError for what is no file."""
    options.check()
    for path in (source, target):
        check_file(path)
    if source.samefile(target):
        raise OwnDataError(f"{source}: source and target are the same file; give two")
    heads = [read_head(source), read_head(target)]
    _refuse_absent(heads, options)
    domains, notes = [], []
    taken = dict(_catalog(store).domains)
    for side, head in zip(SIDES, heads, strict=True):
        name = _domain_name(head.path, taken)
        domain, note = _domain(head, side, name, options)
        taken[name] = domain
        domains.append(domain)
        notes += note
    return Pair(*domains, notes)


def examine(pair: Pair) -> Report:
    """Read both files whole into scratch folders and report on them.

    Raises OwnDataError where they share no user or one's ratings are all equal, IngestError for bad content.
    """
    with tempfile.TemporaryDirectory(prefix="diffcdr-") as scratch:
        domains = (pair.source, pair.target)
        folders = [Path(scratch, domain.name) for domain in domains]
        facts = [_ingest(*each) for each in zip(SIDES, domains, folders, strict=True)]
        report = inspect_tables(*domains, facts, folders)
        _refuse_useless(report, folders)
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
    file, other = store.root / OWN_DATA, os.environ.get("DIFFCDR_CATALOG")
    if other and Path(other).resolve() != file.resolve():
        raise OwnDataError(
            f"DIFFCDR_CATALOG is {other}, and only one catalogue can hold: enter the two files there as "
            "domains and run with --task, or unset DIFFCDR_CATALOG"
        )
    return file


def _catalog(store: Store) -> Catalog:
    file = catalog_file(store)
    # Of a home with an impossible name this much cannot be asked.
    with writing(store.root):
        there = file.exists()
    return load_catalog(file if there else BUILT_IN)


# Heads


def read_head(path: Path) -> Head:
    """Format, columns and first rows of a file. Raises OwnDataError or FileError where it cannot be read."""
    check_file(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return _parquet_head(path)
    lines = _text_lines(path)
    if lines[0].lstrip().startswith("{"):
        return _json_head(path, lines)
    return _delimited_head(path, lines)


def _parquet_head(path: Path) -> Head:
    names = ingest.parquet_schema(path).names
    try:
        with duckdb.connect() as connection:
            table = f"read_parquet({literal(path)}, hive_partitioning = false)"
            rows = connection.execute(f"FROM {table} LIMIT {HEAD}").fetchall()
    except duckdb.Error as error:
        reason = short(str(error).splitlines()[0], 300)
        raise OwnDataError(f"{path}: not a readable Parquet file ({reason}); write it again") from error
    if not rows:
        raise OwnDataError(f"{path}: the file is empty: it has columns and no rows; give another")
    return Head(path, "parquet", names, [_texts(zip(names, row, strict=True)) for row in rows])


def _json_head(path: Path, lines: list[str]) -> Head:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise OwnDataError(
                f"{path}: row {number} is not a JSON object ({error}); write one object a line"
            ) from error
        if not isinstance(record, dict):
            raise OwnDataError(
                f"{path}: row {number} is {short(line.strip())} and not a JSON object; write one a line"
            )
        rows.append(_texts(record.items()))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Head(path, "json", names, rows)


def _delimited_head(path: Path, lines: list[str]) -> Head:
    kind = "tsv" if "\t" in lines[0] else "csv"
    delimiter = DELIMITERS["tsv"] if kind == "tsv" else _delimiter(path, lines[0])
    names, *rows = records(lines, delimiter)
    if not rows:
        raise OwnDataError(f"{path}: the file is empty: it has a header and no rows; give another")
    return Head(path, kind, names, [_texts(zip(names, row, strict=False)) for row in rows], delimiter)


def _delimiter(path: Path, header: str) -> str:
    """Comma or semicolon, whichever makes more columns. Raises OwnDataError for others."""
    widths = {delimiter: len(records([header], delimiter)[0]) for delimiter in (",", ";")}
    foreign = next((each for each in FOREIGN_DELIMITERS if each in header), None)
    if foreign and max(widths.values()) == 1:
        raise OwnDataError(
            f"{path}: fields are separated by {foreign!r}; convert it to commas, for example with "
            f"sed 's/{re.escape(foreign)}/,/g', and put a header line first if it has none"
        )
    return max(widths, key=widths.get)


def _text_lines(path: Path) -> list[str]:
    lines = first_lines(path, HEAD + 1)
    if lines[0].startswith("PAR1"):
        raise OwnDataError(f"{path}: a Parquet file within gzip; unpack it with gunzip")
    if lines[0].startswith("PK\x03\x04"):
        raise OwnDataError(f"{path}: a zip archive or a spreadsheet; unpack it, or save it as CSV")
    if "\ufffd" in lines[0] or "\0" in lines[0]:
        raise OwnDataError(f"{path}: {NOT_UTF8}")
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
                lists = "; ".join(f"{head.path} has {listed(head.names)}" for head in heads)
                raise OwnDataError(
                    f"{OPTIONS[key]} {name}: no such column in either file: {lists}; name one of these"
                )


def _domain(head: Head, side: str, name: str, options: Options) -> tuple[Domain, list[str]]:
    columns = {key: _column(head, key, options.columns.get(key, ())) for key in COMMON}
    for key in ("user", "item", "rating"):
        if columns[key] is None:
            raise OwnDataError(
                f"{head.path}: no column for the {key}; the file has {listed(head.names)}. "
                f"Name it with {OPTIONS[key]}{_without_header(head)}"
            )
    _refuse_shared(head, columns)
    columns["timestamp"], unit, notes = _time(head, name, columns["timestamp"], options)
    decimal = _decimal(head, columns["rating"])
    if decimal == ",":
        notes = [
            *notes,
            f"{name}: ratings have a decimal comma, and 4,5 is read as four and a half",
        ]
    domain = Domain(
        name=name,
        title=_stem(head.path),
        url=str(head.path.resolve()),
        kind=head.kind,
        columns=Columns(**columns),
        delimiter=";" if head.delimiter == ";" else ",",
        decimal=decimal,
        scale=options.scales.get(side, options.scale),
        timestamp_unit=unit,
        on_bad_rows=options.on_bad_rows,
    )
    return domain, notes


def _refuse_shared(head: Head, columns: Mapping[str, str | None]) -> None:
    """Raise OwnDataError where one column would be two things."""
    for name, count in Counter(filter(None, columns.values())).items():
        if count > 1:
            keys = [key for key, column in columns.items() if column == name]
            options = " or ".join(OPTIONS[key] for key in keys)
            raise OwnDataError(
                f"{head.path}: column {name!r} cannot be {' and '.join(keys)} at once; "
                f"name another with {options}"
            )


def _decimal(head: Head, column: str) -> str:
    values = [row.get(column, "") for row in head.rows]
    commas = any(re.fullmatch(r"\s*-?\d+,\d+\s*", value) for value in values)
    delimited = head.kind in ("csv", "tsv")
    return "," if delimited and commas and not any("." in value for value in values) else "."


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
    problem = f"column {column!r} holds {short(values[0])!r}" if values else f"column {column!r} is empty"
    wanted = "seconds or milliseconds since 1970 nor an ISO 8601 time"
    if column in options.columns.get("timestamp", ()):
        raise OwnDataError(f"{head.path}: {problem}, neither {wanted}; convert it, or leave out --time-col")
    return None, "s", [f"{name}: {problem}, neither {wanted}: its times are not used"]


def _unit(values: Sequence[str]) -> str | None:
    """The unit that more than half of the values have: the others are bad rows, to be named one by one."""
    units = Counter(map(_unit_of, values))
    unit, count = units.most_common(1)[0] if units else (None, 0)
    return unit if 2 * count > len(values) else None


def _unit_of(value: str) -> str | None:
    if re.fullmatch(r"-?\d{1,30}(\.0*)?", value):
        size = float(value)
        return "s" if size < MILLISECONDS_FROM else "ms" if size < MICROSECONDS_FROM else None
    return "iso" if _is_iso(value) else None


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


def _ingest(side: str, domain: Domain, folder: Path) -> dict:
    try:
        return dataclasses.asdict(ingest.ingest(Path(domain.url), folder, domain))
    except ingest.BadRowError as error:
        if not error.may_leave_out:
            raise
        hints = ["Correct the file", "leave bad rows out with --on-bad-rows quarantine"]
        if error.found is not None and _is_scale(*error.found):
            low, high = error.found
            hints.append(f"if its scale is another, give it: --{side}-scale {low:g} {high:g}")
        raise OwnDataError(f"{error.what} {', or '.join(hints)}") from error


def _is_scale(low: float, high: float) -> bool:
    """Whether the ends may be a rating scale."""
    try:
        check_scale(low, high)
    except ValueError:
        return False
    return True


def _refuse_useless(report: Report, folders: list[Path]) -> None:
    for side in (report.source, report.target):
        if side.lowest == side.highest:
            raise OwnDataError(
                f"{side.file}: all {side.ratings:,} ratings are {side.lowest:g}, so there is nothing to "
                f"predict; give another file, or another column with {OPTIONS['rating']}"
            )
    if report.overlap == 0:
        examples = " and ".join(repr(_first_user(folder)) for folder in folders)
        raise OwnDataError(
            f"no user of {report.source.file} is also in {report.target.file}: transfer needs users with "
            f"ratings in both, under the same ids (they begin with {examples}{_alike(folders)}); "
            f"name the column with {OPTIONS['user']}, or write the ids alike in both files"
        )


def _alike(folders: list[Path]) -> str:
    """What is said where ids would be the same but for blanks around them and for capitals."""
    with duckdb.connect() as connection:
        for side, folder in zip(SIDES, folders, strict=True):
            attach(connection, folder, side)
        plain = [f"SELECT lower({stripped('user_id')}) FROM {side}.users" for side in SIDES]
        [count] = connection.execute(f"SELECT count(*) FROM ({' INTERSECT '.join(plain)})").fetchone()
    return f"; {count:,} would be equal without blanks around them and capitals" if count else ""


def _first_user(folder: Path) -> str:
    with duckdb.connect() as connection:
        attach(connection, folder)
        return connection.execute('SELECT user_id FROM users WHERE "user" = 0').fetchone()[0]
