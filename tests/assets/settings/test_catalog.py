from pathlib import Path

import pytest
import yaml

from assets.settings.catalog import CatalogError, load_catalog

CSV = {"url": "games.csv", "kind": "csv", "columns": {"user": "u", "item": "i", "rating": "r"}}


@pytest.fixture
def write(tmp_path):
    def write(content: dict | str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.fixture(autouse=True)
def _no_catalogue_of_the_user(monkeypatch):
    monkeypatch.delenv("DIFFCDR_CATALOG", raising=False)


def test_built_in_has_the_whole_2014_edition_and_the_papers_tasks():
    catalog = load_catalog()
    stanford = [d for d in catalog.domains.values() if d.url.startswith("http://snap.stanford.edu/")]
    assert len(stanford) == len({d.url for d in stanford}) == 24
    assert all(d.url.endswith("_5.json.gz") and d.columns.user == "reviewerID" for d in stanford)
    assert {d.name: tuple(d.counts.model_dump().values()) for d in stanford if d.counts} == {
        "video": (1697533, 123960, 50052),
        "music": (1097592, 75258, 64443),
        "book": (8898041, 603668, 367982),
    }
    assert {t.paper: (t.source, t.target, t.overlap) for t in catalog.tasks.values() if t.paper} == {
        1: ("video", "music", 18031),
        2: ("book", "video", 37388),
        3: ("book", "music", 16738),
    }
    assert catalog.domains["demo_book"].url == "synthetic:book?scale=demo"
    assert (catalog.betas, catalog.seeds) == ((0.2, 0.5, 0.8), (0, 1, 2, 3, 4))
    assert (catalog.split.validation, catalog.split.seed) == (0.1, None)


def test_a_users_file_adds_replaces_and_leaves_the_rest(write, monkeypatch):
    path = write(
        {
            "cells": {"seeds": [7, 3]},
            "domains": {"games": CSV, "music": {"format": "amazon2018", "url": "s3://bucket/music.json.gz"}},
            "tasks": {"games_music": {"source": "games", "target": "music", "title": "Games → Music"}},
        }
    )
    monkeypatch.setenv("DIFFCDR_CATALOG", str(path))
    catalog = load_catalog()
    assert catalog.seeds == (7, 3)
    assert catalog.betas == (0.2, 0.5, 0.8)
    assert catalog.domains["games"].title == "games"
    assert catalog.domains["music"].url == "s3://bucket/music.json.gz"
    assert catalog.domains["music"].counts is None
    assert catalog.domains["video"].counts.users == 123960
    assert catalog.tasks["games_music"].title == "Games → Music"
    assert catalog.tasks["video_music"].target == "music"


def test_formats_describe_the_editions_and_keys_beside_them_win(write):
    entry = {"format": "amazon2023", "url": "x.csv.gz"}
    domains = {"new": entry, "other": entry | {"timestamp_unit": "s"}}
    catalog = load_catalog(write({"domains": domains}))
    new = catalog.domains["new"]
    assert (new.kind, new.columns.item, new.timestamp_unit) == ("csv", "parent_asin", "ms")
    assert catalog.domains["other"].timestamp_unit == "s"


@pytest.mark.parametrize(
    "url",
    ["https://example.org/a.gz", "file:///data/a.gz", "memory://a", "synthetic:video?scale=small", "/data/a"],
)
def test_urls_and_absolute_paths_stay_as_written(write, url):
    assert load_catalog(write({"domains": {"games": CSV | {"url": url}}})).domains["games"].url == url


def test_a_relative_path_is_relative_to_its_catalogue(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = write({"domains": {"games": CSV | {"url": "sub/games.csv"}}})
    assert load_catalog(path).domains["games"].url == str(tmp_path / "sub" / "games.csv")


def test_columns_of_a_file_without_header_are_numbers(write):
    columns = {"user": 1, "item": 2, "rating": 3, "timestamp": 4}
    entry = {"url": "u.data", "kind": "tsv", "header": False, "columns": columns}
    assert load_catalog(write({"domains": {"games": entry}})).domains["games"].columns.names == list("1234")


def test_a_query_has_a_database_relative_to_its_catalogue_or_none(write, tmp_path):
    domains = {"games": {"url": "shop.duckdb", "query": "FROM games"}, "songs": {"query": "FROM 'x.csv'"}}
    catalog = load_catalog(write({"domains": domains}))
    games, songs = catalog.domains["games"], catalog.domains["songs"]
    assert (games.url, games.query) == (str(tmp_path / "shop.duckdb"), "FROM games")
    assert (games.kind, games.columns.names) == ("parquet", ["user", "item", "rating", "timestamp"])
    assert (songs.url, songs.origin, games.origin) == (None, "query", games.url)


def test_a_querys_columns_can_be_named(write):
    columns = {"user": "u", "item": "i", "rating": "r"}
    catalog = load_catalog(write({"domains": {"games": {"query": "FROM games", "columns": columns}}}))
    assert catalog.domains["games"].columns.names == ["u", "i", "r"]


def test_the_middle_of_the_scale_parts_liked_from_not(write):
    scales = {"five": [1, 5], "ten": [0, 10], "half": [0.5, 5]}
    catalog = load_catalog(write({"domains": {name: CSV | {"scale": s} for name, s in scales.items()}}))
    assert [catalog.domains[name].liked_above for name in scales] == [3, 5, 2.75]


def _domain(**changes):
    return {"domains": {"games": CSV | changes}}


def _query(**changes):
    return {"domains": {"games": {"query": "FROM games"} | changes}}


def _task(**changes):
    return {"tasks": {"mine": {"source": "video", "target": "music"} | changes}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_task(source="vidoe"), ["tasks.mine.source", "'vidoe'", "known are", "video"]),
        (_task(target="video"), ["tasks.mine", "source and target are both 'video'"]),
        (_task(paper=4), ["tasks.mine.paper"]),
        (_task(sorce="video"), ["tasks.mine.sorce", "unknown key", "source, target"]),
        (_domain(colour=1), ["domains.games.colour", "unknown key", "format"]),
        (
            _domain(columns={"user": "u", "items": "i", "rating": "r"}),
            ["domains.games.columns.item", "required"],
        ),
        (
            _domain(columns={"user": "u", "item": "i", "rating": "r", "time": "t"}),
            ["domains.games.columns.time", "unknown key", "timestamp"],
        ),
        (
            _domain(columns={"user": "u", "item": "u", "rating": "r"}),
            ["domains.games.columns", "named twice"],
        ),
        (_domain(kind="xml"), ["domains.games.kind", "'xml'"]),
        (_domain(format="amazon2015"), ["domains.games.format", "'amazon2015'", "amazon2014"]),
        (_domain(url="../secret.csv"), ["domains.games.url", "leaves the catalogue's folder"]),
        (_domain(url="file:../secret.csv"), ["domains.games.url", "leaves the catalogue's folder"]),
        (_domain(url="file://../secret.csv"), ["domains.games.url", "leaves the catalogue's folder"]),
        (_domain(url="simplecache::file:a/../../b"), ["domains.games.url", "leaves the catalogue's folder"]),
        (_domain(url="simplecache::file:b.csv"), ["domains.games.url", "'file:b.csv'", "is relative"]),
        (_domain(scale=[float("nan"), 5]), ["domains.games", "the scale nan to 5 is none"]),
        (_domain(scale=[1, float("inf")]), ["domains.games", "the scale 1 to inf is none"]),
        (_domain(scale=[-1e9, 1e9]), ["domains.games", "from -1,000 to 1,000"]),
        (_domain(url=""), ["domains.games.url"]),
        (_domain(scale=[5, 1]), ["domains.games", "give the lowest rating first"]),
        ({"domains": {"games": CSV | {"url": None}}}, ["domains.games", "give a url, or a query"]),
        (_domain(query="FROM t"), ["domains.games", "a query gives parquet, not csv"]),
        (_query(format="amazon2023"), ["domains.games", "a query gives parquet, not csv"]),
        (_query(url="s3://bucket/a.duckdb"), ["domains.games", "local DuckDB file", "s3://bucket/a.duckdb"]),
        (_query(url="../a.duckdb"), ["domains.games.url", "leaves the catalogue's folder"]),
        (_query(sha256="0" * 64), ["domains.games", "sha256", "counts"]),
        (_query(query=""), ["domains.games", "a query"]),
        (_query(query=3), ["domains.games.query"]),
        (_domain(k_core=0), ["domains.games.k_core"]),
        (_domain(sha256="abc"), ["domains.games.sha256"]),
        (_domain(counts={"ratings": 5, "users": 0, "items": 1}), ["domains.games.counts.users"]),
        (_domain(header=False), ["domains.games", "counted from 1"]),
        (_domain(kind="json", header=False), ["domains.games", "header: false is for csv and tsv"]),
        (_domain(name="other"), ["domains.games.name"]),
        ({"domains": {"games": {"url": "x"}}}, ["domains.games", "kind and columns"]),
        ({"domains": {"Games-2": CSV}}, ["domains.Games-2.name", "[a-z0-9_]+"]),
        ({"domains": {"games": "games.csv"}}, ["domains.games", "keys and values"]),
        ({"cells": {"betas": [0.2, 1.0]}}, ["cells.betas", "beta 1 "]),
        ({"cells": {"betas": [0.125]}}, ["cells.betas", "whole percentage"]),
        ({"cells": {"betas": []}}, ["cells.betas"]),
        ({"cells": {"seeds": [1, 1]}}, ["cells.seeds", "listed twice"]),
        ({"cells": {"seeds": [-1]}}, ["cells.seeds.0"]),
        ({"cells": {"seeds": [True]}}, ["cells.seeds.0"]),
        ({"cells": {"split": {"validation": 1}}}, ["cells.split.validation"]),
        ({"cells": {"split": {"share": 1}}}, ["cells.split.share", "unknown key", "validation"]),
        ({"cells": {"epochs": 3}}, ["cells.epochs", "unknown key", "betas"]),
        ({"trials": {"seeds": [0]}}, ["trials:", "now called `cells`"]),
        ({"domain": {}}, ["domain: unknown key", "domains"]),
        ("domains:\n  a: {url: x\n", ["mine.yaml, line"]),
        ("domains:\n  a: {}\n  b: {}\n  a: {}\n", ["mine.yaml, line 4", "'a' stands twice"]),
        ("- a\n", ["keys and values"]),
    ],
)
def test_one_error_names_the_file_and_the_key(write, content, words):
    path = write(content)
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_file_is_named_with_the_variable(tmp_path):
    with pytest.raises(CatalogError, match=r"absent\.yaml.*DIFFCDR_CATALOG"):
        load_catalog(tmp_path / "absent.yaml")
