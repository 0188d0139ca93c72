"""`ratings`: each domain's ratings, cleaned and checked, as Parquet files that DuckDB writes and reads."""

import dataclasses
import logging
from collections.abc import Iterator

import dagster as dg
import duckdb
import numpy as np

from assets.data import ingest
from assets.data.tables import attach
from assets.settings.axes import Axes
from assets.settings.catalog import Domain
from assets.state import plots
from assets.state.code import code_of
from assets.state.store import Store, fingerprint

log = logging.getLogger("diffcdr")
WHOLE = "ratings_are_whole"
CODE = code_of("assets.data.ratings:ingest_domain")
COLUMNS = dg.TableSchema(
    columns=[
        dg.TableColumn("row", "BIGINT", "number of the row: by user, time and line of the file"),
        dg.TableColumn("user", "INTEGER", "row of the users table, dense, in the order of user ids"),
        dg.TableColumn("item", "INTEGER", "row of the items table, dense, in the order of item ids"),
        dg.TableColumn("rating", "FLOAT", "stars on the declared scale"),
        dg.TableColumn("timestamp", "BIGINT", "seconds since 1970; null where the source has no time"),
    ]
)


def ratings_asset(axes: Axes) -> dg.AssetsDefinition:
    """The ratings of a catalogue's domains."""

    @dg.asset(
        partitions_def=axes.domains,
        deps=["reviews"],
        group_name="data",
        kinds={"duckdb", "parquet"},
        owners=["team:data"],
        code_version=CODE,
        check_specs=[
            dg.AssetCheckSpec(
                WHOLE,
                asset="ratings",
                blocking=True,
                description="As many as were read, each on the declared scale, one a user and item, and all "
                "users and items are in their tables.",
            )
        ],
    )
    def ratings(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """One row per (user, item), the latest. Bad rows fail by line and field, or are set aside."""
        for name in context.partition_keys:
            facts = ingest_domain(store, axes.catalog.domains[name])
            context.add_asset_metadata(
                {
                    "dagster/row_count": facts["ratings"],
                    "dagster/column_schema": COLUMNS,
                    **{key: facts[key] for key in ("users", "items", "rows_read", "repeated", "quarantined")},
                    "dropped_by_core": facts["dropped_by_core"],
                    "sparsity": facts["sparsity"],
                    "stars": dg.MetadataValue.md(plots.bars(facts["stars"], "stars", "share of ratings")),
                    "path": dg.MetadataValue.path(store.ratings(name).place),
                },
                partition_key=name,
            )
        domains = [axes.catalog.domains[name] for name in context.partition_keys]
        problems = [problem for domain in domains for problem in rating_problems(store, domain)]
        found = {"problems": dg.MetadataValue.json(problems), "found": len(problems)}
        check = dg.AssetCheckResult(check_name=WHOLE, passed=not problems, metadata=found)
        return dg.MaterializeResult(check_results=[check])

    return ratings


def rating_problems(store: Store, domain: Domain) -> Iterator[str]:
    """What is wrong with a domain's ratings as they lie in the store."""
    facts, (low, high) = store.ratings(domain.name).require(), domain.scale
    with duckdb.connect() as connection:
        attach(connection, store.ratings(domain.name).folder())
        rows, pairs, outside, unknown = connection.execute(
            """
            SELECT count(*), (SELECT count(*) FROM (SELECT DISTINCT "user", item FROM ratings)),
                   count_if(rating IS NULL OR isnan(rating) OR rating NOT BETWEEN $low AND $high),
                   count_if("user" NOT IN (SELECT "user" FROM users)
                            OR item NOT IN (SELECT item FROM items))
            FROM ratings
            """,
            # Ratings are 32-bit numbers, and so are the ends here.
            {"low": float(np.float32(low)), "high": float(np.float32(high))},
        ).fetchone()
    if rows != facts["ratings"]:
        yield f"{domain.name}: {rows} ratings for {facts['ratings']} that were read"
    if pairs != rows:
        yield f"{domain.name}: {rows - pairs} ratings of a user and item that have another"
    if outside:
        yield f"{domain.name}: {outside} ratings are not from {low:g} to {high:g}"
    if unknown:
        yield f"{domain.name}: {unknown} ratings of users or items that are not in their tables"


def ratings_fingerprint(store: Store, domain: Domain) -> str:
    """What the domain's ratings are made of: the raw file, how it is read, and by which code."""
    options = domain.model_dump(mode="json", exclude={"url", "title", "sha256", "paper"})
    return fingerprint(domain=options, raw=store.reviews(domain.name).require()["sha256"], code=CODE)


def ingest_domain(store: Store, domain: Domain) -> dict:
    """The manifest of the domain's ratings, reading the raw file where they are missing or stale."""
    raw, entry = store.reviews(domain.name), store.ratings(domain.name)
    source, expected = raw.require(), ratings_fingerprint(store, domain)
    if entry.is_current(expected):
        log.info("ratings %s: up to date", domain.name)
        return entry.require()
    with entry.draft() as draft:
        ingested = ingest.ingest(raw.path_of(source["file"]), draft.folder, domain)
        manifest = draft.publish(expected, **dataclasses.asdict(ingested))
    log.info(
        "ratings %s: %d ratings of %d users on %d items (%d rows read, %d repeated)",
        domain.name,
        *(manifest[key] for key in ("ratings", "users", "items", "rows_read", "repeated")),
    )
    return manifest
