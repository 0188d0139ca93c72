"""Turn a raw file of ratings into tables of checked, deduplicated, densely coded ratings.

DuckDB reads the raw file itself, in file order and only the fields that are needed: review texts are never
held, and what does not fit in memory is spilled to disk.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from assets.data import tables
from assets.data.files import (
    NOT_UTF8,
    FileError,
    check_file,
    check_gzip,
    first_lines,
    is_gzip,
    listed,
    literal,
    records,
    refuse_alike,
    short,
)
from assets.data.tables import TABLES
from assets.settings.catalog import Domain

# No line holds these four control characters in a row, so each line is one column.
_NO_DELIMITER = "\x01\x02\x03\x04"
# 1 January of 1900 and of 2100, in seconds: a timestamp beyond them was written in another unit.
FIRST_SECOND, LAST_SECOND = -2208988800, 4102444800
_OUTSIDE = "is outside the scale"
_LONGEST_TITLE = 300  # characters; the rest is cut off
# A whole number as it would be written again: 7, and not 007.
WHOLE_NUMBER = "0|-?[1-9][0-9]{0,17}"
_LONGEST_ID = 1000  # characters; a longer one is another column, or the rest of the file behind a quote


class IngestError(FileError):
    """The raw file cannot become ratings; the message names the file, what is wrong and the hint."""


class BadRowError(IngestError):
    """The file holds bad rows and the domain says `on_bad_rows: fail`, or an open quote hides whole lines.

    what: the sentences without the hint. may_leave_out: whether on_bad_rows would help. found: the lowest
    and highest rating of the file where some are outside the scale.
    """

    def __init__(
        self, what: str, hint: str, may_leave_out: bool, found: tuple[float, float] | None = None
    ) -> None:
        super().__init__(f"{what} {hint}")
        self.what, self.may_leave_out, self.found = what, may_leave_out, found


@dataclass(frozen=True)
class Ingested:
    """What became of a file. rows_read = quarantined + repeated + dropped_by_core + ratings.

    first_time, last_time: unix seconds, None without timestamps. stars: share of the ratings by rating
    rounded to a whole number. sparsity: share of empty cells of the users × items table. whole_numbers:
    whether the ids of users and of items are.
    """

    rows_read: int
    quarantined: int
    repeated: int
    dropped_by_core: int
    ratings: int
    users: int
    items: int
    first_time: int | None
    last_time: int | None
    stars: dict[int, float]
    sparsity: float
    whole_numbers: dict[str, bool]


def ingest(path: Path, folder: Path, domain: Domain, *, memory_limit: str = "2GB") -> Ingested:
    """Read `path` as `domain` says and write `folder`, all of it or nothing. Its tables, a Parquet file each:

    - ratings(row BIGINT, user INTEGER, item INTEGER, rating FLOAT, timestamp BIGINT), numbered from 0 by
      user, time (null first) and line; timestamp in unix seconds, null where the domain maps none; one row
      a (user, item) pair: the latest, and the last in the file where times are equal or absent.
    - users(user INTEGER, user_id VARCHAR), items(item INTEGER, item_id VARCHAR): codes from 0 without gaps
      in bytewise order of the ids, which stay exactly as written.
    - titles(item INTEGER, title VARCHAR): of the items that have one, the first in the file.
    - quarantine(line BIGINT, field VARCHAR, reason VARCHAR, record VARCHAR): the rows left out. line counts
      from 1: lines of JSON, records of csv and tsv with the header, rows of Parquet.

    Raises BadRowError, and FileError for a file that is empty, cut short, of another encoding, without
    the domain's columns, or without the domain's counts.
    """
    check_file(path)
    names = _column_names(path, domain)
    for name in domain.columns.names:
        if name not in names:
            raise IngestError(
                f"{path}: no column {name!r}; the file has {listed(names)}. "
                f"Correct columns of domain {domain.name!r} in the catalogue"
            )
    refuse_alike(path, names, domain.columns.names)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as name:
        scratch = Path(name)
        with _connect(scratch, memory_limit) as con:
            _stage(con, path, domain, names)
            _refuse_bad_rows(con, path, domain)
            ingested = _build(con, path, domain, scratch)
        for table in TABLES:
            os.replace(scratch / f"{table}.parquet", folder / f"{table}.parquet")
    return ingested


@contextmanager
def _connect(scratch: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to tables that spill into `scratch`, with a schema `result` for those that are kept."""
    con = duckdb.connect(":memory:", config={"memory_limit": memory_limit, "temp_directory": str(scratch)})
    try:
        con.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'")
        con.execute("CREATE SCHEMA result")
        yield con
    finally:
        con.close()


# What the file holds


def _column_names(path: Path, domain: Domain) -> list[str]:
    if domain.kind == "parquet":
        return _parquet_names(path, domain)
    lines = first_lines(path, 100)
    # A header must be text throughout; of JSON the first two bytes, where UTF-16 shows.
    if "\ufffd" in (lines[0][:2] if domain.kind == "json" else lines[0]):
        raise IngestError(f"{path}: the file is {NOT_UTF8}")
    if domain.kind == "json":
        return _json_names(path, lines)
    first = records(lines, domain.separator)[0]
    numbers = [str(number) for number in range(1, len(first) + 1)]
    return [name or number for name, number in zip(first, numbers, strict=True)] if domain.header else numbers


def _parquet_names(path: Path, domain: Domain) -> list[str]:
    """Names of the columns. Raises IngestError where one of the domain's is nested or has a near namesake."""
    schema = parquet_schema(path)
    for name in set(domain.columns.names) & set(schema.names):
        twins = [other for other in schema.names if other.lower() == name.lower()]
        if len(set(twins)) > 1:
            raise IngestError(
                f"{path}: columns {' and '.join(map(repr, twins))} differ only in capitals; rename one"
            )
        if twins == [name] and pa.types.is_nested(schema.field(name).type):
            raise IngestError(
                f"{path}: column {name!r} is nested ({short(str(schema.field(name).type))}); "
                "write one plain value a row"
            )
    return schema.names


def parquet_schema(path: Path) -> pa.Schema:
    """Columns and types of a Parquet file. Raises IngestError where it is none."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise IngestError(
            f"{path}: not a readable Parquet file ({_first_line(error)}); write it again"
        ) from error


def _json_names(path: Path, lines: list[str]) -> list[str]:
    names: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            names |= dict.fromkeys(record)
    if not names:
        raise IngestError(
            f"{path}: no JSON object in the first {len(lines)} lines, the first is {lines[0][:60]!r}. "
            "kind json means one object a line; correct the domain's kind in the catalogue"
        )
    return list(names)


# Reading


def _stage(con: duckdb.DuckDBPyConnection, path: Path, domain: Domain, names: list[str]) -> None:
    """Make the scratch table `checked` of all rows read, and `result.quarantine` of the bad ones."""
    try:
        con.execute(f"CREATE TABLE checked AS {_checked(domain, _source(path, domain, names))}")
    except duckdb.Error as error:
        if is_gzip(path):
            check_gzip(path, str(path))
        if "state machine reached an invalid state" in str(error):
            raise IngestError(
                f"{path}: its lines end in more than one way, with and without a carriage return; convert it "
                "with tr -s '\\r' '\\n'"
            ) from error
        raise IngestError(
            f"{path}: cannot be read as {domain.kind} ({short(_first_line(error), 300)}); write it again"
        ) from error
    con.execute(f"CREATE TABLE rejected AS {_rejected(domain)}")
    # Rejected rows were not counted, so a bad row stands as many lines further down as there are above it.
    con.execute(
        """CREATE TABLE result.quarantine AS
           SELECT line + coalesce(rejects, 0) AS line, bad.field AS field, bad.reason AS reason, record
           FROM (FROM checked WHERE bad IS NOT NULL)
           ASOF LEFT JOIN (SELECT above, max(number) AS rejects FROM rejected GROUP BY above) ON line > above
           UNION ALL SELECT line, '', reason, record FROM rejected ORDER BY line"""
    )


def _source(path: Path, domain: Domain, names: list[str]) -> str:
    """SQL: line, the fields u, i, r, t, n as text, whole (is it a record at all) and the record as text."""
    # A folder above the file may be called user=5, which DuckDB would make a column of.
    file = f"{literal(path)}, hive_partitioning = false"
    if domain.kind == "parquet":
        fields = {name: _quoted(name) for name in names}
        return _records(
            domain, fields, f"read_parquet({file}, file_row_number = true)", "file_row_number + 1"
        )
    compression = "gzip" if is_gzip(path) else "none"
    read = (
        f"read_csv({file}, compression = '{compression}', auto_detect = false, "
        "ignore_errors = true, store_rejects = true, "
    )
    if domain.kind == "json":
        pointers = ", ".join(_text(_pointer(name)) for name in domain.columns.names)
        found = {name: f"f[{number}]" for number, name in enumerate(domain.columns.names, 1)}
        return f"""
            SELECT line, {_selected(found, domain)},
                   f IS NOT NULL AS whole, {_odd(domain)} AS odd, record
            FROM (SELECT row_number() OVER () AS line, record,
                         TRY(json_extract_string(record, [{pointers}])) AS f
                  FROM {read} header = false, columns = {{record: 'VARCHAR'}},
                              delim = '{_NO_DELIMITER}', quote = '', escape = '', strict_mode = false))
            WHERE starts_with(record, '{{') OR trim(record) <> ''"""
    # By place: names may differ only in capitals, which DuckDB does not tell apart.
    fields = {name: f"c{number}" for number, name in enumerate(names)}
    columns = ", ".join(f"c{number}: 'VARCHAR'" for number in range(len(names)))
    quote = "" if domain.kind == "tsv" else '"'
    read += (
        f"header = {domain.header}, columns = {{{columns}}}, "
        f"delim = '{domain.separator}', quote = '{quote}', escape = '{quote}')"
    )
    return _records(domain, fields, read, f"row_number() OVER () + {int(domain.header)}")


def _odd(domain: Domain) -> str:
    """SQL: what is odd about a JSON record, or null: a key that is there twice, or a nested value."""
    looks, cases = [], []
    for number, name in enumerate(domain.columns.names, 1):
        key = json.dumps(name, ensure_ascii=False)
        looks += [f"record LIKE {_text(f'%{key}%{key}%')}", f"f[{number}] ^@ '{{'", f"f[{number}] ^@ '['"]
        twice = f"len(list_filter(json_keys(record), lambda k: k = {_text(name)})) > 1"
        nested = f"json_type(record, {_text(_pointer(name))}) IN ('OBJECT', 'ARRAY')"
        cases.append(f"WHEN {twice} THEN {_text(f'the key {key} is there twice')}")
        cases.append(f"WHEN {nested} THEN {_text(f'{key} is nested, not one value')}")
    # Cheap looks, all of them at once, spare nearly all records the exact ones.
    return f"CASE WHEN f IS NOT NULL AND ({' OR '.join(looks)}) THEN CASE {' '.join(cases)} END END"


def _records(domain: Domain, columns: dict[str, str], read: str, line: str) -> str:
    """SQL of a table's rows; `columns` are the SQL names of the file's columns."""
    wanted = {name: f"{columns[name]}::VARCHAR" for name in domain.columns.names}
    record = ", ".join(f"{_text(name)}: {sql}" for name, sql in wanted.items())
    return f"""
        SELECT {line} AS line, {_selected(wanted, domain)},
               true AS whole, NULL::VARCHAR AS odd, to_json({{{record}}})::VARCHAR AS record
        FROM {read}"""


def _selected(columns: dict[str, str], domain: Domain) -> str:
    """SQL: the fields u, i, r, t, n of `columns`, the SQL of the domain's columns by name."""
    names = domain.columns
    fields = {"u": names.user, "i": names.item, "r": names.rating, "t": names.timestamp, "n": names.title}
    return ", ".join(f"{columns.get(name, 'NULL::VARCHAR')} AS {field}" for field, name in fields.items())


def _checked(domain: Domain, source: str) -> str:
    """SQL: line, user_id, item_id, rating, timestamp, title, bad {field, reason} or null, and a bad row's
    record."""
    columns, (low, high) = domain.columns, domain.scale
    rules = [
        ("NOT whole", "", "'not a JSON object'"),
        ("odd IS NOT NULL", "", "odd"),
        *_id_rules("u", columns.user, "user"),
        *_id_rules("i", columns.item, "item"),
        ("trim(coalesce(r, '')) = ''", columns.rating, "'the rating is missing'"),
        ("isnan(score)", columns.rating, "'the rating is missing: NaN is not a number'"),
        ("score IS NULL", columns.rating, "left(r, 60) || ' is not a number'"),
        (
            f"score NOT BETWEEN {low!r} AND {high!r}",
            columns.rating,
            f"left(r, 60) || ' {_OUTSIDE} {low:g} to {high:g}'",
        ),
    ]
    if columns.timestamp:
        per_second = {"s": 1, "ms": 1000, "iso": 1}[domain.timestamp_unit]
        kind = "an ISO 8601 time" if domain.timestamp_unit == "iso" else "a number"
        rules += [
            ("trim(coalesce(t, '')) = ''", columns.timestamp, "'the timestamp is missing'"),
            ("time IS NULL", columns.timestamp, f"left(t, 60) || ' is not {kind}'"),
            (
                f"time >= {LAST_SECOND * per_second}",
                columns.timestamp,
                f"t || ' {domain.timestamp_unit} is after the year 2099, is timestamp_unit right?'",
            ),
            (
                f"time < {FIRST_SECOND * per_second}",
                columns.timestamp,
                f"t || ' {domain.timestamp_unit} is before the year 1900, is timestamp_unit right?'",
            ),
        ]
    else:
        per_second = 1
    # What breaks no rule for certain spares nearly all rows the rules; ids from ! to ~ begin with no space.
    plain = f"odd IS NULL AND score BETWEEN {low!r} AND {high!r}"
    for each in "ui":
        plain += f" AND {each} BETWEEN '!' AND '~' AND strlen({each}) <= {_LONGEST_ID}"
        plain += f" AND NOT contains({each}, chr(0))"
    if columns.timestamp:
        plain += f" AND time BETWEEN {FIRST_SECOND * per_second} AND {LAST_SECOND * per_second - 1}"
    # A time with its zone or none at all; the session's zone is UTC.
    time = "floor(epoch(TRY_CAST(t AS TIMESTAMPTZ)))" if domain.timestamp_unit == "iso" else "t"
    number = "replace(r, ',', '.')" if domain.decimal == "," else "r"
    cases = " ".join(
        f"WHEN {wrong} THEN {{field: {_text(field)}, reason: {reason}}}" for wrong, field, reason in rules
    )
    return f"""
        SELECT line, u AS user_id, i AS item_id, score::FLOAT AS rating, time // {per_second} AS timestamp,
               nullif(left(trim(n), {_LONGEST_TITLE}), '') AS title,
               CASE WHEN {plain} THEN NULL {cases} END AS bad,
               CASE WHEN bad IS NOT NULL THEN record END AS record
        FROM (SELECT *, TRY_CAST({number} AS DOUBLE) AS score, TRY_CAST({time} AS BIGINT) AS time
              FROM ({source}))"""


def _id_rules(field: str, column: str, kind: str) -> list[tuple[str, str, str]]:
    return [
        (f"trim(coalesce({field}, '')) = ''", column, f"'the {kind} id is missing'"),
        (f"contains({field}, chr(0))", column, f"'the {kind} id holds a NUL character'"),
        (
            f"length({field}) > {_LONGEST_ID}",
            column,
            f"'the {kind} id has ' || length({field}) || ' characters, more than {_LONGEST_ID}'",
        ),
    ]


def _rejected(domain: Domain) -> str:
    """SQL: the rows that DuckDB could not read, numbered; above is how many others stand before each."""
    if domain.kind == "parquet":
        return "SELECT 0 AS line, '' AS reason, '' AS record, 0 AS number, 0 AS above WHERE false"
    return f"""
        SELECT * REPLACE (coalesce(record, '') AS record), row_number() OVER (ORDER BY line) AS number,
               line - number AS above
        FROM (SELECT line::BIGINT AS line, trim(any_value(csv_line), chr(10) || chr(13)) AS record,
                     arg_min(if(error_type = 'INVALID ENCODING', '{NOT_UTF8}', error_message),
                             coalesce(column_idx, 0)) AS reason
              FROM reject_errors GROUP BY line)"""


def _refuse_bad_rows(con: duckdb.DuckDBPyConnection, path: Path, domain: Domain) -> None:
    # An open quote swallows the lines behind it, all of the file perhaps: never a row to leave out.
    swallowed = "field = '' AND contains(record, chr(10))"
    may_leave_out = domain.on_bad_rows == "fail"
    hint = "Correct the file, or set on_bad_rows: quarantine for this domain to leave them out and list them"
    if not may_leave_out:
        hint = "Close the quote that opens there"
    refused = "true" if may_leave_out else swallowed
    count = _one(con, f"SELECT count(*) FROM result.quarantine WHERE {refused}")
    if count == 0:
        return
    line, field, reason, record = con.execute(
        f"FROM result.quarantine WHERE {refused} ORDER BY line LIMIT 1"
    ).fetchone()
    where = f"line {line}, field {field!r}" if field else f"line {line}"
    raise BadRowError(
        f"{path}, {where}: {reason}, in {record[:200]!r}. Bad rows in all: {count:,}.",
        hint,
        may_leave_out,
        _range(con, domain) if _OUTSIDE in reason else None,
    )


def _range(con: duckdb.DuckDBPyConnection, domain: Domain) -> tuple[float, float]:
    """The least scale that holds the domain's and every finite rating of the file."""
    low, high = domain.scale
    number = f"TRY_CAST(json_extract_string(record, {_text(_pointer(domain.columns.rating))}) AS DOUBLE)"
    lowest, highest = con.execute(
        f"SELECT min(score), max(score) FROM (SELECT {number} AS score FROM checked WHERE bad IS NOT NULL) "
        "WHERE isfinite(score)"
    ).fetchone()
    return (low, high) if lowest is None else (min(low, lowest), max(high, highest))


# Building


def _build(con: duckdb.DuckDBPyConnection, path: Path, domain: Domain, folder: Path) -> Ingested:
    """Make the tables of the result from `checked` and write them into a folder."""
    quarantined = _one(con, "SELECT count(*) FROM result.quarantine")
    good = _one(con, "SELECT count(*) FROM checked WHERE bad IS NULL")
    _keep_latest(con)
    distinct = _one(con, "SELECT count(*) FROM kept")
    if domain.k_core:
        _reduce_to_core(con, domain.k_core)
    ratings = _one(con, "SELECT count(*) FROM kept")
    if ratings == 0:
        raise IngestError(
            f"{path}: no ratings left of {quarantined + good:,} rows: {quarantined:,} bad, "
            f"{distinct:,} outside the k-core; check columns, scale and k_core in the catalogue"
        )
    _write(con, folder)
    ingested = Ingested(
        rows_read=quarantined + good,
        quarantined=quarantined,
        repeated=good - distinct,
        dropped_by_core=distinct - ratings,
        ratings=ratings,
        **_statistics(con, domain),
        whole_numbers={kind: _whole_numbers(con, path, domain, kind) for kind in ("user", "item")},
    )
    _check_counts(path, domain, ingested)
    return ingested


def _keep_latest(con: duckdb.DuckDBPyConnection) -> None:
    """`kept`: one row a (user, item) pair, with codes in the order of the ids."""
    for kind in ("user", "item"):
        con.execute(
            f"""CREATE TABLE {kind}_codes AS
                SELECT {kind}_id, (row_number() OVER (ORDER BY {kind}_id) - 1)::INTEGER AS code
                FROM (SELECT DISTINCT {kind}_id FROM checked WHERE bad IS NULL)"""
        )
    con.execute(
        """CREATE TABLE kept AS
           SELECT u.code AS "user", i.code AS item, rating, timestamp, line
           FROM checked JOIN user_codes u USING (user_id) JOIN item_codes i USING (item_id)
           WHERE bad IS NULL
           QUALIFY row_number() OVER (
             PARTITION BY u.code, i.code ORDER BY timestamp DESC NULLS LAST, line DESC) = 1"""
    )
    con.execute(
        """CREATE TABLE item_titles AS
           SELECT code, arg_min(title, line) AS title FROM checked JOIN item_codes USING (item_id)
           WHERE bad IS NULL AND title IS NOT NULL GROUP BY code"""
    )
    con.execute("DROP TABLE checked")


def _reduce_to_core(con: duckdb.DuckDBPyConnection, k: int) -> None:
    """Remove users and items with fewer than k ratings until none is left: the k-core is unique."""
    removed = 1
    while removed:
        removed = _one(
            con,
            f"""DELETE FROM kept
                WHERE "user" IN (SELECT "user" FROM kept GROUP BY "user" HAVING count(*) < {k})
                   OR item IN (SELECT item FROM kept GROUP BY item HAVING count(*) < {k})""",
        )


def _write(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for kind in ("user", "item"):
        con.execute(
            f"""CREATE TABLE result.{kind}s AS
                SELECT (row_number() OVER (ORDER BY code) - 1)::INTEGER AS "{kind}", {kind}_id
                FROM {kind}_codes SEMI JOIN (SELECT "{kind}" AS code FROM kept) USING (code) ORDER BY code"""
        )
    con.execute(
        """CREATE TABLE result.titles AS
           SELECT i.item, title
           FROM item_titles JOIN item_codes USING (code) JOIN result.items i USING (item_id)
           ORDER BY i.item"""
    )
    ratings = """
        SELECT row_number() OVER () - 1 AS "row", *
        FROM (SELECT u."user", i.item, rating, timestamp
              FROM kept
              JOIN user_codes uc ON uc.code = kept."user" JOIN result.users u USING (user_id)
              JOIN item_codes ic ON ic.code = kept.item JOIN result.items i USING (item_id)
              ORDER BY u."user", timestamp NULLS FIRST, line)"""
    tables.write(con, ratings, folder, "ratings")
    con.execute("DROP TABLE kept")
    for table in ("users", "items", "titles", "quarantine"):
        tables.write(con, f"FROM result.{table}", folder, table)
        con.execute(f"DROP TABLE result.{table}")
    tables.attach(con, folder, "result")


def _statistics(con: duckdb.DuckDBPyConnection, domain: Domain) -> dict:
    users, items, first, last, ratings = con.execute(
        """SELECT (SELECT count(*) FROM result.users), (SELECT count(*) FROM result.items),
                  min(timestamp), max(timestamp), count(*) FROM result.ratings"""
    ).fetchone()
    shares = dict(
        con.execute(
            "SELECT floor(rating + 0.5)::INTEGER, count(*) FROM result.ratings GROUP BY ALL"
        ).fetchall()
    )
    low, high = domain.scale
    return {
        "users": users,
        "items": items,
        "first_time": first,
        "last_time": last,
        "stars": {
            s: shares.get(s, 0) / ratings for s in range(math.floor(low + 0.5), math.floor(high + 0.5) + 1)
        },
        "sparsity": 1 - ratings / (users * items),
    }


def _whole_numbers(con: duckdb.DuckDBPyConnection, path: Path, domain: Domain, kind: str) -> bool:
    """Whether the ids are whole numbers: by the type of their column, and where the file has none, as CSV, by
    how they are written."""
    column = getattr(domain.columns, kind)
    if domain.kind == "parquet" and not pa.types.is_integer(parquet_schema(path).field(column).type):
        return False
    if domain.kind == "json" and not _json_integers(path, column):
        return False
    matches = f"regexp_full_match({kind}_id, '{WHOLE_NUMBER}')"
    return _one(con, f"SELECT count(*) FROM result.{kind}s WHERE NOT {matches}") == 0


def _json_integers(path: Path, column: str) -> bool:
    """Whether a field of the first records is never anything but a whole number."""
    found = []
    for line in first_lines(path, 100):
        with suppress(ValueError):
            found.append(json.loads(line))
    kinds = {type(record[column]) for record in found if isinstance(record, dict) and column in record}
    return kinds == {int}


def _check_counts(path: Path, domain: Domain, ingested: Ingested) -> None:
    if domain.counts is None:
        return
    expected = domain.counts.model_dump()
    got = {name: getattr(ingested, name) for name in expected}
    wrong = [
        f"{got[name]:,} {name}, expected {expected[name]:,}"
        for name in expected
        if got[name] != expected[name]
    ]
    if wrong:
        raise IngestError(
            f"{path}: {'; '.join(wrong)}. The file is not the one that domain {domain.name!r} means: "
            "download it again, or correct counts in the catalogue"
        )


# SQL


def _one(con: duckdb.DuckDBPyConnection, query: str) -> int:
    return con.execute(query).fetchone()[0]


def _text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("'", "''") + "'"


def _quoted(column: str) -> str:
    """An identifier."""
    return '"' + column.replace('"', '""') + '"'


def _pointer(name: str) -> str:
    """JSON pointer to a field (RFC 6901), so that dots and dollars in names mean nothing."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
