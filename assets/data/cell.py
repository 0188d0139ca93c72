"""What a cell's training and evaluation may see, assembled from the store.

The one place where held-out target ratings are kept out of training: `target_table` for the factorizations
and `cell_data` for the transfer models both start from `roles`.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from assets.settings.axes import CATALOG, Cell
from assets.settings.profile import Profile
from assets.state.store import Store
from ml.splits import TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Problem, Ratings, SourceUsers
    from ml.evaluation.cold_start import HeldOut
    from ml.evaluation.selection import Objective
    from ml.factorization.adam import RatingTable
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


@dataclass(frozen=True)
class CellData:
    """One cell, ready for training and evaluation; validation is None where the profile holds none out.

    test_users: (n,) rows of the overlap table. offset: (items,) float32 of biased factors, else None; the
    problem's ratings are without it, and a prediction is u·v + offset.
    """

    problem: "Problem"
    validation: "HeldOut | None"
    test: "HeldOut"
    test_users: np.ndarray
    offset: "Tensor | None" = None

    @property
    def items(self) -> "Tensor":
        """Item factors that predict ratings in a dot product, the offset their last column."""
        return with_column(self.problem.target_items, self.offset)

    def complete(self, users: "Tensor") -> "Tensor":
        """Transferred users (n, k) as they meet `items`."""
        return users if self.offset is None else with_column(users, users.new_ones(len(users)))


def domain_ratings(store: Store, domain: str) -> DomainRatings:
    manifest = store.ratings(domain).require()
    return _read_ratings(store.database(domain), manifest["fingerprint"])


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


def roles(store: Store, profile: Profile, cell: Cell) -> np.ndarray:
    """Role of each overlapping user (n,) int8; a profile without validation trains on those users too."""
    assigned = store.split(cell).table("roles.parquet")["role"].to_numpy()
    return assigned if profile.validation else np.where(assigned == VALIDATION, TRAIN, assigned)


def training_rows(store: Store, profile: Profile, cell: Cell) -> np.ndarray:
    """Which rows of the target domain's ratings the cell may train on: (m,) bool."""
    target = domain_ratings(store, CATALOG.tasks[cell.task].target)
    users = store.overlap(cell.task).table("users.parquet")
    hidden = np.zeros(target.n_users, dtype=bool)
    hidden[users["target_user"].to_numpy()[roles(store, profile, cell) != TRAIN]] = True
    return ~target.of_users(hidden)


def source_table(store: Store, domain: str, seed: int, objective: str = "rating") -> "RatingTable":
    """All ratings of the domain; for ranking also their negatives, labelled 0."""
    ratings = domain_ratings(store, domain)
    return _table(store, domain, np.ones(len(ratings.users), dtype=bool), seed, objective)


def target_table(store: Store, profile: Profile, cell: Cell, objective: str = "rating") -> "RatingTable":
    """The target ratings the cell may train on; for ranking also their negatives, labelled 0."""
    rows = training_rows(store, profile, cell)
    return _table(store, CATALOG.tasks[cell.task].target, rows, cell.seed, objective)


def _table(store: Store, domain: str, rows: np.ndarray, seed: int, objective: str) -> "RatingTable":
    import torch

    from ml.factorization.adam import RatingTable
    from ml.factorization.negatives import with_negatives

    ratings = domain_ratings(store, domain)
    table = RatingTable(
        users=torch.from_numpy(ratings.users[rows]),
        items=torch.from_numpy(ratings.items[rows]),
        values=torch.from_numpy(ratings.values[rows]),
        n_users=ratings.n_users,
        n_items=ratings.n_items,
        seed=seed,
    )
    if objective == "rating":
        return table
    return with_negatives(table, domain_negatives(store, domain, seed).of(torch.from_numpy(rows)))


def domain_negatives(store: Store, domain: str, seed: int) -> "Negatives":
    """A domain's negatives for a seed: drawn once for all its ratings, so that every model sees the same."""
    manifest = store.ratings(domain).require()
    return _draw_negatives(store.database(domain), manifest["fingerprint"], domain, seed)


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


def collective_table(
    store: Store, profile: Profile, cell: Cell, objective: str = "rating"
) -> tuple["RatingTable", np.ndarray]:
    """Both domains' training ratings over one user table (CMF), and the rows (n,) of the overlapping users.

    Source users keep their codes; target users that are not in the source follow them.
    """
    import torch

    from ml.factorization.adam import merge_domains

    task = CATALOG.tasks[cell.task]
    source = source_table(store, task.source, cell.seed, objective)
    target = target_table(store, profile, cell, objective)
    users = store.overlap(cell.task).table("users.parquet")
    of_target = np.full(target.n_users, -1, dtype=np.int64)
    of_target[users["target_user"]] = users["source_user"]
    alone = of_target < 0
    of_target[alone] = source.n_users + np.arange(alone.sum())
    merged = merge_domains(
        source,
        target,
        torch.arange(source.n_users),
        torch.from_numpy(of_target),
        source.n_users + int(alone.sum()),
    )
    return merged, users["source_user"].to_numpy(dtype=np.int64)


def held_out_ratings(store: Store, profile: Profile, cell: Cell, role: int) -> tuple[np.ndarray, "Ratings"]:
    """Overlap rows (n,) of the users with a held-out role, and their target ratings with users in 0..n-1."""
    members = np.flatnonzero(roles(store, profile, cell) == role)
    return members, _ratings_of(store, cell, members)


def _ratings_of(store: Store, cell: Cell, members: np.ndarray) -> "Ratings":
    """Target ratings of the overlapping users `members` (n,), with users numbered as in `members`."""
    import torch

    from ml.data import Ratings

    target = domain_ratings(store, CATALOG.tasks[cell.task].target)
    place = _places(store, cell, members, target.n_users)
    rows = place[target.users] >= 0
    return Ratings(
        users=torch.from_numpy(place[target.users[rows]]),
        items=torch.from_numpy(target.items[rows]),
        values=torch.from_numpy(target.values[rows]),
    )


def _places(store: Store, cell: Cell, members: np.ndarray, n_users: int) -> np.ndarray:
    """Where each target user (n_users,) stands among the overlapping users `members`, -1 where not at all."""
    users = store.overlap(cell.task).table("users.parquet")
    place = np.full(n_users, -1, dtype=np.int64)
    place[users["target_user"].to_numpy()[members]] = np.arange(len(members))
    return place


def _with_negatives(store: Store, cell: Cell, members: np.ndarray, ratings: "Ratings") -> "Ratings":
    """`ratings` of the training users `members`, followed by their negatives, labelled 0."""
    import torch

    from ml.data import Ratings

    target = CATALOG.tasks[cell.task].target
    place = torch.from_numpy(_places(store, cell, members, domain_ratings(store, target).n_users))
    negatives = domain_negatives(store, target, cell.seed)
    mine = place[negatives.users] >= 0
    return Ratings(
        users=torch.cat([ratings.users, place[negatives.users[mine]]]),
        items=torch.cat([ratings.items, negatives.items[mine]]),
        values=torch.cat([ratings.values, torch.zeros(int(mine.sum()))]),
    )


@dataclass(frozen=True)
class WarmHalves:
    """Held-out users' ratings for warm start, by time: `tuning` and then `later`, to be judged on.

    known: the earlier ratings, which are not ranked again; in ranking, `tuning` adds negatives to them.
    left_out: users with fewer than two ratings, who are in neither.
    """

    tuning: "Ratings"
    known: "Ratings"
    later: "Ratings"
    left_out: int


def warm_halves(
    store: Store, profile: Profile, cell: Cell, role: int, objective: "Objective"
) -> WarmHalves | None:
    """The halves of the users with a role; None where no user has two ratings."""
    import torch

    members, ratings = held_out_ratings(store, profile, cell, role)
    later = torch.from_numpy(_later(store, cell, members, ratings))
    users = ratings.users[later].unique()
    if len(users) == 0:
        return None
    early = ~later & torch.isin(ratings.users, users)
    known = _rows(ratings, early)
    tuning = known if objective.name == "rating" else _tuning_negatives(store, cell, role, known)
    return WarmHalves(tuning, known, _rows(ratings, later), left_out=len(members) - len(users))


def _later(store: Store, cell: Cell, members: np.ndarray, ratings: "Ratings") -> np.ndarray:
    warm = store.split(cell).table("warm.parquet")
    warm = warm[warm["user"].isin(members)]
    if not np.array_equal(warm["item"].to_numpy(), ratings.items.numpy()):
        raise RuntimeError(f"{cell.key}: warm.parquet and the ratings differ; materialize split again")
    return warm["later"].to_numpy()


def _rows(ratings: "Ratings", keep: "Tensor") -> "Ratings":
    from ml.data import Ratings

    return Ratings(ratings.users[keep], ratings.items[keep], ratings.values[keep])


def _tuning_negatives(store: Store, cell: Cell, role: int, known: "Ratings") -> "Ratings":
    """`known` with negatives drawn against it alone: others would tell which items come later."""
    import torch

    from ml.data import Ratings
    from ml.factorization.negatives import sample_negatives
    from ml.replicas import replica_generator

    target = CATALOG.tasks[cell.task].target
    negatives = sample_negatives(
        known.users,
        known.items,
        store.ratings(target).require()["items"],
        generator=replica_generator(cell.seed, f"negatives/warm/{target}/{role}"),
    )
    return Ratings(
        users=torch.cat([known.users, negatives.users]),
        items=torch.cat([known.items, negatives.items]),
        values=torch.cat([known.values, torch.zeros(len(negatives))]),
    )


def with_column(table: "Tensor", column: "Tensor | None") -> "Tensor":
    """`table` (n, k) with one more `column` (n,), where there is one."""
    import torch

    return table if column is None else torch.cat([table, column[:, None]], 1)


def joined(factors: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
    """User and item factors whose dot product is the predicted rating, from what a factorization wrote."""
    from ml.factorization.biased import BiasedFactors

    return BiasedFactors(**factors).joined() if "offset" in factors else (factors["users"], factors["items"])


def cell_data(
    store: Store, profile: Profile, cell: Cell, source: dict, target: dict, objective: str = "rating"
) -> CellData:
    """The cell's problem and held-out users from the `source` and `target` factor tensors.

    Biased factors (with an offset) are standardised over the training users, in either domain.
    """
    import torch

    from ml.evaluation.cold_start import HeldOut

    role = roles(store, profile, cell)
    users = store.overlap(cell.task).table("users.parquet")
    codes = users["target_user"].to_numpy(dtype=np.int64)
    train = np.flatnonzero(role == TRAIN)
    alone = {}
    if "offset" in target:
        source = _standardized(source, users["source_user"].to_numpy(dtype=np.int64)[train])
        target = _standardized(target, codes[train])
        alone = _alone(store, cell, source, target)
    shared = _overlapping_users(store, cell, source)

    def held_out(which: int) -> "HeldOut":
        members, ratings = held_out_ratings(store, profile, cell, which)
        return HeldOut(shared.take(torch.from_numpy(members)), ratings)

    return CellData(
        problem=_problem(store, cell, shared, train, codes, target, objective, alone),
        validation=held_out(VALIDATION) if profile.validation else None,
        test=held_out(TEST),
        test_users=np.flatnonzero(role == TEST),
        offset=target.get("offset"),
    )


def _standardized(factors: "dict[str, Tensor]", rows: np.ndarray) -> "dict[str, Tensor]":
    import torch

    from ml.factorization.biased import BiasedFactors, standardize

    held = standardize(BiasedFactors(**factors), torch.from_numpy(rows))
    return {"users": held.users, "items": held.items, "offset": held.offset}


def _problem(
    store: Store,
    cell: Cell,
    shared: "SourceUsers",
    train: np.ndarray,
    codes: np.ndarray,
    target: dict,
    objective: str,
    alone: "dict[str, Tensor]",
) -> "Problem":
    import torch

    from ml.data import Problem

    ratings = _ratings_of(store, cell, train)
    if objective == "ranking":
        ratings = _with_negatives(store, cell, train, ratings)
    if "offset" in target:
        # What the item's offset explains is not the user's to explain.
        ratings = replace(ratings, values=ratings.values - target["offset"][ratings.items])
    return Problem(
        source=shared.take(torch.from_numpy(train)),
        target_factors=target["users"][torch.from_numpy(codes[train])],
        target_items=target["items"],
        ratings=ratings,
        seed=cell.seed,
        **alone,
    )


def _alone(store: Store, cell: Cell, source: dict, target: dict) -> "dict[str, Tensor]":
    """Factors of the users of one domain alone; the paper's models learn nothing from them."""
    import torch

    users = store.overlap(cell.task).table("users.parquet")
    out = {}
    for side, factors in (("source", source), ("target", target)):
        alone = torch.ones(len(factors["users"]), dtype=torch.bool)
        alone[torch.from_numpy(users[f"{side}_user"].to_numpy(dtype=np.int64))] = False
        out[f"{side}_alone"] = factors["users"][alone]
    return out


def _overlapping_users(store: Store, cell: Cell, source: dict) -> "SourceUsers":
    import torch

    from ml.data import History, SourceUsers

    entry = store.overlap(cell.task)
    users, liked = entry.table("users.parquet"), entry.table("liked.parquet")
    counts = np.bincount(liked["user"], minlength=len(users))
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    history = History(torch.from_numpy(offsets), torch.from_numpy(liked["item"].to_numpy(dtype=np.int64)))
    codes = torch.from_numpy(users["source_user"].to_numpy(dtype=np.int64))
    return SourceUsers(source["users"][codes], history, source["items"])
