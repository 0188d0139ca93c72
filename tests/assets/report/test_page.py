"""The report from hand-made cells through Dagster, and what a part leaves in its folder."""

import re
from dataclasses import replace

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from assets.report import page, part, results
from assets.report.page import PARTS, report_assets
from assets.report.part import Part, Picture
from assets.report.table import Number, table
from assets.settings.profile import load_profiles
from assets.state import plots
from assets.state.store import Store, parquet
from tests.assets.axes import AXES
from tests.assets.cells import errors, finish, support, user_errors
from tests.assets.report.sources import CURRENT
from tests.assets.report.test_table import Page

MODELS = ("tgt", "emcdr", "lacdr", "ptupcdr", "diffcdr", "diffcdr_da", "diffcdr_at")


def picture(name="cloud"):
    figure = plots.new_figure(1, 1)
    figure.subplots().plot([0, 1])
    return Picture(name, "A cloud", plots.formats(figure))


def test_a_part_is_written_in_every_format(tmp_path):
    frame = pd.DataFrame({"value": [1.5]})
    shown = table("Caption", [{"Task": "x", "y": Number(1.5, "{:.1f}")}], keys=1)
    written = Part("thing", "A thing", frame, [shown], ["how to read"], "2 of 3 cells", [picture()])
    part.write_part(tmp_path, written, "paper/thing")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "thing.parquet"), frame)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "thing.csv"), frame)
    names = {f"thing.{ending}" for ending in ("parquet", "csv", "md", "tex", "html")}
    names |= {"cloud.png", "cloud.svg", "fragment.md", "fragment.html"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert "![A cloud](cloud.png)" in (tmp_path / "thing.md").read_text()
    assert "![A cloud](../paper/thing/cloud.png)" in (tmp_path / "fragment.md").read_text()
    for name in ("thing.html", "fragment.html", "thing.md"):
        text = (tmp_path / name).read_text()
        assert all(words in text for words in ("1.5", "how to read", "Missing: 2 of 3 cells.", "Caption"))
    assert "<html" not in (tmp_path / "fragment.html").read_text()


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
            files["curves.parquet"] = pd.DataFrame({"epoch": [1, 2], "test_rmse": [mae + 0.5, mae + 0.3]})
            finish(store, model, key, errors(mae, mae + 0.3), files=files, warm_left_out=3 + seed)
            ranked = {("cold", "last", m): 0.01 * position for m in ("dcg@20", "recall@20", "ndcg@20")}
            finish(store, model, key, ranked, objective="ranking")
        of_mean = {"user_errors.parquet": user_errors([1.3 * n for n in range(1, 7)], [1, 2, 3, 4, 5, 6])}
        finish(store, "item_mean", key, errors(1.3, 1.6), files=of_mean)
        finish(store, "random", key, {("cold", "last", "ndcg@20"): 0.001}, objective="ranking")
    cloud = picture().formats
    row = ("emcdr", "test", None, 1.0, 0.5, 1.0, 0.9, None)
    columns = ["model", "side", "nfe", "frechet", "mmd", "euclidean", "cosine", "undefined"]
    files = {"distances.parquet": parquet(pd.DataFrame([row], columns=columns))}
    files |= {f"figure4.{ending}": content for ending, content in cloud.items()}
    store.embeddings("paper", AXES.parse("tiny|b20-s0")).write(files, "made by hand")


# All that `report_assets` makes of the profile that a test takes.
TABLES = dg.AssetSelection.groups("report", "paper_tables", "strict_tables").materializable()


@pytest.fixture(scope="module", autouse=True)
def current():
    """Every hand-made entry has the fingerprint that is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_expected", lambda *where: CURRENT)
        yield


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A home with results of which every report asset was made."""
    store = Store(home=str(tmp_path_factory.mktemp("reported")))
    fill(store, np.random.default_rng(0))
    profiles = {"paper": load_profiles()["paper"]}
    result = dg.materialize(
        report_assets(AXES, profiles),
        resources={"store": store},
        selection=TABLES,
    )
    assert result.success
    return store, profiles, result


def test_every_part_is_there_in_every_format(reported):
    store, profiles, _ = reported
    for name in (chapter.name for chapter in PARTS if chapter.wanted(profiles["paper"])):
        folder = store.report("paper", name)
        for ending in ("parquet", "csv", "md", "tex", "html"):
            assert (folder / f"{name}.{ending}").stat().st_size > 0
        # Lists of each user are in no hand-made cell.
        assert (part.NOTHING in (folder / f"{name}.md").read_text()) == (name == "people"), name
    assert {file.name for file in store.report("paper", "figure3").glob("*.[ps][nv]g")} == {
        "figure3-tiny.png",
        "figure3-tiny.svg",
    }


def test_the_report_needs_nothing_but_itself(reported):
    store, _, _ = reported
    text = (store.report("report") / "report.html").read_text()
    shown = Page(text)
    assert shown.links
    assert all(link.startswith(("data:image/", "#")) for link in shown.links)
    assert "<script" not in text
    anchors = set(re.findall(r'<section id="([\w-]+)"', text))
    assert {link[1:] for link in shown.links if link.startswith("#")} == anchors - {"opening"}
    assert {"summary", "by_beta", "learning", "table2", "figure3", "table4", "opening"} <= anchors
    assert "people" not in anchors
    assert "Nothing has been computed for: People" in text


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
    assert "Tiny: video → music: 2 of 4 cells" in text
    events = {m.asset_key.path[-1]: m.metadata for m in result.asset_materializations_for_node("report")}
    assert events["report"]["missing"].value == "none"


def test_the_report_begins_with_sentences_and_a_picture_of_each_model(reported):
    store, profiles, _ = reported
    text = (store.report("report") / "report.html").read_text()
    frame = pd.read_parquet(store.report("paper", "forest") / "forest.parquet").set_index("model")
    start = text.index('class="sentence"')
    assert start < text.index("<img") < text.index("<nav")
    ours = frame.loc["diffcdr"]
    said = f"miss by {ours['value']:.3f} (RMSE), each item&#39;s mean by {ours['value_reference']:.3f}"
    assert said in text[start : text.index("<img")]
    # Made up data are said to be, before anything else.
    assert text.index('class="warning"') < start
    assert set(frame.index) == set(MODELS) & {*profiles["paper"].models}


def test_the_same_results_make_the_same_report(reported):
    store, profiles, _ = reported
    folder = store.report("report")
    before = [(folder / name).read_bytes() for name in ("report.html", "report.md")]
    made = dg.materialize(
        report_assets(AXES, profiles), resources={"store": store}, selection=["paper/forest", "report"]
    )
    assert made.success
    assert [(folder / name).read_bytes() for name in ("report.html", "report.md")] == before


def test_what_few_read_is_folded_and_other_profiles_stand_behind(tmp_path):
    store = Store(home=str(tmp_path))
    for profile in ("paper", "tuned"):
        finish(store, "emcdr", "tiny|b20-s0", errors(1.0, 1.2), profile=profile)
    profiles = {name: load_profiles()[name] for name in ("paper", "strict", "tuned")}
    dg.materialize(
        report_assets(AXES, profiles),
        resources={"store": store},
        selection=["paper/table2", "tuned/table2", "paper/cost", "tuned/cost", "report"],
    )
    text = (store.report("report") / "report.html").read_text()
    # Nothing of a profile that was never begun.
    assert "strict" not in text
    story, table2 = (text[text.index(f'<section id="{name}">') :] for name in ("by_beta", "table2"))
    assert story.index("materialize tuned/by_beta") < story.index("materialize paper/by_beta")
    # The paper's tables are those of the paper's protocol first.
    opened, folded = (table2.index(escape(profiles[name].title)) for name in ("paper", "tuned"))
    assert opened < folded
    assert table2[:folded].rstrip().endswith("<summary>")
    summary = text[text.index('<section id="summary"') :]
    assert summary.index("<details") < summary.index("<table")


def test_a_part_that_was_not_made_says_what_to_materialize():
    store, profiles = Store(), {"paper": load_profiles()["paper"]}
    result = dg.materialize(report_assets(AXES, profiles), resources={"store": store}, selection="report")
    assert result.success
    text = (store.report("report") / "report.html").read_text()
    assert "Not made yet: materialize paper/table2" in text
    assert "Not made yet: materialize table1" in text


def test_tables_of_an_empty_home_say_that_nothing_was_computed():
    store, profiles = Store(), {"strict": load_profiles()["strict"]}
    result = dg.materialize(
        report_assets(AXES, profiles),
        resources={"store": store},
        selection=TABLES,
    )
    assert result.success
    assert part.NOTHING in (store.report("strict", "table2") / "table2.md").read_text()
    assert part.NOTHING in (store.report("report") / "report.html").read_text()


def test_assets_depend_on_what_they_show():
    """Numbers of models reach the tables through one view of each profile."""
    profiles = load_profiles()
    graph = dg.Definitions(report_assets(AXES, profiles), resources={"store": Store()}).resolve_asset_graph()
    keys = [key for key in graph.get_all_asset_keys() if graph.get(key).group_name != "default"]
    deps = {key.to_user_string(): graph.get(key).parent_keys for key in keys}
    for name, profile in profiles.items():
        # What a profile does not train is no asset of it.
        view = dg.AssetKey([name, "results"])
        assert deps.pop(f"{name}/results") == {dg.AssetKey([name, n]) for n in profile.trained}
        assert graph.get(view).is_virtual
        for made in ("table2", "ranking", "significance", "table4"):
            assert deps[f"{name}/{made}"] == {view}
    assert deps["paper/figure4"] == {dg.AssetKey(["paper", "embeddings"])}
    searched = {name for name, profile in profiles.items() if profile.search}
    assert {key.split("/")[0] for key in deps if key.endswith("search_surface")} == searched
    assert deps["report"] == {dg.AssetKey(key.split("/")) for key in deps} - {dg.AssetKey("report")}


def test_another_table_is_one_file_and_one_line(monkeypatch):
    """A chapter of one's own, made like any other."""

    def build(source):
        shown = table("", [{"Models": Number(len(source.profile.models), "{:.0f}")}], keys=0)
        return Part("counted", "How many", pd.DataFrame({"models": [len(source.profile.models)]}), [shown])

    mine = replace(PARTS[0], name="counted", title="Counted", build=build, wanted=lambda profile: True)
    monkeypatch.setattr(page, "PARTS", (*PARTS, mine))
    store, profiles = Store(), {"paper": load_profiles()["paper"]}
    assets = report_assets(AXES, profiles)
    made = dg.materialize(assets, resources={"store": store}, selection=TABLES)
    assert made.success
    assert '<section id="counted">' in (store.report("report") / "report.html").read_text()
    assert (store.report("paper", "counted") / "counted.tex").exists()
