"""A table as it is read, and its writers: HTML and LaTeX by pandas' Styler, Markdown by tabulate, the
terminal by rich.

A cell is a text, or a `Number` with what is to be seen of it: numbers are made text here, by each writer.
"""

import html as escaping
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler
    from rich.table import Table as RichTable

UNDEFINED = "n/a"
BEATEN = "‡"
HIT = "✓"
# Characters of a line: on a phone, on a wide screen, on A4 in the usual and in the smallest print, on A4 on
# its side.
ROOM = {"phone": 44, "screen": 165, "tight": 190, "upright": 265, "paper": 390}
WORDS = 60  # characters: the width of a column of sentences
# The column that says what a row is: ours, paper, difference, cold, warm.
KIND = ""
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: rf"\{sign}" for sign in "%_&#${}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"${sign}$" for sign in "<>|"},
        **{"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "→": r"$\rightarrow$", "≥": r"$\geq$", "²": "$^2$"},
        **{"★": r"$\star$", HIT: r"$\checkmark$"},
        **{"†": r"$^{\dagger}$", BEATEN: r"$^{\ddagger}$", "β": r"$\beta$", "λ": r"$\lambda$"},
    }
)


@dataclass(frozen=True)
class Number:
    """A number of a table. style: how it is written; spread: its standard deviation, if any; who: the model
    whose it is, where the column does not say. best, star, beaten: the best of its row; significantly better
    than the best other; not better than the best control."""

    value: float
    style: str = "{:.4f}"
    spread: float | None = None
    who: str = ""
    best: bool = False
    star: bool = False
    beaten: bool = False

    @property
    def text(self) -> str:
        """The value with what is not its format's: the mark of the beaten, and whose it is."""
        written = UNDEFINED if pd.isna(self.value) else _written(self.style, self.value)
        return f"{written}{BEATEN if self.beaten else ''} {self.who}".rstrip()

    def __str__(self) -> str:
        return self.text

    @property
    def spread_text(self) -> str:
        return "" if pd.isna(self.spread) or pd.isna(self.value) else _written(self.style, self.spread)


@dataclass(frozen=True)
class Interval:
    """Two ends, such as of a confidence interval."""

    low: float
    high: float
    style: str = "{:+.4f}"

    def __str__(self) -> str:
        if pd.isna(self.low):
            return UNDEFINED
        return f"{_written(self.style, self.low)} … {_written(self.style, self.high)}"


@dataclass(frozen=True)
class PValue:
    """A p-value; those below 0.001 are said to be."""

    value: float | None

    def __str__(self) -> str:
        if pd.isna(self.value):
            return UNDEFINED
        return "< 0.001" if self.value < 0.001 else f"{self.value:.3f}"


class Words(str):
    """A text of sentences, which is broken into lines where there is no room for it."""


class Hit(str):
    """An item of a list that the user did choose."""

    def __str__(self) -> str:
        return f"{super().__str__()}\N{NO-BREAK SPACE}{HIT}"


def _written(style: str, value: float) -> str:
    """With the sign for minus, which is as wide as plus."""
    return style.format(value).replace("-", "−")


def digits(count: int, signed: bool = False) -> str:
    """The style of so many digits behind the point."""
    return f"{{:{'+' if signed else ''}.{count}f}}"


def counted(counts: pd.Series) -> str:
    """`5`, or `3–5` where they differ."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low}–{high}"


@dataclass(frozen=True)
class Table:
    """A table: `frame` of cells, with column names that are tuples where the header has several lines.

    keys: number of leading columns whose values are printed only where they change. sections: whether the
    first of them divides the table into several, each under a heading. folded: whether few read it, so that
    the report shows its caption alone until it is asked for. small: whether sections fit side by side.
    """

    caption: str
    frame: pd.DataFrame
    keys: int = 1
    sections: bool = False
    notes: tuple[str, ...] = ()
    folded: bool = False
    small: bool = False

    @property
    def characters(self) -> int:
        """How wide the table is, in characters: what a page or a phone has room for."""
        return sum(
            2 + max(_width(name), *(len(_plain(cell)) for cell in self.frame.iloc[:, position]), 0)
            for position, name in enumerate(self.frame.columns)
        )

    def parts(self) -> Iterator[tuple[str, "Table"]]:
        """The sections by heading; the whole table under no heading where it has none."""
        if not self.sections:
            yield "", self
            return
        for heading, of_section in self.frame.groupby(self.frame.iloc[:, 0], sort=False):
            inner = of_section.iloc[:, 1:].reset_index(drop=True)
            # A column that only other sections fill is none of this one's.
            inner = inner.loc[:, [bool((column != "").any()) for _, column in inner.items()]]
            yield str(heading), replace(self, frame=inner, keys=self.keys - 1, sections=False)

    @property
    def left(self) -> int:
        """How many leading columns are words."""
        first = self.frame.columns[self.keys : self.keys + 1]
        left = max(1, self.keys + (_flat(first[0]) == KIND if len(first) else 0))
        while left < len(self.frame.columns) and _is_words(self, left):
            left += 1
        return left

    @property
    def starts(self) -> np.ndarray:
        """Whether a row has another first key than the row above."""
        first = self.frame.iloc[:, 0]
        return (first != first.shift()).to_numpy() & (self.keys > 0)

    @property
    def kinds(self) -> list[str]:
        """What each row is."""
        for name in self.frame.columns:
            if _flat(name) == KIND:
                return list(self.frame[name])
        return [""] * len(self.frame)

    def without_repeats(self) -> pd.DataFrame:
        """The cells, with keys blank where they repeat those of the row above."""
        shown, same = self.frame.copy(), np.ones(len(self.frame), bool)
        for position in range(self.keys):
            column = self.frame.iloc[:, position]
            same &= (column == column.shift()).to_numpy()
            shown.isetitem(position, column.mask(same, ""))
        return shown


def table(
    caption: str,
    rows: Sequence[Mapping],
    order: Sequence = (),
    keys: int = 1,
    sections: bool = False,
    notes: Sequence[str] = (),
    folded: bool = False,
    small: bool = False,
) -> Table:
    """A table of rows by column name, blank where a row lacks a column.

    Columns that some row has come in the given order, then the others in the order of their first use. A
    name that is a tuple makes a header of two lines.
    """
    used = dict.fromkeys(column for row in rows for column in row)
    names = [*(name for name in order if name in used), *(name for name in used if name not in order)]
    cells = [[row.get(name, "") for name in names] for row in rows]
    columns = pd.Index(names, dtype=object)
    if any(isinstance(name, tuple) for name in names):
        columns = pd.MultiIndex.from_tuples([n if isinstance(n, tuple) else ("", n) for n in names])
    frame = pd.DataFrame(cells, columns=columns, dtype=object)
    return Table(caption, frame, keys, sections, tuple(notes), folded, small)


def _plain(cell: object) -> str:
    """A cell's text as wide as it is shown: sentences are broken, and spreads stand behind their number."""
    if isinstance(cell, Words):
        return cell[:WORDS]
    spread = getattr(cell, "spread_text", "")
    return f"{cell} ± {spread}" if spread else str(cell)


def _width(name: object) -> int:
    """Of a column's name, which is broken between words."""
    last = name[-1] if isinstance(name, tuple) else str(name)
    return max((len(word) for word in last.split()), default=0)


def room(part: Table) -> str:
    """What one part of a table has no room on, as classes of the page, by the names of ROOM."""
    return " ".join(f"beyond-{name}" for name, limit in ROOM.items() if part.characters > limit)


def fold(several: "Sequence[Table]") -> list[Table]:
    """The same tables, folded."""
    return [replace(one, folded=True) for one in several]


def _flat(name: object) -> str:
    return " ".join(word for word in name if word) if isinstance(name, tuple) else str(name)


def html(part: Table, name: str) -> str:
    """One part of a table as an HTML element with the id `name`."""
    shown = part.without_repeats()
    spread = [any(getattr(cell, "spread_text", "") for cell in column) for _, column in shown.items()]
    star = [any(getattr(cell, "star", False) for cell in column) for _, column in shown.items()]
    cells = shown.copy()
    for position, room in enumerate(zip(star, spread, strict=True)):
        written = [_html_cell(cell, *room) for cell in shown.iloc[:, position]]
        cells.isetitem(position, pd.Series(written, index=shown.index, dtype=object))
    classes = pd.DataFrame("", index=shown.index, columns=shown.columns)
    for row, (kind, start) in enumerate(zip(part.kinds, part.starts, strict=True)):
        classes.iloc[row, :] = f"{escaping.escape(kind)} {'start' if start else ''}".strip()
        classes.iloc[row, : part.left] += " left"
        classes.iloc[row, : part.keys] += " key"
    classes = classes + shown.map(lambda cell: " words" if isinstance(cell, Words) else "")
    style = _styler(cells).set_td_classes(classes).format_index(escaping.escape, axis=1).set_uuid(name)
    style.cell_ids = False
    return style.set_table_styles(css_class_names={"data": "", "row": "r", "col": "c"}).to_html(
        table_attributes=f'class="left{part.left}"'
    )


def _styler(cells: pd.DataFrame) -> "Styler":
    return cells.style.hide(axis="index")


def _html_cell(cell: object, star: bool, spread: bool) -> str:
    """Room for a star and a spread is kept in every row of a column that has some: decimals align."""
    if isinstance(cell, Hit):
        return f'<span class="hit">{escaping.escape(str(cell))}</span>'
    if not isinstance(cell, Number):
        return escaping.escape(str(cell))
    text = escaping.escape(cell.text)
    text = f'<span class="best">{text}</span>' if cell.best else text
    text += f'<span class="star">{"*" if cell.star else ""}</span>' if star else ""
    said = f"± {cell.spread_text}" if cell.spread_text else ""
    return text + (f'<span class="spread">{said}</span>' if spread else "")


def latex(whole: Table, title: str) -> str:
    """A table as LaTeX `table` environments, one a section; they need booktabs alone."""
    return "\n".join(
        _latex_part(part, ". ".join(text for text in (title, whole.caption, heading) if text))
        for heading, part in whole.parts()
    )


def _latex_part(part: Table, caption: str) -> str:
    cells = part.without_repeats().map(_latex_cell)
    rules = [r"\midrule" + "\n" if start and row else "" for row, start in enumerate(part.starts)]
    cells.isetitem(0, [rule + text for rule, text in zip(rules, cells.iloc[:, 0], strict=True)])
    written = (
        _styler(cells)
        .format_index(latex_text, axis=1)
        .to_latex(
            hrules=True,
            column_format="".join(_latex_column(part, position) for position in range(cells.shape[1])),
            multicol_align="c",
            position_float="centering",
            caption=latex_text(caption),
        )
    )
    small = r"\scriptsize\setlength{\tabcolsep}{3pt}" + "\n"
    notes = "".join(rf"\par\smallskip {latex_text(note)}" + "\n" for note in part.notes)
    head, tabular = written.split(r"\begin{tabular}")
    return head + small + r"\begin{tabular}" + tabular.replace(r"\end{table}", notes + r"\end{table}")


def _latex_column(part: Table, position: int) -> str:
    if _is_words(part, position):
        return r"p{.6\linewidth}"
    return "l" if position < part.left else "r"


def _is_words(part: Table, position: int) -> bool:
    return any(isinstance(cell, Words) for cell in part.frame.iloc[:, position])


def latex_text(text: str) -> str:
    """`text` with everything escaped that LaTeX would read as a command."""
    return text.translate(_LATEX)


def _latex_cell(cell: object) -> str:
    if isinstance(cell, Hit):
        return rf"\textbf{{{latex_text(str(cell))}}}"
    if not isinstance(cell, Number):
        return latex_text(str(cell))
    text = latex_text(cell.text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    # A spread as a subscript keeps seven models within a page.
    spread = rf"$_{{\pm {cell.spread_text}}}$" if cell.spread_text else ""
    return text + ("$^{*}$" if cell.star else "") + spread


def markdown(whole: Table) -> str:
    """A table as Markdown, its sections under their headings."""
    blocks = []
    for heading, part in whole.parts():
        cells = part.without_repeats().map(_markdown_cell)
        cells.columns = [_flat(name).replace("|", r"\|") for name in cells.columns]
        align = ["left"] * part.left + ["right"] * (cells.shape[1] - part.left)
        blocks += [f"**{heading}**"] if heading else []
        blocks.append(cells.to_markdown(index=False, colalign=align, disable_numparse=True))
    return "\n\n".join(blocks)


def _markdown_cell(cell: object) -> str:
    text = str(cell).replace("|", r"\|")
    if isinstance(cell, Hit):
        return f"**{text}**"
    if not isinstance(cell, Number):
        return text
    text = f"**{text}**" if cell.best else text
    return text + ("∗" if cell.star else "") + (f" ± {cell.spread_text}" if cell.spread_text else "")


def to_rich(whole: Table, title: str) -> "Iterator[RichTable]":
    """A table for the terminal, one a section; spreads are in the files, here columns must fit."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for heading, part in whole.parts():
        said = Text(". ".join(text for text in (title, heading) if text))
        shown = RichTable(title=said, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for position, name in enumerate(part.frame.columns):
            justify = "left" if position < part.left else "right"
            shown.add_column(Text(_flat(name)), justify=justify, no_wrap=not _is_words(part, position))
        for row in part.without_repeats().itertuples(index=False, name=None):
            bold = ["bold" if getattr(cell, "best", False) else "" for cell in row]
            shown.add_row(*(Text(str(cell), style) for cell, style in zip(row, bold, strict=True)))
        yield shown
