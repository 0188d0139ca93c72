"""`overlap` (per task): who is in both domains. `split` (per cell): who plays which role."""

import logging

import dagster as dg
import duckdb
import numpy as np
import pandas as pd

from assets.data.ratings import ratings_fingerprint
from assets.data.tables import attach
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import Catalog, SplitConfig, Task
from assets.state.code import code_of
from assets.state.store import Store, fingerprint, parquet
from ml import splits

log = logging.getLogger("diffcdr")
OVERLAP_CODE = code_of("assets.data.splits:_query_overlap")
SPLIT_CODE = code_of("assets.data.splits:draw_split")


def overlap_asset(axes: Axes) -> dg.AssetsDefinition:
    """The users that the two domains of each task share."""

    @dg.asset(
        partitions_def=axes.tasks,
        deps=[dg.AssetDep("ratings", partition_mapping=axes.domain_to_task)],
        group_name="data",
        kinds={"duckdb", "parquet"},
        owners=["team:data"],
        code_version=OVERLAP_CODE,
    )
    def overlap(context: dg.AssetExecutionContext, store: Store) -> None:
        """Users with ratings in both domains, by id, and the source items each of them liked."""
        for name in context.partition_keys:
            facts = find_overlap(store, axes.catalog, name)
            context.add_asset_metadata(
                {
                    "dagster/row_count": facts["users"],
                    **{k: facts[k] for k in ("liked", "without_liked", "timed")},
                },
                partition_key=name,
            )

    return overlap


def overlap_fingerprint(store: Store, catalog: Catalog, name: str) -> str:
    """What a task's overlap is made of: both domains' ratings and what is expected and liked."""
    task = catalog.tasks[name]
    domains = {side: catalog.domains[domain] for side, domain in _sides(task).items()}
    return fingerprint(
        code=OVERLAP_CODE,
        sides={side: ratings_fingerprint(store, domain) for side, domain in domains.items()},
        expected=task.overlap,
        liked_above=domains["source"].liked_above,
    )


def find_overlap(store: Store, catalog: Catalog, name: str) -> dict:
    """The manifest of the task's overlapping users, computed where missing or stale."""
    task = catalog.tasks[name]
    entry, expected = store.overlap(task.name), overlap_fingerprint(store, catalog, name)
    if entry.is_current(expected):
        log.info("overlap %s: up to date", task.name)
        return entry.require()
    for domain in _sides(task).values():
        store.ratings(domain).require_current(ratings_fingerprint(store, catalog.domains[domain]))
    users, liked = _query_overlap(store, task, catalog.domains[task.source].liked_above)
    if users.empty:
        raise ValueError(
            f"task {task.name}: no user of {task.source} is also in {task.target}; "
            "cross-domain transfer needs users with ratings in both, under the same user ids"
        )
    if task.overlap is not None and len(users) != task.overlap:
        raise ValueError(
            f"task {task.name}: {len(users)} overlapping users, the catalogue expects {task.overlap}; "
            "check that both domains come from the same edition, or correct `overlap` in the catalogue"
        )
    with_liked = liked["user"].nunique()
    log.info("overlap %s: %d users, %d liked source ratings", task.name, len(users), len(liked))
    return entry.write(
        {"users.parquet": parquet(users), "liked.parquet": parquet(liked)},
        expected,
        users=len(users),
        liked=len(liked),
        without_liked=len(users) - with_liked,
        timed=all(
            store.ratings(domain).require()["last_time"] is not None for domain in _sides(task).values()
        ),
    )


def _sides(task: Task) -> dict[str, str]:
    return {"source": task.source, "target": task.target}


def _query_overlap(store: Store, task: Task, liked_above: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    with duckdb.connect() as connection:
        for side, domain in _sides(task).items():
            attach(connection, store.ratings(domain).folder(), side)
        connection.execute(
            """
            CREATE TEMP TABLE shared AS
            SELECT row_number() OVER (ORDER BY s.user_id) - 1 AS user, s.user_id,
                   s.user AS source_user, t.user AS target_user
            FROM source.users s JOIN target.users t USING (user_id)
            """
        )
        users = connection.execute(
            """
            SELECT user, user_id, source_user, target_user, source_ratings, target_ratings
            FROM shared
            JOIN (SELECT user AS source_user, count(*) AS source_ratings FROM source.ratings GROUP BY ALL)
                USING (source_user)
            JOIN (SELECT user AS target_user, count(*) AS target_ratings FROM target.ratings GROUP BY ALL)
                USING (target_user)
            ORDER BY user
            """
        ).df()
        # The row keeps the file's order among ratings of the same moment, or where there is no time at all.
        liked = connection.execute(
            """
            SELECT shared.user::INTEGER AS user, r.item
            FROM source.ratings r JOIN shared ON r.user = shared.source_user
            WHERE r.rating > ?::FLOAT
            ORDER BY shared.user, r.timestamp NULLS FIRST, r.row
            """,
            [liked_above],
        ).df()
    return users, liked


def split_asset(axes: Axes) -> dg.AssetsDefinition:
    """The roles of each cell's overlapping users."""

    @dg.asset(
        partitions_def=axes.cells,
        deps=["overlap"],
        group_name="data",
        kinds={"parquet"},
        owners=["team:data"],
        code_version=SPLIT_CODE,
        backfill_policy=axes.seeds_together,
    )
    def split(context: dg.AssetExecutionContext, store: Store) -> None:
        """The role of each overlapping user (train, validation, test), from the cell's β and seed."""
        for key in context.partition_keys:
            facts = draw_split(store, axes.catalog, axes.parse(key))
            context.add_asset_metadata(
                {
                    "dagster/row_count": sum(facts["counts"].values()),
                    **{f"{role}_users": count for role, count in facts["counts"].items()},
                    "warm_start": facts["warm_start"],
                    "manifest_hash": facts["manifest_hash"],
                },
                partition_key=key,
            )

    return split


def split_fingerprint(store: Store, catalog: Catalog, cell: Cell) -> str:
    """What a cell's split is made of: the overlap, β, the seed and the share of validation users."""
    return fingerprint(
        code=SPLIT_CODE,
        overlap=overlap_fingerprint(store, catalog, cell.task),
        beta=cell.beta,
        seed=split_seed(catalog.split, cell),
        validation=catalog.split.validation,
    )


def split_seed(config: SplitConfig, cell: Cell) -> int:
    """The seed that a cell's users are drawn by."""
    return cell.seed if config.seed is None else config.seed


def draw_split(store: Store, catalog: Catalog, cell: Cell) -> dict:
    """The manifest of the cell's split, drawn where missing or stale."""
    shared, entry, expected = (
        store.overlap(cell.task),
        store.split(cell),
        split_fingerprint(store, catalog, cell),
    )
    shared_facts = shared.require_current(overlap_fingerprint(store, catalog, cell.task))
    if entry.is_current(expected):
        return entry.require()
    users = shared.table("users.parquet")
    roles = splits.assign_roles(
        len(users), cell.beta, split_seed(catalog.split, cell), cell.task, catalog.split.validation
    )
    files = {
        "roles.parquet": parquet(pd.DataFrame({"user": np.arange(len(users), dtype=np.int32), "role": roles}))
    }
    if shared_facts["timed"]:
        files["warm.parquet"] = parquet(_warm(store, cell, users, roles))
    counts = {role: int((roles == index).sum()) for index, role in enumerate(splits.ROLES)}
    log.info("split %s: %s", cell.key, ", ".join(f"{count} {role}" for role, count in counts.items()))
    return entry.write(
        files,
        expected,
        counts=counts,
        manifest_hash=splits.manifest_hash(users["user_id"].tolist(), roles),
        warm_start="by time" if shared_facts["timed"] else "refused: a domain has no timestamps",
    )


def _warm(store: Store, cell: Cell, users: pd.DataFrame, roles: np.ndarray) -> pd.DataFrame:
    """The held-out users' target ratings with the half each belongs to."""
    held_out = users.loc[roles != splits.TRAIN, ["user", "target_user"]]
    with duckdb.connect() as connection:
        attach(connection, store.ratings(cell.target.name).folder())
        connection.register("held_out", held_out)
        rows = connection.execute(
            """
            SELECT held_out.user::INTEGER AS user, r.item, r.timestamp
            FROM ratings r JOIN held_out ON r.user = held_out.target_user
            ORDER BY held_out.user, r.timestamp, r.row
            """
        ).df()
    later = splits.warm_halves(rows["user"].to_numpy(), rows["timestamp"].to_numpy())
    return pd.DataFrame({"user": rows["user"], "item": rows["item"], "later": later})
