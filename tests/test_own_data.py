"""Files of one's own: understood by content, refused in one line, and taken through the whole house."""

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from assets.data import own_data
from assets.data.ingest import ingest
from assets.data.own_data import Options, OwnDataError, enter, examine, read_head, read_pair
from assets.data.ratings import ingest_domain
from assets.data.reviews import obtain
from assets.report.results import read_results, source
from assets.settings.catalog import Domain, load_catalog
from assets.settings.profile import load_profiles
from assets.state.store import Store
from pipeline.cli import app

PLAIN = Options({})
HEADER = "user,item,rating,time\n"
GOOD = HEADER + "u1,i1,4,1400000000\nu1,i2,2,1400000100\nu2,i1,5,1400000200\n"


@pytest.fixture(autouse=True)
def no_catalog(monkeypatch, tmp_path):
    monkeypatch.delenv("DIFFCDR_CATALOG")
    monkeypatch.chdir(tmp_path)


def ratings(users: range, seed: int, count: int = 400) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": [f"u{n}" for n in draw.choice(users, count)],
            "item": [f"i{n}" for n in draw.integers(40, size=count)],
            "rating": draw.integers(1, 6, size=count),
            "time": 1_400_000_000 + draw.integers(10**7, size=count),
        }
    )


# Formats

WRITERS = {
    "csv": lambda frame: frame.to_csv(index=False).encode(),
    "tsv": lambda frame: frame.to_csv(index=False, sep="\t").encode(),
    "json": lambda frame: frame.to_json(orient="records", lines=True).encode(),
    "parquet": lambda frame: frame.to_parquet(index=False),
}


@pytest.mark.parametrize(
    ("kind", "pack"),
    [*((kind, bytes) for kind in WRITERS), *((kind, gzip.compress) for kind in ("csv", "tsv", "json"))],
)
def test_every_format_gives_the_same_report(tmp_path, kind, pack):
    # Names say nothing of the format.
    source = write(tmp_path / "a.data", pack(WRITERS[kind](ratings(range(60), 1))))
    target = write(tmp_path / "b.data", WRITERS["csv"](ratings(range(30, 90), 2)))
    reference = write(tmp_path / "c.data", WRITERS["csv"](ratings(range(60), 1)))
    assert read_head(source).kind == kind
    reports = [examine(read_pair(Store(), path, target, PLAIN)).as_json() for path in (source, reference)]
    for report in reports:
        del report["source"]["file"], report["source"]["name"]
    assert reports[0] == reports[1]


# Columns


@pytest.mark.parametrize(
    "names",
    [
        "userId movieId rating timestamp",
        "user_id item_id stars date",
        "reviewerID asin overall unixReviewTime",
        "uid Track Score Time",
        "User-ID ISBN Book-Rating createdAt",
        "customer_id product_id star_rating ts",
    ],
)
def test_common_names_are_found(tmp_path, names):
    path = write(tmp_path / "a.csv", GOOD.replace("user,item,rating,time", ",".join(names.split())))
    pair = read_pair(Store(), path, write(tmp_path / "b.csv", GOOD), PLAIN)
    assert pair.source.columns.names == names.split()


def test_the_better_name_wins_whatever_the_order(tmp_path):
    path = write(tmp_path / "a.csv", "asin,user_id,parent_asin,rating\nx,u,y,3\n")
    pair = read_pair(Store(), path, write(tmp_path / "b.csv", GOOD), PLAIN)
    assert pair.source.columns.item == "parent_asin"


def test_a_name_given_wins_in_the_file_that_has_it(tmp_path):
    source = write(tmp_path / "a.csv", "user,who,item,rating\nx,u1,i1,3\n")
    pair = read_pair(Store(), source, write(tmp_path / "b.csv", GOOD), Options({"user": ["who"]}))
    assert (pair.source.columns.user, pair.target.columns.user) == ("who", "user")


def test_titles_are_found_by_a_name_that_means_items_and_by_option(tmp_path):
    source = write(tmp_path / "a.csv", "user,movieId,rating,Movie Title,title\nx,u1,3,Alien,Great!\n")
    target = write(tmp_path / "b.csv", "user,item,rating,title\nx,i1,3,The Wall\n")
    plain = read_pair(Store(), source, target, PLAIN)
    assert (plain.source.columns.title, plain.target.columns.title) == ("Movie Title", None)
    named = read_pair(Store(), source, target, Options({"title": ["title"]}))
    assert (named.source.columns.title, named.target.columns.title) == ("title", "title")


def test_semicolons_and_decimal_commas_are_seen(tmp_path):
    text = "user;item;rating;time\nu1;i1;4,5;1400000000\nu2;i1;3;1400000100\n"
    pair = read_pair(Store(), write(tmp_path / "a.csv", text), write(tmp_path / "b.csv", GOOD), PLAIN)
    assert (pair.source.kind, pair.source.delimiter, pair.source.decimal) == ("csv", ";", ",")
    assert (pair.target.delimiter, pair.target.decimal) == (",", ".")
    assert "decimal comma" in pair.notes[0]
    assert examine(pair).source.highest == 4.5


# Times


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (["1400000000", "1400000000.0"], "s"),
        (["1400000000000"], "ms"),
        (["2014-05-13", "2014-05-13 16:53:20", "2014-05-13T16:53:20Z"], "iso"),
    ],
)
def test_the_unit_of_time_is_seen(tmp_path, values, unit):
    rows = "".join(f"u{n},i{n},3,{value}\n" for n, value in enumerate(values))
    path = write(tmp_path / "a.csv", HEADER + rows)
    pair = read_pair(Store(), path, write(tmp_path / "b.csv", GOOD), PLAIN)
    assert (pair.source.columns.timestamp, pair.source.timestamp_unit, pair.notes) == ("time", unit, [])


def test_iso_times_become_unix_seconds(tmp_path):
    times = ["2014-05-13", "2014-05-13 16:53:20", "2014-05-13T16:53:20.9Z", "2014-05-13T18:53:20+02:00"]
    path = write(tmp_path / "a.csv", HEADER + "".join(f"u{n},i,3,{time}\n" for n, time in enumerate(times)))
    domain = read_pair(Store(), path, write(tmp_path / "b.csv", GOOD), PLAIN).source
    assert ingest(path, tmp_path / "r", domain).first_time == 1399939200
    rows = duckdb.sql(f"SELECT timestamp FROM '{tmp_path}/r/ratings.parquet' ORDER BY row").fetchall()
    assert rows == [(1399939200,), (1400000000,), (1400000000,), (1400000000,)]


def test_a_time_that_is_none_is_left_out_and_said(tmp_path):
    path = write(tmp_path / "a.csv", HEADER + "u,i,3,02 May 2014\n")
    pair = read_pair(Store(), path, write(tmp_path / "b.csv", GOOD), PLAIN)
    assert pair.source.columns.timestamp is None
    assert "column 'time' holds '02 May 2014'" in pair.notes[0]
    with pytest.raises(OwnDataError, match="leave out --time-col"):
        read_pair(Store(), path, tmp_path / "b.csv", Options({"timestamp": ["time"]}))


# Names


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6))
def test_names_are_legal_and_distinct(stems):
    taken = {name: named(name, f"/{name}") for name in ("music", "music_2")}
    for number, stem in enumerate(stems):
        path = Path(f"/nowhere/{number}/{stem.replace('/', '').replace(chr(0), '') or 'x'}.csv")
        name = own_data._domain_name(path, taken)
        assert name not in taken
        taken[name] = named(name, str(path.resolve()))
        assert own_data._domain_name(path, taken) == name


def named(name: str, url: str) -> Domain:
    columns = {"user": "u", "item": "i", "rating": "r"}
    return Domain(name=name, title=name, url=url, kind="csv", columns=columns)


def test_a_name_always_means_one_file(tmp_path):
    """A built-in name is never taken, another file of the same name gets another, the same file keeps its."""
    store = Store()
    store.root.mkdir()
    movies, music = write(tmp_path / "Movies & TV.csv", GOOD), write(tmp_path / "music.csv", GOOD)
    task, file = enter(store, read_pair(store, movies, music, PLAIN))
    assert task == "movies_tv_music_2"
    assert enter(store, read_pair(store, movies, music, PLAIN))[0] == task

    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "music.csv", GOOD)
    assert enter(store, read_pair(store, movies, other, PLAIN))[0] == "movies_tv_music_3"
    catalog = load_catalog(file)
    assert catalog.domains["music_2"].url == str(music)
    assert catalog.domains["music_3"].url == str(other)
    assert {task, "movies_tv_music_3", "video_music"} <= set(catalog.tasks)


def test_what_is_entered_is_what_was_understood(tmp_path):
    store = Store()
    store.root.mkdir()
    source = write(tmp_path / "a.csv", HEADER + "u1,i1,7,2014-05-13\nu2,i1,9,2014-05-13\n")
    pair = read_pair(store, source, write(tmp_path / "b.csv", GOOD), Options({}, (0, 10)))
    _, file = enter(store, pair)
    assert load_catalog(file).domains["a"] == pair.source
    assert set(yaml.safe_load(file.read_text())["domains"]) == {"a", "b"}


def test_another_catalogue_is_not_overruled(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCDR_CATALOG", str(write(tmp_path / "mine.yaml", "")))
    with pytest.raises(OwnDataError, match="unset DIFFCDR_CATALOG"):
        read_pair(Store(), write(tmp_path / "a.csv", GOOD), write(tmp_path / "b.csv", GOOD), PLAIN)


# Refused


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs the command line in this process; it changes the folder and the log, which are put back."""
    log = logging.getLogger("diffcdr")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)

    def invoke(*arguments: str):
        monkeypatch.chdir(tmp_path)
        return CliRunner().invoke(app, arguments)

    return invoke


BROKEN = gzip.compress(GOOD.encode() * 2000)
REFUSED = {
    "no overlap": (
        GOOD.replace("u", "v").replace("vser", "user"),
        [],
        "no user of .*'u1' and 'v1'.* --user-col",
    ),
    "missing column": (
        GOOD.replace("rating", "mark"),
        [],
        "no column for the rating; .* user, item, mark, time. Name it with --rating-col",
    ),
    "no header": ("1,2,3\n4,5,1\n", [], "no column for the user; .* put a header line first"),
    "wrong option": (
        GOOD,
        ["--user-col", "nope"],
        "--user-col nope: no such column in either file: .*user, item",
    ),
    "equal ratings": (HEADER + "u1,i1,4,1\nu2,i1,4,2\n", [], "all 2 ratings are 4"),
    "empty": (b"", [], "the file is empty"),
    "only a header": (HEADER, [], "the file is empty: it has a header and no rows"),
    "encoding of the header": (GOOD.encode("utf-16"), [], "not UTF-8 text"),
    "encoding of a row": (GOOD.encode() + b"u\xe9,i1,3,1\n", [], "line 5.*not UTF-8 text"),
    "null user": (GOOD + ",i1,3,1\n", [], "line 5, field 'user': the user id is missing"),
    "null item": (GOOD + "u1,,3,1\n", [], "line 5, field 'item': the item id is missing"),
    "not a rating": (GOOD + "u1,i9,good,1\n", [], "line 5, field 'rating': good is not a number"),
    "outside the scale": (
        GOOD + "u1,i9,8,1\n",
        [],
        "line 5.* 8 is outside the scale 1 to 5.* --target-scale 1 8",
    ),
    "nan scale": (GOOD, ["--scale", "nan", "5"], "--scale: the scale nan to 5 is none: give"),
    "endless scale": (GOOD, ["--source-scale", "1", "inf"], "--source-scale: the scale 1 to inf is none"),
    "wide scale": (GOOD, ["--scale", "-1e9", "1e9"], "from -1,000 to 1,000"),
    "one column twice": (GOOD, ["--user-col", "item"], "column 'item' cannot be user and item at once"),
    "colons": (GOOD.replace(",", "::"), [], "separated by '::'; convert it to commas"),
    "json number": (b'{"user": 1}\n7\n', [], "row 2 is 7 and not a JSON object"),
    "blanks around ids": (GOOD.replace("\nu", "\n U"), [], "2 would be equal without blanks"),
    "one bad time": (GOOD + "u1,i9,3,soon\n", [], "line 5, field 'time': soon is not a number"),
    "falling scale": (GOOD, ["--scale", "5", "1"], "give the lowest rating first"),
    "truncated gzip": (BROKEN[: len(BROKEN) // 2], [], "gzip stream"),
    "corrupt gzip": (BROKEN[:40] + b"rubbish" + BROKEN[47:], [], "gzip stream"),
    "corrupt parquet": (b"PAR1 rubbish", [], "not a readable Parquet file"),
    "parquet within gzip": (gzip.compress(b"PAR1 rubbish"), [], "unpack it with gunzip"),
    "json array": (b'[{"user": 1}]', [], "one object a line"),
    "not json": (b'{"user": 1}\nrubbish\n', [], "row 2 is not a JSON object"),
}


@pytest.mark.parametrize(("content", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_and_nothing_is_touched(
    cli, home, tmp_path, content, options, message
):
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", content)
    done = cli("run", "--source", "a.csv", "--target", "b.csv", *options)
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert pd.Series([line]).str.contains(message).all(), line
    assert not home.exists()


@pytest.mark.parametrize("hint", ["--target-scale 0 5", "--on-bad-rows quarantine"])
def test_the_hints_of_a_scale_work_as_printed(cli, tmp_path, hint):
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", GOOD + "u1,i9,0,1\n")
    asked = ["inspect", "--source", "a.csv", "--target", "b.csv"]
    assert hint in cli(*asked).stderr
    done = cli(*asked, *hint.split(), "--format", "json")
    report = json.loads(done.stdout)
    assert (report["source"]["scale"], report["target"]["rows_read"]) == ([1, 5], 4)
    assert report["target"]["ratings"] == (4 if "scale" in hint else 3)


def test_one_file_twice_is_refused(cli, tmp_path):
    write(tmp_path / "a.csv", GOOD)
    os.link(tmp_path / "a.csv", tmp_path / "b.csv")
    (tmp_path / "c.csv").symlink_to("a.csv")
    for other in ("a.csv", "b.csv", "c.csv"):
        assert "the same file" in cli("inspect", "--source", "a.csv", "--target", other).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --task, or --source and --target"),
        (["--source", "a.csv"], "give either"),
        (["--task", "tiny", "--source", "a.csv", "--target", "a.csv"], "give either"),
        (["--source", "a.csv", "--target", "a.csv"], "the same file"),
        (["--source", "a.csv", "--target", "gone.csv"], "gone.csv: there is no such file"),
    ],
)
def test_arguments_are_checked(cli, tmp_path, arguments, message):
    write(tmp_path / "a.csv", GOOD)
    for command in ("run", "inspect"):
        done = cli(command, *arguments)
        assert done.exit_code == 1
        assert message in done.stderr


def test_a_bad_new_file_leaves_the_ratings_at_hand(tmp_path):
    store = Store()
    domain = read_pair(store, write(tmp_path / "a.csv", GOOD), write(tmp_path / "b.csv", GOOD), PLAIN).source
    obtain(store, domain)
    ingest_domain(store, domain)
    before = store.ratings("a").require()
    write(tmp_path / "a.csv", GOOD + ",i1,3,1\n")
    obtain(store, domain)
    with pytest.raises(ValueError, match="the user id is missing"):
        ingest_domain(store, domain)
    assert store.ratings("a").require() == before


# Whole


def test_inspect_prints_json_and_touches_nothing(cli, home, tmp_path):
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", GOOD)
    done = cli("inspect", "--source", "a.csv", "--target", "b.csv", "--format", "json")
    report = json.loads(done.stdout)
    assert (report["overlap"], report["source"]["ratings"]) == (2, 3)
    assert "only 2 users are in both domains" in report["warnings"][0]
    assert not home.exists()


def test_two_files_end_in_results(tmp_path):
    ratings(range(60), 1, 900).rename(columns={"item": "movieId"}).to_csv(
        tmp_path / "movies.csv", index=False
    )
    ratings(range(20, 80), 2, 900).to_parquet(tmp_path / "songs.parquet")
    (tmp_path / "dagster").mkdir()
    write(tmp_path / "dagster" / "dagster.yaml", "telemetry: {enabled: false}\n")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    program = [sys.executable, "-c", "from pipeline.cli import app; app()"]
    asked = ["--source", "movies.csv", "--target", "songs.parquet", "--beta", "0.5", "--seed", "1"]
    done = subprocess.run(
        [*program, "run", *asked, "--model", "tgt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Data before training") < done.stdout.index("Table 2, profile paper")
    catalog = Store().root / "own_data.yaml"
    assert f"see it: DIFFCDR_CATALOG={catalog} make ui" in done.stdout
    assert load_catalog(catalog).tasks["movies_songs"].source == "movies"
    made = read_results([source(Store(), load_catalog(catalog), load_profiles()["paper"])])
    cells = made[["task", "beta", "seed", "model"]].drop_duplicates()
    assert cells.values.tolist() == [["movies_songs", 0.5, 1, "tgt"]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
