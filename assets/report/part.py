"""A part of the report: one table or figure with its words, written for programs and for readers."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from assets.report import table as tables
from assets.report.names import Names
from assets.report.results import Source
from assets.report.table import Table
from assets.settings.profile import Profile
from assets.state.store import Entry

if TYPE_CHECKING:
    import jinja2

LARGE_SVG = 200_000  # bytes: a cloud of thousands of points is smaller as pixels
NOTHING = "Nothing has been computed yet."


@dataclass(frozen=True)
class Picture:
    """One figure, as the bytes of each format by file ending (png, svg). folded: as of a `Table`."""

    name: str
    caption: str
    formats: Mapping[str, bytes]
    folded: bool = False

    @property
    def data_uri(self) -> str:
        """The picture to be shown without another file: sharp at any size unless that takes much room."""
        ending = "svg" if 0 < len(self.formats.get("svg", b"")) < LARGE_SVG else "png"
        kind = {"png": "image/png", "svg": "image/svg+xml"}[ending]
        return f"data:{kind};base64,{base64.b64encode(self.formats[ending]).decode()}"


def stored_picture(entry: Entry, file: str, name: str, caption: str) -> Picture:
    """A picture that another asset has drawn and left in its entry as `file`.png, .svg or both."""
    endings = [ending for ending in ("png", "svg") if entry.has(f"{file}.{ending}")]
    return Picture(name, caption, {ending: entry.read(f"{file}.{ending}") for ending in endings})


def each_task(
    frame: pd.DataFrame, names: Names, draw: Callable[[pd.DataFrame, str, Names], Picture]
) -> list[Picture]:
    """A picture for each task of `frame`, drawn of its rows."""
    return [draw(frame[frame["task"] == task], task, names) for task in names.in_order(frame["task"])]


@dataclass(frozen=True)
class Part:
    """One table or figure of a profile: the numbers in long form and how they are read. sentences: what they
    say, to be read first; notes: what is to be known of them."""

    name: str
    title: str
    frame: pd.DataFrame
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    missing: str = ""
    pictures: Sequence[Picture] = ()
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class Chapter:
    """A kind of part, which every profile has for which it is `wanted`, and its chapter of the report.

    what: of the asset, for people; upstream: the assets of the profile that it is made from. reproduces:
    whether it is a table or figure of the paper, of which the profile with the paper's protocol comes first.
    folded: whether few read it.
    """

    name: str
    title: str
    lead: str
    what: str
    build: Callable[[Source], Part]
    upstream: Callable[[Profile], Sequence[str]]
    wanted: Callable[[Profile], bool] = lambda profile: True
    reproduces: bool = False
    folded: bool = False


def write_part(folder: Path, part: Part, place: str) -> None:
    """Write `part` into `folder` as NAME.parquet, .csv, .md, .tex and .html, its pictures, and as fragments
    of the report, from which `place` leads here: fragment.md and fragment.html."""
    part.frame.to_parquet(folder / f"{part.name}.parquet", index=False)
    part.frame.to_csv(folder / f"{part.name}.csv", index=False)
    for picture in part.pictures:
        for ending, content in picture.formats.items():
            (folder / f"{picture.name}.{ending}").write_bytes(content)
    (folder / f"{part.name}.md").write_text(markdown(part))
    (folder / f"{part.name}.tex").write_text(latex(part))
    body = html(part, place)
    (folder / f"{part.name}.html").write_text(page("table.html", title=part.title, body=body))
    (folder / "fragment.html").write_text(body)
    (folder / "fragment.md").write_text(markdown(part, f"../{place}/", level=3))


def markdown(part: Part, folder: str = "", level: int = 1) -> str:
    """The part as Markdown; `folder` leads from the text to the part's pictures (with its last slash)."""
    blocks = [f"{'#' * level} {part.title}", *part.sentences]
    blocks += [f"![{picture.caption}]({folder}{picture.name}.png)" for picture in part.pictures]
    for table in part.tables:
        blocks += [f"{'#' * (level + 1)} {table.caption}"] if table.caption else []
        blocks += [tables.markdown(table), *table.notes]
    blocks += [] if part.tables or part.pictures else [NOTHING]
    blocks += [*part.notes, *([f"Missing: {part.missing}."] if part.missing else [])]
    return "\n\n".join(blocks) + "\n"


def latex(part: Part) -> str:
    """The part's tables as LaTeX `table` environments; they need booktabs alone."""
    written = [tables.latex(table, part.title) for table in part.tables]
    return "\n".join([r"% \usepackage{booktabs}", *written])


def html(part: Part, place: str) -> str:
    """The part as an HTML fragment; `place` makes its ids differ from those of other parts."""
    return page("part.html", part=part, place=place.replace("/", "-"))


def page(template: str, **values: object) -> str:
    """A page or fragment of HTML that needs no other file."""
    return _templates().get_template(template).render(nothing=NOTHING, **values)


@cache
def _templates() -> "jinja2.Environment":
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.globals["table_html"], templates.globals["room"] = tables.html, tables.room
    return templates
