"""The one gate: what a cell's training and evaluation may see, assembled from the store.

`ml.cold_start.ColdStart` keeps held-out target ratings out of it.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from assets.data.domain import (
    domain_negatives,
    domain_ratings,
    rating_levels,
    source_statistics,
    star_description,
)
from assets.settings.axes import Cell
from assets.settings.profile import Profile
from assets.state.store import Entry, Store, fingerprint
from ml.splits import TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from torch import Tensor

    from ml.cold_start import ColdStart, DomainRatings
    from ml.data import HeldOut, Problem, Ratings, SourceUsers, Users
    from ml.factorization.adam import RatingTable
    from ml.factorization.spark import RatingFile
    from ml.models.contract import Model

SIDES = {"validation": VALIDATION, "test": TEST}
ROLES = {"train": TRAIN, **SIDES}


def inputs(
    store: Store, profile: Profile, cell: Cell, objective: str, needs: Collection[str], of: str = ""
) -> dict[str, Entry]:
    """The entries that a model with these `needs` is computed from, by what they are to it; `of` is the model
    of the profile that it needs, where it needs one."""
    ratings = {"source": store.ratings(cell.source.name), "target": store.ratings(cell.target.name)}
    effects = {"effects": store.source_effects(profile.name, cell.source.name, cell.seed)}
    source = {"source_factors": source_factors(store, profile, cell, objective)}
    target = {"target_factors": store.target_factors(profile.name, cell, objective)}
    by_need = {
        "ratings": ratings,
        "stars": ratings,
        "times": ratings,
        "factors": source | target,
        "target_factors": target,
        "effects": effects | ratings,
        "model": {"model": store.model(profile.name, of, cell, objective)},
    }
    return {"split": store.split(cell)} | {k: e for need in needs for k, e in by_need[need].items()}


def source_factors(store: Store, profile: Profile, cell: Cell, objective: str = "rating") -> Entry:
    """The source factors of a cell: shared by all tasks and β that train the domain alike."""
    config = fingerprint(**profile.factors(cell.task, objective))[:8]
    return store.source_factors(profile.name, cell.source.name, config, cell.seed, objective)


class Gate:
    """One cell as one model meets it: `data` to learn from, and the held-out users it is judged on.

    needs: what the model declares; anything else is refused, since its fingerprint would not cover it. model:
    the trained model of the profile that it needs, if any.
    """

    def __init__(
        self,
        store: Store,
        profile: Profile,
        cell: Cell,
        objective: str = "rating",
        needs: Collection[str] = ("ratings",),
        model: "Model | None" = None,
    ) -> None:
        self.store, self.profile, self.cell, self.objective = store, profile, cell, objective
        self.needs, self.model = frozenset(needs), model

    @cached_property
    def data(self) -> "Seen":
        return Seen(self)

    def forget(self) -> None:
        """Let go of `data`, which knows the gate: both would stay until Python looks for cycles."""
        vars(self).pop("data", None)

    def held_out(self, side: str) -> "HeldOut | None":
        """The users of a side (`validation`, `test`) and their target ratings; None where there are none."""
        from ml.data import HeldOut

        members = self.members(side)
        if not len(members):
            return None
        return HeldOut(self.users(members, side), self.cold_start.target_ratings(members))

    def members(self, side: str) -> np.ndarray:
        """Overlap rows (n,) of the users of a side, or of the training users (`train`)."""
        return self.cold_start.members(ROLES[side])

    @cached_property
    def cold_start(self) -> "ColdStart":
        return cold_start(self.store, self.profile, self.cell, timed="times" in self.needs)

    def users(self, members: np.ndarray, purpose: str = "") -> "Users":
        """The overlapping users of the rows `members` (n,), as far as the model needs to know them."""
        import torch

        from ml.data import Users

        rows = self.cold_start.source_rows, self.cold_start.target_rows
        source, target = (torch.from_numpy(side[members]) for side in rows)
        with_ratings = "ratings" in self.needs
        return Users(
            source,
            target,
            factors=self.source_users.take(torch.from_numpy(members)) if "factors" in self.needs else None,
            ratings=self._source_ratings(source) if with_ratings else None,
            statistics=source_statistics(self.store, self.cell.source)[source] if with_ratings else None,
            description=None if self.description is None else self.description[source],
            purpose=purpose,
        )

    def _source_ratings(self, rows: "Tensor") -> "Ratings":
        from ml.data import ratings_of

        domain = self.cold_start.source
        return ratings_of(domain.narrow(), rows, domain.n_users)

    @cached_property
    def description(self) -> "Tensor | None":
        """What the model is told of each source user: (source users, q) float64."""
        if "effects" in self.needs:
            entry = self.store.source_effects(self.profile.name, self.cell.source.name, self.cell.seed)
            return entry.tensors("effects.safetensors")["description"]
        return star_description(self.store, self.cell.source.name) if "stars" in self.needs else None

    @cached_property
    def factors(self) -> "dict[str, dict[str, Tensor]]":
        """Source and target factors as tensors; biased ones are standardised over the training users."""
        source = source_factors(self.store, self.profile, self.cell, self.objective)
        target = self.store.target_factors(self.profile.name, self.cell, self.objective)
        found = {
            "source": source.tensors("factors.safetensors"),
            "target": target.tensors("factors.safetensors"),
        }
        if "offset" not in found["target"]:
            return found
        train, known = self.members("train"), self.cold_start
        rows = {"source": known.source_rows[train], "target": known.target_rows[train]}
        return {side: _standardized(tensors, rows[side]) for side, tensors in found.items()}

    @cached_property
    def source_users(self) -> "SourceUsers":
        """All overlapping users by their source factors and what they liked, oldest first."""
        import torch

        from ml.data import History, SourceUsers

        codes = torch.from_numpy(self.cold_start.source_rows)
        liked = self.store.overlap(self.cell.task).table("liked.parquet")
        counts = np.bincount(liked["user"], minlength=len(codes))
        offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        items = torch.from_numpy(liked["item"].to_numpy(dtype=np.int64))
        source = self.factors["source"]
        return SourceUsers(source["users"][codes], History(torch.from_numpy(offsets), items), source["items"])


class Seen:
    """What a model may learn from in one cell: `ml.data.Data`, each part read when it is first asked for."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._store, self._profile, self._cell = gate.store, gate.profile, gate.cell
        self.seed, self.purpose = gate.cell.seed, gate.cell.task
        self.scale, self.source_scale = gate.cell.target.scale, gate.cell.source.scale

    def _need(self, *any_of: str) -> None:
        if not self._gate.needs & set(any_of):
            raise LookupError(
                f"a model reads what it does not declare: add one of {', '.join(any_of)} to its `needs`"
            )

    @property
    def _target(self) -> "DomainRatings":
        return self._gate.cold_start.target

    @property
    def _source(self) -> "DomainRatings":
        return self._gate.cold_start.source

    @property
    def n_users(self) -> int:
        return self._target.n_users

    @property
    def n_items(self) -> int:
        return self._target.n_items

    @property
    def n_source_users(self) -> int:
        return self._source.n_users

    @property
    def n_source_items(self) -> int:
        return self._source.n_items

    @cached_property
    def source(self) -> "Ratings":
        self._need("ratings", "stars", "effects")
        return self._source.narrow()

    @cached_property
    def target(self) -> "Ratings":
        self._need("ratings", "stars", "effects")
        return self._target.narrow(self._gate.cold_start.training_rows())

    @cached_property
    def train(self) -> "Users":
        return self._gate.users(self._gate.members("train"), "train")

    @cached_property
    def training(self) -> "Ratings":
        self._need("ratings")
        return self._gate.cold_start.target_ratings(self._gate.members("train"))

    @cached_property
    def validation(self) -> "HeldOut | None":
        self._need("ratings")
        return self._gate.held_out("validation")

    @cached_property
    def source_table(self) -> "RatingTable":
        self._need("ratings")
        return source_table(self._store, self._cell.source.name, self.seed, self._gate.objective)

    @cached_property
    def target_table(self) -> "RatingTable":
        self._need("ratings")
        return target_table(self._store, self._profile, self._cell, self._gate.objective)

    @cached_property
    def source_user(self) -> "Tensor":
        """Each target user's row in the source domain: (n_users,) int64, −1 where there is none."""
        return self._gate.cold_start.source_user()

    @cached_property
    def problem(self) -> "Problem":
        self._need("factors")
        return _problem(self._gate)

    @property
    def offset(self) -> "Tensor | None":
        return self._gate.factors["target"].get("offset")

    @cached_property
    def target_factors(self) -> "tuple[Tensor, Tensor]":
        self._need("target_factors")
        return joined(self._target_entry.tensors("factors.safetensors"))

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        self._need("target_factors")
        return self._target_entry.table("curves.parquet").to_dict("records")

    @property
    def _target_entry(self) -> Entry:
        return self._store.target_factors(self._profile.name, self._cell, self._gate.objective)

    @property
    def description(self) -> "Tensor":
        self._need("effects", "stars")
        return self._gate.description

    @cached_property
    def levels(self) -> "Tensor":
        # The scale, not the ratings: a level that only held-out users gave is a level all the same.
        return rating_levels(self._store, self._cell.target.name)

    @property
    def model(self) -> "Model":
        self._need("model")
        return self._gate.model


def roles(store: Store, profile: Profile, cell: Cell) -> np.ndarray:
    """Role of each overlapping user (n,) int8; a profile without validation trains on those users too."""
    assigned = store.split(cell).table("roles.parquet")["role"].to_numpy()
    return assigned if profile.validation else np.where(assigned == VALIDATION, TRAIN, assigned)


def cold_start(store: Store, profile: Profile, cell: Cell, timed: bool = False) -> "ColdStart":
    """The ratings of both domains, with their times where asked for, and who may be learned from."""
    from ml.cold_start import ColdStart

    users = store.overlap(cell.task).table("users.parquet")
    return ColdStart(
        domain_ratings(store, cell.source.name, timed),
        domain_ratings(store, cell.target.name, timed),
        users["source_user"].to_numpy(dtype=np.int64),
        users["target_user"].to_numpy(dtype=np.int64),
        roles(store, profile, cell),
    )


def training_rows(store: Store, profile: Profile, cell: Cell) -> np.ndarray:
    """Which rows of the target domain's ratings the cell may train on: (m,) bool."""
    return cold_start(store, profile, cell).training_rows()


def source_table(store: Store, domain: str, seed: int, objective: str = "rating") -> "RatingTable":
    """All ratings of the domain; for ranking also their negatives, labelled 0."""
    return _table(store, domain, None, seed, objective)


def target_table(store: Store, profile: Profile, cell: Cell, objective: str = "rating") -> "RatingTable":
    """The target ratings the cell may train on; for ranking also their negatives, labelled 0."""
    rows = training_rows(store, profile, cell)
    return _table(store, cell.target.name, rows, cell.seed, objective)


def source_file(store: Store, domain: str, seed: int, here: bool) -> "RatingFile":
    """All ratings of the domain where Spark reads them; here: whether that is this machine."""
    return _file(store, domain, seed, here, np.zeros(0, dtype=np.int32), 0)


def target_file(store: Store, profile: Profile, cell: Cell, here: bool) -> "RatingFile":
    """The target ratings the cell may train on, as `source_file`."""
    from ml.cold_start import hidden_users

    users, assigned = store.overlap(cell.task).table("users.parquet"), roles(store, profile, cell)
    hidden = hidden_users(users["target_user"].to_numpy(dtype=np.int32), assigned)
    count = hidden_users(users["target_ratings"].to_numpy(), assigned).sum()
    return _file(store, cell.target.name, cell.seed, here, hidden, int(count))


def _file(store: Store, domain: str, seed: int, here: bool, hidden: np.ndarray, count: int) -> "RatingFile":
    """The domain's ratings but for the `count` of the users `hidden`."""
    from ml.factorization.spark import RatingFile

    entry = store.ratings(domain)
    facts = entry.require()
    # Hadoop's own name of S3.
    elsewhere = re.sub("^s3:", "s3a:", f"{entry.place}/ratings.parquet")
    return RatingFile(
        path=str(entry.path_of("ratings.parquet")) if here else elsewhere,
        count=facts["ratings"] - count,
        n_users=facts["users"],
        n_items=facts["items"],
        seed=seed,
        without=hidden,
    )


def _table(store: Store, domain: str, kept: np.ndarray | None, seed: int, objective: str) -> "RatingTable":
    """Of all ratings, or those `kept` (m,) bool; every seed's table has the same columns."""
    import torch

    from ml.cold_start import rows_of
    from ml.factorization.adam import RatingTable

    ratings = domain_ratings(store, domain)
    table = RatingTable(
        users=torch.from_numpy(ratings.users),
        items=torch.from_numpy(ratings.items),
        values=torch.from_numpy(ratings.values),
        n_users=ratings.n_users,
        n_items=ratings.n_items,
        seed=seed,
        rows=None if kept is None else torch.from_numpy(rows_of(kept)),
    )
    return table if objective == "rating" else replace(table, negatives=domain_negatives(store, domain, seed))


def held_out_ratings(store: Store, profile: Profile, cell: Cell, role: int) -> tuple[np.ndarray, "Ratings"]:
    """Overlap rows (n,) of the users with a held-out role, and their target ratings with users in 0..n-1."""
    found = cold_start(store, profile, cell)
    members = found.members(role)
    return members, found.target_ratings(members)


def _with_negatives(gate: Gate, members: np.ndarray, ratings: "Ratings") -> "Ratings":
    """`ratings` of the training users `members`, followed by their negatives, labelled 0."""
    import torch

    from ml.data import Ratings

    rows = torch.from_numpy(gate.cold_start.rows_of(members))
    drawn = domain_negatives(gate.store, gate.cell.target.name, gate.cell.seed)[rows]
    found = drawn >= 0
    return Ratings(
        users=torch.cat([ratings.users, ratings.users[found]]),
        items=torch.cat([ratings.items, drawn[found]]),
        values=torch.cat([ratings.values, torch.zeros(int(found.sum()))]),
    )


def joined(factors: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
    """User and item factors whose dot product is the predicted rating, from what a factorization wrote."""
    from ml.factorization.biased import BiasedFactors

    return BiasedFactors(**factors).joined() if "offset" in factors else (factors["users"], factors["items"])


def _standardized(factors: "dict[str, Tensor]", rows: np.ndarray) -> "dict[str, Tensor]":
    import torch

    from ml.factorization.biased import BiasedFactors, standardize

    held = standardize(BiasedFactors(**factors), torch.from_numpy(rows))
    return {"users": held.users, "items": held.items, "offset": held.offset}


def _problem(gate: Gate) -> "Problem":
    """The training users' factors in both domains and their target ratings, for ranking with negatives."""
    import torch

    from ml.data import Problem

    source, target = gate.factors["source"], gate.factors["target"]
    train = gate.members("train")
    ratings = gate.cold_start.target_ratings(train, wide=False)
    if gate.profile.implicit(gate.objective):
        ratings = replace(ratings, values=torch.ones_like(ratings.values))
    if gate.objective == "ranking":
        ratings = _with_negatives(gate, train, ratings)
    alone = {}
    if "offset" in target:
        # What the item's offset explains is not the user's to explain.
        ratings = replace(ratings, values=ratings.values - target["offset"][ratings.items])
        alone = _alone(gate, source, target)
    codes = torch.from_numpy(gate.cold_start.target_rows[train])
    return Problem(
        source=gate.source_users.take(torch.from_numpy(train)),
        target_factors=target["users"][codes],
        target_items=target["items"],
        ratings=ratings,
        seed=gate.cell.seed,
        **alone,
    )


def _alone(gate: Gate, source: dict, target: dict) -> "dict[str, Tensor]":
    """Factors of the users of one domain alone; the paper's models learn nothing from them."""
    import torch

    out = {}
    known = gate.cold_start
    for side, factors, rows in (
        ("source", source, known.source_rows),
        ("target", target, known.target_rows),
    ):
        alone = torch.ones(len(factors["users"]), dtype=torch.bool)
        alone[torch.from_numpy(rows)] = False
        out[f"{side}_alone"] = factors["users"][alone]
    return out
