"""A domain's ratings as arrays, read once a process, and what is drawn or counted from all of them."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from assets.data.tables import attach
from assets.settings.catalog import Domain
from assets.state.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from ml.cold_start import DomainRatings


def domain_ratings(store: Store, domain: str, timed: bool = False) -> "DomainRatings":
    """timed: with the times of the ratings, where each has one."""
    tables = _tables(store, domain)
    ratings = _read_ratings(*tables)
    return replace(ratings, times=_read_times(*tables)) if timed else ratings


def _tables(store: Store, domain: str) -> tuple[Path, str]:
    """Folder and fingerprint of one generation."""
    entry = store.ratings(domain)
    manifest = entry.require()
    return entry.folder(), manifest["fingerprint"]


BLOCK = 1 << 20  # ratings read at a time
READING = "512MB"  # of DuckDB's own, while they are read


@lru_cache(maxsize=4)
def _read_ratings(folder: Path, _fingerprint: str) -> "DomainRatings":
    from ml.cold_start import DomainRatings

    with duckdb.connect(config={"memory_limit": READING}) as connection:
        attach(connection, folder)
        m, n_users, n_items = (
            connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for table in ("ratings", "users", "items")
        )
        columns = np.empty(m, np.int32), np.empty(m, np.int32), np.empty(m, np.float32)
        # In the order in which they were written; sorting would hold them all once more.
        rows, begin = connection.sql('SELECT "user", item, rating FROM ratings'), 0
        for block in rows.to_arrow_reader(BLOCK):
            for column, part in zip(columns, block.columns, strict=True):
                column[begin : begin + len(part)] = part.to_numpy()
            begin += len(block)
    return DomainRatings(*columns, n_users, n_items)


@lru_cache(maxsize=4)
def _read_times(folder: Path, _fingerprint: str) -> np.ndarray | None:
    """In days, in the order of the ratings; None where one has none."""
    with duckdb.connect(config={"memory_limit": READING}) as connection:
        attach(connection, folder)
        rows = connection.sql("SELECT (timestamp / 86400.0)::FLOAT AS days FROM ratings")
        blocks = [block.column(0).to_numpy(zero_copy_only=False) for block in rows.to_arrow_reader(BLOCK)]
    times = np.concatenate([np.empty(0, np.float32), *blocks]).astype(np.float32)
    return None if np.isnan(times).any() else times


def ids(store: Store, domain: str, kind: str) -> np.ndarray:
    """Ids of a domain's users or items by row: (n,) strings."""
    with duckdb.connect() as connection:
        attach(connection, store.ratings(domain).folder())
        found = connection.execute(f'SELECT {kind}_id FROM {kind}s ORDER BY "{kind}"').fetchnumpy()
    return np.asarray(found[f"{kind}_id"], dtype=object)


def whole_numbers(store: Store, domain: str, kind: str) -> bool:
    """Whether the ids of a domain's users or items were whole numbers in its file, and not text."""
    return store.ratings(domain).require()["whole_numbers"][kind]


def titles(store: Store, domain: str) -> np.ndarray:
    """Titles of a domain's items by row, None where there is none: (n,)."""
    with duckdb.connect() as connection:
        attach(connection, store.ratings(domain).folder())
        query = "SELECT title FROM items LEFT JOIN titles USING (item) ORDER BY item"
        found = connection.execute(query).fetchall()
    return np.array([title for (title,) in found], dtype=object)


def domain_negatives(store: Store, domain: str, seed: int) -> "Tensor":
    """A domain's negatives for a seed, by rating (m,) int32, −1 where there is none: drawn once for all its
    ratings, so that every model sees the same."""
    return _draw_negatives(*_tables(store, domain), domain, seed)


@lru_cache(maxsize=12)
def _draw_negatives(folder: Path, fingerprint: str, domain: str, seed: int) -> "Tensor":
    from ml.factorization.negatives import sample_negatives
    from ml.replicas import replica_generator

    table = _read_ratings(folder, fingerprint)
    ratings = table.narrow()
    drawn = sample_negatives(
        ratings.users,
        ratings.items,
        table.n_items,
        generator=replica_generator(seed, f"negatives/{domain}"),
    )
    return drawn.by_rating(len(ratings))


def source_statistics(store: Store, domain: Domain) -> "Tensor":
    """`ml.models.statistics.source_statistics` of all users of a domain: (n_users, 5) float64."""
    return _statistics(*_tables(store, domain.name), domain.scale)


@lru_cache(maxsize=4)
def _statistics(folder: Path, fingerprint: str, scale: tuple[float, float]) -> "Tensor":
    from ml.models.statistics import source_statistics as of

    ratings = _read_ratings(folder, fingerprint)
    return of(ratings.narrow(), ratings.n_users, ratings.n_items, scale)


def rating_levels(store: Store, domain: str) -> "Tensor":
    """The levels (L,) float64 of a domain's scale, whoever's ratings have them.

    Raises ValueError where it has too many.
    """
    import torch

    from ml.distribution.effects import rating_levels as of

    try:
        return of(torch.from_numpy(domain_ratings(store, domain).values))
    except ValueError as error:
        raise ValueError(
            f"domain {domain}: {error}; or run without distributions, naming the models wanted with --model"
        ) from None


def star_description(store: Store, domain: str) -> "Tensor":
    """`ml.distribution.discriminative.star_description` of all users of a domain: (n_users, f) float64."""
    from ml.distribution.discriminative import star_description as of

    ratings = domain_ratings(store, domain)
    return of(ratings.narrow(), ratings.n_users, ratings.n_items, rating_levels(store, domain))
