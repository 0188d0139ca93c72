"""An entry of the store is there whole or not at all, and knows what it was made from."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from assets.state import folders
from assets.state.code import OURS
from assets.state.store import (
    CannotWrite,
    Damaged,
    Entry,
    NotMaterialized,
    Store,
    fingerprint,
    parquet,
    tensors,
)
from tests import s3
from tests.assets.axes import AXES, CELL
from tests.assets.state.process import process

METRICS = pd.DataFrame({"metric": ["mae"], "value": [0.5]})


@pytest.fixture(scope="module")
def bucket():
    with s3.serving():
        yield s3.BUCKET


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request, monkeypatch, tmp_path):
    """A store on disk, one behind an fsspec URL, and one in an S3 server."""
    if request.param == "disk":
        return Store()
    if request.param == "s3":
        bucket = request.getfixturevalue("bucket")
        return Store(artifacts=f"s3://{bucket}/{tmp_path.name}")
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return Store(artifacts="memory://bucket/artifacts")


def split(store: Store) -> Entry:
    return store.split(CELL)


def generations(entry: Entry) -> list[str]:
    entry.path.fs.invalidate_cache()
    found = {name[len(entry.path.path) :].split("/")[1] for name in entry.path.fs.find(entry.path.path)}
    return sorted(name for name in found if name.startswith("gen-"))


def file_of(entry: Entry, name: str) -> UPath:
    return entry.path / entry.require()["generation"] / name


# Writing and reading


def test_what_is_written_is_read_back(store):
    entry = store.model("paper", "emcdr", CELL)
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, None]})
    entry.write({"t.parquet": parquet(frame), "w.safetensors": tensors({"w": torch.eye(2)})}, "f1", rows=2)
    entry = store.model("paper", "emcdr", CELL)
    pd.testing.assert_frame_equal(entry.table("t.parquet"), frame)
    assert torch.equal(entry.tensors("w.safetensors")["w"], torch.eye(2))
    assert entry.read("t.parquet") == entry.path_of("t.parquet").read_bytes() == parquet(frame)
    assert entry.require()["rows"] == 2
    assert entry.files() == ["t.parquet", "w.safetensors"]
    assert entry.has("t.parquet")
    assert not entry.has("u.parquet")
    assert entry.is_current("f1")
    assert not entry.is_current("f2")


def test_a_rewrite_with_fewer_files_leaves_none_behind(store):
    entry = split(store)
    entry.write({"a": b"1", "b": b"1"}, "f1")
    entry.write({"a": b"2"}, "f2")
    assert split(store).files() == ["a"]
    with pytest.raises(NotMaterialized, match="holds no b: materialize split"):
        split(store).read("b")
    # For those who are in the middle of reading it, the generation before is kept, and no other.
    for round_ in range(3, 6):
        entry.write({"a": b"%d" % round_}, f"f{round_}")
        assert len(generations(entry)) == 2
    assert split(store).read("a") == b"5"


def test_files_are_given_by_path_too(store, tmp_path):
    (tmp_path / "large").write_bytes(b"large")
    split(store).write({"large": tmp_path / "large"}, "f1")
    assert split(store).read("large") == b"large"


def test_a_draft_counts_once_it_is_published(store):
    entry = split(store)
    with entry.draft() as draft:
        (draft.folder / "a").write_bytes(b"1")
        assert entry.manifest() is None
        assert draft.publish("f1", rows=1)["rows"] == 1
    assert split(store).read("a") == b"1"
    with entry.draft() as draft:
        (draft.folder / "a").write_bytes(b"2")
    assert split(store).read("a") == b"1"
    with contextlib.suppress(ValueError), entry.draft() as draft:
        (draft.folder / "a").write_bytes(b"2")
        raise ValueError("stop")
    assert split(store).is_current("f1")
    assert len(generations(entry)) == 1
    with entry.draft() as draft:
        (draft.folder / "b").write_bytes(b"2")
        draft.publish("f2")
    assert split(store).files() == ["b"]


def test_a_local_draft_that_is_published_replaces_what_was_there():
    entry = Store().ratings("tiny_video")
    for content in (b"1", b"2"):
        with entry.draft() as draft:
            (draft.folder / "ratings.parquet").write_bytes(content)
            draft.publish("f")
    assert len(generations(entry)) == 1
    assert (Store().ratings("tiny_video").folder() / "ratings.parquet").read_bytes() == b"2"


def test_facts_may_not_hide_the_manifests_own(store):
    with pytest.raises(ValueError, match="keys are the manifest's own"):
        split(store).write({"a": b"1"}, "f1", keys=3)
    assert generations(split(store)) == []


def test_what_is_missing_says_how_to_make_it(store):
    with pytest.raises(NotMaterialized, match=r"materialize split of partition tiny\|b20-s0 first"):
        split(store).require()


# Killed


class Killed(BaseException):
    """No handler of exceptions sees a kill; what is left behind is the same."""


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("place", range(1, 4))
def test_a_writer_that_stops_at_any_point_leaves_what_was_there(old, place, store, monkeypatch):
    entry = split(store)
    if old:
        entry.write({"a": b"old"}, "f1")
    steps = []

    def stopping(real):
        def step(self, file, *args):
            steps.append(file)
            if len(steps) == place:
                raise Killed
            return real(self, file, *args)

        return step

    kind = type(entry._folder)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "put", stopping(kind.put))
        patch.setattr(kind, "replace", stopping(kind.replace))
        patch.setattr(kind, "remove", lambda *_: None)
        with pytest.raises(Killed):
            entry.write({"a": b"new", "b": b"new"}, "f2")
    assert split(store).is_current("f1") is old
    assert (split(store).manifest() is not None) is old
    if old:
        assert split(store).read("a") == b"old"
    # On disk what a dead writer left goes with the next writing; elsewhere with one a day later.
    monkeypatch.setattr(folders, "_age", lambda _: folders._WRITTEN_WITHIN * 2)
    entry.write({"a": b"newer"}, "f3")
    assert len(generations(entry)) == 1 + old


def test_a_killed_process_leaves_what_was_there_and_the_next_one_cleans_up(home):
    entry = split(Store())
    entry.write({"a": b"old"}, "f1")
    body = """
        with entry().draft() as draft:
            (draft.folder / "a").write_bytes(b"new")
            print("here")
            time.sleep(60)
    """
    with process(body) as writer:
        writer.stdout.readline()
        entry.write({"a": b"2"}, "f2")
        assert len(generations(entry)) == 3, "a living writer is left alone"
        writer.kill()
        writer.wait()
    assert split(Store()).read("a") == b"2"
    entry.write({"a": b"3"}, "f3")
    assert len(generations(entry)) == 2


def test_two_writers_end_in_one_of_the_two_whole(store):
    def work(name):
        for round_ in range(20):
            content = f"{name}{round_}".encode()
            split(store).write({"a": content, f"only-{name}": content}, f"{name}{round_}")

    def look():
        while not done.is_set():
            entry = split(store)
            if manifest := entry.manifest():
                contents = {entry.read(name) for name in entry.files()}
                assert contents == {manifest["fingerprint"].encode()}
                seen.append(manifest["fingerprint"])

    done, seen, failed = threading.Event(), [], []

    def reporting(function, *args):
        try:
            function(*args)
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=reporting, args=(look,))
    writers = [threading.Thread(target=reporting, args=(work, name)) for name in "xy"]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    # A reader that two writings overtake is told to start again; it never sees a mixture.
    assert [error for error in failed if "was written anew" not in str(error)] == []
    entry = split(store)
    last = entry.require()["fingerprint"]
    assert entry.files() == ["a", f"only-{last[0]}"]
    assert entry.read("a") == last.encode()


def test_a_slow_writer_does_not_clean_up_what_another_has_published_meanwhile(store, monkeypatch):
    monkeypatch.setattr(folders, "_age", lambda _: folders._WRITTEN_WITHIN * 2)
    clean_up = Entry._clean_up

    def late(self, *given):
        monkeypatch.setattr(Entry, "_clean_up", clean_up)
        split(store).write({"a": b"other"}, "f2")
        clean_up(self, *given)

    monkeypatch.setattr(Entry, "_clean_up", late)
    split(store).write({"a": b"slow"}, "f1")
    assert split(store).is_current("f2")
    assert split(store).read("a") == b"other"


def test_a_reader_goes_on_with_the_generation_it_began(store):
    split(store).write({"a": b"1", "b": b"1"}, "f1")
    reader = split(store)
    assert reader.read("a") == b"1"
    split(store).write({"a": b"2", "b": b"2"}, "f2")
    assert reader.read("b") == b"1"
    split(store).write({"a": b"3", "b": b"3"}, "f3")
    with pytest.raises(NotMaterialized, match="was written anew while it was read: start again"):
        reader.read("b")
    waiting = split(store)
    waiting.require()
    for number in (4, 5, 6):
        split(store).write({"a": b"%d" % number}, f"f{number}")
    with pytest.raises(NotMaterialized, match="was written anew while it was read: start again"):
        waiting.read("a")
    assert split(store).read("a") == b"6"


def test_a_listing_from_a_cache_hides_no_new_entry(monkeypatch):
    """The memory file system with a cache of listings, as s3fs has one."""
    listings: dict = {}
    find = MemoryFileSystem.find

    def cached(self, path, **options):
        if path not in listings:
            listings[path] = find(self, path, **options)
        return listings[path]

    monkeypatch.setattr(MemoryFileSystem, "find", cached)
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda *_: listings.clear())
    store = Store(artifacts="memory://bucket/cached")
    assert list(store.entries("split")) == []
    assert split(store).manifest() is None
    split(store).write({"a": b"1"}, "f1")
    assert split(store).is_current("f1")
    assert [keys["task"] for keys, _ in store.entries("split")] == ["tiny"]


# Damaged

DAMAGE = {
    "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_counts_as_not_there(damage, store):
    split(store).write({"t.parquet": parquet(METRICS), "other": b"1"}, "f1")
    before = split(store)
    before.require()
    path = file_of(before, "t.parquet")
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    message = r"gen-.*/t\.parquet is damaged, .*; the entry counts as not there: materialize split"
    for read in (before.table, before.tensors, before.read, before.path_of, split(store).table):
        with pytest.raises(Damaged, match=message):
            read("t.parquet")
    remote = before.path.protocol in ("memory", "s3")
    flipped = damage is DAMAGE["flipped"]
    # An object store has checksums of its own, so that only sizes are compared there before a file is read.
    assert split(store).is_current("f1") is (remote and flipped)
    assert (split(store).manifest() is None) is not flipped
    split(store).write({"t.parquet": content}, "f1")
    pd.testing.assert_frame_equal(split(store).table("t.parquet"), METRICS)


def test_what_another_writes_anew_while_digests_are_checked_is_looked_at_again(monkeypatch, tmp_path):
    """A draft removes the generation of before at once: the file is gone between manifest and digest."""
    store, check, rewritten = Store(home=str(tmp_path)), Entry._check_on_disk, []

    def write() -> None:
        with split(store).draft() as draft:
            (draft.folder / "a").write_bytes(b"1")
            draft.publish("f1")

    def checking(self, name):
        if not rewritten:
            rewritten.append(name)
            write()
        check(self, name)

    write()
    monkeypatch.setattr(Entry, "_check_on_disk", checking)
    assert split(store).is_current("f1")
    assert rewritten == ["a"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'"text"', b"\xff"])
def test_a_damaged_manifest_counts_as_none(content, store):
    split(store).write({"a": b"1"}, "f1")
    (split(store).path / "manifest.json").write_bytes(content)
    assert not split(store).is_current("f1")
    assert split(store).manifest() is None
    with pytest.raises(NotMaterialized, match=r"materialize split of partition tiny"):
        split(store).read("a")
    assert list(store.entries("split")) == []
    split(store).write({"a": b"2"}, "f2")
    assert split(store).read("a") == b"2"


def test_any_bit_of_a_manifest_that_is_flipped_is_said(caplog):
    """Also one of a fact, or of a key, by which the entry would belong to another model."""
    entry = Store().model("paper", "emcdr", CELL)
    written = entry.write({"a": b"1"}, "f1", epoch=3)
    content = (entry.path / "manifest.json").read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        (entry.path / "manifest.json").write_bytes(changed)
        caplog.clear()
        found = [each.require() for _, each in Store().entries("models", profile="paper")]
        # A bit of white space changes nothing, nor one of the digest's name, which then is another fact.
        assert (found == [] and caplog.messages) or (found and written.items() <= found[0].items()), place


def test_a_copy_in_another_place_is_not_that_entry(store):
    split(store).write({"a": b"1"}, "f1")
    other = store.split(AXES.parse("tiny|b20-s1"))
    for path in split(store).path.fs.find(split(store).path.path):
        target = path.replace("seed=0", "seed=1")
        split(store).path.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        split(store).path.fs.pipe_file(target, split(store).path.fs.cat_file(path))
    with pytest.raises(NotMaterialized, match=r"is a copy of another entry, .*seed=0"):
        other.require()
    assert [keys["seed"] for keys, _ in store.entries("split")] == [0]


# Keys


def test_entries_are_found_by_what_their_manifests_say(store):
    cells = [AXES.parse(key) for key in ("tiny|b20-s0", "tiny|b50-s1")]
    for profile in ("paper", "strict"):
        for cell in cells:
            store.model(profile, "emcdr", cell).write({"a": profile.encode()}, "f1")
    found = [(keys["profile"], keys["beta"], keys["seed"]) for keys, _ in store.entries("models")]
    assert sorted(found) == [(p, b, s) for p in ("paper", "strict") for b, s in ((0.2, 0), (0.5, 1))]
    [(keys, entry)] = store.entries("models", profile="strict", beta=0.5, task=None)
    assert keys == {
        "profile": "strict",
        "model": "emcdr",
        "objective": "rating",
        "task": "tiny",
        "beta": 0.5,
        "seed": 1,
    }
    assert entry.read("a") == b"strict"
    for pattern in ("*", "../*", "tiny*", ""):
        assert list(store.entries("models", task=pattern)) == []
    assert list(store.entries("split")) == []


def test_a_home_below_a_folder_with_a_key_in_its_name_changes_nothing(tmp_path):
    store = Store(home=str(tmp_path / "task=other/seed=9/home"))
    store.model("paper", "emcdr", CELL).write({"a": b"1"}, "f1")
    [(keys, _)] = store.entries("models", task="tiny")
    assert (keys["task"], keys["seed"]) == ("tiny", 0)


# Where it is


def test_the_home_is_where_the_program_was_started_wherever_it_goes(tmp_path):
    script = """
        import os
        from assets.state.store import Store
        os.chdir("/")
        print(Store().root)
    """
    for given, expected in ((None, ".diffcdr"), ("state", "state"), (str(tmp_path / "x"), "x")):
        environment = {name: value for name, value in os.environ.items() if name != "DIFFCDR_HOME"}
        environment |= {"PYTHONPATH": str(OURS)} | ({"DIFFCDR_HOME": given} if given else {})
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert Path(done.stdout.strip()) == tmp_path / expected
    assert list(tmp_path.iterdir()) == []


# A disk that is full or closed

FULL = "the disk is full: .* was not written. What was finished before is safe; free some space and run again"
CLOSED = r"cannot be written \(.*\); what is there is as it was. Make it writable, or set DIFFCDR_HOME"
CODES = {
    "full": (errno.ENOSPC, FULL),
    "quota": (errno.EDQUOT, FULL),
    "read-only": (errno.EROFS, CLOSED),
    "not allowed": (errno.EACCES, CLOSED),
}


@pytest.mark.parametrize(("code", "sentence"), CODES.values(), ids=CODES)
def test_a_disk_that_cannot_be_written_is_one_sentence(code, sentence, store, monkeypatch):
    entry = split(store)
    entry.write({"a": b"old"}, "f1")

    def refuse(self, name, *_):
        raise OSError(code, os.strerror(code), str(entry.path / name))

    for step in ("put", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(type(entry._folder), step, refuse)
            with pytest.raises(CannotWrite, match=sentence):
                entry.write({"a": b"new"}, "f2")
    assert split(store).is_current("f1")
    assert split(store).read("a") == b"old"
    assert len(generations(entry)) == 1


def test_a_full_disk_under_duckdb_is_the_same_sentence():
    database = 'IO Error: Could not write file "ratings.parquet": No space left on device'
    entry = Store().ratings("tiny_video")
    with pytest.raises(CannotWrite, match=FULL), entry.draft():
        raise duckdb.IOException(database)


def test_other_errors_in_a_draft_stay_themselves(tmp_path):
    """A file that the user's data is read from is not one that the store writes."""
    entry = Store().ratings("tiny_video")
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "movies.csv"))
    with pytest.raises(PermissionError) as raised, entry.draft():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("use", ["write", "draft", "lock", "report"])
def test_a_home_below_a_file_is_said_to_be_none(use, tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(home=str(tmp_path / "file" / "home"))
    uses = {
        "write": lambda: split(store).write({"a": b"1"}, "f1"),
        "draft": lambda: store.ratings("tiny_video").draft().__enter__(),
        "lock": lambda: store.lock("work").__enter__(),
        "report": lambda: store.report("report"),
    }
    with pytest.raises(CannotWrite, match=CLOSED):
        uses[use]()


# Locks

HOLD = """
    import logging, signal
    # Jobs in the background ignore Ctrl-C, and so would this process; Dagster makes TERM like it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with Store().lock("work"):
        print("has it")
        time.sleep(60)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_a_lock_says_for_whom_and_can_be_interrupted(stop):
    with process(HOLD) as first:
        assert first.stdout.readline() == "has it\n"
        with process(HOLD) as second:
            line = second.stdout.readline()
            assert line.startswith(f"waiting for the lock work, held by process {first.pid} on ")
            start = time.monotonic()
            second.send_signal(stop)
            assert second.wait(10) != 0
            assert time.monotonic() - start < 5
        first.kill()
        first.wait()
        with Store().lock("work"):
            pass


def test_a_lock_that_is_free_is_had_without_a_word(caplog):
    for _ in range(2):
        with Store().lock("work"):
            pass
    assert caplog.messages == []


# Homes of other versions


def test_a_home_of_the_version_without_generations_is_not_read_but_made_anew(home, caplog):
    shutil.copytree(Path(__file__).with_name("old_home"), home)
    store = Store()
    model = store.model("paper", "emcdr", CELL)
    sentence = r"was written by another version of diffcdr and is not read: materialize paper/emcdr"
    assert (model.path / "manifest.json").exists()
    for entry in (model, store.reviews("tiny_video")):
        assert entry.manifest() is None
        assert not entry.is_current("f1")
    with pytest.raises(NotMaterialized, match=sentence):
        model.read("metrics.parquet")
    assert list(store.entries("models")) == []
    assert "was written by another version of diffcdr" in caplog.text
    model.write({"metrics.parquet": parquet(METRICS)}, "f2")
    pd.testing.assert_frame_equal(model.table("metrics.parquet"), METRICS)
    assert not (model.path / "metrics.parquet").exists(), "what it left is cleaned up"


def test_fingerprints_ignore_the_order_of_keys_and_see_every_value():
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert fingerprint(a=1, b=[2]) != fingerprint(a=1, b=[3])
    assert json.loads(json.dumps(fingerprint(a="é"))) == fingerprint(a="é")
