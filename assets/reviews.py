"""`reviews`: the raw review file of each domain, as downloaded or generated."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dagster as dg

from assets import download
from assets.catalog import Domain
from assets.partitions import CATALOG, domains
from assets.store import Store, code_version, fingerprint

log = logging.getLogger("diffcdr")
CODE = code_version("assets/download.py", "assets/reviews.py")


@dg.asset(
    partitions_def=domains,
    group_name="data",
    kinds={"file"},
    owners=["team:data"],
    code_version=CODE,
)
def reviews(context: dg.AssetExecutionContext, store: Store) -> None:
    """The domain's rating file as its source distributes it, verified: length, gzip stream, sha256."""
    for name in context.partition_keys:
        record = obtain(store, CATALOG.domains[name])
        context.add_asset_metadata(
            {
                "size": dg.MetadataValue.int(record["size"]),
                "sha256": record["sha256"],
                "source": record["source"],
                "fetched_at": record["fetched_at"],
                "path": dg.MetadataValue.path(str(store.reviews(name).path / record["file"])),
            },
            partition_key=name,
        )


def obtain(store: Store, domain: Domain) -> dict:
    """The manifest of the domain's raw file, fetching or generating the file where it is missing or stale."""
    entry = store.reviews(domain.name)
    mark = fingerprint(url=domain.url, sha256=domain.sha256, source=_source_state(domain.url))
    if entry.stands(mark):
        log.info("reviews %s: up to date", domain.name)
        return entry.require()
    folder = entry.unseal()
    with _located(domain, folder) as (url, file):
        fetched = download.fetch(url, folder / file, sha256=domain.sha256)
    log.info("reviews %s: %s, %.1f MB", domain.name, domain.url, fetched.size / 1e6)
    return entry.seal(
        mark,
        file=file,
        size=fetched.size,
        sha256=fetched.sha256,
        source=domain.url,
        fetched_at=fetched.fetched_at,
    )


@contextlib.contextmanager
def _located(domain: Domain, folder: Path) -> Iterator[tuple[str, str]]:
    """Where to fetch the domain's file from, and its name; synthetic data are generated first."""
    parts = urlsplit(domain.url)
    if parts.scheme != "synthetic":
        yield domain.url, Path(parts.path).name
        return
    from ml import synthetic

    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    name = f"reviews_{domain.name}_5.json.gz"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        generated = Path(scratch) / name
        synthetic.write_reviews(parts.path, options["scale"], generated, seed=int(options.get("seed", 0)))
        yield str(generated), name


def _source_state(url: str) -> object:
    """What tells that a source has changed: the generator's code, or a local file's size and time."""
    if url.startswith("synthetic:"):
        return code_version("ml/synthetic.py")
    local = Path(url.removeprefix("file://"))
    if local.is_absolute() and local.exists():
        state = os.stat(local)
        return [state.st_size, state.st_mtime_ns]
    return None
