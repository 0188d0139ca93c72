"""`diffcdr recommend`: lists for the users of a file, known ones and new ones with a history.

Files are Parquet or CSV by their ending, read and written alike. Ids of users keep the type that they have in
the file, and those of items the type of the domain's; in CSV, which has none, they are numbers where all are
written as such: `7`, and not `007`.
"""

import contextlib
import csv
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from assets.data.ingest import FIRST_SECOND, LAST_SECOND, WHOLE_NUMBER
from assets.serving import lists
from assets.serving.bundle import Bundle, RecommendationError
from assets.serving.lists import Named, Wanted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

log = logging.getLogger("diffcdr")
CHUNK = 1 << 16  # users at a time
CSV, PARQUET = ".csv", ".parquet"
COLUMNS = ("user_id", "item_id", "rating", "timestamp")


def recommend_file(bundle: Bundle, users: Path, output: Path, wanted: Wanted) -> dict[str, int]:
    """Recommend for the users of a file and write `output`, whole or not at all; returns counts.

    `users` has a column user_id. With item_id and rating as well, a row is a source rating, and a user is
    known by these ratings alone; without, users are looked up in the source domain. A column timestamp, whole
    seconds since 1970, says when each rating was given; without it the rows of a user are the oldest first.
    Users come in bytewise order of their ids. Of whom nothing is known gets the most popular items.
    Raises RecommendationError for a file that cannot be used, ValueError for an order that the model does not
    make.
    """
    check_files(users, output)
    bundle.recommender.check_order(wanted.order)
    partial = output.with_name(f".{uuid.uuid4().hex}.partial")
    by_popularity = 0
    with duckdb.connect(config={"temp_directory": str(output.absolute().parent)}) as connection:
        file = _File(connection, users, bundle)
        columns = lists.schema(bundle, file.id_type)
        try:
            with lists.writer(partial, columns, _ending(output) == CSV) as write:
                for start in range(0, file.count, CHUNK):
                    rows, strangers = lists.table(bundle, file.chunk(start), wanted)
                    by_popularity += strangers
                    write(rows)
                    log.info("recommended for %d of %d users", min(start + CHUNK, file.count), file.count)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    return {"users": file.count, "by_popularity": by_popularity}


def check_files(users: Path, output: Path, exclude: str = "") -> None:
    """Raise RecommendationError where `users` is no readable file with a column user_id, or where `output`
    cannot be written or is an input."""
    for option, path in (("--users", users), ("--output", output)):
        if _ending(path) not in (CSV, PARQUET):
            raise RecommendationError(f"{option} {path}: name a file that ends in {CSV} or {PARQUET}")
    if not users.is_file():
        raise RecommendationError(f"--users {users}: there is no such file; name another")
    if not os.access(users, os.R_OK):
        raise RecommendationError(f"--users {users}: the file may not be read; change its permissions")
    with _readable(users):
        _reader(users).close()
    if not output.absolute().parent.is_dir():
        raise RecommendationError(f"--output {output}: there is no folder {output.parent}; make it first")
    if output.exists() and not output.is_file():
        raise RecommendationError(f"--output {output}: a folder or device; name a file")
    inputs = {"--users": users, **({"--exclude": Path(exclude)} if exclude else {})}
    for option, given in inputs.items():
        if output.exists() and given.exists() and output.samefile(given):
            raise RecommendationError(
                f"--output {output}: the same file as {option}, which would be lost; name another"
            )


def _ending(path: Path) -> str:
    return path.suffix.lower()


class _File:
    """The users of a file in the tables asked(n, user_id, code) and, where it has ratings, history(n, item,
    rating, time, place), time in days and null where the file has none. count: how many users; id_type: of
    their ids."""

    def __init__(self, connection: "Connection", path: Path, bundle: Bundle) -> None:
        self._connection, self._path, self._bundle = connection, path, bundle
        self.id_type, columns = self._read()
        self._refuse("user_id IS NULL", "'the user id is missing'")
        self._register("codes", "user_id", bundle.user_ids)
        connection.execute(
            "CREATE TABLE asked AS SELECT row_number() OVER (ORDER BY user_id) - 1 AS n, user_id, "
            "coalesce(code, -1) AS code FROM (SELECT DISTINCT user_id FROM given) LEFT JOIN codes "
            "USING (user_id) ORDER BY n"
        )
        [(self.count,)] = connection.execute("SELECT count(*) FROM asked").fetchall()
        self._with_ratings = {"item_id", "rating"} <= columns
        self._timed = "timestamp" in columns
        if self._with_ratings:
            self._add_history()

    def chunk(self, start: int) -> Named:
        """CHUNK users from number `start` on. With ratings, a code only says that an id is known as well."""
        rows = self._connection.execute(
            "SELECT user_id, code FROM asked WHERE n >= $1 AND n < $2 ORDER BY n", [start, start + CHUNK]
        ).fetchnumpy()
        codes = np.asarray(rows["code"], np.int64)
        ids = pa.array(rows["user_id"]).cast(self.id_type)
        asked = self._new(start, len(codes)) if self._with_ratings else self._known(codes)
        return Named(asked, codes, ids)

    def _new(self, start: int, count: int):
        import torch

        from ml.data import Ratings

        rows = self._connection.execute(
            "SELECT n - $1 AS n, item, rating, time FROM history WHERE n >= $1 AND n < $2 ORDER BY n, place",
            [start, start + CHUNK],
        ).fetchnumpy()
        kinds = {"n": np.int64, "item": np.int64, "rating": np.float32}
        kinds |= {"time": np.float32} if self._timed else {}
        ratings = Ratings(*(torch.from_numpy(np.asarray(rows[name], kind)) for name, kind in kinds.items()))
        return self._bundle.recommender.new_users(ratings, count)

    def _known(self, codes: np.ndarray):
        import torch

        return self._bundle.recommender.known_users(torch.from_numpy(codes))

    # Reading.

    def _read(self) -> tuple[pa.DataType, set[str]]:
        """Make the table given(row, user_id, item_id, rating); the type of the user ids, and the columns."""
        with _readable(self._path):
            reader = _reader(self._path)
            columns = {name for name in COLUMNS if name in reader.schema.names}
            kind = reader.schema.field("user_id").type
            given = ", ".join(
                f"{name}::VARCHAR AS {name}" if name.endswith("_id") else name
                for name in COLUMNS
                if name in columns
            )
            self._connection.register("reader", reader)
            self._connection.execute(
                f"CREATE TABLE given AS SELECT row_number() OVER () AS row, {given} FROM reader"
            )
            self._connection.unregister("reader")
            if _ending(self._path) == CSV and self._all_numbers():
                kind = pa.int64()
        return (kind if pa.types.is_integer(kind) else pa.string()), columns

    def _all_numbers(self) -> bool:
        """Whether every user id is a whole number as it would be written again: `7`, and not `007`."""
        number = f"regexp_full_match(user_id, '{WHOLE_NUMBER}')"
        [(others, count)] = self._connection.execute(
            f"SELECT count_if(NOT {number}), count(user_id) FROM given"
        ).fetchall()
        return count > 0 and others == 0

    def _add_history(self) -> None:
        self._register("items", "item_id", self._bundle.source_ids)
        self._refuse(
            "item_id IS NULL OR item_id NOT IN (SELECT item_id FROM items)",
            "'item ' || coalesce(item_id, 'null') || ' is not in the source domain'",
        )
        self._refuse_ratings()
        if self._timed:
            self._refuse_times()
        # Of two ratings of one item the latest counts, as in the source domain itself.
        place = "struct_pack(time := timestamp::DOUBLE, row := row)" if self._timed else "row"
        time = "(timestamp::DOUBLE / 86400)::FLOAT" if self._timed else "NULL"
        self._connection.execute(
            f"""CREATE TABLE history AS
                SELECT n, items.code AS item, arg_max(rating::FLOAT, {place}) AS rating,
                       max({time}) AS time, max({place}) AS place
                FROM given JOIN asked USING (user_id) JOIN items USING (item_id)
                GROUP BY n, items.code ORDER BY n, place"""
        )

    def _refuse_times(self) -> None:
        time, said = "TRY_CAST(timestamp::VARCHAR AS DOUBLE)", "'timestamp ' || timestamp::VARCHAR"
        self._refuse(
            f"timestamp IS NULL OR coalesce(isnan({time}), false)",
            "'the timestamp is missing (null or NaN); give one in every row or drop the column'",
        )
        self._refuse(
            f"coalesce(NOT isfinite({time}) OR {time} <> floor({time}), true)",
            f"{said} || ' is not a whole number'",
        )
        self._refuse(
            f"NOT ({time} >= {FIRST_SECOND} AND {time} < {LAST_SECOND})",
            f"{said} || ' is not within the years 1900 to 2099 in seconds since 1970'",
        )

    def _refuse_ratings(self) -> None:
        low, high = self._bundle.scale
        number, rating = "TRY_CAST(rating AS DOUBLE)", "'rating ' || rating::VARCHAR"
        self._refuse(
            f"rating IS NULL OR coalesce(isnan({number}), false)", "'the rating is missing (null or NaN)'"
        )
        self._refuse(
            f"coalesce({number} NOT BETWEEN {low!r} AND {high!r}, true)",
            f"{rating} || ' is not a number from {low:g} to {high:g}'",
        )
        levels = self._bundle.recommender.source_levels
        if levels is not None:
            known = ", ".join(f"{level:g}" for level in levels.tolist())
            # As 32-bit numbers, as all ratings are kept.
            bad = f"rating::FLOAT::DOUBLE NOT IN ({', '.join(map(repr, levels.tolist()))})"
            self._refuse(bad, f"{rating} || ' is none of the levels {known}'")

    def _register(self, table: str, name: str, ids: np.ndarray) -> None:
        frame = pa.table({name: pa.array(ids, pa.string()), "code": np.arange(len(ids))})
        self._connection.register("frame", frame)
        self._connection.execute(f"CREATE TABLE {table} AS FROM frame")
        self._connection.unregister("frame")

    def _refuse(self, bad: str, reason: str) -> None:
        """Raise RecommendationError with the first row for which the condition `bad` holds."""
        found = self._connection.execute(
            f"SELECT row, {reason} FROM given WHERE {bad} ORDER BY 1 LIMIT 1"
        ).fetchall()
        for row, why in found:
            raise RecommendationError(f"{self._path}, row {row}: {why}; correct or remove that row")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, duckdb.Error, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        what = "CSV" if _ending(path) == CSV else "Parquet"
        raise RecommendationError(f"{path} is not a readable {what} file: {reason}; write it again") from None


def _reader(path: Path) -> pa.RecordBatchReader:
    """Raises RecommendationError where there is no column user_id."""
    reader = _csv(path) if _ending(path) == CSV else _parquet(path)
    if "user_id" not in reader.schema.names:
        there = ", ".join(sorted(reader.schema.names))
        raise RecommendationError(f"{path}: no column user_id; the file has {there}; rename one of them")
    return reader


def _parquet(path: Path) -> pa.RecordBatchReader:
    file = pq.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if name in COLUMNS] or file.schema_arrow.names
    columns = pa.schema([file.schema_arrow.field(name) for name in names])
    return pa.RecordBatchReader.from_batches(columns, file.iter_batches(columns=names))


def _csv(path: Path) -> pa.RecordBatchReader:
    """Every column as text, so that ids stay as they are written."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    return pa.csv.open_csv(path, convert_options=convert)
