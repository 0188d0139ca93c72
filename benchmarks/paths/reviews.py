"""The data side: reading a review file, and the liked histories of shared users."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File

import duckdb
import numpy as np
import pandas as pd

from assets.data.ingest import ingest
from assets.data.splits import _query_overlap
from assets.settings.catalog import Columns, Domain, Task
from assets.state.store import Store
from benchmarks.data import LIKED_ABOVE, LinkedDomains
from benchmarks.measure import Result
from benchmarks.paths.path import Options, Path, Work
from benchmarks.textbook import reviews as textbook

WORDS = 90  # of a review's text on average, about 500 characters
COLUMNS = ("user", "item", "rating", "timestamp")
ITEMS = 20_000
DOMAIN = Domain(
    name="bench",
    title="Benchmark",
    url="generated",
    kind="json",
    columns=Columns(user="reviewerID", item="asin", rating="overall", timestamp="unixReviewTime"),
)


def write_reviews(path: File, reviews: int, words: int, seed: int = 0) -> None:
    """A 2014 file with random ids, stars and times, and texts of random words; repeated pairs occur."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array(
        ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(5000)]
    )
    lengths = rng.poisson(words, reviews)
    # Skewed as in language, so that the texts compress about as well.
    text = vocabulary[(5000 * rng.random(lengths.sum()) ** 3).astype(np.int64)].tolist()
    ends = lengths.cumsum().tolist()
    columns = (
        rng.integers(max(1, reviews // 8), size=reviews).tolist(),
        (ITEMS * rng.random(reviews) ** 2).astype(np.int64).tolist(),
        rng.integers(1, 6, size=reviews).tolist(),
        rng.integers(10**9, 14 * 10**8, size=reviews).tolist(),
        [0, *ends[:-1]],
        ends,
    )
    with gzip.open(path, "wt", compresslevel=6, encoding="ascii") as file:
        for user, item, stars, time, start, end in zip(*columns, strict=True):
            review = {
                "reviewerID": f"A{user:012d}",
                "asin": f"B{item:09d}",
                "reviewerName": f"Reader {user}",
                "helpful": [0, 0],
                "reviewText": " ".join(text[start:end]),
                "overall": float(stars),
                "summary": "A summary",
                "unixReviewTime": time,
                "reviewTime": "01 1, 2010",
            }
            file.write(json.dumps(review) + "\n")


@dataclass(frozen=True)
class ReviewFile:
    path: File
    tables: File


def prepare_ingestion(options: Options) -> Work:
    reviews = 500 if options.quick else 300_000
    path = options.folder / f"reviews-{reviews}.json.gz"
    write_reviews(path, reviews, WORDS)
    return Work(
        f"{reviews:,} reviews with texts of {WORDS} words, {path.stat().st_size / 1e6:.0f} MB of gzip",
        ReviewFile(path, options.folder / f"reviews-{reviews}"),
        reviews,
    )


def ingest_ours(data: ReviewFile) -> Callable[[], Result]:
    ingest(data.path, data.tables, DOMAIN)

    def collect() -> Result:
        frame = duckdb.sql(f"FROM '{data.tables}/ratings.parquet' ORDER BY row").df()
        return {name: frame[name].to_numpy() for name in COLUMNS}

    return collect


def ingest_textbook(data: ReviewFile) -> Callable[[], Result]:
    frame = textbook.read_reviews(data.path)
    return lambda: {name: frame[name].to_numpy() for name in COLUMNS}


@dataclass(frozen=True)
class Histories:
    """The store that ours queries, the frame that the textbook filters, and the users it does it for."""

    home: File
    source: pd.DataFrame
    users: list[int]


def prepare_histories(options: Options) -> Work:
    scale, sample = ("tiny", 20) if options.quick else ("task1", 500)
    domains = LinkedDomains(scale)
    home = options.folder / scale
    source = _frame(domains.source)
    _write_domain(home, "source", source, domains.n_users[0], domains.source_user)
    _write_domain(home, "target", _frame(domains.target), domains.n_users[1], domains.target_user)
    shared = len(domains.source_user)
    return Work(
        f"{shared:,} shared users, {len(source):,} source ratings (textbook: {sample:,} of the users)",
        Histories(home, source, domains.source_user[:sample].tolist()),
        shared,
        textbook_share=sample / shared,
    )


def _frame(frame) -> pd.DataFrame:
    """A domain's ratings as the store has them: by user, then time."""
    columns = (frame.users, frame.items, frame.stars.astype(np.float32), frame.days.astype(np.int64) * 86_400)
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return table.sort_values(["user", "timestamp"], kind="stable", ignore_index=True)


def _write_domain(home: File, name: str, ratings: pd.DataFrame, n_users: int, shared: np.ndarray) -> None:
    """A domain's tables; the i-th of the `shared` users has the i-th id."""
    ids = np.array([f"own {name} {row:07d}" for row in range(n_users)], dtype=object)
    ids[shared] = [f"both {number:07d}" for number in range(len(shared))]
    users = pd.DataFrame({"user": np.arange(n_users, dtype=np.int32), "user_id": ids})
    with Store(home=str(home)).ratings(name).draft() as draft:
        ratings.rename_axis("row").reset_index().to_parquet(draft.folder / "ratings.parquet", index=False)
        users.to_parquet(draft.folder / "users.parquet", index=False)
        draft.publish("generated")


def histories_ours(data: Histories) -> Callable[[], Result]:
    task = Task(name="bench", title="Benchmark", source="source", target="target")
    _, liked = _query_overlap(Store(home=str(data.home)), task, LIKED_ABOVE)

    def collect() -> Result:
        mine = liked[liked["user"] < len(data.users)]
        return {"user": mine["user"].to_numpy(), "item": mine["item"].to_numpy()}

    return collect


def histories_textbook(data: Histories) -> Callable[[], Result]:
    histories = textbook.liked_histories(data.source, data.users)
    lengths = [len(items) for items in histories]
    return lambda: {
        "user": np.repeat(np.arange(len(histories)), lengths),
        "item": np.concatenate([np.array(items, dtype=np.int64) for items in histories]),
    }


PATHS = (
    Path(
        "ingestion",
        6,
        0,
        prepare_ingestion,
        ingest_ours,
        ingest_textbook,
        note="ours checks every field and writes tables, the textbook does neither; "
        "half of our time unpacks the gzip",
    ),
    Path(
        "liked histories",
        100,
        0,
        prepare_histories,
        histories_ours,
        histories_textbook,
        note="ours finds the shared users by their ids too; textbook time scaled from its users to all",
    ),
)
