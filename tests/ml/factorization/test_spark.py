"""Spark's ALS as far as it goes without Spark: settings, what is said where it is missing, its tables."""

import importlib.util
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from ml.data import Ratings
from ml.factorization.biased import BiasedFactors, standardize
from ml.factorization.spark import SparkFactorization, SparkImplicitFactorization, factors_of
from ml.factorization.spark_session import SparkUnavailable, is_local, require_spark, spark_session
from ml.fold_in import FoldIn
from tests.ml.factorization.spark_solves import solved, solved_choices


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (SparkFactorization, {"k": 0}, "k must be at least 1"),
        (SparkFactorization, {"sweeps": 0}, "sweeps must be at least 1"),
        (SparkFactorization, {"penalty": 0.0}, "penalty must be positive"),
        (SparkImplicitFactorization, {"blocks": 0}, "blocks must be at least 1"),
        (SparkImplicitFactorization, {"confidence": 1.0}, "confidence must be finite and above 1"),
    ],
)
def test_what_cannot_be_set_is_refused(kind, setting, message):
    with pytest.raises(ValueError, match=message):
        kind(**setting)


def test_factors_come_in_any_order_and_rows_without_are_0():
    lists = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    table = pa.table(
        {"id": pa.array([3, 0, 4], pa.int32()), "features": pa.array(lists, pa.list_(pa.float32()))}
    )
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    expected = [[3, 4], [0, 0], [0, 0], [1, 2], [5, 6]]
    for each in (table, parts):
        factors = factors_of(each, 5, 2)
        assert factors.dtype == torch.float32
        assert factors.tolist() == expected


def test_which_masters_are_this_machine():
    assert all(map(is_local, ("local", "local[*]", "local[4]")))
    assert not any(map(is_local, ("spark://host:7077", "yarn", "local-cluster[2,1,1024]", "k8s://host")))


def java(folder, text, code=0):
    """A program that says `text` of itself as a java does."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit {code}\n")
    program.chmod(0o755)
    return folder


@pytest.fixture
def pyspark(tmp_path, monkeypatch):
    """That pyspark is installed, as far as it is looked for."""
    (tmp_path / "pyspark").mkdir()
    (tmp_path / "pyspark" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pyspark", raising=False)


def test_without_pyspark_one_sentence_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyspark" else find(name))
    with (
        pytest.raises(SparkUnavailable, match=r"pip install 'diffcdr\[spark\]'") as error,
        spark_session(),
    ):
        pass
    assert "Java 17 or 21" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ('openjdk version "11.0.2" 2019-01-15', 0, "Java 17 or 21 .*, and there is Java 11 at "),
        ('java version "1.8.0_202"', 0, "there is Java 8 at "),
        ("no", 1, "no java that starts at "),
        ("hello", 0, "no version in what "),
    ],
)
def test_another_java_is_named(pyspark, tmp_path, monkeypatch, said, code, message):
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "jdk", said, code)))
    with pytest.raises(SparkUnavailable, match=message):
        require_spark()


def test_a_missing_java_is_named(pyspark, tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparkUnavailable, match="there is no java on PATH: install one, or set JAVA_HOME"):
        require_spark()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SparkUnavailable, match=f"no java that starts at {tmp_path}/bin/java"):
        require_spark()


def test_a_java_that_is_new_enough_will_do(pyspark, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "jdk", 'openjdk version "21.0.8" 2025-07-15 LTS')))
    require_spark()


@pytest.mark.parametrize("confidence", [None, 4.0])
def test_a_new_user_gets_the_vector_that_the_same_ratings_gave_in_training(confidence):
    """The fold-in against the closed form of the last half-sweep."""
    generator = torch.Generator().manual_seed(2)
    users, items = (torch.rand(30, 12, generator=generator) < 0.4).nonzero(as_tuple=True)
    values = torch.randint(1, 6, (len(users),), generator=generator).float()
    table = torch.randn(12, 3, generator=generator)
    if confidence is None:
        trained = solved(users, items, values, table, 30, 0.2)
    else:
        trained = solved_choices(users, items, table, 30, 0.2, confidence)
    factors = BiasedFactors(trained.float(), table, torch.zeros(12))
    rows = torch.arange(0, 30, 2)
    fold = FoldIn.of_spark(factors, 0.2, confidence, rows)
    folded = fold(Ratings(users, items, values), 31)
    torch.testing.assert_close(folded[:30], standardize(factors, rows).users, rtol=1e-4, atol=1e-4)
    # A user without ratings was 0 before.
    np.testing.assert_allclose(folded[30], -fold.centre / fold.scale, rtol=1e-6)
