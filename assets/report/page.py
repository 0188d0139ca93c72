"""The paper's tables and figures as assets, and the report that binds them.

Each is one folder: Parquet and CSV for programs, Markdown, LaTeX and HTML for readers, pictures as PNG and
SVG. It is made from the cells that count and says how many do not. A new table is one file and one line of
PARTS.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd

from assets.report.by_beta import BY_BETA
from assets.report.cost import COST
from assets.report.coverage import COVERAGE
from assets.report.distribution import DISTRIBUTION
from assets.report.figure3 import FIGURE3
from assets.report.figure4 import FIGURE4
from assets.report.first_choices import FIRST_CHOICES
from assets.report.forest import FOREST
from assets.report.learning import LEARNING
from assets.report.part import NOTHING, Chapter, Part, html, markdown, page, write_part
from assets.report.people import PEOPLE
from assets.report.ranking import RANKING
from assets.report.results import MISSING, Source, source
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
from assets.settings.catalog import Catalog, Task
from assets.settings.profile import Profile
from assets.state import plots
from assets.state.code import code_of, digest_of
from assets.state.store import Store, fingerprint

# In the order of the report: what a reader wants first, what the paper shows, what few look up.
PARTS = (
    FOREST,
    PEOPLE,
    BY_BETA,
    COST,
    LEARNING,
    VERDICT,
    RANKING,
    DISTRIBUTION,
    COVERAGE,
    WARMING,
    FIRST_CHOICES,
    TABLE2,
    FIGURE3,
    TABLE3,
    FIGURE4,
    TABLE4,
    SIGNIFICANCE,
    SEARCH,
)
_OTHERS = [
    file for folder in ("templates", "published") for file in Path(__file__).with_name(folder).iterdir()
]
CODE = fingerprint(code=code_of("assets.report.page"), files=digest_of(*_OTHERS))
# Tables follow their cells without waiting for all of them, through the view that stands between.
FRESH = (
    dg.AutomationCondition.any_deps_updated().since_last_handled()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).resolve_through_virtual()
# Of what a catalogue's tasks and all profiles share: the first table and the report.
GROUP = "report"
COMMON = {
    "owners": ["team:recsys"],
    "code_version": CODE,
    "automation_condition": FRESH,
}
RESULTS = "results"
METADATA_IMAGE = 300_000  # bytes: larger pictures would burden every page that shows the event


def report_assets(axes: Axes, profiles: Mapping[str, Profile]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Table 1, each profile's results, tables and figures, and the report."""
    catalog = axes.catalog
    wanted = [(profile, part) for profile in profiles.values() for part in PARTS if part.wanted(profile)]
    parts = [part_asset(profile, part, catalog) for profile, part in wanted]
    table1 = table1_asset(catalog)
    keys = [table1.key, *(part.key for part in parts)]
    results = [results_spec(profile) for profile in profiles.values()]
    return [table1, *results, *parts, report_asset(profiles, catalog, keys)]


def results_spec(profile: Profile) -> dg.AssetSpec:
    """A profile's numbers, between its models and all that is made from them.

    A view: Dagster looks through it for what is stale. Were each table to depend on each model, it would ask
    for every cell of every model by itself, for each table, as long as a page is open.
    """
    return dg.AssetSpec(
        dg.AssetKey([profile.name, RESULTS]),
        deps=[dg.AssetKey([profile.name, name]) for name in profile.trained],
        is_virtual=True,
        group_name=profile.group("tables"),
        kinds={"parquet"},
        owners=["team:recsys"],
        description="One row per metric of every finished cell, read from the models' entries and never "
        f"stored: what `diffcdr results --profile {profile.name}` prints. Profile: {profile.title}.",
    )


def table1_asset(catalog: Catalog) -> dg.AssetsDefinition:
    """The asset of Table 1, which no profile has a part in."""

    @dg.asset(name="table1", group_name=GROUP, deps=["overlap"], kinds={"parquet", "markdown"}, **COMMON)
    def table1(store: Store) -> dg.MaterializeResult:
        """Table 1, data statistics of each task, with the paper's numbers where the task is the paper's."""
        return _publish(store, table1_part(store, catalog), "table1")

    return table1


def part_asset(profile: Profile, chapter: Chapter, catalog: Catalog) -> dg.AssetsDefinition:
    """The asset of one table or figure of a profile."""
    upstream = dict.fromkeys(RESULTS if n in profile.trained else n for n in chapter.upstream(profile))

    @dg.asset(
        name=chapter.name,
        key_prefix=profile.name,
        group_name=profile.group("tables"),
        deps=[dg.AssetKey([profile.name, name]) for name in upstream],
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
    store.share_report(*place)
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

    @dg.asset(
        name="report",
        group_name=GROUP,
        deps=keys,
        kinds={"html", "markdown"},
        # What people read: after a week the page says that it may be out of date, after a month that it is.
        freshness_policy=dg.FreshnessPolicy.time_window(
            fail_window=timedelta(days=30), warn_window=timedelta(days=7)
        ),
        **COMMON,
    )
    def report(store: Store) -> dg.MaterializeResult:
        """What the models are worth, then every table and figure, on one page that needs no other file and no
        network, and as Markdown."""
        shown, folder = report_of(store, catalog, profiles), store.report("report")
        (folder / "report.html").write_text(page("report.html", **shown.__dict__))
        (folder / "report.md").write_text(_report_markdown(shown))
        store.share_report("report")
        absent = [item.hint for item in shown.items if not item.html]
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
    """A part in a chapter, as it is read; without text where it has not been made. folded: whether another
    profile's stands before it."""

    heading: str
    place: str
    html: str = ""
    markdown: str = ""
    folded: bool = False

    @property
    def empty(self) -> bool:
        """Whether it was made when nothing of it had been computed."""
        return NOTHING in self.html

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
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """The report as it is shown. warning: what must be known of the data before anything else; opening: the
    first item, which is no chapter; groups: chapters by the title of their group; empty: titles of the
    chapters that are left out, for nothing of them has been computed."""

    title: str
    lead: str
    warning: str
    opening: Item
    groups: dict[str, list[Shown]]
    empty: list[str]

    @property
    def items(self) -> list[Item]:
        chapters = [chapter for group in self.groups.values() for chapter in group]
        return [self.opening, *(item for chapter in chapters for item in chapter.items)]


STORY, OF_PAPER, RECORD = "What it is worth", "The paper's tables and figures", "For the record"


def report_of(store: Store, catalog: Catalog, profiles: Mapping[str, Profile]) -> Report:
    """The report over the profiles with any entry.

    The first screen and the story are those of one profile, the tables of the paper those of the paper's
    protocol; the same of other profiles is folded behind them.
    """
    sources = {name: source(store, catalog, profile) for name, profile in profiles.items()}
    begun = {name: one for name, one in sources.items() if (one.states["state"] != MISSING).any()}
    sources = begun or sources
    leading = _leading(one.profile for one in sources.values())
    (opening,) = _items(store, FOREST, {leading.name: sources[leading.name]}, leading)
    groups, empty = _grouped(store, sources, leading), []
    groups[RECORD].insert(0, _run(catalog, sources))
    for title, chapters in groups.items():
        empty += [chapter.title for chapter in chapters if all(item.empty for item in chapter.items)]
        groups[title] = [chapter for chapter in chapters if chapter.title not in empty]
    groups = {title: chapters for title, chapters in groups.items() if chapters}
    lead, warning = _made_from(sources.values(), leading), _warning(catalog, sources)
    return Report("DiffCDR: results", lead, warning, opening, groups, empty)


def _grouped(store: Store, sources: Mapping[str, Source], leading: Profile) -> dict[str, list[Shown]]:
    """The chapters that any of the profiles has, by the title of their group."""
    reproducing = next((one.profile for one in sources.values() if not one.profile.validation), leading)
    groups: dict[str, list[Shown]] = {STORY: [], OF_PAPER: [], RECORD: []}
    for chapter in (chapter for chapter in PARTS if chapter is not FOREST):
        if chapter is LEARNING:
            groups[STORY].append(_data(store))
        items = _items(store, chapter, sources, reproducing if chapter.reproduces else leading)
        group = RECORD if chapter.folded else OF_PAPER if chapter.reproduces else STORY
        if items:
            groups[group].append(Shown(chapter.name, chapter.title, chapter.lead, items, chapter.folded))
    others = {name: one for name, one in sources.items() if name != leading.name}
    if others:
        items = _items(store, FOREST, others, leading)
        groups[STORY].append(Shown(FOREST.name, "The same of other profiles", FOREST.lead, items))
    return groups


def _leading(profiles: Iterable[Profile]) -> Profile:
    """The profile that the report is about: the last that chooses on validation users, if any does."""
    return sorted(profiles, key=lambda profile: profile.validation)[-1]


def _items(store: Store, chapter: Chapter, sources: Mapping[str, Source], first: Profile) -> list[Item]:
    """A chapter's part of each profile that has it; the first one's stands open, unless nothing is in it."""
    wanted = [one.profile for one in sources.values() if chapter.wanted(one.profile)]
    wanted.sort(key=lambda profile: profile.name != first.name)
    items = [_item(store, profile.title, profile.name, chapter.name) for profile in wanted]
    items.sort(key=lambda item: item.empty)
    return [replace(item, folded=place > 0 and not chapter.folded) for place, item in enumerate(items)]


def _data(store: Store) -> Shown:
    lead = "How ratings are spread in the two domains, and how much is known of the users whom they share."
    return Shown("data", "The data", lead, [_item(store, "", "table1")])


def _run(catalog: Catalog, sources: Mapping[str, Source]) -> Shown:
    run = summary_part(catalog, sources)
    ran = Item("", "summary", html(run, "summary"), markdown(run, level=3))
    lead = "Finished cells of each model; a cell is one β and one seed of a task."
    return Shown("summary", "What was run", lead, [ran], folded=True)


def _made_from(sources: Iterable[Source], leading: Profile) -> str:
    """Of what the report is made, and when that was: the same results make the same report."""
    newest = max((one.newest for one in sources), default="")
    if not newest:
        return "Diffusion cross-domain recommendation. Nothing has been trained yet."
    when = datetime.fromisoformat(newest)
    return (
        f"Diffusion cross-domain recommendation. This page follows the profile “{leading.title}”; results up "
        f"to {when:%d %B %Y, %H:%M} UTC."
    )


def _warning(catalog: Catalog, sources: Mapping[str, Source]) -> str:
    """Which of the tasks that were run are made up; empty where none is."""
    states = pd.concat([one.states for one in sources.values()])
    run = list(dict.fromkeys(states.loc[states["state"] != MISSING, "task"]))
    made_up = [name for name in run if name in catalog.tasks and _synthetic(catalog, catalog.tasks[name])]
    if not made_up:
        return ""
    titles = ", ".join(catalog.tasks[name].title for name in made_up)
    which = "These data are" if made_up == run else f"The data of {titles} are"
    return (
        f"{which} synthetic: generated so that everything can be tried without a download. They show that "
        "the pipeline works and how a report reads; they are no evidence for or against any model."
    )


def _synthetic(catalog: Catalog, task: Task) -> bool:
    return any(
        (catalog.domains[side].url or "").startswith("synthetic:") for side in (task.source, task.target)
    )


def _item(store: Store, heading: str, *place: str) -> Item:
    folder = store.fetch_report(*place)
    texts = [folder / f"fragment.{ending}" for ending in ("html", "md")]
    found = (file.read_text() if file.exists() else "" for file in texts)
    return Item(heading, "/".join(place), *found)


def _report_markdown(shown: Report) -> str:
    blocks = [f"# {shown.title}", *([f"> **{shown.warning}**"] if shown.warning else [])]
    blocks += [shown.opening.markdown.rstrip() or shown.opening.hint, shown.lead]
    for title, chapters in shown.groups.items():
        blocks.append(f"# {title}")
        for chapter in chapters:
            blocks += [f"## {chapter.title}", chapter.lead]
            blocks += [item.markdown.rstrip() or item.hint for item in chapter.items]
    blocks += [f"Nothing has been computed for: {', '.join(shown.empty)}."] if shown.empty else []
    return "\n\n".join(blocks) + "\n"
