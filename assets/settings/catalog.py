"""The data catalogue: which domains there are, where their files lie, and which tasks join them.

The built-in `catalog.yaml` comes first; the file named by `DIFFCDR_CATALOG` is laid over it: its domains
and tasks add or replace, each key of its `cells` replaces. The axes of every asset follow from the result.

    cells:
      seeds: [0, 1]
    domains:
      games:
        url: games.csv.gz                # relative to this file; also http(s), s3, file, an absolute path
        kind: csv
        columns: {user: user_id, item: item_id, rating: stars, timestamp: time}
      rentals:
        url: shop.duckdb                 # read only; left out where the query names its files itself
        query: SELECT member AS user, film AS item, stars AS rating, day AS timestamp FROM rentals ORDER BY id
        timestamp_unit: iso
    tasks:
      games_music: {source: games, target: music}
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictInt, field_validator, model_validator

from assets.settings.yaml import Count, Name, Section, SettingsFile

OWN_DATA = "own_data.yaml"  # in the home: the file that `run` enters own files in
BUILT_IN = Path(__file__).with_name("catalog.yaml")

_AMAZON_JSON = {
    "kind": "json",
    "columns": {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"},
}

# Editions of the Amazon review data: what `format:` stands for. Keys written beside it win.
FORMATS: dict[str, dict[str, Any]] = {
    "amazon2014": _AMAZON_JSON,
    "amazon2018": _AMAZON_JSON,
    "amazon2023": {
        "kind": "csv",
        "columns": {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"},
        "timestamp_unit": "ms",
    },
}

# The columns of a query are named in the query.
_QUERY_RESULT = {
    "kind": "parquet",
    "columns": {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"},
}

# A scale beyond it is a mistake, or counts, which are no ratings: reports list each whole star.
WIDEST = 1000

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")


def check_scale(low: float, high: float) -> None:
    """Raise ValueError where no rating scale goes from `low` to `high`; NaN and infinity are no ends."""
    if not -WIDEST <= low < high <= WIDEST:
        raise ValueError(
            f"the scale {low:g} to {high:g} is none: give the lowest rating first, then a higher one, "
            f"both from {-WIDEST:,} to {WIDEST:,}"
        )


class CatalogError(ValueError):
    """The catalogue cannot be used; the message names the file, the key and the hint."""


class _Named(Section):
    """A section whose name is the key above it."""

    name: Name
    title: str

    @classmethod
    def allowed(cls) -> list[str]:
        return [key for key in cls.model_fields if key != "name"]


class Columns(Section):
    """Names of the file's columns; in a file without header their numbers, counted from 1. title: of the
    item, where a reader is to see more than its id."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    user: str
    item: str
    rating: str
    timestamp: str | None = None
    title: str | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "Columns":
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice: {', '.join(names)}")
        return self

    @property
    def names(self) -> list[str]:
        every = (self.user, self.item, self.rating, self.timestamp, self.title)
        return [name for name in every if name is not None]


class Counts(Section):
    """What ingestion must arrive at."""

    ratings: Count
    users: Count
    items: Count


class Domain(_Named):
    """One table of ratings: where its file is and how to read it.

    url: the file, or beside a query a local DuckDB database. query: a SELECT whose result is the file.
    delimiter, decimal: of csv; spreadsheets of half the world write `;` and `4,5`.
    scale: lowest and highest legal rating. timestamp_unit: seconds or milliseconds since 1970, or ISO 8601
    dates and times, UTC where they name no zone. k_core: keep only users and items with at least so many
    ratings. counts: checked after ingestion. paper: the paper's name of the domain.
    """

    url: Annotated[str | None, Field(min_length=1)] = None
    # Not among the options of reading: those come after the file that the query makes.
    query: Annotated[str | None, Field(min_length=1, exclude=True)] = None
    kind: Literal["json", "csv", "tsv", "parquet"]
    columns: Columns
    header: bool = True
    delimiter: Literal[",", ";"] = ","
    decimal: Literal[".", ","] = "."
    scale: tuple[float, float] = (1.0, 5.0)
    timestamp_unit: Literal["s", "ms", "iso"] = "s"
    k_core: Count | None = None
    on_bad_rows: Literal["fail", "quarantine"] = "fail"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    counts: Counts | None = None
    paper: str | None = None

    @classmethod
    def allowed(cls) -> list[str]:
        return ["format", *super().allowed()]

    @model_validator(mode="after")
    def _consistent(self) -> "Domain":
        check_scale(*self.scale)
        if self.delimiter != "," and self.kind != "csv":
            raise ValueError(f"delimiter is for csv, not {self.kind}; remove it")
        if self.decimal != "." and self.kind not in ("csv", "tsv"):
            raise ValueError(f"decimal is for csv and tsv, not {self.kind}; remove it")
        if not self.header and self.kind not in ("csv", "tsv"):
            raise ValueError(f"header: false is for csv and tsv, not {self.kind}")
        if not self.header and not all(re.fullmatch("[1-9][0-9]*", name) for name in self.columns.names):
            raise ValueError("without a header, columns are numbers counted from 1, as in {user: 1, item: 2}")
        return self

    @model_validator(mode="after")
    def _file_or_query(self) -> "Domain":
        if self.query is None:
            if self.url is None:
                raise ValueError("give a url, or a query")
            return self
        if self.url is not None and _SCHEME.match(self.url):
            raise ValueError(
                f"beside a query, url is a local DuckDB file, not {self.url}; name it in the query"
            )
        if self.kind != "parquet":
            raise ValueError(f"a query gives parquet, not {self.kind}; leave out kind and format")
        if self.sha256 is not None:
            raise ValueError("sha256 is for files as they are distributed; beside a query, give counts")
        return self

    @property
    def separator(self) -> str:
        """What stands between two fields of csv and tsv."""
        return "\t" if self.kind == "tsv" else self.delimiter

    @property
    def origin(self) -> str:
        """Where the ratings come from, for people."""
        return self.url or "query"

    @property
    def synthetic(self) -> bool:
        """Whether the ratings are generated."""
        return self.origin.startswith("synthetic:")

    @property
    def liked_above(self) -> float:
        """A rating above it counts as liked: the middle of the scale, for 1 to 5 the 3 of PTUPCDR and of
        DiffCDR's code."""
        return sum(self.scale) / 2


class Task(_Named):
    """Transfer from one domain to another. overlap: expected users in both. paper: its number there."""

    source: str
    target: str
    paper: Annotated[StrictInt, Field(ge=1, le=3)] | None = None
    overlap: Count | None = None

    @model_validator(mode="after")
    def _two_domains(self) -> "Task":
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}")
        return self


class SplitConfig(Section):
    """validation: share of the training users whose target ratings are held out for choices.
    seed: None lets the split vary with the cell's seed, a number fixes it."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    seed: Annotated[StrictInt, Field(ge=0)] | None = None


class CellAxes(Section):
    """The cells of every task: each share of test users times each seed."""

    betas: tuple[float, ...] = Field((0.2, 0.5, 0.8), min_length=1)
    seeds: tuple[Annotated[StrictInt, Field(ge=0)], ...] = Field((0, 1, 2, 3, 4), min_length=1)
    split: SplitConfig = SplitConfig()

    @field_validator("betas")
    @classmethod
    def _whole_percents(cls, betas: tuple[float, ...]) -> tuple[float, ...]:
        for beta in betas:
            if not 0 < beta < 1 or abs(beta * 100 - round(beta * 100)) > 1e-9:
                raise ValueError(f"beta {beta:g} must be a whole percentage between 0 and 1, such as 0.2")
        return betas

    @field_validator("betas", "seeds")
    @classmethod
    def _unique(cls, values: tuple) -> tuple:
        if len(set(values)) < len(values):
            raise ValueError(f"a value is listed twice in {list(values)}")
        return values


class Catalog(CellAxes):
    """Domains and tasks by name, and the cells."""

    domains: dict[str, Domain] = Field(default_factory=dict)
    tasks: dict[str, Task] = Field(default_factory=dict)


def load_catalog(path: str | Path | None = None) -> Catalog:
    """The built-in catalogue with the file at `path` (default: `DIFFCDR_CATALOG`) laid over it.

    Raises CatalogError naming the file and the line or key that is wrong.
    """
    path = path or os.environ.get("DIFFCDR_CATALOG")
    catalog = _extend(Catalog(), BUILT_IN)
    return _extend(catalog, Path(path)) if path else catalog


def _extend(base: Catalog, path: Path) -> Catalog:
    file = SettingsFile(path, CatalogError, "catalogue", "DIFFCDR_CATALOG")
    sections = _sections(file)
    new = {name: _domain(file, name, entry) for name, entry in sections["domains"].items()}
    domains = base.domains | new
    tasks = {name: _task(file, name, entry, domains) for name, entry in sections["tasks"].items()}
    cells = {name: getattr(base, name) for name in CellAxes.model_fields} | sections["cells"]
    cells = file.validated(CellAxes, "cells", cells)
    return Catalog(domains=domains, tasks=base.tasks | tasks, **dict(cells))


def _domain(file: SettingsFile, name: str, entry: dict[str, Any]) -> Domain:
    where = f"domains.{name}"
    entry = dict(entry)
    edition = entry.pop("format", None)
    if edition is not None and str(edition) not in FORMATS:
        raise file.wrong(f"{where}.format", f"{edition!r} is not one of {', '.join(FORMATS)}")
    defaults = (_QUERY_RESULT if entry.get("query") else {}) | FORMATS.get(edition, {})
    if not {"kind", "columns"} <= (defaults | entry).keys():
        formats = ", ".join(FORMATS)
        raise file.wrong(where, f"give a format ({formats}), both kind and columns, or a query")
    if isinstance(entry.get("url"), str):
        entry["url"] = _locate(file, where, entry["url"])
    return file.validated(Domain, where, _named(file, where, name, defaults | entry))


def _task(file: SettingsFile, name: str, entry: dict[str, Any], domains: dict[str, Domain]) -> Task:
    where = f"tasks.{name}"
    task = file.validated(Task, where, _named(file, where, name, entry))
    for field in ("source", "target"):
        domain = getattr(task, field)
        if domain not in domains:
            known = ", ".join(sorted(domains))
            raise file.wrong(f"{where}.{field}", f"there is no domain {domain!r}; known are {known}")
    return task


def _named(file: SettingsFile, where: str, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    if "name" in entry:
        raise file.wrong(f"{where}.name", "the key above is the name; remove this one")
    return {"title": name, **entry, "name": name}


def _locate(file: SettingsFile, where: str, url: str) -> str:
    """A relative path, with `file:` before it too, is relative to the catalogue; the rest stays as written.

    Raises CatalogError for a path that leaves the folder, and for a relative one in a chain (`zip::file:y`).
    """
    links = url.split("::")
    for link in links:
        plain = _without_file_scheme(link)
        if _SCHEME.match(plain) or Path(plain).expanduser().is_absolute():
            continue
        wrong = None
        if ".." in Path(plain).parts:
            wrong = f"{url!r} leaves the catalogue's folder"
        elif len(links) > 1 and plain != link:
            wrong = f"{link!r} of {url!r} is relative"
        if wrong:
            raise file.wrong(f"{where}.url", f"{wrong}; write an absolute path instead")
    plain = _without_file_scheme(url)
    if not url or len(links) > 1 or _SCHEME.match(plain) or (plain != url and Path(plain).is_absolute()):
        return url
    return str(file.path.resolve().parent / Path(plain).expanduser())


def _without_file_scheme(url: str) -> str:
    return re.sub("^(file|local):(//)?", "", url)


_SECTIONS = ("cells", "domains", "tasks")


def _sections(file: SettingsFile) -> dict[str, dict[str, Any]]:
    """The sections of a catalogue file, each a mapping; those of domains and tasks hold mappings."""
    raw = file.read()
    if "trials" in raw:
        raise file.wrong("trials", "this key is now called `cells`; rename it")
    for name in raw:
        if name not in _SECTIONS:
            raise file.wrong(name, f"unknown key; known are {', '.join(_SECTIONS)}")
    sections = {name: file.mapping(name, raw.get(name)) for name in _SECTIONS}
    for section in ("domains", "tasks"):
        sections[section] = {n: file.mapping(f"{section}.{n}", e) for n, e in sections[section].items()}
    return sections
