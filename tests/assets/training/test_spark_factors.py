"""A profile by Spark without Spark: what it is given, what is made of its factors, what is said without it.

Spark itself is stood in for by exact half-sweeps; with a real one the same is in tests/spark.
"""

import contextlib
import dataclasses
import importlib.util

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from assets.data.cell import source_factors, source_file, target_file, target_table
from assets.serving.bundle import encoder_of
from assets.settings.profile import load_profiles
from assets.state.compute import Compute
from assets.state.store import Store
from assets.training.fingerprints import Fingerprints
from assets.training.run import gate_of
from ml.factorization import spark, spark_session
from tests.assets.axes import CATALOG, CELL
from tests.assets.tiny import measured, prepare, train
from tests.ml.factorization.spark_solves import solved, solved_choices

PROFILE = """
title: By Spark
validation: true
factors: {model: spark_als, k: 4, sweeps: 2}
list_factors: {model: spark_als, k: 4, sweeps: 2, confidence: 3.0}
models: {tgt: {}, emcdr: {epochs: 1}, diffcdr: {epochs: 1}}
"""


def named(tmp_path, text):
    (tmp_path / "by_spark.yaml").write_text(text)
    return load_profiles(str(tmp_path))["by_spark"]


def half_sweeps(trainer, session, file, purpose):
    """`SparkFactorization.fit` by exact solves."""
    table = pq.read_table(file.path, columns=["user", "item", "rating"])
    users, items, values = (torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names)
    kept = torch.from_numpy(~np.isin(users, file.without))
    users, items, values = users[kept], items[kept], values[kept]

    def solve(own, other, vectors, n):
        if isinstance(trainer, spark.SparkImplicitFactorization):
            return solved_choices(own, other, vectors, n, trainer.penalty, trainer.confidence)
        return solved(own, other, values, vectors, n, trainer.penalty)

    trainer.user_factors_ = torch.randn(file.n_users, trainer.k, generator=torch.Generator().manual_seed(0))
    for _ in range(trainer.sweeps):
        trainer.item_factors_ = solve(items, users, trainer.user_factors_, file.n_items).float()
        trainer.user_factors_ = solve(users, items, trainer.item_factors_, file.n_users).float()
    trainer.loss_ = 0.0
    return trainer


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A store with the tiny task's models on such factors, and their profile."""
    profile = named(tmp_path_factory.mktemp("profiles"), PROFILE)
    store = prepare(Store(home=str(tmp_path_factory.mktemp("home"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFCDR_TRACKING", "off")
        patch.setattr(spark_session, "spark_session", lambda master: contextlib.nullcontext())
        patch.setattr(spark.SparkFactorization, "fit", half_sweeps)
        train(store, profile, ["tgt", "emcdr", "diffcdr"])
    return store, profile


def test_it_reads_what_the_gate_lets_through(house):
    store, profile = house
    seen, file = target_table(store, profile, CELL).flat(), target_file(store, profile, CELL, here=True)
    read = pq.read_table(file.path, columns=["user"])["user"].to_numpy()
    assert sorted(read[~np.isin(read, file.without)]) == seen.users.tolist()
    assert len(file) == len(seen)
    assert (file.n_users, file.n_items, file.seed) == (seen.n_users, seen.n_items, CELL.seed)
    whole = source_file(store, CELL.source.name, 3, here=True)
    assert len(whole) == pq.read_metadata(whole.path).num_rows
    assert not len(whole.without)


def test_a_cluster_is_given_the_place_of_the_entry(tmp_path, monkeypatch):
    store = prepare(Store(home=str(tmp_path)))
    entry = store.ratings("tiny_video")
    assert source_file(store, "tiny_video", 0, here=False).path == f"{entry.place}/ratings.parquet"
    monkeypatch.setattr(type(entry), "place", property(lambda _: "s3://bucket/ratings/gen-1"))
    found = source_file(store, "tiny_video", 0, here=False)
    assert found.path == "s3a://bucket/ratings/gen-1/ratings.parquet"


def test_models_on_its_factors_are_trained_and_judged_as_any(house):
    store, profile = house
    for name in ("tgt", "emcdr", "diffcdr"):
        assert np.isfinite(measured(store, profile, name, "validation")["rmse"])
    for objective in ("rating", "ranking"):
        written = store.target_factors("by_spark", CELL, objective)
        assert written.require()["ratings"] == len(target_table(store, profile, CELL))
        curve = written.table("curves.parquet")
        assert curve["epoch"].tolist() == [1]
        assert f"test_{'rmse' if objective == 'rating' else 'ndcg@20'}" in curve


@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_a_new_user_is_served_by_the_vector_that_was_trained(house, objective):
    store, profile = house
    gate = gate_of(store, profile, "diffcdr", CELL, objective)
    domain = gate.cold_start.source
    folded = encoder_of(gate)(domain.tensors(), domain.n_users).factors
    torch.testing.assert_close(folded.factors, gate.factors["source"]["users"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(folded.item_factors, gate.factors["source"]["items"])


def test_the_settings_are_in_the_fingerprint_and_the_cluster_is_not(house, tmp_path, monkeypatch):
    store, profile = house
    fingerprints = Fingerprints(store, CATALOG, profile)
    before = [fingerprints.target_factors(CELL, o) for o in profile.objectives]
    monkeypatch.setenv("DIFFCDR_SPARK", "spark://host:7077")
    assert Compute().spark_master == "spark://host:7077"
    assert not Compute().spark_is_here
    assert Compute(spark="local[1]").spark_is_here
    assert [fingerprints.target_factors(CELL, o) for o in profile.objectives] == before
    other = dataclasses.replace(profile, base_factors={**profile.base_factors, "blocks": 3})
    after = [Fingerprints(store, CATALOG, other).target_factors(CELL, o) for o in profile.objectives]
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, True]
    places = {source_factors(store, p, CELL).path for p in (profile, other)}
    assert len(places) == 2


def test_a_run_that_needs_spark_says_so_before_it_begins(tmp_path, monkeypatch):
    from pipeline.cli import app

    named(tmp_path, PROFILE)
    monkeypatch.setenv("DIFFCDR_PROFILES", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyspark" else find(name))
    ran = CliRunner().invoke(app, ["run", "-t", "tiny", "-p", "by_spark", "-b", "0.2", "-s", "0"])
    assert ran.exit_code == 1
    assert "error: SparkUnavailable: Spark's ALS needs pyspark and Java 17 or 21" in ran.output
    assert "pip install 'diffcdr[spark]'" in ran.output
    assert "reviews and ratings of" not in ran.output
