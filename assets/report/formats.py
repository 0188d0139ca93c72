"""Readable tables and pictures, written as Markdown, LaTeX (booktabs) and HTML.

A readable table is text: `**x**` marks a best value, `∗` behind a value its significance, ` ± x` its spread.
The three writers turn these marks into what their format has for them.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, takewhile
from pathlib import Path

import jinja2
import pandas as pd

STAR = "∗"
LARGE_SVG = 200_000  # bytes: a cloud of thousands of points is smaller as pixels
NOTHING = "Nothing has been computed yet."
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MARKED = re.compile(rf"(?P<best>\*\*)?(?P<text>.*?)(?:\*\*)?(?P<star>{STAR})?(?P<spread> ± \S+)?$")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "%_&#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "²": "$^2$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    STAR: "$^{*}$",
}


@dataclass(frozen=True)
class Layout:
    """A table as it is read, of text cells; column names may be tuples, which make a header of several lines.

    keys: number of leading columns whose values are printed only where they change. sections: whether the
    first of them divides the table into parts with a heading. A row whose column "" says `paper` or
    `difference` is set back.
    """

    caption: str
    columns: tuple[str | tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 0
    sections: bool = False
    notes: tuple[str, ...] = ()

    def without_repeats(self) -> list[list[str]]:
        """The rows with key values blanked where they repeat those of the row above."""
        out = []
        for above, row in zip(((), *self.rows), self.rows, strict=False):
            same = [i < self.keys and above[: i + 1] == row[: i + 1] for i in range(len(row))]
            out.append(["" if repeated else text for text, repeated in zip(row, same, strict=True)])
        return out

    def parts(self) -> Iterator[tuple[str, "Layout"]]:
        """The sections by heading; the whole table under no heading where it has none."""
        if not self.sections:
            yield "", self
            return
        for heading, rows in groupby(self.rows, key=lambda row: row[0]):
            inner = tuple(row[1:] for row in rows)
            yield (
                heading,
                replace(self, columns=self.columns[1:], rows=inner, keys=self.keys - 1, sections=False),
            )


def layout(
    caption: str,
    rows: Sequence[Mapping],
    order: Sequence = (),
    keys: int = 0,
    sections: bool = False,
    notes: tuple[str, ...] = (),
) -> Layout:
    """A layout of rows by column name, blank where a row lacks a column.

    Columns that some row has come in the given order, then the others in the order of their first use.
    """
    used = dict.fromkeys(column for row in rows for column in row)
    columns = (*(column for column in order if column in used), *(c for c in used if c not in order))
    cells = tuple(tuple(row.get(column, "") for column in columns) for row in rows)
    return Layout(caption, columns, cells, keys, sections, notes)


@dataclass(frozen=True)
class Picture:
    """One figure, as the bytes of each format by file ending (png, svg)."""

    name: str
    caption: str
    formats: Mapping[str, bytes]

    @property
    def data_uri(self) -> str:
        """The picture to be shown without another file: sharp at any size unless that takes much room."""
        ending = "svg" if 0 < len(self.formats.get("svg", b"")) < LARGE_SVG else "png"
        kind = {"png": "image/png", "svg": "image/svg+xml"}[ending]
        return f"data:{kind};base64,{base64.b64encode(self.formats[ending]).decode()}"


@dataclass(frozen=True)
class Part:
    """One table or figure of the report: the numbers in long form and how they are read."""

    name: str
    title: str
    frame: pd.DataFrame
    layouts: tuple[Layout, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""
    pictures: tuple[Picture, ...] = ()


def write_part(folder: Path, part: Part) -> None:
    """Write `part` into `folder` as NAME.parquet, .csv, .md, .tex, .html, its pictures, and part.json."""
    part.frame.to_parquet(folder / f"{part.name}.parquet", index=False)
    part.frame.to_csv(folder / f"{part.name}.csv", index=False)
    for picture in part.pictures:
        for ending, content in picture.formats.items():
            (folder / f"{picture.name}.{ending}").write_bytes(content)
    (folder / f"{part.name}.md").write_text(markdown(part))
    (folder / f"{part.name}.tex").write_text(latex(part))
    (folder / f"{part.name}.html").write_text(page("table.html", title=part.title, part=part))
    (folder / "part.json").write_text(_to_json(part))


def read_part(folder: Path) -> Part | None:
    """What `write_part` wrote, or None where nothing was."""
    try:
        raw = json.loads((folder / "part.json").read_text())
    except FileNotFoundError:
        return None
    return Part(
        name=raw["name"],
        title=raw["title"],
        frame=pd.read_parquet(folder / f"{raw['name']}.parquet"),
        layouts=tuple(_layout_from(layout) for layout in raw["layouts"]),
        notes=tuple(raw["notes"]),
        missing=raw["missing"],
        pictures=tuple(
            Picture(name, caption, {e: (folder / f"{name}.{e}").read_bytes() for e in endings})
            for name, caption, endings in raw["pictures"]
        ),
    )


def _to_json(part: Part) -> str:
    pictures = [(picture.name, picture.caption, list(picture.formats)) for picture in part.pictures]
    facts = {"name": part.name, "title": part.title, "notes": part.notes, "missing": part.missing}
    layouts = [asdict(layout) for layout in part.layouts]
    return json.dumps({**facts, "layouts": layouts, "pictures": pictures}, ensure_ascii=False)


def _layout_from(raw: Mapping) -> Layout:
    columns = tuple(tuple(column) if isinstance(column, list) else column for column in raw["columns"])
    rows = tuple(tuple(row) for row in raw["rows"])
    return Layout(**{**raw, "columns": columns, "rows": rows, "notes": tuple(raw["notes"])})


def markdown(part: Part, folder: str = "", level: int = 1) -> str:
    """The part as Markdown; `folder` leads from the text to the part's pictures (with its last slash)."""
    blocks = [f"{'#' * level} {part.title}"]
    blocks += [f"![{picture.caption}]({folder}{picture.name}.png)" for picture in part.pictures]
    for layout in part.layouts:
        blocks += [f"{'#' * (level + 1)} {layout.caption}"] if layout.caption else []
        blocks += [_markdown_table(layout), *layout.notes]
    blocks += [] if part.layouts else [NOTHING]
    blocks += [*part.notes, *([f"Missing: {part.missing}."] if part.missing else [])]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(layout: Layout) -> str:
    names = [" ".join(word for word in _as_tuple(column) if word) for column in layout.columns]
    cells = [[text.replace("|", r"\|") for text in row] for row in (names, *layout.without_repeats())]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    left = [position < max(1, layout.keys) for position in range(len(names))]
    rule = [
        "-" * (width - 1) + ("-" if at_left else ":") for width, at_left in zip(widths, left, strict=True)
    ]
    lines = [
        [
            text.ljust(width) if at_left else text.rjust(width)
            for text, width, at_left in zip(row, widths, left, strict=True)
        ]
        for row in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def latex(part: Part) -> str:
    """The part's tables as LaTeX `table` environments, one for each section; they need booktabs alone."""
    blocks = [r"% \usepackage{booktabs}"]
    for layout in part.layouts:
        for heading, section in layout.parts():
            caption = ". ".join(text for text in (part.title, layout.caption, heading) if text)
            blocks.append(_latex_table(section, caption))
    return "\n\n".join(blocks) + "\n"


def _latex_table(layout: Layout, caption: str) -> str:
    # Numbers stand at the right, words at the left.
    shape = "l" * max(1, layout.keys) + "r" * (len(layout.columns) - max(1, layout.keys))
    body = []
    for row in layout.without_repeats():
        body += [r"\midrule"] if body and layout.keys and row[0] else []
        body.append(" & ".join(map(_latex_cell, row)) + r" \\")
    lines = [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        *_latex_header(layout.columns),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip {latex_text(note)}" for note in layout.notes),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _latex_header(columns: Sequence) -> Iterator[str]:
    for line in header(columns):
        cells = [
            latex_text(text) if span == 1 else rf"\multicolumn{{{span}}}{{c}}{{{latex_text(text)}}}"
            for text, span in line
        ]
        yield " & ".join(cells) + r" \\"


def latex_text(text: str) -> str:
    """`text` with everything escaped that LaTeX would read as a command."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _minus(text: str) -> str:
    """Negative numbers with the sign for minus, which is as wide as plus."""
    return re.sub(r"(?<!\S)-(?=[\d.])", "−", text)


def _latex_cell(text: str) -> str:
    found = _MARKED.match(text)
    value = latex_text(_minus(found["text"]))
    bold = rf"\textbf{{{value}}}" if found["best"] else value
    # A spread as a subscript keeps seven models within a page.
    spread = rf"$_{{\pm {found['spread'].removeprefix(' ± ')}}}$" if found["spread"] else ""
    return bold + latex_text(found["star"] or "") + spread


def header(columns: Sequence) -> list[list[tuple[str, int]]]:
    """Each line of the header as (text, number of columns it stands over)."""
    names = [_as_tuple(column) for column in columns]
    lines = []
    for depth in range(len(names[0]) if names else 0):
        # A text stands over its neighbours only under the same text above.
        runs = groupby(names, key=lambda name: name[: depth + 1])
        lines.append([(prefix[depth], len(list(run))) for prefix, run in runs])
    return [_blanks_apart(line) for line in lines]


def _blanks_apart(line: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [cell for text, span in line for cell in ([(text, span)] if text else [("", 1)] * span)]


def _as_tuple(column: object) -> tuple:
    return column if isinstance(column, tuple) else (str(column),)


def page(template: str, **values: object) -> str:
    """An HTML page that needs no other file."""
    return TEMPLATES.get_template(template).render(table=html_table, nothing=NOTHING, **values)


def html_table(layout: Layout) -> dict:
    """What the template needs of a table: header lines, and sections of blocks of rows of cells."""
    sections = list(layout.parts())
    inner = sections[0][1] if sections else layout
    # Columns in which some value has a star or a spread keep room for it in every row: decimals align.
    marks = {
        mark: {i for _, part in sections for row in part.rows for i, text in enumerate(row) if mark in text}
        for mark in (STAR, " ± ")
    }
    return {
        "header": header(inner.columns),
        "width": len(inner.columns),
        "left": max(1, inner.keys),
        "sections": [(heading, list(_blocks(part, marks))) for heading, part in sections],
    }


def _blocks(layout: Layout, marks: Mapping[str, set[int]]) -> Iterator[list[dict]]:
    """The rows in blocks of one value of the first key, which a page break should not divide."""
    line = next((i for i, column in enumerate(layout.columns) if not any(_as_tuple(column))), None)
    for _, rows in groupby(layout.rows, key=lambda row: row[0] if layout.keys else ""):
        block = list(rows)
        yield [
            {
                "kind": row[line] if line is not None else "",
                "cells": list(_html_cells(block, position, layout.keys, marks)),
            }
            for position, row in enumerate(block)
        ]


def _html_cells(
    block: Sequence[Sequence[str]], position: int, keys: int, marks: Mapping[str, set[int]]
) -> Iterator[dict]:
    row = block[position]
    for i, text in enumerate(row):
        prefix = row[: i + 1]
        if i >= keys:
            yield {
                **_html_cell(text, *(i in marked for marked in marks.values())),
                "span": 1,
                "key": False,
                "left": i == 0,
            }
        elif position == 0 or block[position - 1][: i + 1] != prefix:
            below = takewhile(lambda other, prefix=prefix: other[: len(prefix)] == prefix, block[position:])
            yield {**_html_cell(text, False, False), "span": len(list(below)), "key": True, "left": True}


def _html_cell(text: str, has_star: bool, has_spread: bool) -> dict:
    found = _MARKED.match(text)
    return {
        "text": _minus(found["text"]),
        "best": bool(found["best"]),
        "star": ("*" if found["star"] else "") if has_star else None,
        "spread": (found["spread"] or "").strip() if has_spread else None,
    }
