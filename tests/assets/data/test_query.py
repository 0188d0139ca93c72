"""Domains that are queries: what is read, when again, and what is refused."""

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml

from assets.data.ingest import IngestError
from assets.data.ratings import ingest_domain
from assets.data.reviews import QueryError, change, obtain
from assets.data.tables import attach
from assets.settings.catalog import Columns, Domain, load_catalog
from assets.state.store import Store

QUERY = 'SELECT member AS "user", film AS item, stars AS rating, day AS timestamp FROM seen ORDER BY id DESC'
TIMELESS = 'SELECT member AS "user", film AS item, stars AS rating FROM seen ORDER BY id'
COLUMNS = {"user": "user", "item": "item", "rating": "rating"}
ROWS = """(1, 'ann', 'alien', 5, TIMESTAMP '2020-01-01 12:00:00'),
          (2, 'bob', 'brazil', 2, TIMESTAMP '2020-01-02 00:00:00'),
          (3, 'ann', 'alien', 1, TIMESTAMP '2020-01-01 12:00:00')"""


def change_database(path: Path, sql: str) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(sql)


@pytest.fixture
def database(tmp_path) -> Path:
    path = tmp_path / "it's a shop.duckdb"
    change_database(
        path,
        "CREATE TABLE seen (id INTEGER, member VARCHAR, film VARCHAR, stars INTEGER, day TIMESTAMP); "
        f"INSERT INTO seen VALUES {ROWS}",
    )
    return path


def films(database: Path | None, query: str = QUERY, **changes) -> Domain:
    columns = Columns(**COLUMNS, timestamp=changes.pop("timestamp", "timestamp"))
    url = database and str(database)
    facts = {"kind": "parquet", "columns": columns, "timestamp_unit": "iso"} | changes
    return Domain(name="films", title="Films", url=url, query=query, **facts)


def ratings(domain: Domain) -> list[tuple]:
    """User id, item id, rating and time of each ingested rating."""
    store = Store()
    obtain(store, domain)
    ingest_domain(store, domain)
    with duckdb.connect() as connection:
        attach(connection, store.ratings(domain.name).folder())
        return connection.execute(
            'SELECT user_id, item_id, rating, timestamp FROM ratings JOIN users USING ("user") '
            "JOIN items USING (item) ORDER BY user_id"
        ).fetchall()


def file_of(domain: Domain) -> Path:
    entry = Store().reviews(domain.name)
    return entry.path_of(entry.require()["file"])


def test_the_result_becomes_ratings_and_the_last_row_counts(database):
    noon = 1577880000
    bob = ("bob", "brazil", 2.0, noon + 12 * 3600)
    assert ratings(films(database)) == [("ann", "alien", 5.0, noon), bob]
    assert ratings(films(database, QUERY.replace(" DESC", ""))) == [("ann", "alien", 1.0, noon), bob]


def test_a_result_may_have_no_time(database):
    expected = [("ann", "alien", 1.0, None), ("bob", "brazil", 2.0, None)]
    assert ratings(films(database, f"{TIMELESS};\n", timestamp=None)) == expected


def test_many_rows_keep_the_querys_order(database):
    query = (
        "SELECT i::VARCHAR AS \"user\", 'x' AS item, 1 AS rating, 0 AS timestamp FROM range(300000) t(i) "
        "ORDER BY hash(i)"
    )
    domain = films(database, query)
    obtain(Store(), domain)
    users = pq.read_table(file_of(domain), columns=["user"])["user"].to_pylist()
    assert users == [user for user, *_ in duckdb.execute(query).fetchall()]


def test_the_manifest_names_the_database_and_the_database_is_only_read(database):
    before = database.read_bytes()
    record = obtain(Store(), films(database))
    assert (record["file"], record["source"]) == ("films.parquet", str(database))
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.glob("it's*")] == [database.name]


def test_only_a_change_of_query_or_database_runs_it_again(database):
    store, domain = Store(), films(database)
    record = obtain(store, domain)
    assert obtain(store, domain) == record
    assert change(store, domain) is None
    change_database(database, "INSERT INTO seen VALUES (4, 'cid', 'cube', 4, TIMESTAMP '2020-01-03')")
    assert change(store, domain) is not None
    again = obtain(store, domain)
    assert again["sha256"] != record["sha256"]
    assert len(ratings(domain)) == 3
    shorter = films(database, QUERY.replace("seen", "seen WHERE id > 1"))
    assert change(store, shorter) is not None
    assert len(ratings(shorter)) == 3
    assert pq.read_metadata(file_of(shorter)).num_rows == 3


def test_changes_in_the_log_beside_the_database_count(database):
    domain = films(database)
    obtain(Store(), domain)
    change_database(database, "PRAGMA disable_checkpoint_on_shutdown; DELETE FROM seen WHERE member = 'bob'")
    assert database.with_name(f"{database.name}.wal").exists()
    assert [user for user, *_ in ratings(domain)] == ["ann"]


def test_a_database_that_is_gone_leaves_the_result_valid(database):
    store, domain = Store(), films(database)
    record = obtain(store, domain)
    database.unlink()
    assert change(store, domain) is None
    assert obtain(store, domain) == record


def test_without_a_database_the_query_names_its_files(tmp_path):
    file = tmp_path / "seen.csv"
    file.write_text("user,item,rating\nann,alien,5\n")
    domain = films(None, f"FROM '{file}' -- all of it", timestamp=None)
    assert ratings(domain) == [("ann", "alien", 5.0, None)]
    store = Store()
    record = store.reviews("films").require()
    assert record["source"] == "query"
    file.write_text("user,item,rating\nann,alien,4\n")
    assert change(store, domain) is None
    assert obtain(store, domain) == record


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", ["the query fails", "syntax error", "SELEC"]),
        ("SELECT (1", ["the query fails", "syntax error"]),
        ("FROM nowhere", ["the query fails", "nowhere does not exist"]),
        ("FROM statements", ["the query fails", "statements does not exist"]),
        ("SELECT 1; SELECT 2", ["not one SELECT"]),
        ("DELETE FROM seen", ["not one SELECT"]),
        ("-- nothing", ["not one SELECT"]),
        ("FROM seen WHERE id > 99", ["gives no rows"]),
    ],
)
def test_a_bad_query_is_one_error_and_leaves_the_file_at_hand(database, query, words):
    store, domain = Store(), films(database)
    record = obtain(store, domain)
    with pytest.raises(QueryError) as caught:
        obtain(store, films(database, query))
    message = str(caught.value)
    assert message.startswith("domain films: ")
    assert message.endswith("correct query of the domain in the catalogue")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert obtain(store, domain) == record
    assert file_of(domain).exists()


def test_a_database_that_cannot_be_opened_is_named(tmp_path):
    broken = tmp_path / "broken.duckdb"
    broken.write_text("not a database" * 1000)
    for path in (broken, tmp_path / "absent.duckdb"):
        with pytest.raises(QueryError, match=rf"domain films: .*{path.name}.*correct url") as caught:
            obtain(Store(), films(path))
        assert "\n" not in str(caught.value)


def test_a_result_without_a_column_is_refused_by_name(database):
    with pytest.raises(IngestError, match="no column 'timestamp'; the file has user, item, rating"):
        ratings(films(database, TIMELESS))


def test_a_catalogue_entry_needs_no_more_than_database_and_query(database, tmp_path, monkeypatch):
    catalog = tmp_path / "mine.yaml"
    entry = {"url": database.name, "query": QUERY, "timestamp_unit": "iso"}
    catalog.write_text(yaml.safe_dump({"domains": {"films": entry}}))
    monkeypatch.chdir("/")
    assert len(ratings(load_catalog(catalog).domains["films"])) == 2
