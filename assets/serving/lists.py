"""Lists as rows of a table: what the asset writes, and what a file of users is answered with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.serving.bundle import Bundle

if TYPE_CHECKING:
    from ml.recommender import Asked

POPULARITY = "popularity"
NOTE = "nothing is known of this user: the most popular items"
# What a row says: name, type and description. `score` goes by the name of what it is, see `schema`.
SCORE = "score"
COLUMNS = (
    ("user", pa.int32(), "code of the user in the source domain, none for a new user"),
    ("user_id", pa.string(), "the user's own id, a number (int64) where it is one in the data"),
    ("item", pa.int32(), "code of the item in the target domain"),
    ("item_id", pa.string(), "the item's own id, the same"),
    ("rank", pa.int32(), "1 for the best"),
    (SCORE, pa.float32(), "by what the list is ordered: `probability` where the model gives one; for "
                          "popularity the item's number of ratings"),
    ("rating", pa.float32(), "the mean of the stars that are expected"),
    ("median", pa.float32(), "their median"),
    ("model", pa.string(), "the model that made the list"),
    ("note", pa.string(), "what a reader should know of this user's list"),
)  # fmt: skip


def schema(bundle: Bundle, user_id: pa.DataType | None = None) -> pa.Schema:
    """The columns, with ids of the type that they have in the data; user_id: or in the asker's file."""
    kinds = {"user_id": user_id or _kind(bundle, "user_ids"), "item_id": _kind(bundle, "target_item_ids")}
    return pa.schema([(_named(bundle, name), kinds.get(name, kind)) for name, kind, _ in COLUMNS])


def _kind(bundle: Bundle, ids: str) -> pa.DataType:
    return pa.int64() if ids in bundle.numbered else pa.string()


def _named(bundle: Bundle, name: str) -> str:
    return bundle.scored_by if name == SCORE else name


def described() -> dg.TableSchema:
    """The columns as an asset page shows them."""
    return dg.TableSchema(columns=[dg.TableColumn(name, str(kind), text) for name, kind, text in COLUMNS])


@dataclass(frozen=True)
class Wanted:
    """What is asked of a list: k items, in an order of `ml.models.contract.ORDERS`; with include_rated also
    what the user has rated."""

    k: int = 20
    order: str = "probability"
    include_rated: bool = False


@dataclass(frozen=True)
class Named:
    """n users to list for: rows (n,) in the source domain, −1 where they have none, and ids (n,)."""

    asked: "Asked"
    rows: np.ndarray
    ids: pa.Array


def table(bundle: Bundle, users: Named, wanted: Wanted) -> tuple[pa.Table, int]:
    """Lists as rows of `schema`, users in the order given; and how many users got popular items."""
    listed = bundle.recommender.recommend(users.asked, wanted.k, wanted.order, wanted.include_rated)
    known = listed.known.numpy()
    present = (listed.items >= 0).numpy()
    user, place = present.nonzero()
    items = pa.array(listed.items.numpy()[present].astype(np.int32))
    models = pa.array([POPULARITY, bundle.recommender.lists.name])
    notes = pa.array([NOTE, None], pa.string())
    of_user = pa.array(user.astype(np.int32))
    is_known = pa.array(known[user].astype(np.int32))
    # A number of ratings is no probability.
    no_score = ~known[user] if bundle.scored_by != SCORE else None
    # Arrow takes strings by place a good deal faster than numpy repeats them.
    columns = [
        pa.array(users.rows[user].astype(np.int32), mask=users.rows[user] < 0),
        users.ids.take(of_user),
        items,
        pa.array(bundle.target_ids, pa.string()).cast(_kind(bundle, "target_item_ids")).take(items),
        pa.array(place.astype(np.int32) + 1),
        pa.array(listed.scores.numpy()[present], mask=no_score),
        *(pa.array(values.numpy()[present], from_pandas=True) for values in (listed.mean, listed.median)),
        models.take(is_known),
        notes.take(is_known),
    ]
    return pa.table(columns, schema=schema(bundle, users.ids.type)), int((~known).sum())


@contextmanager
def writer(path: Path, columns: pa.Schema, as_csv: bool = False) -> Iterator:
    """A function that adds a table to a file: as one row group of Parquet, or as lines of CSV."""
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    if as_csv:
        with csv.CSVWriter(path, columns) as written:
            yield written.write_table
        return
    with pq.ParquetWriter(path, columns, compression="zstd") as written:
        yield lambda rows: written.write_table(rows, row_group_size=max(1, len(rows)))
