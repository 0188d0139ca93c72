import gzip
import json
import tempfile
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.data.files import FileError
from assets.data.ingest import BadRowError, Ingested, IngestError, ingest
from assets.data.tables import TABLES
from assets.settings.catalog import FORMATS, Domain

COLUMNS = {"user": "u", "item": "i", "rating": "r", "timestamp": "t"}


def _domain(**changes) -> Domain:
    defaults = {"name": "games", "title": "Games", "url": "games.csv", "kind": "csv", "columns": COLUMNS}
    return Domain.model_validate(defaults | changes)


AMAZON = _domain(**FORMATS["amazon2014"])
QUARANTINE = _domain(on_bad_rows="quarantine")


def _table(folder: Path, name: str) -> list[tuple]:
    return duckdb.sql(f"FROM '{folder / name}.parquet'").fetchall()


def _ratings(folder: Path) -> list[tuple]:
    """(user id, item id, rating, timestamp) in the table's order."""
    users, items = dict(_table(folder, "users")), dict(_table(folder, "items"))
    return [(users[u], items[i], r, t) for _, u, i, r, t in _table(folder, "ratings")]


def _review(user="A1", item="B1", rating=5.0, time=86400, **more) -> str:
    fields = {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time}
    return json.dumps(fields | more) + "\n"


@pytest.fixture
def run(tmp_path):
    """Write the content, ingest it, and return what ingest says with the folder of tables."""

    def run(content: str | bytes, domain: Domain, name: str = "raw"):
        path, folder = tmp_path / name, tmp_path / "games"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ingest(path, folder, domain), folder

    return run


def test_a_small_review_file_exactly(run):
    lines = [
        _review("A2", "B9", 4.0, 300, reviewText='a "quoted", long\ttext', helpful=[1, 2]),
        _review("A1", "B1", 1.0, 200),
        "\n",
        "   \n",
        " " + _review("A1", "B9", 5, 100),
        _review("A2", "B1", 3.0, 300),
    ]
    got, folder = run("".join(lines).removesuffix("\n"), AMAZON)
    assert _table(folder, "users") == [(0, "A1"), (1, "A2")]
    assert _table(folder, "items") == [(0, "B1"), (1, "B9")]
    assert _table(folder, "ratings") == [
        (0, 0, 1, 5.0, 100),
        (1, 0, 0, 1.0, 200),
        (2, 1, 1, 4.0, 300),
        (3, 1, 0, 3.0, 300),
    ]
    assert _table(folder, "quarantine") == []
    assert got == Ingested(
        rows_read=4,
        quarantined=0,
        repeated=0,
        dropped_by_core=0,
        ratings=4,
        users=2,
        items=2,
        first_time=100,
        last_time=300,
        stars={1: 0.25, 2: 0.0, 3: 0.25, 4: 0.25, 5: 0.25},
        sparsity=0.0,
        whole_numbers={"user": False, "item": False},
    )


@pytest.mark.parametrize(
    ("kind", "users", "expected"),
    [
        ("csv", ["7", "12"], True),
        ("csv", ["007", "12"], False),
        ("csv", ["7", "x"], False),
        ("json", [7, 12], True),
        ("json", ["7", "12"], False),
        ("parquet", [7, 12], True),
        ("parquet", ["7", "12"], False),
        ("parquet", [2**60, 12], False),  # more digits than are safe everywhere
    ],
)
def test_ids_are_numbers_where_the_file_says_so_or_all_are_written_as_such(run, kind, users, expected):
    frame = pd.DataFrame({"user": users, "item": ["a", "b"], "rating": [1.0, 2.0]})
    content = {
        "csv": lambda: frame.to_csv(index=False),
        "json": lambda: frame.to_json(orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(index=False),
    }[kind]()
    domain = _domain(kind=kind, columns={"user": "user", "item": "item", "rating": "rating"})
    assert run(content, domain)[0].whole_numbers == {"user": expected, "item": False}


def test_types_of_the_tables(run):
    _, folder = run(_review(), AMAZON)
    types = {
        file.stem: duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE FROM '{file}')").fetchall()
        for file in folder.iterdir()
    }
    assert types == {
        "ratings": [
            ("row", "BIGINT"),
            ("user", "INTEGER"),
            ("item", "INTEGER"),
            ("rating", "FLOAT"),
            ("timestamp", "BIGINT"),
        ],
        "users": [("user", "INTEGER"), ("user_id", "VARCHAR")],
        "items": [("item", "INTEGER"), ("item_id", "VARCHAR")],
        "titles": [("item", "INTEGER"), ("title", "VARCHAR")],
        "quarantine": [
            ("line", "BIGINT"),
            ("field", "VARCHAR"),
            ("reason", "VARCHAR"),
            ("record", "VARCHAR"),
        ],
    }


@pytest.mark.parametrize("packed", [False, True])
def test_file_order_survives_parallel_reading(run, packed):
    """240,000 lines, 100 MB: the same 48,000 pairs five times over without time, each pass one star more."""
    domain = _domain(
        **FORMATS["amazon2014"] | {"columns": FORMATS["amazon2014"]["columns"] | {"timestamp": None}}
    )
    pad = "x" * 350
    lines = [
        f'{{"reviewerID":"U{n % 4000}","asin":"I{n * 7919 % 48000:05d}","x":"{pad}","overall":{star}}}\n'
        for star in range(1, 6)
        for n in range(48_000)
    ]
    content = "".join(lines).encode()
    got, folder = run(gzip.compress(content, 1) if packed else content, domain)
    assert (got.rows_read, got.repeated, got.ratings) == (240_000, 192_000, 48_000)
    assert got.stars == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 1.0}
    expected = sorted((f"U{n % 4000}", n) for n in range(48_000))
    assert _ratings(folder) == [(user, f"I{n * 7919 % 48000:05d}", 5.0, None) for user, n in expected]


def test_the_latest_of_a_repeated_pair_stays_and_of_equal_times_the_last(run):
    content = "u,i,r,t\na,x,1,30\na,x,2,50\na,x,3,50\na,x,4,40\nb,x,5,1\n"
    got, folder = run(content, _domain())
    assert _ratings(folder) == [("a", "x", 3.0, 50), ("b", "x", 5.0, 1)]
    assert (got.rows_read, got.repeated, got.ratings) == (5, 3, 2)


def test_ids_stay_as_written_and_are_sorted_bytewise(run):
    ids = ["007", "7", "07", " 7", "1e3", "A", "a", "é", "Z", "a b", "NULL", "nan", "😀", "\uff5e"]
    got, folder = run("u,i,r,t\n" + "".join(f"{name},{name},3,1\n" for name in ids), _domain())
    expected = list(enumerate(sorted(ids, key=str.encode)))
    assert _table(folder, "users") == expected
    assert _table(folder, "items") == expected
    assert got.users == len(ids)


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        ('i,"a, b",u,r,t\n"x,1",o,"a ""q""\nb",4,9\n', {}),
        ('i\tu\tr\tt\nx,1\ta "q"\t4\t9\n', {"kind": "tsv"}),
        (
            'a "q"\tx,1\t4\t9\n',
            {"kind": "tsv", "header": False, "columns": dict(zip(COLUMNS, "1234", strict=True))},
        ),
        ("\ufeffu,i,r,t\r\na,x,4,9\r\n", {}),
        (",u,i,r,t\n0,a,x,4,9\n", {}),
        ("u,i,r,t\na,x,4,9999\n", {"timestamp_unit": "ms"}),
        (
            '{"r.$": {"u": 1}, "r/~": "4", "u": "a", "i": "x", "t": 9.0}\n',
            {"kind": "json", "columns": COLUMNS | {"rating": "r/~"}},
        ),
    ],
)
def test_dialects(run, content, changes):
    _, folder = run(content, _domain(**changes))
    [(user, item, rating, time)] = _ratings(folder)
    assert user in ("a", 'a "q"', 'a "q"\nb')
    assert (user == 'a "q"\nb') is ("\nb" in content)
    assert item in ("x", "x,1")
    assert (rating, time) == (4.0, 9)


def test_what_only_looks_like_a_doubled_or_nested_key_is_read(run):
    text = 'a "overall": 1, "overall": 2'
    got, folder = run(_review(user="{x}", reviewText=text, helpful={"overall": [1]}), AMAZON)
    assert (got.ratings, _table(folder, "users")) == (1, [(0, "{x}")])


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends(run, end):
    _, folder = run("u,i,r,t\na,x,4,9\nb,x,5,9\n".replace("\n", end), _domain())
    assert _ratings(folder) == [("a", "x", 4.0, 9), ("b", "x", 5.0, 9)]


def test_mixed_line_ends(run):
    with pytest.raises(IngestError, match=r"raw: its lines end in more than one way.*tr -s"):
        run("u,i,r,t\r\na,x,4,9\nb,x,5,9\r\n", _domain())
    got, _ = run(_review("A1").replace("\n", "\r\n") + _review("A2"), AMAZON)
    assert got.users == 2


def test_semicolons_and_decimal_commas(run):
    domain = _domain(delimiter=";", decimal=",")
    _, folder = run('u;i;r;t\n"a;b";x;4,5;9\nb;x;3;9\n', domain)
    assert _ratings(folder) == [("a;b", "x", 4.5, 9), ("b", "x", 3.0, 9)]


@pytest.mark.parametrize("timestamp", ["t", None])
@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_titles_of_items(run, kind, timestamp):
    """The first that an item has counts; it may have none, and a bad row's does not count."""
    titles = [" One, and only ", "", "Uno", None, "x" * 400]
    rows = pd.DataFrame({"u": list("abcde"), "i": list("xyxzw"), "r": 4, "t": 9, "n": titles})
    rows.loc[5] = ["f", "y", 77, 9, "of a bad row"]
    if kind == "parquet":
        content = rows.to_parquet(index=False)
    else:
        content = rows.to_csv(index=False) if kind == "csv" else rows.to_json(orient="records", lines=True)
    columns = {"user": "u", "item": "i", "rating": "r", "timestamp": timestamp, "title": "n"}
    got, database = run(content, _domain(kind=kind, columns=columns, on_bad_rows="quarantine"))
    assert (got.items, got.quarantined) == (4, 1)
    assert _table(database, "items") == [(0, "w"), (1, "x"), (2, "y"), (3, "z")]
    assert _table(database, "titles") == [(0, "x" * 300), (1, "One, and only")]
    assert [time for *_, time in _ratings(database)] == [9 if timestamp else None] * 5


def test_without_a_column_there_are_no_titles(run):
    _, database = run("u,i,r,t\na,x,4,9\n", _domain())
    assert _table(database, "titles") == []


def test_columns_whose_names_differ_in_capitals(run, tmp_path):
    _, folder = run("u,i,r,t,R,R\na,x,4,9,1,2\n", _domain())
    assert _ratings(folder) == [("a", "x", 4.0, 9)]
    with pytest.raises(FileError, match="2 columns are called 'r'; rename"):
        run("u,i,r,t,r\na,x,4,9,1\n", _domain())
    pd.DataFrame([["a", "x", 4, 9, 1]], columns=[*"uirt", "R"]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(IngestError, match="columns 'r' and 'R' differ only in capitals"):
        ingest(tmp_path / "a.parquet", tmp_path / "a", _domain(kind="parquet"))


def test_nested_columns_of_parquet(tmp_path):
    frame = pd.DataFrame({"u": [["a"]], "i": ["x"], "r": [4], "t": [9], "more": [{"a": 1}]})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(IngestError, match="column 'u' is nested"):
        ingest(tmp_path / "a.parquet", tmp_path / "a", _domain(kind="parquet"))
    frame.assign(u="a").to_parquet(tmp_path / "a.parquet")
    assert ingest(tmp_path / "a.parquet", tmp_path / "a", _domain(kind="parquet")).ratings == 1


def test_a_line_beyond_two_megabytes_is_a_bad_row(run):
    with pytest.raises(BadRowError, match="raw, line 3: Maximum line size"):
        run("u,i,r,t\na,x,4,9\n" + "b" * 3_000_000 + ",x,4,9\n", _domain())
    got, _ = run("more,u,i,r,t\n" + "b" * 1_000_000 + ",a,x,4,9\n", _domain())
    assert got.ratings == 1


def test_parquet(tmp_path):
    frame = pd.DataFrame({"u": [3, 20, 3], "i": ["x", "y", "x"], "r": [4.0, 5.0, 2.0], "t": [9, 8, 9]})
    frame.to_parquet(tmp_path / "a.parquet")
    ingest(tmp_path / "a.parquet", tmp_path / "a", _domain(kind="parquet"))
    assert _ratings(tmp_path / "a") == [("20", "y", 5.0, 8), ("3", "x", 2.0, 9)]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (_review(user=""), "reviewerID", "the user id is missing"),
        (_review(user="   "), "reviewerID", "the user id is missing"),
        (_review(user=None), "reviewerID", "the user id is missing"),
        (_review(item="  "), "asin", "the item id is missing"),
        (_review(rating=None), "overall", "the rating is missing"),
        (_review(rating="good"), "overall", "good is not a number"),
        (_review(rating=float("nan")), "overall", "NaN is not a number"),
        (_review(rating=0.5), "overall", "0.5 is outside the scale 1 to 5"),
        (_review(rating=6), "overall", "6 is outside the scale 1 to 5"),
        (_review(time=None), "unixReviewTime", "the timestamp is missing"),
        (_review(time="02 26, 2008"), "unixReviewTime", "02 26, 2008 is not a number"),
        (_review(time=1386201600000), "unixReviewTime", "after the year 2099, is timestamp_unit right?"),
        (_review(time=-(10**11)), "unixReviewTime", "before the year 1900, is timestamp_unit right?"),
        (_review(user="a\0b"), "reviewerID", "the user id holds a NUL character"),
        (_review(item="x" * 1001), "asin", "the item id has 1001 characters, more than 1000"),
        (_review().replace("{", '{"overall": 1, ', 1), "", 'the key "overall" is there twice'),
        (_review(user={"id": 1}), "", '"reviewerID" is nested, not one value'),
        (_review(item=["B1"]), "", '"asin" is nested, not one value'),
        ("not json\n", "", "not a JSON object"),
        (_review().strip() + _review(), "", "not a JSON object"),
        (_review()[:40] + "\n", "", "not a JSON object"),
        ("[1, 2]\n", "reviewerID", "the user id is missing"),
        (b'{"reviewerID": "\xe9"}\n', "", "not UTF-8 text; convert it"),
    ],
)
def test_bad_rows_fail_or_are_quarantined(run, row, field, reason):
    row = row if isinstance(row, bytes) else row.encode()
    content = (_review() + "\n").encode() + row + (_review("A2") + _review("A2", rating=7)).encode()
    with pytest.raises(BadRowError) as caught:
        run(content, AMAZON)
    message = str(caught.value)
    for word in ("raw, line 3", reason, "Bad rows in all: 2", "on_bad_rows: quarantine"):
        assert word in message
    assert (f"field {field!r}" in message) is bool(field)
    got, folder = run(content, AMAZON.model_copy(update={"on_bad_rows": "quarantine"}))
    assert (got.rows_read, got.quarantined, got.ratings) == (4, 2, 2)
    (line, named, why, record), (last, *_) = _table(folder, "quarantine")
    assert (line, named, last) == (3, field, 5)
    assert reason in why
    if row.isascii():
        assert record == row.decode().removesuffix("\n")


def test_a_refused_file_leaves_the_old_tables_and_no_scratch(run, tmp_path):
    _, folder = run(_review("old"), AMAZON)
    with pytest.raises(BadRowError):
        run(_review() + "half of a li", AMAZON)
    assert _table(folder, "users") == [(0, "old")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["games", "raw"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{table}.parquet" for table in TABLES)


def test_bad_csv_rows_have_their_line(run):
    content = "u,i,r,t\na,x,4,1\nshort,1\nb,x,9,1\nlong,1,1,1,1\nlong,1,1,1,1,1\nb,,3,1\nc,x,5,1\n"
    got, folder = run(content, QUARANTINE)
    assert [(line, field) for line, field, *_ in _table(folder, "quarantine")] == [
        (3, ""),
        (4, "r"),
        (5, ""),
        (6, ""),
        (7, "i"),
    ]
    assert (got.rows_read, got.quarantined, got.ratings) == (7, 5, 2)


def test_an_open_quote_is_no_row_to_leave_out(run):
    """It would take all rows behind it along, as one quarantined row."""
    content = "u,i,r,t\na,x,4,1\n" + 'b,"x,4,1\n' + "".join(f"c{n},x,4,1\n" for n in range(5000))
    with pytest.raises(BadRowError, match=r"line 3: .*quote.*Close the quote"):
        run(content, QUARANTINE)


def test_without_a_timestamp_column_times_are_null_and_order_is_the_files(run):
    domain = _domain(columns=COLUMNS | {"timestamp": None})
    got, folder = run("u,i,r\na,z,1\na,y,2\na,x,3\na,z,4\n", domain)
    assert _ratings(folder) == [("a", "y", 2.0, None), ("a", "x", 3.0, None), ("a", "z", 4.0, None)]
    assert (got.first_time, got.last_time) == (None, None)


def test_k_core_goes_on_until_nothing_changes(run):
    """Losing the item of degree 1 leaves user d too few, which leaves item z too few."""
    pairs = ["ax", "ay", "bx", "by", "dz", "d1", "cx", "cy", "az"]
    content = "u,i,r,t\n" + "".join(f"{u},{i},5,1\n" for u, i in pairs)
    got, folder = run(content, _domain(k_core=2))
    assert {(u, i) for u, i, *_ in _ratings(folder)} == {(u, i) for u in "abc" for i in "xy"}
    assert (got.dropped_by_core, got.users, got.items) == (3, 3, 2)
    assert _table(folder, "users") == [(0, "a"), (1, "b"), (2, "c")]
    with pytest.raises(IngestError, match="no ratings left of 9 rows: 0 bad, 9 outside the k-core"):
        run(content, _domain(k_core=4))


def test_counts_are_checked(run):
    right = {"ratings": 2, "users": 2, "items": 1}
    content = _review("A1") + _review("A2")
    got, _ = run(content, AMAZON.model_copy(update={"counts": _domain(counts=right).counts}))
    assert got.ratings == 2
    wrong = AMAZON.model_copy(update={"counts": _domain(counts=right | {"users": 1500}).counts})
    with pytest.raises(IngestError, match=r"raw: 2 users, expected 1,500\. .*'games'"):
        run(content, wrong)


CUT = gzip.compress("".join(_review(f"A{n}") for n in range(5000)).encode())[:-2000]


@pytest.mark.parametrize(
    ("content", "domain", "words"),
    [
        ("", AMAZON, "the file is empty"),
        ("\n\n", AMAZON, "the file is empty"),
        (gzip.compress(b""), AMAZON, "the file is empty"),
        ("u,i,r,t\n", _domain(), "no ratings left of 0 rows"),
        ("user,item,r,t\na,x,5,1\n", _domain(), r"no column 'u'; the file has user, item, r, t\..*'games'"),
        (_review(), _domain(kind="json"), "no column 'u'; the file has reviewerID, asin, overall"),
        (
            "a\t1\n",
            _domain(kind="tsv", header=False, columns={"user": 1, "item": 2, "rating": 3}),
            "no column '3'",
        ),
        (_review().encode("utf-16"), AMAZON, "not UTF-8 text; convert it"),
        ("é,i,r,t\na,x,5,1\n".encode("latin-1"), _domain(), "not UTF-8 text; convert it"),
        (
            "[\n" + _review() + "]\n",
            AMAZON.model_copy(update={"kind": "parquet"}),
            "not a readable Parquet file",
        ),
        ("[\n1,\n2]", AMAZON, r"no JSON object in the first 3 lines, the first is '\[\\n'"),
        (
            CUT,
            AMAZON,
            r"gzip stream ends early: its [\d,]+ bytes unpack to [\d,]+ bytes, [1-4],\d{3} whole lines",
        ),
        (CUT[:60], AMAZON, "gzip stream ends early: .* 0 whole lines"),
    ],
)
def test_one_error_names_the_file_and_the_mend(run, content, domain, words):
    with pytest.raises(FileError, match=words) as caught:
        run(content, domain)
    assert "raw" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match="absent: there is no such file; correct the path"):
        ingest(tmp_path / "absent", tmp_path / "a", _domain())


def test_gzip_members_are_read_to_the_last(run):
    got, _ = run(gzip.compress(_review("A1").encode()) + gzip.compress(_review("A2").encode()), AMAZON)
    assert got.users == 2


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "B", "é", "10", "010", "a'b"]),
        st.sampled_from(["x", "Y", "1", "01"]),
        st.integers(1, 5),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, kind=st.sampled_from(["csv", "tsv", "json"]), timed=st.booleans(), k=st.integers(1, 3))
def test_ingest_equals_pandas(rows, kind, timed, k):
    frame = pd.DataFrame(rows, columns=list(COLUMNS.values()))
    expected = _reference(frame if timed else frame.assign(t=0), k)
    domain = _domain(kind=kind, k_core=k, columns=COLUMNS if timed else COLUMNS | {"timestamp": None})
    with tempfile.TemporaryDirectory() as place:
        path, folder = Path(place, "raw"), Path(place, "out")
        path.write_text(_encode(frame, kind), encoding="utf-8")
        if expected.empty:
            with pytest.raises(IngestError, match="no ratings left"):
                ingest(path, folder, domain)
            return
        got = ingest(path, folder, domain)
        times = [t if timed else None for t in expected.t]
        assert _ratings(folder) == list(zip(expected.u, expected.i, expected.r, times, strict=True))
        assert [name for _, name in _table(folder, "users")] == sorted(set(expected.u), key=str.encode)
    distinct = len(frame.drop_duplicates(["u", "i"]))
    assert (got.rows_read, got.repeated) == (len(frame), len(frame) - distinct)
    assert (got.dropped_by_core, got.ratings) == (distinct - len(expected), len(expected))
    assert got.sparsity == pytest.approx(1 - len(expected) / (expected.u.nunique() * expected.i.nunique()))


def _encode(frame: pd.DataFrame, kind: str) -> str:
    if kind == "json":
        return frame.to_json(orient="records", lines=True, force_ascii=False)
    return frame.to_csv(index=False, sep="," if kind == "csv" else "\t")


def _reference(frame: pd.DataFrame, k: int) -> pd.DataFrame:
    frame = (
        frame.assign(line=range(len(frame)))
        .sort_values(["t", "line"])
        .drop_duplicates(["u", "i"], keep="last")
    )
    size = len(frame) + 1
    while len(frame) < size:
        size = len(frame)
        enough = frame.groupby("u").u.transform("size").ge(k) & frame.groupby("i").i.transform("size").ge(k)
        frame = frame[enough]
    return frame.assign(key=frame.u.map(str.encode)).sort_values(["key", "t", "line"])
