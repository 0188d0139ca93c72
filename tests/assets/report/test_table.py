"""Tables as they are read: every writer shows the same numbers, keys once, and what is marked."""

import io
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from assets.report import table as writers
from assets.report.table import Interval, Number, PValue, Words, digits, table


def two_tasks():
    rows = [
        {
            "Task": "A & B",
            "β": "20%",
            "": "ours",
            "X_1": Number(1.0, digits(1), spread=0.1, best=True, star=True),
            "Y": Number(-2.0, digits(1)),
        },
        {
            "Task": "A & B",
            "β": "20%",
            "": "paper",
            "X_1": Number(1.5, digits(1)),
            "Y": Number(1, digits(1), best=True),
        },
        {"Task": "A & B", "β": "50%", "": "ours", "X_1": Number(1.1, digits(1)), "Y": PValue(0.0001)},
        {"Task": "C", "β": "20%", "": "ours", "Y": Number(3.0, digits(1), beaten=True)},
    ]
    return table("Caption", rows, keys=2, sections=True, notes=("100 % sure",))


class Page(HTMLParser):
    """The cells of a page's table rows, with their classes and spans."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = {"text": "", "class": attributes.get("class", "").split(), "bold": False}
            self.cell["span"] = int(attributes.get("colspan", 1))
            self.rows[-1].append(self.cell)
        if self.cell is not None and attributes.get("class") == "best":
            self.cell["bold"] = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell["text"] += data


def texts(row):
    return [cell["text"].strip() for cell in row]


def html(whole, part=0):
    return Page(writers.html(list(whole.parts())[part][1], "x"))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Number(-1.25, "{:+.1f}"), "−1.2"),
        (Number(1234.5, "{:,.0f} K"), "1,234 K"),
        (Number(0.5, digits(2), who="Ridge"), "0.50 Ridge"),
        (Number(0.5, digits(2), beaten=True, who="Ridge"), "0.50‡ Ridge"),
        (Number(math.nan), "n/a"),
        (PValue(0.03), "0.030"),
        (PValue(1e-5), "< 0.001"),
        (PValue(None), "n/a"),
        (Interval(-1.0, 2.0, "{:+.1f}"), "−1.0 … +2.0"),
        (Interval(None, None), "n/a"),
    ],
)
def test_cells_become_text_at_the_end(cell, text):
    assert str(cell) == text


def test_a_spread_of_one_seed_is_none():
    assert Number(1.0, spread=math.nan).spread_text == ""
    assert Number(math.nan, spread=0.5).spread_text == ""


def test_markdown_prints_a_key_once_and_aligns_numbers_right():
    lines = writers.markdown(two_tasks()).splitlines()
    grid = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert grid[0] == ["β", "", "X_1", "Y"]
    assert [rule.endswith(":") for rule in grid[1]] == [False, False, True, True]
    assert grid[2] == ["20%", "ours", "**1.0**∗ ± 0.1", "−2.0"]
    assert grid[3] == ["", "paper", "1.5", "**1.0**"]
    assert grid[4] == ["50%", "ours", "1.1", "< 0.001"]
    # X_1 is no column of the other section.
    assert grid[5] == ["β", "", "Y"]
    assert grid[7] == ["20%", "ours", "3.0‡"]
    assert [line for line in lines if line.startswith("**")] == ["**A & B**", "**C**"]


def test_latex_is_one_table_environment_a_section_with_every_row_complete():
    text = writers.latex(two_tasks(), "A thing")
    environments = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert len(environments) == 2
    for environment in environments:
        shape = re.search(r"\\begin\{tabular\}\{([lr]+)\}", environment)[1]
        rows = [line for line in environment.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(shape)}
        assert environment.count(r"\toprule") == environment.count(r"\bottomrule") == 1
    assert r"\caption{A thing. Caption. A \& B}" in environments[0]
    assert r"20\% & ours & \textbf{1.0}$^{*}$$_{\pm 0.1}$ & $-$2.0 \\" in environments[0]
    # A rule between the blocks of a key.
    assert environments[0].count(r"\midrule") == 2
    assert r"X\_1" in environments[0]
    assert "$<$ 0.001" in environments[0]
    assert r"100 \% sure" in environments[0]
    assert r"3.0$^{\ddagger}$" in environments[1]


@given(st.text(st.sampled_from("ab%_&#${}~^\\<>|± ")))
def test_latex_escapes_whatever_has_a_meaning(text):
    escaped = writers.latex_text(text)
    known = re.sub(r"\\text\w+\{\}|\\[%_&#${}]|\$[<>|]\$|\$\\pm\$", "", escaped)
    assert not re.search(r"[%_&#${}~^\\<>|±]", known)


def test_html_marks_the_best_and_prints_a_key_once():
    header, first, second, third = html(two_tasks()).rows
    assert texts(header) == ["β", "", "X_1", "Y"]
    assert texts(first) == ["20%", "ours", "1.0*± 0.1", "−2.0"]
    assert texts(second) == ["", "paper", "1.5", "1.0"]
    assert texts(third) == ["50%", "ours", "1.1", "< 0.001"]
    assert [cell["bold"] for cell in first] == [False, False, True, False]
    assert second[3]["bold"]
    assert all("paper" in cell["class"] for cell in second)
    assert "start" in third[0]["class"]
    assert "start" not in second[0]["class"]


def test_a_header_of_several_lines_spans_what_stands_under_it():
    rows = [{"Task": "x", ("Items", "Source"): "1", ("Items", "Target"): "2", ("Users", "Source"): "3"}]
    above, below = html(table("", rows)).rows[:2]
    assert [(cell["text"], cell["span"]) for cell in above] == [("", 1), ("Items", 2), ("Users", 1)]
    assert texts(below) == ["Task", "Source", "Target", "Source"]


def test_html_escapes_what_comes_from_data():
    text = writers.html(table("", [{"Task<b>": "<script>x</script>", "M": Number(1, who="<i>")}]), "x")
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;" in text


def test_equal_tables_give_equal_html():
    assert writers.html(two_tasks(), "x") == writers.html(two_tasks(), "x")


def test_the_terminal_shows_numbers_without_spreads():
    console = Console(width=120, record=True, file=io.StringIO())
    for part in writers.to_rich(two_tasks(), "Title"):
        console.print(part)
    text = console.export_text()
    assert "Title. A & B" in text
    assert "1.0" in text
    assert "±" not in text
    assert "3.0‡" in text


def test_columns_keep_the_order_that_is_asked_for():
    whole = table("", [{"b": "1"}, {"c": "2", "a": "3"}], order=["a", "z"])
    assert list(whole.frame.columns) == ["a", "b", "c"]
    assert whole.frame.iloc[0].tolist() == ["", "1", ""]


def test_sentences_are_broken_into_lines_and_not_cut_off():
    long = "A sentence that has no room in a narrow terminal. " * 4
    part = table("", [{"β": "20%", "Answer": Words(long), "Value": Number(1.0)}])
    console = Console(width=50, file=io.StringIO())
    for each in writers.to_rich(part, ""):
        console.print(each)
    said = console.file.getvalue()
    assert said.count("terminal.") == 4
    assert "…" not in said
    assert re.search(r'<td class="[^"]*words[^"]*"[^>]*>A sentence', writers.html(part, "x"))
    assert r"lp{.6\linewidth}r" in writers.latex(part, "x")
