"""A domain's ratings as arrays, read once a process, and what is drawn or counted from all of them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from assets.settings.catalog import Domain
from assets.state.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Ratings
    from ml.factorization.negatives import Negatives


@dataclass(frozen=True)
class DomainRatings:
    """A domain's ratings as arrays: users, items (m,) int64, values (m,) float32, sorted by user."""

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    n_users: int
    n_items: int

    def tensors(self, rows: np.ndarray | slice = slice(None)) -> "Ratings":
        """The ratings, or those `rows` of them, as a model takes them."""
        import torch

        from ml.data import Ratings

        return Ratings(*(torch.from_numpy(x[rows]) for x in (self.users, self.items, self.values)))

    def of_users(self, keep: np.ndarray) -> np.ndarray:
        """Rows of the users that `keep` (n_users,) bool marks: (m,) bool."""
        return keep[self.users]


def domain_ratings(store: Store, domain: str) -> DomainRatings:
    return _read_ratings(store.database(domain), store.ratings(domain).require()["fingerprint"])


@lru_cache(maxsize=4)
def _read_ratings(database: Path, _fingerprint: str) -> DomainRatings:
    with duckdb.connect(str(database), read_only=True) as connection:
        columns = connection.execute('SELECT "user", item, rating FROM ratings ORDER BY rowid').fetchnumpy()
        n_users, n_items = (
            connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("users", "items")
        )
    return DomainRatings(
        users=columns["user"].astype(np.int64),
        items=columns["item"].astype(np.int64),
        values=columns["rating"].astype(np.float32),
        n_users=n_users,
        n_items=n_items,
    )


def ids(store: Store, domain: str, kind: str) -> np.ndarray:
    """Ids of a domain's users or items by row: (n,) strings."""
    with duckdb.connect(str(store.database(domain)), read_only=True) as connection:
        found = connection.execute(f'SELECT {kind}_id FROM {kind}s ORDER BY "{kind}"').fetchnumpy()
    return np.asarray(found[f"{kind}_id"], dtype=object)


def titles(store: Store, domain: str) -> np.ndarray:
    """Titles of a domain's items by row, None where there is none: (n,)."""
    with duckdb.connect(str(store.database(domain)), read_only=True) as connection:
        query = "SELECT title FROM items LEFT JOIN titles USING (item) ORDER BY item"
        found = connection.execute(query).fetchall()
    return np.array([title for (title,) in found], dtype=object)


def domain_negatives(store: Store, domain: str, seed: int) -> "Negatives":
    """A domain's negatives for a seed: drawn once for all its ratings, so that every model sees the same."""
    return _draw_negatives(
        store.database(domain), store.ratings(domain).require()["fingerprint"], domain, seed
    )


@lru_cache(maxsize=12)
def _draw_negatives(database: Path, fingerprint: str, domain: str, seed: int) -> "Negatives":
    import torch

    from ml.factorization.negatives import sample_negatives
    from ml.replicas import replica_generator

    ratings = _read_ratings(database, fingerprint)
    return sample_negatives(
        torch.from_numpy(ratings.users),
        torch.from_numpy(ratings.items),
        ratings.n_items,
        generator=replica_generator(seed, f"negatives/{domain}"),
    )


def source_statistics(store: Store, domain: Domain) -> "Tensor":
    """`ml.models.statistics.source_statistics` of all users of a domain: (n_users, 5) float64."""
    fingerprint = store.ratings(domain.name).require()["fingerprint"]
    return _statistics(store.database(domain.name), fingerprint, domain.scale)


@lru_cache(maxsize=4)
def _statistics(database: Path, fingerprint: str, scale: tuple[float, float]) -> "Tensor":
    from ml.models.statistics import source_statistics as of

    ratings = _read_ratings(database, fingerprint)
    return of(ratings.tensors(), ratings.n_users, ratings.n_items, scale)


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
    return of(ratings.tensors(), ratings.n_users, ratings.n_items, rating_levels(store, domain))
