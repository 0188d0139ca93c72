"""`recommendations`: top-k target items of each cell's cold-start users, by the best models there are.

Cold-start users are the cell's test users and every source user who is not in the target domain at all. Users
of whom nothing is known get the most popular items, and are told so.
"""

import logging
import tempfile
from pathlib import Path
from typing import Literal

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from assets.data.cell import roles
from assets.serving import lists
from assets.serving.bundle import Bundle, Filters
from assets.serving.choice import choose_at, objectives
from assets.serving.lists import Named, Wanted
from assets.settings.axes import Axes, Cell
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.store import Store, fingerprint
from assets.training.choose import candidates
from ml.splits import TEST

log = logging.getLogger("diffcdr")
# Users at a time, one row group of the file: 20 items each are 1.3 million rows, some 100 MB.
CHUNK = 1 << 16
CODE = code_of("assets.serving.recommendations:recommend_cell")


class RecommendationConfig(dg.Config):
    """What to recommend. Empty or default values filter next to nothing."""

    k: int = Field(default=20, ge=1, description="Items for each user.")
    list: Literal["probability", "coverage"] = Field(
        default="probability",
        description="Order: by the probability or score of each item, or as a set that covers the user's "
        "possible tastes, where the model can.",
    )
    include_rated: bool = Field(default=False, description="List what a user has rated already, too.")
    exclude: str = Field(
        default="",
        description="Text file of item ids of the target domain, one a line, that are never recommended.",
    )
    min_ratings: int = Field(
        default=1,
        ge=0,
        description="Only items with at least so many ratings in training; one with none was never learned.",
    )

    @property
    def filters(self) -> Filters:
        return Filters.read(self.exclude, self.min_ratings)

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.k, self.list, self.include_rated)


def recommendations_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The recommendations of one profile."""
    names = dict.fromkeys(
        name for objective in objectives(profile) for name in candidates(profile, objective)
    )
    by = "the models that are best on validation users" if profile.validation else " or ".join(profile.ours)

    @dg.asset(
        name="recommendations",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=["split", *(dg.AssetKey([profile.name, name]) for name in names)],
        group_name=profile.group("serving"),
        kinds={"parquet", "pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=axes.seeds_together,
        pool="gpu",
        description=f"Top-k target items of each cold-start user with the stars that are expected, by {by}; "
        f"popular items for users of whom nothing is known. Profile: {profile.title}.",
    )
    def recommendations(
        context: dg.AssetExecutionContext, config: RecommendationConfig, store: Store
    ) -> None:
        for key in context.partition_keys:
            facts = recommend_cell(store, axes, profile, axes.parse(key), config)
            shown = ("model", "stars", "users", "by_popularity")
            context.add_asset_metadata(
                {
                    "dagster/row_count": facts["rows"],
                    "dagster/column_schema": lists.described(),
                    **{name: facts[name] for name in shown if facts[name] is not None},
                },
                partition_key=key,
            )

    return recommendations


def recommend_cell(
    store: Store, axes: Axes, profile: Profile, cell: Cell, config: RecommendationConfig
) -> dict:
    """The manifest of a cell's recommendations, computed where missing or stale.

    The models are the best of the cells of this β that are trained. Raises as `choose` does, and
    RecommendationError for a filter that cannot be used.
    """
    chosen = choose_at(store, axes, profile, cell)
    filters, entry = config.filters, store.recommendations(profile.name, cell)
    made_of = [store.model(profile.name, c.name, cell, c.objective).require() for c in chosen.all]
    expected = fingerprint(
        code=CODE,
        models=[[c.name, c.objective, m["fingerprint"]] for c, m in zip(chosen.all, made_of, strict=True)],
        wanted=vars(config.wanted),
        min_ratings=filters.min_ratings,
        exclude=list(filters.exclude),
    )
    if entry.is_current(expected):
        log.info("%s/recommendations %s: up to date", profile.name, cell.key)
        return entry.require()
    bundle = Bundle.of_cell(store, profile, cell, chosen, filters)
    bundle.recommender.check_order(config.list)
    users, by_popularity = cold_users(store, profile, cell), 0
    columns = lists.schema(bundle)
    user_ids = pa.array(bundle.user_ids, pa.string()).cast(columns.field("user_id").type)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "recommendations.parquet")
        with lists.writer(file, columns) as write:
            for rows in np.array_split(users, range(CHUNK, len(users), CHUNK)):
                listed, strangers = lists.table(bundle, known_users(bundle, rows, user_ids), config.wanted)
                by_popularity += strangers
                write(listed)
        log.info("%s/recommendations %s: %d users by %s", profile.name, cell.key, len(users), chosen)
        return entry.write(
            {file.name: file},
            expected,
            model=chosen.lists.name,
            stars=chosen.stars.name if chosen.stars else None,
            users=len(users),
            by_popularity=by_popularity,
            rows=pq.read_metadata(file).num_rows,
        )


def known_users(bundle: Bundle, rows: np.ndarray, user_ids: pa.Array) -> Named:
    """Source users by row (n,) int64, all of them there."""
    import torch

    return Named(bundle.recommender.known_users(torch.from_numpy(rows)), rows, user_ids.take(pa.array(rows)))


def cold_users(store: Store, profile: Profile, cell: Cell) -> np.ndarray:
    """Source rows (n,) int64, rising: the cell's test users, and source users not in the target domain."""
    source = store.ratings(cell.source.name).require()["users"]
    shared = store.overlap(cell.task).table("users.parquet")["source_user"].to_numpy(dtype=np.int64)
    cold = np.ones(source, dtype=bool)
    cold[shared] = roles(store, profile, cell) == TEST
    return np.flatnonzero(cold)
