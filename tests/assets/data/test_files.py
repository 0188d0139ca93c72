"""A path is taken literally, and what is no readable file is named as what it is."""

import os
import socket
from pathlib import Path

import duckdb
import pytest

from assets.data.files import FileError, check_file, check_output, first_lines, listed, literal
from assets.data.ingest import ingest
from assets.data.own_data import Options, examine, read_pair
from assets.data.reviews import obtain
from assets.settings.catalog import Domain
from assets.state.store import Store

ROWS = "user,item,rating\n" + "".join(f"u{n},i{n},{n % 5 + 1}\n" for n in range(9))
COLUMNS = {"user": "user", "item": "item", "rating": "rating"}
NAMES = [
    "movies[1].csv",
    "q?.csv",
    "s*.csv",
    "**.csv",
    "{a,b}.csv",
    "it's.csv",
    "a::b.csv",
    "a#b.csv",
    "ü.csv",
]
RESERVED = ["manifest.json", "incoming", "ratings.parquet", "x" * 240, ".hidden"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_names_one_file(tmp_path, name):
    """Beside each file lies one that the name would match as a pattern."""
    for other in ("movies1.csv", "qa.csv", "sa.csv", "other.csv"):
        (tmp_path / other).write_text("user,item,rating\nstranger,x,1\n")
    path = tmp_path / name
    path.write_text(ROWS)
    assert duckdb.sql(f"SELECT count(*) FROM read_csv({literal(path)})").fetchall() == [(9,)]


@pytest.mark.parametrize("name", [*NAMES, *RESERVED])
def test_a_file_of_any_name_is_fetched_and_read(tmp_path, name):
    path = tmp_path / name
    path.write_text(ROWS)
    domain = Domain(name="a", title="A", url=str(path), kind="csv", columns=COLUMNS)
    store = Store()
    record = obtain(store, domain)
    raw = next(Path(store.reviews("a").path).rglob(record["file"]))
    assert ingest(raw, tmp_path / "r", domain).ratings == 9
    assert obtain(store, domain) == record


def test_a_folder_called_like_a_partition_is_no_column(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFCDR_CATALOG")
    folder = tmp_path / "user=7"
    folder.mkdir()
    (folder / "a.csv").write_text(ROWS)
    (tmp_path / "b.csv").write_text(ROWS.replace(",i", ",j").replace("jtem", "item"))
    pair = read_pair(Store(), folder / "a.csv", tmp_path / "b.csv", Options({}))
    assert examine(pair).source.users == 9


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (Path.mkdir, "a folder; name one file in it"),
        (os.mkfifo, "a pipe.*write it to a file first"),
        (lambda path: path.symlink_to("/dev/null"), "a device; name a file"),
        (lambda path: path.symlink_to(path.name), "leads back to itself"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link to nowhere, which is not there"),
    ],
)
def test_what_is_no_file_is_named(tmp_path, make, words):
    path = tmp_path / "a.csv"
    make(path)
    with pytest.raises(FileError, match=f"a.csv: .*{words}"):
        check_file(path)


def test_names_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(FileError, match="the name is not UTF-8 text; rename the file"):
        check_file(tmp_path / "caf\udce9.csv")
    with pytest.raises(FileError, match="the name is too long"):
        check_file(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="a part of its path is no folder"):
        check_file(tmp_path / "file" / "a.csv")


def test_an_output_never_replaces_an_input(tmp_path):
    users = tmp_path / "users.parquet"
    users.write_text("x")
    os.link(users, tmp_path / "linked.parquet")
    (tmp_path / "folder").mkdir()
    for name in ("users.parquet", "folder/../users.parquet", "linked.parquet"):
        with pytest.raises(FileError, match="the same file as --users"):
            check_output(tmp_path / name, {"--users": users})
    for name, words in (("folder", "a folder"), ("gone/out", "no folder")):
        with pytest.raises(FileError, match=words):
            check_output(tmp_path / name, {"--users": users})
    check_output(tmp_path / "new.parquet", {"--users": users})


def test_messages_stay_short(tmp_path):
    assert listed([f"c{n}" for n in range(5000)]).endswith("c19 and 4,980 more")
    assert len(listed(["x" * 10**6])) < 100
    (tmp_path / "long").write_text("x" * 10**6 + "\n")
    assert len(first_lines(tmp_path / "long", 5)) == 1
