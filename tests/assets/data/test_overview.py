"""The overlap report against counts made by hand, and against pandas on random data."""

import dataclasses
import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.data.ingest import ingest
from assets.data.overview import Lengths, inspect_tables, inspect_task
from assets.data.ratings import ingest_domain
from assets.data.reviews import obtain
from assets.settings.catalog import Catalog, Domain, Task
from assets.state.store import NotMaterialized, Store

SOURCE = """user,item,rating,time
ann,i1,5,1400000000
ann,i1,4,1400100000
ann,i2,2,1400000000
bob,i1,1,1400000000
bob,i2,3,1400000000
bob,i3,5,1400000000
cid,i1,2,1500000000
"""
TARGET = """user,item,rating
ann,t1,2
bob,t1,4
bob,t2,4
dan,t2,3
"""


@pytest.fixture
def domains(tmp_path) -> tuple[Domain, Domain]:
    return domain(tmp_path, "films", SOURCE, timestamp="time"), domain(tmp_path, "songs", TARGET)


def domain(folder, name, text, **columns) -> Domain:
    file = folder / f"{name}.csv"
    file.write_text(text)
    columns = {"user": "user", "item": "item", "rating": "rating", **columns}
    return Domain(name=name, title=name, url=str(file), kind="csv", columns=columns)


def inspected(folder, *domains: Domain):
    folders = [folder / each.name for each in domains]
    facts = [
        dataclasses.asdict(ingest(folder / f"{each.name}.csv", made, each))
        for each, made in zip(domains, folders, strict=True)
    ]
    return inspect_tables(*domains, facts, folders)


def test_small_files_are_counted_as_by_hand(tmp_path, domains):
    report = inspected(tmp_path, *domains)
    source, target = report.source, report.target
    assert (source.rows_read, source.repeated, source.ratings, source.users, source.items) == (7, 1, 6, 3, 3)
    assert (source.lowest, source.highest, source.mean) == (1, 5, pytest.approx(17 / 6))
    assert source.stars == pytest.approx({1: 1 / 6, 2: 2 / 6, 3: 1 / 6, 4: 1 / 6, 5: 1 / 6})
    assert (source.first_day, source.last_day) == ("2014-05-13", "2017-07-14")
    assert (target.users, target.items, target.first_day) == (3, 2, None)
    assert report.overlap == 2  # ann and bob
    assert report.source_history == Lengths(2, 2.5, 2.5, 3)
    assert report.target_history == Lengths(1, 1.5, 1.5, 2)


def test_each_warning_has_its_reason(tmp_path, domains):
    few, fewer, scale, timeless = inspected(tmp_path, *domains).warnings
    assert few.startswith("only 2 users are in both domains")
    assert fewer.startswith("below 28 users in both")
    assert scale.startswith("songs: ratings lie between 2 and 4, the scale is 1 to 5")
    assert timeless.startswith("songs: no timestamps")


def test_a_hundred_users_with_times_and_the_whole_scale_warn_of_nothing(tmp_path):
    rows = "".join(f"u{n},i{n % 7},{n % 5 + 1},{1_400_000_000 + n}\n" for n in range(100))
    text = "user,item,rating,time\n" + rows
    other = text.replace(",i", ",t").replace("ttem", "item")
    both = [domain(tmp_path, name, rows, timestamp="time") for name, rows in (("a", text), ("b", other))]
    assert inspected(tmp_path, *both).warnings == []


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0] * 4, "all times are equal (1970-01-01)"),
        ([1_400_000_000] * 4, "all times are equal (2014-05-13)"),
        (
            [16000, 16001, 16002, 16003],
            "1970-01-01 and 1970-01-01; they are probably in another unit",
        ),
        ([20140513, 20140514, 20140515, 20140516], "probably in another unit"),
    ],
)
def test_times_that_say_nothing_are_warned_of(tmp_path, domains, times, words):
    rows = "".join(f"ann,x{n},{n + 1},{time}\n" for n, time in enumerate(times))
    odd = domain(tmp_path, "odd", "user,item,rating,time\n" + rows, timestamp="time")
    assert any(
        text.startswith("odd: ") and words in text for text in inspected(tmp_path, domains[0], odd).warnings
    )


def test_blanks_around_ids_are_warned_of(tmp_path, domains):
    text = "user,item,rating\n ann,t1,2\nbob\u00a0,t1,4\ncid, t2,3\n"
    warnings = inspected(tmp_path, domains[0], domain(tmp_path, "odd", text)).warnings
    assert any(text.startswith("odd: 2 user ids begin or end with a blank") for text in warnings)


def test_the_same_ratings_twice_are_warned_of(tmp_path, domains):
    again = domain(tmp_path, "again", SOURCE, timestamp="time")
    assert "films and again hold the same ratings" in inspected(tmp_path, domains[0], again).warnings[-1]
    other = domain(tmp_path, "other", SOURCE.replace("bob,i3,5", "bob,i3,4"), timestamp="time")
    assert "the same ratings" not in " ".join(inspected(tmp_path, domains[0], other).warnings)


def test_equal_ratings_are_warned_of(tmp_path, domains):
    flat = domain(tmp_path, "flat", "user,item,rating\nann,t1,4\nbob,t1,4\n")
    warnings = inspected(tmp_path, domains[0], flat).warnings
    assert "flat: all ratings are 4; there is nothing to predict" in warnings


def test_no_overlap_is_a_report_of_zeros(tmp_path, domains):
    apart = domain(tmp_path, "apart", "user,item,rating\neve,t1,4\nfay,t1,1\n")
    report = inspected(tmp_path, domains[0], apart)
    assert (report.overlap, report.source_history) == (0, Lengths(0, 0, 0, 0))


rows = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=25, unique=True)


@settings(max_examples=15, deadline=None)
@given(source=rows, target=rows)
def test_overlap_and_histories_are_those_of_pandas(tmp_path_factory, source, target):
    folder = tmp_path_factory.mktemp("pandas")
    both = [
        domain(folder, name, "user,item,rating\n" + "".join(f"u{u},i{i},3\n" for u, i in pairs))
        for name, pairs in (("a", source), ("b", target))
    ]
    report = inspected(folder, *both)
    lengths = [pd.Series([u for u, _ in pairs]).value_counts() for pairs in (source, target)]
    shared = lengths[0].index.intersection(lengths[1].index)
    assert report.overlap == len(shared)
    for history, length in zip((report.source_history, report.target_history), lengths, strict=True):
        counts = length[shared] if len(shared) else pd.Series([0])
        assert history.minimum == counts.min()
        assert history.maximum == counts.max()
        assert history.median == counts.median()
        assert history.mean == pytest.approx(counts.mean())


def test_a_task_in_the_store_gives_the_report_of_its_files(tmp_path, domains):
    catalog = Catalog(
        domains={each.name: each for each in domains},
        tasks={"films_songs": Task(name="films_songs", title="t", source="films", target="songs")},
    )
    store = Store()
    with pytest.raises(NotMaterialized, match="films"):
        inspect_task(store, catalog, "films_songs")
    for each in domains:
        obtain(store, each)
        ingest_domain(store, each)
    report = inspect_task(store, catalog, "films_songs")
    assert report == inspected(tmp_path, *domains)
    assert json.loads(json.dumps(report.as_json()))["overlap"] == 2


def test_every_number_is_shown(tmp_path, domains):
    shown = {what: (source, target) for what, source, target in inspected(tmp_path, *domains).rows()}
    assert shown["users in both"] == ("2 (66.7%)", "2 (66.7%)")
    assert shown["their ratings: min / median / mean / max"] == ("2 / 2.5 / 2.5 / 3", "1 / 1.5 / 1.5 / 2")
    assert shown["time"] == ("2014-05-13 to 2017-07-14", "none")
    assert shown["duplicates removed"] == ("1", "0")
