"""Entries in an S3 server hold between processes: killed writers, rival writers, stale listings."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from upath import UPath

from assets.state import folders
from assets.state.store import Entry, NotMaterialized, Store
from tests import s3
from tests.assets.axes import CELL
from tests.assets.state.process import process


@pytest.fixture
def store(monkeypatch, tmp_path) -> Iterator[Store]:
    with s3.serving():
        monkeypatch.setenv("DIFFCDR_ARTIFACTS", f"s3://{s3.BUCKET}/{tmp_path.name}")
        yield Store()


def split(store: Store) -> Entry:
    return store.split(CELL)


def generations(store: Store) -> set[str]:
    found = UPath(split(store).path).fs.find(split(store).path.path)
    return {name.split("/gen-")[1].split("/")[0] for name in found if "/gen-" in name}


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_process_killed_while_it_writes_leaves_the_entry_as_it_was(
    same_machine, store, monkeypatch, tmp_path
):
    """It dies with one file of two sent and of the second all parts, which nobody puts together."""
    split(store).write({"a": b"old", "b": b"old"}, "f1")
    body = """
        import s3fs
        send, put = s3fs.S3FileSystem._call_s3, s3fs.S3FileSystem._put_file
        async def stopping(self, method, *args, **options):
            if method == "complete_multipart_upload":
                print("half sent", flush=True)
                time.sleep(600)
            return await send(self, method, *args, **options)
        async def in_parts(self, *paths, **options):
            return await put(self, *paths, **options | {"chunksize": 5 << 20})
        s3fs.S3FileSystem._call_s3, s3fs.S3FileSystem._put_file = stopping, in_parts
        large = Path(sys.stdin.readline().strip())
        large.write_bytes(bytes(11 << 20))
        entry().write({"a": b"new", "b": large}, "f2")
    """
    with process(body) as writer:
        print(tmp_path / "large", file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "half sent\n"
        writer.kill()
        writer.wait()
    assert split(store).is_current("f1")
    assert split(store).read("a") == split(store).read("b") == b"old"
    # Another machine cannot tell that the writer is dead, but for its age; this one can.
    elsewhere = Store(home=str(tmp_path / "elsewhere"))
    split(elsewhere).write({"a": b"newer"}, "f3")
    assert len(generations(store)) == 3
    if same_machine:
        split(store).write({"a": b"newest"}, "f4")
    else:
        monkeypatch.setattr(folders, "_age", lambda _: folders._WRITTEN_WITHIN * 2)
        split(elsewhere).write({"a": b"newest"}, "f4")
    assert split(store).is_current("f4")
    assert split(store).files() == ["a"]
    assert len(generations(store)) == 2
    assert not list(tmp_path.rglob(".writing-*")) or not same_machine


def test_a_draft_of_a_process_that_was_killed_goes_with_the_next(store, tmp_path):
    body = """
        import time
        with entry().draft() as draft:
            (draft.folder / "a").write_bytes(b"1")
            print("begun", flush=True)
            time.sleep(600)
    """
    with process(body) as writer:
        assert writer.stdout.readline() == "begun\n"
        [begun] = tmp_path.rglob(".draft-*")
        with split(store).draft() as draft:
            assert begun.exists()  # of a writer that is at work
            (draft.folder / "a").write_bytes(b"2")
            draft.publish("f2")
        writer.kill()
        writer.wait()
    with split(store).draft():
        assert not begun.exists()
    assert list(tmp_path.rglob(".draft-*")) == []
    assert split(store).read("a") == b"2"


def test_killed_at_any_moment_an_entry_is_one_writing_whole(store):
    body = """
        for round in range(10**6):
            content = str(round).encode()
            entry().write({"a": content, "b": content, f"only-{round}": content}, str(round))
            print(round, flush=True)
    """
    for rounds in (1, 2, 4):
        with process(body) as writer:
            for _ in range(rounds):
                writer.stdout.readline()
            writer.kill()
            writer.wait()
        entry = split(store)
        last = entry.require()["fingerprint"]
        assert entry.files() == ["a", "b", f"only-{last}"]
        assert {entry.read(name) for name in entry.files()} == {last.encode()}


def test_two_processes_end_in_one_writing_whole_and_readers_see_no_mixture(store):
    body = """
        name = sys.stdin.readline().strip()
        for round in range(15):
            content = f"{name}{round}".encode()
            entry().write({"a": content, f"only-{name}": content}, f"{name}{round}")
    """

    def write(name: str) -> int:
        with process(body) as writer:
            writer.communicate(f"{name}\n")
            return writer.returncode

    seen = set()
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, name) for name in "xy"]
        while not all(writer.done() for writer in writers):
            entry = split(store)
            # A reader that two writings overtake is told to start again.
            with contextlib.suppress(NotMaterialized):
                fingerprint = entry.require()["fingerprint"]
                assert {entry.read(name) for name in entry.files()} == {fingerprint.encode()}
                seen.add(fingerprint)
    assert [writer.result() for writer in writers] == [0, 0]
    assert {name[0] for name in seen} == {"x", "y"}, "both wrote while they were read"
    entry = split(store)
    last = entry.require()["fingerprint"]
    assert last[1:] == "14"
    assert entry.files() == ["a", f"only-{last[0]}"]
    assert {entry.read(name) for name in entry.files()} == {last.encode()}


def test_what_another_process_writes_is_seen_though_this_one_has_listed_before(store):
    assert split(store).manifest() is None
    assert list(store.entries("split")) == []
    # s3fs itself would go on saying so.
    filesystem = store.artifact_root.fs
    folder = split(store).path.path
    assert filesystem.find(store.artifact_root.path) == []
    filesystem.ls(store.artifact_root.path.split("/")[0])
    with process('entry().write({"a": b"1"}, "f1")') as writer:
        assert writer.wait() == 0
    assert split(store).is_current("f1")
    assert split(store).read("a") == b"1"
    assert [keys["task"] for keys, _ in store.entries("split")] == ["tiny"]
    assert f"{folder}/manifest.json" in filesystem.find(folder)


def test_a_draft_is_not_fetched_again_where_it_was_made_and_is_elsewhere(store, tmp_path, monkeypatch):
    with split(store).draft() as draft:
        (draft.folder / "large").write_bytes(b"x" * 1000)
        draft.publish("f1")
    other = Store(home=str(tmp_path / "other"))
    assert split(other).path_of("large").read_bytes() == b"x" * 1000
    monkeypatch.setattr(folders.RemoteFolder, "fetch", lambda *_: pytest.fail("fetched again"))
    for known in (store, other):
        assert split(known).path_of("large").read_bytes() == b"x" * 1000


def test_a_report_that_one_machine_makes_is_had_by_another(store, tmp_path):
    other = Store(home=str(tmp_path / "other"))
    assert list(other.fetch_report("paper", "table2").iterdir()) == []
    (store.report("paper", "table2") / "table2.md").write_text("| 1 |")
    store.share_report("paper", "table2")
    assert (other.fetch_report("paper", "table2") / "table2.md").read_text() == "| 1 |"
