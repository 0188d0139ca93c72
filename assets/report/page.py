"""The paper's tables and figures as assets, and the report that binds them.

Each is one folder: Parquet and CSV for programs, Markdown, LaTeX and HTML for readers, pictures as PNG and
SVG. It is made from the cells that exist and says how many are missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from assets.data.splits import overlap
from assets.report.formats import Part, markdown, page, read_part, write_part
from assets.report.parts import KINDS, Kind, summary_part, table1_part
from assets.report.results import read_results
from assets.settings.profile import Profile
from assets.state import plots
from assets.state.code import code_of, digest_of
from assets.state.store import Store, fingerprint

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


def report_assets(profiles: Mapping[str, Profile]) -> list[dg.AssetsDefinition]:
    """Table 1, each profile's tables and figures, and the report."""
    kinds = {name: [kind for kind in KINDS if kind.wanted(profile)] for name, profile in profiles.items()}
    parts = [part_asset(profiles[name], kind) for name, wanted in kinds.items() for kind in wanted]
    return [table1, *parts, report_asset(profiles)]


@dg.asset(name="table1", deps=[overlap], kinds={"parquet", "markdown"}, **COMMON)
def table1(store: Store) -> dg.MaterializeResult:
    """Table 1, data statistics of each task, with the paper's numbers where the task is the paper's."""
    return _publish(store, (), table1_part(store))


def part_asset(profile: Profile, kind: Kind) -> dg.AssetsDefinition:
    """The asset of one table or figure of a profile."""

    @dg.asset(
        name=kind.name,
        key_prefix=profile.name,
        deps=[dg.AssetKey([profile.name, name]) for name in kind.upstream(profile)],
        kinds={"parquet", "markdown"},
        description=f"{kind.what} Profile: {profile.title}.",
        **COMMON,
    )
    def part(store: Store) -> dg.MaterializeResult:
        return _publish(store, (profile.name,), kind.build(store, profile))

    return part


def _publish(store: Store, place: tuple[str, ...], part: Part) -> dg.MaterializeResult:
    """Write a part in every format and describe it to Dagster."""
    folder = store.report(*place, part.name)
    write_part(folder, part)
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


@dataclass(frozen=True)
class Section:
    """A chapter of the report: some words on how to read it, and the kind of part that it shows."""

    anchor: str
    title: str
    lead: str
    kind: str


SECTIONS = (
    Section(
        "verdict",
        "Does transfer help?",
        "Models are chosen on validation users, and what is said of them is measured on the test users.",
        "verdict",
    ),
    Section(
        "cold-start",
        "Cold start",
        "How well ratings of users are predicted who have none in the target domain. One table for each "
        "rule by which the epoch is chosen: the paper's best epoch on the test users is optimistic, for "
        "it looks at what it is judged by; compare it with the other rules to see by how much.",
        "table2",
    ),
    Section(
        "ranking",
        "Ranking",
        "How well all items of the target domain are ordered. Compare each model with the random order "
        "first: with tens of thousands of items all numbers are small.",
        "ranking",
    ),
    Section(
        "significance",
        "Significance",
        "Whether DiffCDR and each baseline differ by more than chance. Seeds tell whether a repeated "
        "experiment would come out alike, users whether other users would.",
        "significance",
    ),
    Section(
        "distributions",
        "Distributions",
        "A cold-start user's rating is uncertain, and a distribution says how much: its mean serves RMSE, "
        "its median MAE. The logit is the simple model to beat, one rating at a time.",
        "distribution",
    ),
    Section(
        "coverage",
        "Coverage",
        "Where the errors are: a user's mean over items hides those that nobody rated in training. Compare a "
        "model with the best control in the same row, and its curve with the diagonal.",
        "coverage",
    ),
    Section(
        "warm-start",
        "Warm start",
        "What the earlier half of a user's ratings adds: every model is fine-tuned from its transferred "
        "vector and both states are tested on the same later half.",
        "figure3",
    ),
    Section(
        "warming-up",
        "Warming up without training",
        "What a user's first target ratings are worth, where samples of the user are reweighted by them.",
        "warming",
    ),
    Section("ablation", "Ablation", "What each part of DiffCDR is worth.", "table3"),
    Section(
        "user-vectors",
        "User vectors",
        "Whether transferred vectors lie where the users' true vectors are.",
        "figure4",
    ),
    Section("throughput", "Throughput", "How fast models train and predict on the device named.", "table4"),
    Section(
        "search",
        "Search",
        "How sensitive DiffCDR is to its two main settings, on validation users.",
        "search_surface",
    ),
)


def report_asset(profiles: Mapping[str, Profile]) -> dg.AssetsDefinition:
    """The report over all profiles."""
    parts = [(profile, kind) for profile in profiles.values() for kind in KINDS if kind.wanted(profile)]
    keys = [dg.AssetKey([profile.name, kind.name]) for profile, kind in parts]

    @dg.asset(name="report", deps=[table1, *keys], kinds={"html", "markdown"}, **COMMON)
    def report(store: Store) -> dg.MaterializeResult:
        """Every table and figure on one page that needs no other file and no network, and as Markdown."""
        chapters = report_chapters(store, profiles)
        folder = store.report("report")
        lead = (
            "Diffusion cross-domain recommendation: the paper's tables and figures, its value beside ours. "
            f"Made {datetime.now(UTC):%d %B %Y, %H:%M} UTC."
        )
        title = "DiffCDR: results"
        (folder / "report.html").write_text(page("report.html", title=title, lead=lead, chapters=chapters))
        (folder / "report.md").write_text(_report_markdown(title, lead, chapters))
        absent = [item.mend for chapter in chapters for item in chapter.items if item.part is None]
        return dg.MaterializeResult(
            metadata={
                "html": dg.MetadataValue.path(str(folder / "report.html")),
                "markdown": dg.MetadataValue.path(str(folder / "report.md")),
                "missing": dg.MetadataValue.md("\n".join(f"- {mend}" for mend in absent) or "none"),
            }
        )

    return report


@dataclass(frozen=True)
class Item:
    """A part in a chapter, or its place under the reports where it has not been made."""

    heading: str
    part: Part | None
    place: str = ""

    @property
    def mend(self) -> str:
        return f"Not made yet: materialize {self.place} (the job `tables` makes all)."


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report as it is shown."""

    anchor: str
    title: str
    lead: str
    items: list[Item]


def report_chapters(store: Store, profiles: Mapping[str, Profile]) -> list[Chapter]:
    """What was run, the data, then the sections that some profile has; of profiles, those with any result."""
    finished = set(read_results(store)["profile"])
    profiles = {name: p for name, p in profiles.items() if not finished or name in finished}
    wanted = {kind.name: kind.wanted for kind in KINDS}
    run = "Finished cells of each model; a cell is one β and one seed of a task."
    chapters = [
        Chapter("summary", "What was run", run, [Item("", summary_part(store, profiles))]),
        Chapter("data", "Data", "The domains and the users they share.", [_item(store, "", "table1")]),
    ]
    for section in SECTIONS:
        shown = [profile for profile in profiles.values() if wanted[section.kind](profile)]
        items = [_item(store, profile.title, profile.name, section.kind) for profile in shown]
        chapters += [Chapter(section.anchor, section.title, section.lead, items)] if items else []
    return chapters


def _item(store: Store, heading: str, *place: str) -> Item:
    return Item(heading, read_part(store.report(*place)), "/".join(place))


def _report_markdown(title: str, lead: str, chapters: Sequence[Chapter]) -> str:
    blocks = [f"# {title}", lead]
    for chapter in chapters:
        blocks += [f"## {chapter.title}", chapter.lead]
        for item in chapter.items:
            shown = item.part and markdown(item.part, f"../{item.place}/", level=3).rstrip()
            blocks.append(shown or item.mend)
    return "\n\n".join(blocks) + "\n"
