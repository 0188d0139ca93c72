"""`reviews`: the raw review file of each domain, as downloaded, queried or generated."""

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg
import duckdb
import fsspec
import pyarrow.parquet as pq
import requests

from assets.data import download
from assets.settings.axes import Axes
from assets.settings.catalog import Domain
from assets.state.code import code_of
from assets.state.store import Store, fingerprint, writing

log = logging.getLogger("diffcdr")
CODE = code_of("assets.data.reviews:obtain")


class QueryError(ValueError):
    """A domain's query gives no ratings; the message names the domain, what is wrong and the hint."""


def reviews_asset(axes: Axes) -> dg.AssetsDefinition:
    """The raw rating files of a catalogue's domains."""

    @dg.asset(
        partitions_def=axes.domains,
        group_name="data",
        kinds={"file"},
        owners=["team:data"],
        code_version=CODE,
    )
    def reviews(context: dg.AssetExecutionContext, store: Store) -> None:
        """The domain's rating file as its source distributes it, verified: length, gzip stream, sha256."""
        records = {name: obtain(store, axes.catalog.domains[name]) for name in context.partition_keys}
        # By content, so that a file that was only touched or moved sets nothing off downstream.
        contents = [record["sha256"] for record in records.values()]
        context.set_data_version(context.asset_key, dg.DataVersion("-".join(contents)))
        for name, record in records.items():
            context.add_asset_metadata(
                {
                    "size": dg.MetadataValue.int(record["size"]),
                    "sha256": record["sha256"],
                    "source": record["source"],
                    "fetched_at": record["fetched_at"],
                    "path": dg.MetadataValue.path(f"{store.reviews(name).place}/{record['file']}"),
                },
                partition_key=name,
            )

    return reviews


def obtain(store: Store, domain: Domain) -> dict:
    """The manifest of the domain's raw file, which is fetched, queried or generated where missing or stale.

    A source that cannot be asked now, as with no network, does not make the copy at hand stale.
    Raises DownloadError, and QueryError for a query that fails or gives nothing.
    """
    entry, state = store.reviews(domain.name), _state(domain)
    if state is None:
        state = (entry.manifest() or {}).get("state")
    wanted = _fingerprint(domain, state)
    if entry.is_current(wanted):
        log.info("reviews %s: up to date", domain.name)
        return entry.require()
    incoming = store.incoming(domain.name)
    with writing(incoming):
        incoming.mkdir(parents=True, exist_ok=True)
    with _located(domain, incoming) as (url, file):
        fetched = download.fetch(url, incoming / file, sha256=domain.sha256)
    with entry.draft() as draft:
        # The store may be on another disk.
        shutil.move(incoming / file, draft.folder / file)
        manifest = draft.publish(
            wanted,
            state=state,
            file=file,
            size=fetched.size,
            sha256=fetched.sha256,
            source=domain.origin,
            fetched_at=fetched.fetched_at,
        )
    log.info("reviews %s: %s, %.1f MB", domain.name, domain.origin, fetched.size / 1e6)
    return manifest


def change(store: Store, domain: Domain) -> str | None:
    """What tells this change of the domain's source from any other; None where there is none.

    There is none, either, where the file was never fetched or its source cannot be asked now.
    """
    manifest = store.reviews(domain.name).manifest()
    state = _state(domain) if manifest else None
    if state is None:
        return None
    old, new = manifest["fingerprint"], _fingerprint(domain, state)
    return None if old == new else f"{old}-{new}"


def _fingerprint(domain: Domain, state: object) -> str:
    place = domain.url if domain.query is None else [domain.url, domain.query]
    return fingerprint(url=place, sha256=domain.sha256, source=state)


@contextlib.contextmanager
def _located(domain: Domain, folder: Path) -> Iterator[tuple[str, str]]:
    """Where to fetch the domain's file from, and its name; queries and generators are run first."""
    make = _generate if domain.query is None else _query
    if make is _generate and not domain.url.startswith("synthetic:"):
        yield domain.url, _file_name(domain.url)
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = make(domain, Path(scratch))
        yield str(made), made.name


def _file_name(url: str) -> str:
    """The file's own name as far as it is a plain one, so that none is the entry's manifest or too long."""
    local = download.local_path(url)
    name = local.name if local else Path(urlsplit(url).path).name
    return "raw-" + re.sub("[^A-Za-z0-9._-]+", "_", name)[-100:]


def _generate(domain: Domain, folder: Path) -> Path:
    from ml import synthetic

    parts = urlsplit(domain.url)
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    file = folder / f"reviews_{domain.name}_5.json.gz"
    synthetic.write_reviews(parts.path, options["scale"], file, seed=int(options.get("seed", 0)))
    return file


def _query(domain: Domain, folder: Path) -> Path:
    """The result of the domain's query as Parquet, rows in the order in which the query gives them."""
    file = folder / f"{domain.name}.parquet"
    hint = "correct query of the domain in the catalogue"
    with contextlib.closing(_connect(domain, folder)) as connection:
        try:
            # A table that is missing must not be found among this function's variables.
            connection.execute("SET TimeZone = 'UTC'; SET python_enable_replacements = false")
            statements = connection.extract_statements(domain.query)
            if [each.type for each in statements] != [duckdb.StatementType.SELECT]:
                raise QueryError(f"domain {domain.name}: the query is not one SELECT; {hint}")
            connection.sql(domain.query).write_parquet(str(file))
        except duckdb.Error as error:
            raise QueryError(
                f"domain {domain.name}: the query fails: {_first_line(error)}; {hint}"
            ) from error
    if pq.read_metadata(file).num_rows == 0:
        raise QueryError(f"domain {domain.name}: the query gives no rows; {hint}")
    return file


def _connect(domain: Domain, folder: Path) -> "duckdb.DuckDBPyConnection":
    """To the domain's database, which is only read, or in memory where the query names its files itself."""
    settings = {"temp_directory": str(folder)}
    try:
        return duckdb.connect(domain.url or ":memory:", read_only=domain.url is not None, config=settings)
    except duckdb.Error as error:
        raise QueryError(
            f"domain {domain.name}: cannot read the DuckDB database {domain.url}: {_first_line(error)}; "
            "correct url of the domain in the catalogue, or end the program that has it open for writing"
        ) from error


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0]


def _state(domain: Domain) -> str | list | None:
    """`source_state` of the domain; what a query reads besides its database cannot be asked."""
    if domain.query is None:
        return source_state(domain.url)
    database = domain.url and _local_state(Path(domain.url))
    # A writer that did not end well leaves its last changes in the log beside the database.
    return database and [*database, _local_state(Path(f"{domain.url}.wal"))]


def source_state(url: str) -> str | list | None:
    """What tells that a source has changed, JSON-able: the generator's code, or a file's size and time.

    http is asked by HEAD for Last-Modified, else ETag; other schemes as far as fsspec knows. None where the
    source cannot be asked.
    """
    if url.startswith("synthetic:"):
        return code_of("ml.synthetic:write_reviews")
    local = download.local_path(url)
    if local is not None:
        return _local_state(local)
    return _http_state(url) if url.startswith(("http://", "https://")) else _remote_state(url)


def _local_state(path: Path) -> list | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def _http_state(url: str) -> list | None:
    try:
        answer = requests.head(url, headers={"Accept-Encoding": "identity"}, timeout=10, allow_redirects=True)
        answer.raise_for_status()
    except requests.RequestException as error:
        log.warning("%s cannot be asked whether it changed: %s", url, error)
        return None
    # Two servers of one address may give the same file two ETags, but hardly two dates.
    return [answer.headers.get("Content-Length"), _first(answer.headers, ("Last-Modified", "ETag"))]


def _remote_state(url: str) -> list | None:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        facts = filesystem.info(path)
    except (OSError, ValueError, ImportError) as error:
        log.warning("%s cannot be asked whether it changed: %s", url, error)
        return None
    times = ("LastModified", "last_modified", "mtime", "updated", "created", "ETag")
    return [facts.get("size"), str(_first(facts, times))]


def _first(facts: Mapping, names: tuple[str, ...]) -> object:
    return next((facts[name] for name in names if facts.get(name)), None)
