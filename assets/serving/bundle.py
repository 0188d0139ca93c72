"""What answers for one cell: two trained models with all that they need, and the ids of both domains."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import Gate, training_rows
from assets.data.cell import source_factors as source_entry
from assets.data.domain import domain_ratings, ids, rating_levels, titles, whole_numbers
from assets.data.domain import source_statistics as statistics_of
from assets.serving.choice import Choice, Chosen
from assets.settings.axes import Cell
from assets.settings.profile import Profile
from assets.state.store import Store, parquet, tensors
from assets.training.fingerprints import needs_of
from assets.training.outcome import restored
from assets.training.run import gate_of

if TYPE_CHECKING:
    from ml.data import Users
    from ml.encoder import SourceEncoder
    from ml.fold_in import FoldIn
    from ml.recommender import Recommender, Served, UserRatings

log = logging.getLogger("diffcdr")
# What has ids, and the files that hold them.
NAMED = ("user_ids", "source_item_ids", "target_item_ids")


class RecommendationError(ValueError):
    """Something asked for cannot be used; the message names the file, line or field and the hint."""


@dataclass(frozen=True)
class Filters:
    """Which target items may be listed. exclude: ids that are never, from the file that `listed_in` names;
    min_ratings: only items with at least so many ratings in training; one with none was never learned."""

    exclude: tuple[str, ...] = ()
    listed_in: str = ""
    min_ratings: int = 1

    @classmethod
    def read(cls, exclude: str, min_ratings: int) -> "Filters":
        """With the ids in a text file, one a line. Raises RecommendationError where it cannot be read."""
        if not exclude:
            return cls(min_ratings=min_ratings)
        try:
            lines = Path(exclude).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecommendationError(f"the exclusion list {exclude} cannot be read: {error}") from None
        wanted = tuple(line.strip() for line in lines if line.strip())
        return cls(wanted, exclude, min_ratings)

    def allowed(self, item_ids: np.ndarray, popularity: np.ndarray) -> np.ndarray:
        """Rows (a,) int64 of the items that pass. Raises RecommendationError for an excluded id that is not
        in `item_ids`, and where no item is left."""
        passes = popularity >= self.min_ratings
        rows = pd.Index(item_ids).get_indexer(list(self.exclude))
        if (rows < 0).any():
            stranger = self.exclude[int((rows < 0).argmax())]
            raise RecommendationError(
                f"{self.listed_in}: item {stranger!r} is not in the target domain; correct or remove "
                "that line"
            )
        passes[rows] = False
        if not passes.any():
            raise RecommendationError(
                f"no item has {self.min_ratings} ratings in training and is not excluded; lower min_ratings "
                "or exclude fewer items"
            )
        return np.flatnonzero(passes)


@dataclass(frozen=True)
class Bundle:
    """Everything that answers for a cell. profile, cell: where it was trained; user_ids, source_ids,
    target_ids: ids by row of source users, source items and target items, as text; scale: lowest and highest
    source rating; numbered: which of NAMED are whole numbers in the data; source_titles, target_titles:
    titles of the items by row, None where the data have none."""

    profile: str
    cell: str
    recommender: "Recommender"
    user_ids: np.ndarray
    source_ids: np.ndarray
    target_ids: np.ndarray
    scale: tuple[float, float]
    numbered: frozenset[str] = frozenset()
    source_titles: np.ndarray | None = None
    target_titles: np.ndarray | None = None

    @property
    def scored_by(self) -> str:
        """What the scores of lists are: `probability` or `score`."""
        return self.recommender.lists.model.scored_by

    @property
    def names(self) -> str:
        """The models that answer, as a reader is told."""
        lists, stars = self.recommender.lists, self.recommender.stars
        if stars is None or stars is lists:
            return lists.name
        return f"{lists.name} for lists and {stars.name} for stars"

    @classmethod
    def of_cell(
        cls, store: Store, profile: Profile, cell: Cell, chosen: Chosen, filters: Filters | None = None
    ) -> "Bundle":
        """The chosen models of a cell, on the CPU. Raises RecommendationError as `Filters` does."""
        import torch

        from ml.recommender import Recommender, UserRatings

        source, target = cell.source.name, cell.target.name
        target_ids = ids(store, target, "item")
        timed = any("times" in needs_of(profile, each.name) for each in chosen.all)
        ratings = domain_ratings(store, source, timed)
        popularity = np.bincount(
            domain_ratings(store, target).items[training_rows(store, profile, cell)],
            minlength=len(target_ids),
        )
        served = {each: _served(store, profile, cell, each) for each in chosen.all}
        recommender = Recommender(
            lists=served[chosen.lists],
            stars=None if chosen.stars is None else served[chosen.stars],
            history=UserRatings.of(ratings.tensors(), ratings.n_users),
            rated=_rated(store, cell, ratings.n_users),
            popularity=torch.from_numpy(popularity),
            allowed=torch.from_numpy((filters or Filters()).allowed(target_ids, popularity)),
            scale=cell.target.scale,
        )
        ids_of = ids(store, source, "user"), ids(store, source, "item"), target_ids
        titles_of = titles(store, source), titles(store, target)
        kinds = zip(NAMED, (source, source, target), ("user", "item", "item"), strict=True)
        numbered = frozenset(name for name, domain, kind in kinds if whole_numbers(store, domain, kind))
        return cls(profile.name, cell.key, recommender, *ids_of, cell.source.scale, numbered, *titles_of)

    def filtered(self, filters: Filters) -> "Bundle":
        """With other items allowed. Raises RecommendationError as `Filters` does."""
        import torch

        allowed = filters.allowed(self.target_ids, self.recommender.popularity.numpy())
        return replace(self, recommender=replace(self.recommender, allowed=torch.from_numpy(allowed)))

    def files(self) -> Mapping[str, bytes]:
        """All of it, as files without code."""
        config = {
            "profile": self.profile,
            "cell": self.cell,
            "source_scale": list(self.scale),
            "numbered": sorted(self.numbered),
            "recommender": self.recommender.settings(),
        }
        columns = (
            (self.user_ids, None),
            (self.source_ids, self.source_titles),
            (self.target_ids, self.target_titles),
        )
        named = dict(zip(NAMED, columns, strict=True))
        return {
            "tensors.safetensors": tensors(self.recommender.tensors()),
            "config.json": json.dumps(config, indent=1).encode(),
            **{f"{name}.parquet": parquet(_named(*columns)) for name, columns in named.items()},
        }

    @classmethod
    def of_files(cls, folder: Path) -> "Bundle":
        """The bundle whose `files` are in a folder."""
        from safetensors.torch import load_file

        from ml.recommender import Recommender

        config = json.loads((folder / "config.json").read_text())
        held = load_file(folder / "tensors.safetensors")
        users, *items = (pd.read_parquet(folder / f"{name}.parquet") for name in NAMED)
        ids_of = [table["id"].to_numpy(dtype=object) for table in (users, *items)]
        titles_of = [table["title"].to_numpy(dtype=object) if "title" in table else None for table in items]
        recommender = Recommender.restore(config["recommender"], held)
        (low, high), numbered = config["source_scale"], frozenset(config["numbered"])
        return cls(config["profile"], config["cell"], recommender, *ids_of, (low, high), numbered, *titles_of)


def _named(ids_of: np.ndarray, titles_of: np.ndarray | None) -> pd.DataFrame:
    """A column id, and a column title where anything has one."""
    table = pd.DataFrame({"id": ids_of})
    return table if titles_of is None or not any(titles_of) else table.assign(title=titles_of)


def _served(store: Store, profile: Profile, cell: Cell, choice: Choice) -> "Served":
    """A trained model with what it needs to know of source users, all of them and new ones."""
    from ml.recommender import Served

    gate = gate_of(store, profile, choice.name, cell, choice.objective)
    entry = store.model(profile.name, choice.name, cell, choice.objective)
    entry.require()
    kind = json.loads(entry.read("config.json"))["model"]

    return Served(choice.name, kind, restored(entry, gate), encoder_of(gate), source_users(gate))


def encoder_of(gate: Gate) -> "SourceEncoder":
    """What turns source ratings into users as the gate's model takes them."""
    from ml.distribution.fold_in import EffectsFoldIn
    from ml.encoder import ItemStatistics, SourceEncoder

    store, source, needs = gate.store, gate.cell.source, gate.needs
    ratings = domain_ratings(store, source.name)
    statistics = effects = None
    if {"ratings", "stars"} & needs:
        levels = rating_levels(store, source.name) if "stars" in needs else None
        statistics = ItemStatistics.of(ratings.narrow(), ratings.n_items, levels)
    if "effects" in needs:
        entry = store.source_effects(gate.profile.name, source.name, gate.cell.seed)
        held = entry.tensors("effects.safetensors")
        effects = EffectsFoldIn(**{name: held[name] for name in held if name != "description"})
    return SourceEncoder(
        needs=tuple(sorted(needs)),
        n_items=ratings.n_items,
        scale=source.scale,
        liked_above=source.liked_above,
        factors=_fold_in(gate) if "factors" in needs else None,
        statistics=statistics,
        effects=effects,
    )


def _fold_in(gate: Gate) -> "FoldIn":
    """Of the source factors; those of choices and Spark's by their settings and biased ones by the penalties
    that were chosen for them, standardised over the training users as the gate gives them."""
    import torch

    from ml.factorization.biased import BiasedFactors
    from ml.factorization.implicit import ImplicitFactorization
    from ml.factorization.spark import SparkFactorization, SparkImplicitFactorization
    from ml.fold_in import FoldIn

    entry = source_entry(gate.store, gate.profile, gate.cell, gate.objective)
    held = entry.tensors("factors.safetensors")
    if "offset" not in held:
        ratings = domain_ratings(gate.store, gate.cell.source.name).narrow()
        return FoldIn.of(held["users"], held["items"], ratings)
    rows = torch.from_numpy(gate.cold_start.source_rows[gate.members("train")])
    if gate.profile.by_spark(gate.objective):
        given = gate.profile.factors(gate.cell.task, gate.objective)
        kind = SparkImplicitFactorization if gate.profile.implicit(gate.objective) else SparkFactorization
        trained = kind(**{name: value for name, value in given.items() if name != "model"})
        return FoldIn.of_spark(
            BiasedFactors(**held), trained.penalty, getattr(trained, "confidence", None), rows
        )
    if gate.profile.implicit(gate.objective):
        trained = ImplicitFactorization(**gate.profile.factors(gate.cell.task, gate.objective))
        return FoldIn.of_choices(BiasedFactors(**held), trained.penalty, trained.confidence, rows)
    tried = entry.table("trials.parquet")
    chosen = tried.loc[tried["rmse"].idxmin()]
    return FoldIn.of_biased(
        BiasedFactors(**held), float(chosen["penalty"]), float(chosen["bias_penalty"]), rows
    )


def source_users(gate: Gate) -> "Users":
    """All source users as the gate's model takes them, but for their ratings."""
    import torch

    from ml.data import SourceUsers, Users
    from ml.encoder import liked

    store, source = gate.store, gate.cell.source
    ratings = domain_ratings(store, source.name)
    factors = None
    if "factors" in gate.needs:
        held = gate.factors["source"]
        history = liked(ratings.narrow(), ratings.n_users, source.liked_above)
        factors = SourceUsers(held["users"], history, held["items"])
    rows = torch.arange(ratings.n_users)
    return Users(
        rows,
        torch.full_like(rows, -1),
        factors=factors,
        statistics=statistics_of(store, source) if "ratings" in gate.needs else None,
        description=gate.description,
    )


def _rated(store: Store, cell: Cell, n_users: int) -> "UserRatings":
    """Target ratings of the source domain's users, held-out ones too: a list must not show what its reader
    has rated, and nothing is learned from them."""
    import torch

    from ml.data import Ratings
    from ml.recommender import UserRatings

    target = domain_ratings(store, cell.target.name)
    shared = store.overlap(cell.task).table("users.parquet")
    source = torch.full((target.n_users,), -1)
    target_rows, source_rows = (
        torch.from_numpy(shared[f"{side}_user"].to_numpy(dtype=np.int64)) for side in ("target", "source")
    )
    source[target_rows] = source_rows
    ratings = target.tensors()
    users = source[ratings.users]
    mine = users >= 0
    return UserRatings.of(Ratings(users[mine], ratings.items[mine], ratings.values[mine]), n_users)
