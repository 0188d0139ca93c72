"""A folder of the store is there whole or not at all, and knows what it was made from."""

import json

import pandas as pd
import pytest
import torch
from upath import UPath

from assets.settings.axes import Cell
from assets.state import store as store_module
from assets.state.store import Entry, NotMaterialized, Store, code_version, fingerprint, parquet, tensors

CELL = Cell.parse("tiny|b20-s0")


def test_what_is_written_is_read_back():
    entry = Store().model("paper", "emcdr", CELL)
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, None]})
    entry.write({"t.parquet": parquet(frame), "w.safetensors": tensors({"w": torch.eye(2)})}, "f1", rows=2)
    pd.testing.assert_frame_equal(entry.table("t.parquet"), frame)
    assert torch.equal(entry.tensors("w.safetensors")["w"], torch.eye(2))
    assert entry.require()["rows"] == 2
    assert entry.stands("f1")
    assert not entry.stands("f2")


def test_a_rewrite_replaces_the_folder_whole():
    entry = Store().split(CELL)
    entry.write({"old": b"1"}, "f1")
    entry.write({"new": b"2"}, "f2")
    assert sorted(p.name for p in entry.path.iterdir()) == ["manifest.json", "new"]
    assert [p.name for p in entry.path.parent.iterdir()] == ["seed=0"]


@pytest.mark.parametrize("old", [True, False])
def test_a_crash_while_writing_leaves_what_was_there(old, monkeypatch):
    entry = Store().split(CELL)
    if old:
        entry.write({"file": b"old"}, "f1")
    written = []

    def crash_on_the_second_file(path, content):
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(store_module, "_write_durably", crash_on_the_second_file)
    with pytest.raises(KeyboardInterrupt):
        entry.write({"file": b"new", "other": b"new"}, "f2")
    assert entry.stands("f1") is old
    assert (entry.manifest() is not None) is old
    if old:
        assert (entry.path / "file").read_bytes() == b"old"


def test_what_is_missing_says_how_to_make_it():
    with pytest.raises(NotMaterialized, match=r"materialize split of partition tiny\|b20-s0 first"):
        Store().split(CELL).require()


def test_sealed_files_count_only_with_their_manifest():
    entry = Store().ratings("tiny_video")
    folder = entry.unseal()
    (folder / "ratings.duckdb").write_bytes(b"x")
    assert entry.manifest() is None
    entry.seal("f1", rows=3)
    assert entry.stands("f1")
    entry.unseal()
    assert entry.manifest() is None
    assert (folder / "ratings.duckdb").exists()


def test_artifacts_may_live_behind_an_fsspec_url():
    store = Store(artifacts="memory://bucket/artifacts")
    entry = store.model("paper", "emcdr", CELL)
    entry.write({"t.parquet": parquet(pd.DataFrame({"a": [1]}))}, "f1")
    assert entry.table("t.parquet")["a"].tolist() == [1]
    assert store.model("paper", "emcdr", CELL).stands("f1")


def test_a_remote_folder_without_its_manifest_does_not_count():
    entry = Entry(UPath("memory://bucket/half"), "write it again")
    entry.write({"file": b"1"}, "f1")
    (entry.path / "manifest.json").unlink()
    assert entry.manifest() is None


def test_fingerprints_ignore_the_order_of_keys_and_see_every_value():
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert fingerprint(a=1, b=[2]) != fingerprint(a=1, b=[3])
    assert json.loads(json.dumps(fingerprint(a="é"))) == fingerprint(a="é")


def test_the_code_version_follows_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PROJECT", tmp_path)
    (tmp_path / "a.py").write_text("x = 1")
    before = code_version("a.py")
    assert code_version("a.py") == before
    (tmp_path / "a.py").write_text("x = 2")
    assert code_version("a.py") != before
