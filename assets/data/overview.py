"""What two domains have in common, before anything is trained: the overlap report of `diffcdr inspect`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from assets.data.tables import attach
from assets.settings.catalog import Catalog, Domain
from assets.state.store import Store

FEW_USERS = 100  # below it, differences between models drown in those between splits
# Nobody rated online before it; days, years and dates as numbers, read as seconds, all come to lie before.
FIRST_PLAUSIBLE_DAY = "1973-01-01"
NO_VALIDATION = 28  # below it, a tenth of the training users may be nobody at β = 0.8


@dataclass(frozen=True)
class DomainReport:
    """One domain's ratings. rows_read = ratings + repeated + quarantined + dropped_by_core.

    repeated: duplicates removed, the latest of a (user, item) pair stays. stars: share of the ratings by
    rating rounded to a whole number. first_time, last_time: unix seconds, first_day, last_day: the same as
    ISO dates in UTC; None without timestamps.
    """

    name: str
    file: str
    columns: dict[str, str]
    scale: tuple[float, float]
    rows_read: int
    repeated: int
    quarantined: int
    dropped_by_core: int
    ratings: int
    users: int
    items: int
    lowest: float
    highest: float
    mean: float
    stars: dict[int, float]
    first_day: str | None
    last_day: str | None
    first_time: int | None
    last_time: int | None


@dataclass(frozen=True)
class Lengths:
    """How many ratings the overlapping users have in one domain; all zero where there are no such users."""

    minimum: int
    median: float
    mean: float
    maximum: int


@dataclass(frozen=True)
class Report:
    """Two domains, the users in both, and what to be warned of."""

    source: DomainReport
    target: DomainReport
    overlap: int
    source_history: Lengths
    target_history: Lengths
    warnings: list[str]

    def as_json(self) -> dict:
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, source, target) as text, for a reader."""
        sides = (self.source, self.target)
        histories = (self.source_history, self.target_history)
        described = [_described(side) for side in sides]
        shared = [f"{self.overlap:,} ({self.overlap / side.users:.1%})" for side in sides]
        lengths = [f"{h.minimum:,} / {h.median:g} / {h.mean:.1f} / {h.maximum:,}" for h in histories]
        return [
            *((what, *(texts[what] for texts in described)) for what in described[0]),
            ("users in both", *shared),
            ("their ratings: min / median / mean / max", *lengths),
        ]


def inspect_task(store: Store, catalog: Catalog, task: str) -> Report:
    """The report of a task whose ratings are in the store. Raises NotMaterialized where they are not."""
    names = (catalog.tasks[task].source, catalog.tasks[task].target)
    source, target = (catalog.domains[name] for name in names)
    facts = [store.ratings(name).require() for name in names]
    folders = [store.ratings(name).folder() for name in names]
    return inspect_tables(source, target, facts, folders)


def inspect_tables(source: Domain, target: Domain, facts: list[Mapping], folders: list[Path]) -> Report:
    """The report of two folders of ratings, source first; `facts` are the fields of their `Ingested`."""
    reports = []
    with duckdb.connect() as connection:
        for side, domain, known, folder in zip(
            ("source", "target"), (source, target), facts, folders, strict=True
        ):
            attach(connection, folder, side)
            reports.append(_domain(connection, side, domain, known))
        overlap, *lengths = _overlap(connection)
        sides = zip(("source", "target"), reports, strict=True)
        found = [*(_with_blanks(connection, *each) for each in sides), _copies(connection, reports, overlap)]
        warnings = [*_warnings(reports, overlap), *filter(None, found)]
    return Report(*reports, overlap, *lengths, warnings)


def stripped(column: str) -> str:
    """SQL: a text without what is invisible around it: blanks of every kind, marks of byte order."""
    blank = r"[\s\p{Z}\x{FEFF}\x{200B}]+"
    return f"regexp_replace({column}, '^{blank}|{blank}$', '', 'g')"


def _with_blanks(connection: duckdb.DuckDBPyConnection, side: str, report: DomainReport) -> str | None:
    """A warning of ids with blanks around them, which stay as written and match none without."""
    for kind in ("user", "item"):
        wrong = f"{kind}_id <> {stripped(f'{kind}_id')}"
        count, example = connection.execute(
            f"SELECT count(*), any_value({kind}_id) FROM {side}.{kind}s WHERE {wrong}"
        ).fetchone()
        if count:
            return (
                f"{report.name}: {count:,} {kind} ids begin or end with a blank, such as {example!r}: others "
                "than those without; remove the blanks from the file if that is not meant"
            )
    return None


def _copies(connection: duckdb.DuckDBPyConnection, reports: list[DomainReport], overlap: int) -> str | None:
    """A warning where both domains hold the same ratings."""
    source, target = reports
    sizes = [(each.ratings, each.users, each.items) for each in reports]
    if sizes[0] != sizes[1] or overlap != source.users:
        return None
    rows = [
        f"""SELECT user_id, item_id, rating
            FROM {side}.ratings JOIN {side}.users USING ("user") JOIN {side}.items USING (item)"""
        for side in ("source", "target")
    ]
    if connection.execute(" EXCEPT ".join(rows) + " LIMIT 1").fetchone():
        return None
    return (
        f"{source.name} and {target.name} hold the same ratings, so there is nothing to transfer; "
        "give the other domain's file"
    )


def _domain(connection: duckdb.DuckDBPyConnection, side: str, domain: Domain, facts: Mapping) -> DomainReport:
    lowest, highest, mean = connection.execute(
        f"SELECT min(rating), max(rating), avg(rating) FROM {side}.ratings"
    ).fetchone()
    counts = ("rows_read", "repeated", "quarantined", "dropped_by_core", "ratings", "users", "items")
    return DomainReport(
        name=domain.name,
        file=domain.origin,
        columns=domain.columns.model_dump(exclude_none=True),
        scale=domain.scale,
        lowest=lowest,
        highest=highest,
        mean=mean,
        # JSON keys are text where the facts come from a manifest.
        stars={int(star): share for star, share in facts["stars"].items()},
        first_day=_day(facts["first_time"]),
        last_day=_day(facts["last_time"]),
        first_time=facts["first_time"],
        last_time=facts["last_time"],
        **{name: facts[name] for name in counts},
    )


def _day(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _overlap(connection: duckdb.DuckDBPyConnection) -> tuple[int, Lengths, Lengths]:
    lengths = []
    for side, other in (("source", "target"), ("target", "source")):
        overlap, *facts = connection.execute(
            f"""SELECT count(*), coalesce(min(n), 0), coalesce(median(n), 0), coalesce(avg(n), 0),
                       coalesce(max(n), 0)
                FROM (SELECT count(*) AS n
                      FROM {side}.ratings JOIN {side}.users u USING ("user")
                      WHERE u.user_id IN (SELECT user_id FROM {other}.users)
                      GROUP BY u.user_id)"""
        ).fetchone()
        lengths.append(Lengths(*facts))
    return overlap, *lengths


def _warnings(reports: list[DomainReport], overlap: int) -> list[str]:
    warnings = []
    if overlap < FEW_USERS:
        warnings.append(
            f"only {overlap} users are in both domains: below {FEW_USERS}, chance decides which model is best"
        )
    if overlap < NO_VALIDATION:
        warnings.append(
            f"below {NO_VALIDATION} users in both, a large beta leaves no validation user to choose by"
        )
    for report in reports:
        if report.lowest == report.highest:
            warnings.append(f"{report.name}: all ratings are {report.lowest:g}; there is nothing to predict")
        elif (report.lowest, report.highest) != report.scale:
            low, high = report.scale
            warnings.append(
                f"{report.name}: ratings lie between {report.lowest:g} and {report.highest:g}, the scale is "
                f"{low:g} to {high:g}; if that is not theirs, declare it (--scale, or scale in the catalogue)"
            )
        if report.first_day is None:
            warnings.append(f"{report.name}: no timestamps, so warm start is left out; cold start works")
        elif report.ratings > 1 and report.first_time == report.last_time:
            warnings.append(
                f"{report.name}: all times are equal ({report.first_day}) and give no order; "
                "name another column, or none"
            )
        elif report.last_day < FIRST_PLAUSIBLE_DAY:
            warnings.append(
                f"{report.name}: all times lie between {report.first_day} and {report.last_day}; they are "
                "probably in another unit than seconds or milliseconds: convert them"
            )
    return warnings


def _described(report: DomainReport) -> dict[str, str]:
    dates = f"{report.first_day} to {report.last_day}" if report.first_day else "none"
    stars = ", ".join(f"{star}: {share:.1%}" for star, share in report.stars.items())
    return {
        "file": Path(report.file).name,
        "columns": ", ".join(report.columns.values()),
        "rows read": f"{report.rows_read:,}",
        "duplicates removed": f"{report.repeated:,}",
        "bad rows set aside": f"{report.quarantined:,}",
        "outside the k-core": f"{report.dropped_by_core:,}",
        "ratings": f"{report.ratings:,}",
        "users": f"{report.users:,}",
        "items": f"{report.items:,}",
        "mean rating": f"{report.mean:.2f}",
        "shares by rating": stars,
        "time": dates,
    }
