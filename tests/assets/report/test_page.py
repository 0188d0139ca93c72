"""Writers of readable tables, and the report from hand-made cells through Dagster."""

import re
from html.parser import HTMLParser

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from assets.report import formats, parts
from assets.report.figures import formats as drawn_formats
from assets.report.formats import Part, Picture, layout
from assets.report.page import report_assets
from assets.settings.axes import Cell
from assets.settings.profile import load_profiles
from assets.state.store import Store, parquet
from tests.assets.cells import errors, finish, support, user_errors

MODELS = ("tgt", "emcdr", "lacdr", "ptupcdr", "diffcdr", "diffcdr_da", "diffcdr_at")


def two_tasks():
    rows = [
        {"Task": "A & B", "β": "20%", "": "ours", "X_1": "**1.0**∗ ± 0.1", "Y": "-2.0"},
        {"Task": "A & B", "β": "20%", "": "paper", "X_1": "1.5", "Y": "**1.0**"},
        {"Task": "A & B", "β": "50%", "": "ours", "X_1": "1.1", "Y": "< 0.001"},
        {"Task": "C", "β": "20%", "": "ours", "Y": "3.0"},
    ]
    return layout("Caption", rows, keys=2, sections=True, notes=("100 % sure",))


def part(*layouts, pictures=()):
    frame = pd.DataFrame({"value": [1.5]})
    return Part("thing", "A thing", frame, layouts, ("how to read",), "2 of 3 cells", pictures)


class Table(HTMLParser):
    """The cells of a page's table rows, with their classes, and spans resolved into the grid."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.pending, self.cell = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = {"text": "", "class": attributes.get("class", "").split(), "bold": False}
            self.cell["size"] = (int(attributes.get("rowspan", 1)), int(attributes.get("colspan", 1)))
            self.rows[-1].append(self.cell)
        if self.cell is not None and attributes.get("class") == "best":
            self.cell["bold"] = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell["text"] += data


def test_markdown_prints_a_key_once_and_aligns_numbers_right():
    lines = formats.markdown(part(two_tasks())).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["Task", "β", "", "X_1", "Y"]
    assert [rule.endswith(":") for rule in table[1]] == [False, False, True, True, True]
    assert table[3][:3] == ["", "", "paper"]
    assert table[4][:3] == ["", "50%", "ours"]
    assert table[5] == ["C", "20%", "ours", "", "3.0"]
    assert lines[-1] == "Missing: 2 of 3 cells."


def test_latex_is_one_table_environment_a_section_with_every_row_complete():
    text = formats.latex(part(two_tasks()))
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert len(tables) == 2
    for table in tables:
        shape = re.search(r"\\begin\{tabular\}\{([lr]+)\}", table)[1]
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(shape)}
        assert table.count(r"\toprule") == table.count(r"\bottomrule") == table.count(r"\end{tabular}") == 1
    assert r"\caption{A thing. Caption. A \& B}" in tables[0]
    assert r"20\% & ours & \textbf{1.0}$^{*}$$_{\pm 0.1}$ & $-$2.0 \\" in tables[0]
    assert r"X\_1" in tables[0]
    assert "$<$ 0.001" in tables[0]
    assert r"100 \% sure" in tables[0]


@given(st.text(st.sampled_from("ab%_&#${}~^\\<>|± ")))
def test_latex_escapes_whatever_has_a_meaning(text):
    escaped = formats.latex_text(text)
    known = re.sub(r"\\text\w+\{\}|\\[%_&#${}]|\$[<>|]\$|\$\\pm\$", "", escaped)
    assert not re.search(r"[%_&#${}~^\\<>|±]", known)


def test_header_of_several_lines_spans_what_stands_under_it():
    columns = [("", "Task"), ("Items", "Source"), ("Items", "Target"), ("Users", "Source"), ("", "")]
    assert formats.header(columns) == [
        [("", 1), ("Items", 2), ("Users", 1), ("", 1)],
        [("Task", 1), ("Source", 1), ("Target", 1), ("Source", 1), ("", 1)],
    ]


def test_html_marks_the_best_and_spans_keys_without_leaving_the_grid():
    page = formats.page("table.html", part=part(two_tasks()))
    rows = [row for row in Table(page).rows]
    header, heading, first, second, third = rows[:5]
    assert [cell["text"].strip() for cell in header] == ["β", "", "X_1", "Y"]
    assert heading[0]["text"] == "A & B"
    assert heading[0]["size"] == (1, 4)
    assert first[0]["size"] == (2, 1)
    assert [cell["text"].strip() for cell in first] == ["20%", "ours", "1.0*± 0.1", "−2.0"]
    assert [cell["bold"] for cell in first] == [False, False, True, False]
    assert len(second) == 3
    assert second[2]["bold"]
    assert [cell["text"].strip() for cell in third] == ["50%", "ours", "1.1", "< 0.001"]
    assert 'class="paper"' in page


def test_html_escapes_what_comes_from_data():
    page = formats.page("table.html", part=part(layout("", [{"Task": "<script>x</script>"}])))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def picture(name="cloud"):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return Picture(name, "A cloud", drawn_formats(figure))


def test_a_part_comes_back_as_it_was_written(tmp_path):
    tuples = layout("", [{("", "Task"): "x", ("A", "y"): "1"}], keys=1)
    written = part(two_tasks(), tuples, pictures=(picture(),))
    formats.write_part(tmp_path, written)
    read = formats.read_part(tmp_path)
    assert read.layouts == written.layouts
    assert read.pictures == written.pictures
    assert (read.title, read.notes, read.missing) == (written.title, written.notes, written.missing)
    pd.testing.assert_frame_equal(read.frame, written.frame)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "thing.csv"), written.frame)
    endings = {"parquet", "csv", "md", "tex", "html", "json", "png", "svg"}
    assert {file.suffix[1:] for file in tmp_path.iterdir()} == endings
    assert "![A cloud](cloud.png)" in (tmp_path / "thing.md").read_text()


def test_no_part_where_none_was_written(tmp_path):
    assert formats.read_part(tmp_path) is None


def fill(store, rng):
    """Two seeds of the tiny task at β = 20 %, all parts of it, with TGT missing in the second."""
    for seed in (0, 1):
        key = f"tiny|b20-s{seed}"
        for position, model in enumerate(MODELS):
            if (model, seed) == ("tgt", 1):
                continue
            mae = 1.5 - 0.05 * position + rng.normal(0, 0.01)
            speed = {"device": "cpu", "replicas": 2, "train_samples": 1000, "train_seconds": 1.0}
            speed |= {"test_samples": 100, "test_users": 10, "test_seconds": 0.5}
            files = {
                "user_errors.parquet": user_errors(list(rng.gamma(2, mae, 6)), [1, 2, 3, 4, 5, 6]),
                "throughput.parquet": pd.DataFrame([speed]),
                "coverage.parquet": support([mae * 4, mae * 6], [4, 6]),
            }
            finish(store, model, key, errors(mae, mae + 0.3), files=files, warm_left_out=3 + seed)
            ranked = {("cold", "last", m): 0.01 * position for m in ("dcg@20", "recall@20", "ndcg@20")}
            finish(store, model, key, ranked, objective="ranking")
        finish(store, "item_mean", key, errors(1.3, 1.6))
        finish(store, "random", key, {("cold", "last", "ndcg@20"): 0.001}, objective="ranking")
    cloud = picture().formats
    row = ("emcdr", "test", None, 1.0, 0.5, 1.0, 0.9, None)
    columns = ["model", "side", "nfe", "frechet", "mmd", "euclidean", "cosine", "undefined"]
    files = {"distances.parquet": parquet(pd.DataFrame([row], columns=columns))}
    files |= {f"figure4.{ending}": content for ending, content in cloud.items()}
    store.embeddings("paper", Cell.parse("tiny|b20-s0")).write(files, "made by hand")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A home with results of which every report asset was made."""
    store = Store(home=str(tmp_path_factory.mktemp("reported")))
    fill(store, np.random.default_rng(0))
    profiles = {"paper": load_profiles()["paper"]}
    result = dg.materialize(
        report_assets(profiles), resources={"store": store}, selection=dg.AssetSelection.groups("reports")
    )
    assert result.success
    return store, profiles, result


def test_every_part_is_there_in_every_format(reported):
    store, profiles, _ = reported
    for kind in (kind for kind in parts.KINDS if kind.wanted(profiles["paper"])):
        folder = store.report("paper", kind.name)
        for ending in ("parquet", "csv", "md", "tex", "html"):
            assert (folder / f"{kind.name}.{ending}").stat().st_size > 0
        assert formats.read_part(folder).layouts, kind.name
    assert {file.name for file in store.report("paper", "figure3").glob("*.[ps][nv]g")} == {
        "figure3-tiny.png",
        "figure3-tiny.svg",
    }


def test_the_report_needs_nothing_but_itself(reported):
    store, _, _ = reported
    text = (store.report("report") / "report.html").read_text()
    page = Table(text)
    assert page.links
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "<script" not in text
    anchors = set(re.findall(r'<section id="([\w-]+)"', text))
    assert {link[1:] for link in page.links if link.startswith("#")} == anchors
    assert {"summary", "data", "cold-start", "warm-start", "throughput"} <= anchors


def test_the_report_shows_what_the_tables_hold_and_what_is_missing(reported):
    store, _, result = reported
    text = (store.report("report") / "report.md").read_text()
    mean = pd.read_parquet(store.report("paper", "table2") / "table2.parquet")
    mean = mean[(mean["model"] == "diffcdr") & (mean["metric"] == "mae")]["mean"].item()
    assert f"{mean:.4f}" in text
    assert "3–4" in text
    assert "![" in text
    for link in re.findall(r"\]\((\S+?\.png)\)", text):
        assert (store.report("report") / link).is_file()
    assert "Tiny: video → music: 3 of 4 cells of TGT (rating, ranking)" in text
    events = {m.asset_key.path[-1]: m.metadata for m in result.asset_materializations_for_node("report")}
    assert events["report"]["missing"].value == "none"


def test_a_part_that_was_not_made_says_what_to_materialize():
    store, profiles = Store(), {"paper": load_profiles()["paper"]}
    result = dg.materialize(report_assets(profiles), resources={"store": store}, selection="report")
    assert result.success
    text = (store.report("report") / "report.html").read_text()
    assert "Not made yet: materialize paper/table2" in text
    assert "Not made yet: materialize table1" in text


def test_tables_of_an_empty_home_say_that_nothing_was_computed():
    store, profiles = Store(), {"strict": load_profiles()["strict"]}
    result = dg.materialize(
        report_assets(profiles), resources={"store": store}, selection=dg.AssetSelection.groups("reports")
    )
    assert result.success
    assert formats.NOTHING in (store.report("strict", "table2") / "table2.md").read_text()
    assert formats.NOTHING in (store.report("report") / "report.html").read_text()


def test_assets_depend_on_what_they_show():
    profiles = load_profiles()
    deps = {asset.key.to_user_string(): asset.asset_deps[asset.key] for asset in report_assets(profiles)}
    paper, strict = (profiles[name] for name in ("paper", "strict"))
    assert deps["paper/table2"] == {dg.AssetKey(["paper", n]) for n in (*paper.models, *paper.controls)}
    # What a profile does not train is no asset of it.
    assert deps["strict/table2"] == {
        dg.AssetKey(["strict", n]) for n in (*strict.models, *strict.controls) if n in strict.trained
    }
    assert dg.AssetKey(["strict", "popularity"]) not in deps["strict/table2"]
    assert dg.AssetKey(["paper", "random"]) in deps["paper/ranking"]
    assert deps["paper/figure4"] == {dg.AssetKey(["paper", "embeddings"])}
    searched = {name for name, profile in profiles.items() if profile.search}
    assert {key.split("/")[0] for key in deps if key.endswith("search_surface")} == searched
    assert deps["report"] == {dg.AssetKey(key.split("/")) for key in deps} - {dg.AssetKey("report")}
