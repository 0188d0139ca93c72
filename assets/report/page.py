"""The paper's tables and figures as assets, and the report that binds them.

Each is one folder: Parquet and CSV for programs, Markdown, LaTeX and HTML for readers, pictures as PNG and
SVG. It is made from the cells that count and says how many do not. A new table is one file and one line of
PARTS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from assets.report.coverage import COVERAGE
from assets.report.distribution import DISTRIBUTION
from assets.report.figure3 import FIGURE3
from assets.report.figure4 import FIGURE4
from assets.report.first_choices import FIRST_CHOICES
from assets.report.part import Chapter, Part, html, markdown, page, write_part
from assets.report.ranking import RANKING
from assets.report.results import MISSING, source
from assets.report.search import SEARCH
from assets.report.significance import SIGNIFICANCE
from assets.report.summary import summary_part
from assets.report.table1 import table1_part
from assets.report.table2 import TABLE2
from assets.report.table3 import TABLE3
from assets.report.table4 import TABLE4
from assets.report.verdict import VERDICT
from assets.report.warming import WARMING
from assets.settings.axes import Axes
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state import plots
from assets.state.code import code_of, digest_of
from assets.state.store import Store, fingerprint

# In the order of the report.
PARTS = (
    VERDICT,
    TABLE2,
    RANKING,
    SIGNIFICANCE,
    DISTRIBUTION,
    COVERAGE,
    FIGURE3,
    WARMING,
    FIRST_CHOICES,
    TABLE3,
    FIGURE4,
    TABLE4,
    SEARCH,
)
_OTHERS = [
    file for folder in ("templates", "published") for file in Path(__file__).with_name(folder).iterdir()
]
CODE = fingerprint(code=code_of("assets.report.page"), files=digest_of(*_OTHERS))
# Tables follow their cells without waiting for all of them.
FRESH = (
    dg.AutomationCondition.any_deps_updated().since_last_handled()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)
COMMON = {
    "group_name": "reports",
    "owners": ["team:recsys"],
    "code_version": CODE,
    "automation_condition": FRESH,
}
METADATA_IMAGE = 300_000  # bytes: larger pictures would burden every page that shows the event


def report_assets(axes: Axes, profiles: Mapping[str, Profile]) -> list[dg.AssetsDefinition]:
    """Table 1, each profile's tables and figures, and the report."""
    catalog = axes.catalog
    wanted = [(profile, part) for profile in profiles.values() for part in PARTS if part.wanted(profile)]
    parts = [part_asset(profile, part, catalog) for profile, part in wanted]
    table1 = table1_asset(catalog)
    keys = [table1.key, *(part.key for part in parts)]
    return [table1, *parts, report_asset(profiles, catalog, keys)]


def table1_asset(catalog: Catalog) -> dg.AssetsDefinition:
    """The asset of Table 1, which no profile has a part in."""

    @dg.asset(name="table1", deps=["overlap"], kinds={"parquet", "markdown"}, **COMMON)
    def table1(store: Store) -> dg.MaterializeResult:
        """Table 1, data statistics of each task, with the paper's numbers where the task is the paper's."""
        return _publish(store, table1_part(store, catalog), "table1")

    return table1


def part_asset(profile: Profile, chapter: Chapter, catalog: Catalog) -> dg.AssetsDefinition:
    """The asset of one table or figure of a profile."""

    @dg.asset(
        name=chapter.name,
        key_prefix=profile.name,
        deps=[dg.AssetKey([profile.name, name]) for name in chapter.upstream(profile)],
        kinds={"parquet", "markdown"},
        description=f"{chapter.what} Profile: {profile.title}.",
        **COMMON,
    )
    def part(store: Store) -> dg.MaterializeResult:
        return _publish(store, chapter.build(source(store, catalog, profile)), profile.name, chapter.name)

    return part


def _publish(store: Store, part: Part, *place: str) -> dg.MaterializeResult:
    """Write a part in every format and describe it to Dagster."""
    folder = store.report(*place)
    write_part(folder, part, "/".join(place))
    images = {
        picture.name: dg.MetadataValue.md(plots.as_markdown(picture.formats["png"], picture.name))
        for picture in part.pictures
        if len(picture.formats["png"]) < METADATA_IMAGE
    }
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(part.frame),
            "table": dg.MetadataValue.md(markdown(part)),
            "missing": part.missing or "none",
            "html": dg.MetadataValue.path(str(folder / f"{part.name}.html")),
            **images,
        }
    )


def report_asset(
    profiles: Mapping[str, Profile], catalog: Catalog, keys: Sequence[dg.AssetKey]
) -> dg.AssetsDefinition:
    """The report over all profiles."""

    @dg.asset(name="report", deps=keys, kinds={"html", "markdown"}, **COMMON)
    def report(store: Store) -> dg.MaterializeResult:
        """Every table and figure on one page that needs no other file and no network, and as Markdown."""
        chapters = report_chapters(store, catalog, profiles)
        folder = store.report("report")
        lead = (
            "Diffusion cross-domain recommendation: the paper's tables and figures, its value beside ours. "
            f"Made {datetime.now(UTC):%d %B %Y, %H:%M} UTC."
        )
        title = "DiffCDR: results"
        (folder / "report.html").write_text(page("report.html", title=title, lead=lead, chapters=chapters))
        (folder / "report.md").write_text(_report_markdown(title, lead, chapters))
        absent = [item.hint for chapter in chapters for item in chapter.items if not item.html]
        return dg.MaterializeResult(
            metadata={
                "html": dg.MetadataValue.path(str(folder / "report.html")),
                "markdown": dg.MetadataValue.path(str(folder / "report.md")),
                "missing": dg.MetadataValue.md("\n".join(f"- {hint}" for hint in absent) or "none"),
            }
        )

    return report


@dataclass(frozen=True)
class Item:
    """A part in a chapter, as it is read; without text where it has not been made."""

    heading: str
    place: str
    html: str = ""
    markdown: str = ""

    @property
    def hint(self) -> str:
        return f"Not made yet: materialize {self.place} (the job `tables` makes all)."


@dataclass(frozen=True)
class Shown:
    """A chapter of the report as it is shown."""

    anchor: str
    title: str
    lead: str
    items: list[Item]


def report_chapters(store: Store, catalog: Catalog, profiles: Mapping[str, Profile]) -> list[Shown]:
    """What was run, the data, then the chapters that some profile has; of profiles, those with any entry."""
    sources = {name: source(store, catalog, profile) for name, profile in profiles.items()}
    begun = {name: one for name, one in sources.items() if (one.states["state"] != MISSING).any()}
    sources = begun or sources
    run = summary_part(catalog, sources)
    ran = Item("", "summary", html(run, "summary"), markdown(run, level=3))
    lead = "Finished cells of each model; a cell is one β and one seed of a task."
    shown = [
        Shown("summary", "What was run", lead, [ran]),
        Shown("data", "Data", "The domains and the users they share.", [_item(store, "", "table1")]),
    ]
    for chapter in PARTS:
        wanted = [one.profile for one in sources.values() if chapter.wanted(one.profile)]
        items = [_item(store, profile.title, profile.name, chapter.name) for profile in wanted]
        shown += [Shown(chapter.name, chapter.title, chapter.lead, items)] if items else []
    return shown


def _item(store: Store, heading: str, *place: str) -> Item:
    folder = store.report(*place)
    texts = [folder / f"fragment.{ending}" for ending in ("html", "md")]
    return Item(heading, "/".join(place), *(file.read_text() if file.exists() else "" for file in texts))


def _report_markdown(title: str, lead: str, chapters: Sequence[Shown]) -> str:
    blocks = [f"# {title}", lead]
    for chapter in chapters:
        blocks += [f"## {chapter.title}", chapter.lead]
        blocks += [item.markdown.rstrip() or item.hint for item in chapter.items]
    return "\n\n".join(blocks) + "\n"
