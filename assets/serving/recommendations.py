"""`recommendations`: top-k target items of each cell's cold-start users, by the best model there is.

Cold-start users are the cell's test users and every source user who is not in the target domain at all. Users
of whom the model has nothing to go by get the most popular items. `recommend_file` does the same for users in
a Parquet file, known ones and new ones with a history.
"""

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from assets.data.cell import domain_ratings, roles, training_rows
from assets.data.files import check_output, check_parquet, literal
from assets.data.splits import split
from assets.settings.axes import CATALOG, SEEDS_TOGETHER, Cell, Trial, cells
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.compute import Compute
from assets.state.store import Entry, NotMaterialized, Store, fingerprint
from assets.training.distributions import DIFFUSION, DISCRIMINATIVE, source_effects
from assets.training.factors import source_config
from assets.training.outcome import restored
from ml.splits import TEST

if TYPE_CHECKING:
    from ml.data import SourceUsers
    from ml.distribution.recommender import DescribedUsers, StarRecommender
    from ml.recommender import CatalogueRecommender, Recommender

log = logging.getLogger("diffcdr")
CODE = code_of("assets.serving.recommendations:recommend_cell")
# Trained by the factorization itself: there is no map for a user who was not in it. Discriminative models are
# controls, whose features are not made for new users.
WITHOUT_MAP = ("tgt", "cmf", *DISCRIMINATIVE)
# Where a profile has no validation users, nothing fair can choose: the paper's own model.
UNVALIDATED = "diffcdr"
# Users at a time, one row group of the file: 20 items each are 1.3 million rows, some 100 MB.
CHUNK = 1 << 16
POPULARITY = "popularity"
SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("user_id", pa.string()),
        ("item", pa.int32()),
        ("item_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("model", pa.string()),
    ]
)
COLUMNS = dg.TableSchema(
    columns=[
        dg.TableColumn("user", "int32", "code of the user in the source domain"),
        dg.TableColumn("user_id", "string", "the user's own id"),
        dg.TableColumn("item", "int32", "code of the item in the target domain"),
        dg.TableColumn("item_id", "string", "the item's own id"),
        dg.TableColumn("rank", "int32", "1 for the best"),
        dg.TableColumn(
            "score",
            "float32",
            "user · item, or a distribution's mean rating; for popularity the item's number of ratings",
        ),
        dg.TableColumn("model", "string", "the model, or popularity for a user it has nothing to go by"),
    ]
)


class RecommendationError(ValueError):
    """Something asked for cannot be used; the message names the file, line or field and the hint."""


class RecommendationConfig(dg.Config):
    """What to recommend. Empty or default values filter next to nothing."""

    k: int = Field(default=20, ge=1, description="Items for each user.")
    exclude: str = Field(
        default="",
        description="Text file of item ids of the target domain, one a line, that are never recommended.",
    )
    min_ratings: int = Field(
        default=1,
        ge=0,
        description="Only items with at least so many ratings in training; with none, an item's factors "
        "were never trained.",
    )


def recommendations_asset(profile: Profile) -> dg.AssetsDefinition:
    """The recommendations of one profile."""
    by = "the model that is best on validation users" if profile.validation else UNVALIDATED

    @dg.asset(
        name="recommendations",
        key_prefix=profile.name,
        partitions_def=cells,
        deps=[split, *(dg.AssetKey([profile.name, key]) for key in _upstream(profile))],
        group_name="recommendations",
        kinds={"parquet", "pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=SEEDS_TOGETHER,
        pool="gpu",
        description=f"Top-k target items of each cold-start user, by {by}; popular items for users it has "
        f"nothing to go by. Profile: {profile.title}.",
    )
    def recommendations(
        context: dg.AssetExecutionContext, config: RecommendationConfig, store: Store, compute: Compute
    ) -> None:
        for key in context.partition_keys:
            facts = recommend_cell(store, compute, profile, Cell.parse(key), config)
            context.add_asset_metadata(
                {
                    "dagster/row_count": facts["rows"],
                    "dagster/column_schema": COLUMNS,
                    **{name: facts[name] for name in ("model", "objective", "users", "by_popularity")},
                },
                partition_key=key,
            )

    return recommendations


def candidates(profile: Profile) -> list[str]:
    """The models of a profile that may recommend."""
    if not profile.validation:
        return [name for name in profile.models if name == UNVALIDATED]
    if profile.biased:
        # Models of factors are trained on standardised ones, and folding in knows no biases.
        return [name for name in profile.models if profile.registered(name) == DIFFUSION]
    return [name for name in profile.models if profile.registered(name) not in WITHOUT_MAP]


def _upstream(profile: Profile) -> list[str]:
    """What a profile's recommendations are computed from: the models, and what they start from."""
    names = candidates(profile)
    starts = {"source_effects" if profile.registered(n) == DIFFUSION else "source_factors" for n in names}
    return [*sorted(starts), *names]


def recommend_cell(
    store: Store, compute: Compute, profile: Profile, cell: Cell, config: RecommendationConfig
) -> dict:
    """The manifest of a cell's recommendations, computed where missing or stale."""
    name, objective = best_model(store, profile, cell)
    entry = store.recommendations(profile.name, cell)
    wanted = fingerprint(
        code=CODE,
        model=[name, objective, store.model(profile.name, name, cell, objective).require()["fingerprint"]],
        source=_source(store, profile, cell, name, objective).require()["fingerprint"],
        split=store.split(cell).require()["fingerprint"],
        k=config.k,
        min_ratings=config.min_ratings,
        exclude=_excluded(config.exclude),
    )
    if entry.is_current(wanted):
        log.info("%s/recommendations %s: up to date", profile.name, cell.key)
        return entry.require()
    bundle = Bundle.load(store, profile, cell, name, objective, compute.torch_device, config)
    users = cold_users(store, profile, cell)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "recommendations.parquet")
        with _writer(file) as write:
            for chunk in np.array_split(users, range(CHUNK, len(users), CHUNK)):
                asked = bundle.known_users(chunk, bundle.user_ids[chunk])
                write(bundle.recommend(asked, config.k))
        by_popularity = int((~bundle.known[users]).sum())
        log.info("%s/recommendations %s: %d users by %s", profile.name, cell.key, len(users), name)
        return entry.write(
            {file.name: file},
            wanted,
            model=name,
            objective=objective,
            users=len(users),
            by_popularity=by_popularity,
            rows=pq.read_metadata(file).num_rows,
        )


def cold_users(store: Store, profile: Profile, cell: Cell) -> np.ndarray:
    """Source codes (n,) int64, rising: the cell's test users, and source users not in the target domain."""
    source = store.ratings(CATALOG.tasks[cell.task].source).require()["users"]
    shared = store.overlap(cell.task).table("users.parquet")["source_user"].to_numpy(dtype=np.int64)
    cold = np.ones(source, dtype=bool)
    cold[shared] = roles(store, profile, cell) == TEST
    return np.flatnonzero(cold)


def best_model(store: Store, profile: Profile, cell: Cell) -> tuple[str, str]:
    """The model that recommends in a cell and the objective it was trained for: ranking where there is one.

    The best on validation users by the objective's criterion, of those that are finished; DiffCDR in a
    profile without validation users. Raises NotMaterialized where none is finished.
    """
    names, objective = finished(store, profile, cell), _objective(profile)
    if not names:
        raise NotMaterialized(
            f"{cell.key}: no model of profile {profile.name} is trained yet; run "
            f"`diffcdr run --task {cell.task} --profile {profile.name}` first"
        )
    if not profile.validation:
        return names[0], objective
    entries = {name: store.model(profile.name, name, cell, objective) for name in names}
    return min(names, key=lambda name: validation_score(entries[name], objective)), objective


def finished(store: Store, profile: Profile, cell: Cell) -> list[str]:
    """The models that may recommend and are trained in a cell."""
    return [
        name
        for name in candidates(profile)
        if store.model(profile.name, name, cell, _objective(profile)).manifest()
    ]


def _objective(profile: Profile) -> str:
    if not candidates(profile):
        raise ValueError(
            f"profile {profile.name} has no model that can recommend; with biased factors that is "
            f"{DIFFUSION} alone: give one of its models `model: {DIFFUSION}`"
        )
    return "ranking" if "ranking" in profile.objectives_of(candidates(profile)[0]) else "rating"


def validation_score(entry: Entry, objective: str) -> float:
    """The criterion on validation users at the chosen epoch, negated where higher is better; NaN is worst."""
    from ml.evaluation.selection import OBJECTIVES

    chosen = OBJECTIVES[objective]
    sign = -1 if chosen.higher_is_better else 1
    score = (sign * entry.table("curves.parquet")[f"validation_{chosen.criterion}"]).min()
    return float("inf") if np.isnan(score) else float(score)


@dataclass(frozen=True)
class Bundle:
    """Everything that recommends for one cell, in the codes of the two domains and with their ids.

    users: all source users; known: (n,) bool, of whom there is something to go by; user_ids, source_ids,
    target_ids: ids by code of source users, source items and target items; scale: lowest and highest source
    rating.
    """

    name: str
    recommender: "CatalogueRecommender"
    users: "SourceUsers | DescribedUsers"
    known: np.ndarray
    user_ids: np.ndarray
    source_ids: np.ndarray
    target_ids: np.ndarray
    scale: tuple[float, float]

    @classmethod
    def load(
        cls,
        store: Store,
        profile: Profile,
        cell: Cell,
        name: str,
        objective: str,
        device: str,
        config: RecommendationConfig,
    ) -> "Bundle":
        task = CATALOG.tasks[cell.task]
        target_ids = _ids(store, task.target, "item")
        popularity = np.bincount(
            domain_ratings(store, task.target).items[training_rows(store, profile, cell)],
            minlength=len(target_ids),
        )
        make = _of_distribution if profile.registered(name) == DIFFUSION else _of_factors
        trained = Trained(store, profile, cell, name, objective, device)
        recommender, users = make(trained, popularity, allowed_items(target_ids, popularity, config))
        return cls(
            name=name,
            recommender=recommender,
            users=users,
            known=recommender.known(users).numpy(),
            user_ids=_ids(store, task.source, "user"),
            source_ids=_ids(store, task.source, "item"),
            target_ids=target_ids,
            scale=CATALOG.domains[task.source].scale,
        )

    def known_users(self, codes: np.ndarray, ids: np.ndarray) -> "Asked":
        """Source users by code (n,), -1 for a user who is unknown there, and what they are called."""
        import torch

        known = (codes >= 0) & self.known[codes]
        return Asked(self.users.take(torch.from_numpy(codes.clip(min=0))), known, codes, ids)

    def recommend(self, asked: "Asked", k: int) -> pa.Table:
        """Recommendations as rows of SCHEMA, users in the order given."""
        import torch

        rows = self.recommender.transfer(asked.users)
        items, scores = self.recommender.top(rows, torch.from_numpy(asked.known), k)
        each, items = items.shape[1], pa.array(items.flatten().numpy().astype(np.int32))
        users = np.repeat(np.arange(len(asked.codes), dtype=np.int32), each)
        names = pa.array([POPULARITY, self.name])
        # Arrow takes strings by place a good deal faster than numpy repeats them.
        columns = {
            "user": pa.array(asked.codes[users], pa.int32(), mask=asked.codes[users] < 0),
            "user_id": pa.array(asked.ids, pa.string()).take(pa.array(users)),
            "item": items,
            "item_id": pa.array(self.target_ids, pa.string()).take(items),
            "rank": np.tile(np.arange(1, each + 1, dtype=np.int32), len(asked.codes)),
            "score": scores.flatten().numpy(),
            "model": names.take(pa.array(asked.known[users].astype(np.int32))),
        }
        return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True)
class Asked:
    """n users to recommend to: known (n,) bool, whether there is something to go by; codes (n,) in the source
    domain, -1 where they have none; ids (n,)."""

    users: "SourceUsers | DescribedUsers"
    known: np.ndarray
    codes: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A trained model of a cell, and where what goes with it is."""

    store: Store
    profile: Profile
    cell: Cell
    name: str
    objective: str
    device: str

    def load(self, device: str):
        """The model on a device."""
        entry = self.store.model(self.profile.name, self.name, self.cell, self.objective)
        return restored(entry, device)

    @property
    def source(self) -> Entry:
        return _source(self.store, self.profile, self.cell, self.name, self.objective)


def _of_factors(
    trained: Trained, popularity: np.ndarray, allowed: np.ndarray
) -> "tuple[Recommender, SourceUsers]":
    """The recommender of a transfer model and all source users."""
    import torch

    from ml.fold_in import FoldIn
    from ml.recommender import Recommender

    store, domain = trained.store, CATALOG.tasks[trained.cell.task].source
    source = trained.source.tensors("factors.safetensors")
    target = store.target_factors(trained.profile.name, trained.cell, trained.objective)
    recommender = Recommender(
        trained.load(trained.device),
        FoldIn.of(source["users"], source["items"], domain_ratings(store, domain).tensors()),
        target.tensors("factors.safetensors")["items"],
        torch.from_numpy(popularity),
        torch.from_numpy(allowed),
        CATALOG.domains[domain].liked_above,
    )
    return recommender, _source_users(store, domain, source)


def _of_distribution(
    trained: Trained, popularity: np.ndarray, allowed: np.ndarray
) -> "tuple[StarRecommender, DescribedUsers]":
    """The recommender of a distribution over ratings, which computes on the CPU, and all source users."""
    import torch

    from ml.distribution.recommender import DescribedUsers, EffectsFoldIn, StarRecommender

    source = trained.source.tensors("effects.safetensors")
    description = source.pop("description")
    recommender = StarRecommender(
        trained.load("cpu"),
        EffectsFoldIn(**source),
        torch.from_numpy(popularity),
        torch.from_numpy(allowed),
    )
    return recommender, DescribedUsers(description)


def _source_users(store: Store, domain: str, source: Mapping) -> "SourceUsers":
    """All users of the source domain with what they liked."""
    import torch

    from ml.data import SourceUsers
    from ml.recommender import history_of

    ratings = domain_ratings(store, domain)
    liked = ratings.values > CATALOG.domains[domain].liked_above
    users, items = (torch.from_numpy(column[liked]) for column in (ratings.users, ratings.items))
    return SourceUsers(source["users"], history_of(users, items, ratings.n_users), source["items"])


def _source(store: Store, profile: Profile, cell: Cell, name: str, objective: str) -> Entry:
    """What the model `name` knows source users by."""
    if profile.registered(name) == DIFFUSION:
        return source_effects(store, profile, cell)
    config = source_config(profile, cell.task)
    return store.source_factors(profile.name, CATALOG.tasks[cell.task].source, config, cell.seed, objective)


def _ids(store: Store, domain: str, kind: str) -> np.ndarray:
    """Ids of a domain's users or items by code: (n,) strings."""
    with duckdb.connect(str(store.database(domain)), read_only=True) as connection:
        ids = connection.execute(f'SELECT {kind}_id FROM {kind}s ORDER BY "{kind}"').fetchnumpy()
    return np.asarray(ids[f"{kind}_id"], dtype=object)


def allowed_items(ids: np.ndarray, popularity: np.ndarray, config: RecommendationConfig) -> np.ndarray:
    """Codes (a,) int64 of the target items that pass the filters.

    Raises RecommendationError for an excluded id that is not in `ids`, and where no item is left.
    """
    allowed = popularity >= config.min_ratings
    excluded = _excluded(config.exclude)
    codes = pd.Index(ids).get_indexer(excluded)
    if (codes < 0).any():
        stranger = excluded[int((codes < 0).argmax())]
        raise RecommendationError(
            f"{config.exclude}: item {stranger!r} is not in the target domain; correct or remove that line"
        )
    allowed[codes] = False
    if not allowed.any():
        raise RecommendationError(
            f"no item has {config.min_ratings} ratings in training and is not excluded; lower min_ratings "
            "or exclude fewer items"
        )
    return np.flatnonzero(allowed)


def _excluded(path: str) -> list[str]:
    if not path:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecommendationError(f"the exclusion list {path} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


@contextmanager
def _writer(path: Path) -> Iterator:
    """A function that adds a table to the file as one row group."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        yield lambda table: writer.write_table(table, row_group_size=max(1, len(table)))


# Users from a file.


def load_bundle(
    store: Store, profile: Profile, task: str, trial: str, config: RecommendationConfig
) -> Bundle:
    """What the best model of a cell needs to recommend on the CPU; of the first trained cell without `trial`.

    Raises RecommendationError for a trial that is not in the catalogue, NotMaterialized for one not trained.
    """
    every = [Trial(beta, seed) for beta in CATALOG.betas for seed in CATALOG.seeds]
    keys = [each.key for each in every]
    if trial and trial not in keys:
        raise RecommendationError(f"unknown cell {trial!r}; known are {', '.join(keys)}")
    wanted = [Cell(task, each) for each in every if not trial or each.key == trial]
    trained = [cell for cell in wanted if finished(store, profile, cell)]
    cell = (trained or wanted)[0]
    name, objective = best_model(store, profile, cell)
    log.info("%s of %s, trained for %s", name, cell.key, objective)
    return Bundle.load(store, profile, cell, name, objective, "cpu", config)


def recommend_file(bundle: Bundle, users: Path, output: Path, k: int) -> dict[str, int]:
    """Recommend for the users of a Parquet file and write `output`, whole or not at all; returns counts.

    `users` has a column user_id. With item_id and rating as well, a row is a source rating, and a user is
    known by these ratings alone and folded in; without, users are looked up in the source domain. Users come
    in bytewise order of their ids. Of whom there is nothing to go by gets the most popular items.
    Raises RecommendationError for a file that cannot be used.
    """
    check_parquet(users)
    check_output(output, {"--users": users})
    partial = output.with_name(f".{uuid.uuid4().hex}.partial")
    by_popularity = 0
    with duckdb.connect(config={"temp_directory": str(output.absolute().parent)}) as connection:
        pick = _stage(connection, users, bundle)
        [n] = connection.execute("SELECT count(*) FROM asked").fetchone()
        try:
            with _writer(partial) as write:
                for start in range(0, n, CHUNK):
                    asked = pick(connection, bundle, start)
                    by_popularity += int((~asked.known).sum())
                    write(bundle.recommend(asked, k))
                    log.info("recommended for %d of %d users", min(start + CHUNK, n), n)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    return {"users": n, "by_popularity": by_popularity}


def _stage(connection: "duckdb.DuckDBPyConnection", users: Path, bundle: Bundle) -> Callable:
    """Make the table asked(n, user_id), and history(n, item, rating, place) where the file has one; returns
    what picks a chunk of users from them."""
    try:
        columns = {row[0] for row in connection.execute(f"DESCRIBE FROM {_parquet(users)}").fetchall()}
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise RecommendationError(f"{users} is not a readable Parquet file: {reason}") from None
    if "user_id" not in columns:
        raise RecommendationError(f"{users}: no column user_id; the file has {', '.join(sorted(columns))}")
    _refuse(connection, users, "user_id IS NULL", "'the user id is missing'")
    connection.execute(
        f"CREATE TABLE asked AS SELECT row_number() OVER (ORDER BY user_id) - 1 AS n, user_id "
        f"FROM (SELECT DISTINCT user_id::VARCHAR AS user_id FROM {_parquet(users)}) ORDER BY n"
    )
    _register(connection, "codes", "user_id", bundle.user_ids)
    if not {"item_id", "rating"} <= columns:
        return _looked_up
    _register(connection, "items", "item_id", bundle.source_ids)
    _refuse(
        connection,
        users,
        "item_id IS NULL OR item_id::VARCHAR NOT IN (SELECT item_id FROM items)",
        "'item ' || coalesce(item_id::VARCHAR, 'null') || ' is not in the source domain'",
    )
    _refuse_ratings(connection, users, bundle)
    # Of two ratings of one item the latter counts, as in the source domain itself.
    connection.execute(
        f"""CREATE TABLE history AS
            SELECT n, code AS item, arg_max(rating::FLOAT, file_row_number) AS rating,
                   max(file_row_number) AS place
            FROM {_parquet(users)} f
            JOIN asked ON asked.user_id = f.user_id::VARCHAR
            JOIN items ON items.item_id = f.item_id::VARCHAR
            GROUP BY n, code ORDER BY n, place"""
    )
    return _folded_in


def _parquet(path: Path) -> str:
    return f"read_parquet({literal(path)}, file_row_number = true, hive_partitioning = false)"


def _register(connection: "duckdb.DuckDBPyConnection", table: str, name: str, ids: np.ndarray) -> None:
    frame = pa.table({name: pa.array(ids, pa.string()), "code": np.arange(len(ids))})
    connection.register("frame", frame)
    connection.execute(f"CREATE TABLE {table} AS FROM frame")
    connection.unregister("frame")


def _refuse(connection: "duckdb.DuckDBPyConnection", users: Path, bad: str, reason: str) -> None:
    """Raise RecommendationError with the first row for which the condition `bad` holds."""
    found = connection.execute(
        f"SELECT file_row_number + 1, {reason} FROM {_parquet(users)} WHERE {bad} ORDER BY 1 LIMIT 1"
    ).fetchone()
    if found:
        raise RecommendationError(f"{users}, row {found[0]}: {found[1]}; correct or remove that row")


def _refuse_ratings(connection: "duckdb.DuckDBPyConnection", users: Path, bundle: Bundle) -> None:
    low, high = bundle.scale
    rating = "'rating ' || coalesce(rating::VARCHAR, 'null')"
    number = "TRY_CAST(rating AS DOUBLE)"
    _refuse(connection, users, f"rating IS NULL OR isnan({number})", "'the rating is missing (null or NaN)'")
    _refuse(
        connection,
        users,
        f"coalesce(TRY_CAST(rating AS DOUBLE) NOT BETWEEN {low!r} AND {high!r}, true)",
        f"{rating} || ' is not a number from {low:g} to {high:g}'",
    )
    if bundle.recommender.source_levels is not None:
        levels = bundle.recommender.source_levels.tolist()
        known = ", ".join(f"{level:g}" for level in levels)
        # As 32-bit numbers, as all ratings are kept.
        bad = f"rating::FLOAT::DOUBLE NOT IN ({', '.join(map(repr, levels))})"
        _refuse(connection, users, bad, f"{rating} || ' is none of the levels {known}'")


def _looked_up(connection: "duckdb.DuckDBPyConnection", bundle: Bundle, start: int) -> Asked:
    rows = connection.execute(
        """SELECT user_id, coalesce(code, -1) AS code FROM asked LEFT JOIN codes USING (user_id)
           WHERE n >= $1 AND n < $2 ORDER BY n""",
        [start, start + CHUNK],
    ).fetchnumpy()
    return bundle.known_users(np.asarray(rows["code"], np.int64), np.asarray(rows["user_id"], object))


def _folded_in(connection: "duckdb.DuckDBPyConnection", bundle: Bundle, start: int) -> Asked:
    """Users by the ratings in the file; a code only says that an id is known as well."""
    import torch

    from ml.data import Ratings

    names = _looked_up(connection, bundle, start)
    rows = connection.execute(
        "SELECT n - $1 AS n, item, rating FROM history WHERE n >= $1 AND n < $2 ORDER BY n, place",
        [start, start + CHUNK],
    ).fetchnumpy()
    kinds = {"n": np.int64, "item": np.int64, "rating": np.float32}
    ratings = Ratings(*(torch.from_numpy(np.asarray(rows[name], kind)) for name, kind in kinds.items()))
    users = bundle.recommender.fold(ratings, len(names.ids))
    return Asked(users, bundle.recommender.known(users).numpy(), names.codes, names.ids)
