"""Spark's ALS on a Spark of this machine: `make test-spark`. What needs none is in the other tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from assets.data.cell import target_table
from assets.serving.bundle import encoder_of
from assets.settings.profile import load_profiles
from assets.state.store import Store
from assets.training.run import gate_of
from ml.data import Ratings
from ml.factorization.spark import RatingFile, SparkFactorization, SparkImplicitFactorization
from ml.factorization.spark_session import SparkUnavailable, spark_session
from tests.assets.axes import CELL
from tests.ml.factorization.spark_solves import solved, solved_choices

USERS, ITEMS, HIDDEN = 60, 25, np.array([3, 4, 59], dtype=np.int32)
PROFILE = """
title: By Spark
validation: true
factors: {model: spark_als, k: 4, sweeps: 5, penalty: 0.1, blocks: 2}
list_factors: {model: spark_als, k: 4, sweeps: 5, penalty: 0.1, confidence: 5.0, blocks: 2}
models:
  tgt: {clip_predictions: true}
  emcdr: {epochs: 2, clip_predictions: true}
  diffcdr: {epochs: 2, clip_predictions: true}
controls:
  popularity: {}
  item_mean: {clip_predictions: true}
"""


@pytest.fixture(scope="module")
def session():
    with spark_session("local[2]") as running:
        yield running


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.rand(USERS, ITEMS, generator=generator) < 0.4).nonzero(as_tuple=True)
    return Ratings(users, items, torch.randint(1, 6, (len(users),), generator=generator).float())


@pytest.fixture(scope="module")
def file(ratings, tmp_path_factory) -> RatingFile:
    """The ratings in a folder with an equals sign, as entries have them; some users are left out."""
    folder = tmp_path_factory.mktemp("domain=x")
    columns = {
        "row": pa.array(np.arange(len(ratings))),
        "user": pa.array(ratings.users.numpy(), pa.int32()),
        "item": pa.array(ratings.items.numpy(), pa.int32()),
        "rating": pa.array(ratings.values.numpy()),
    }
    pq.write_table(pa.table(columns), folder / "ratings.parquet")
    kept = int((~np.isin(ratings.users, HIDDEN)).sum())
    return RatingFile(str(folder / "ratings.parquet"), kept, USERS, ITEMS, 7, HIDDEN)


@pytest.fixture(scope="module")
def seen(ratings) -> Ratings:
    kept = torch.from_numpy(~np.isin(ratings.users, HIDDEN))
    return Ratings(ratings.users[kept], ratings.items[kept], ratings.values[kept])


def test_users_are_the_exact_solution_on_the_items(session, file, seen):
    trained = SparkFactorization(k=4, penalty=0.2, sweeps=4, blocks=3).fit(session, file, "source")
    users, items = trained.user_factors_, trained.item_factors_
    assert users.shape == (USERS, 4)
    assert not users[torch.from_numpy(HIDDEN)].any()
    expected = solved(seen.users, seen.items, seen.values, items, USERS, 0.2)
    torch.testing.assert_close(users.double(), expected, rtol=1e-4, atol=1e-4)
    error = (users[seen.users] * items[seen.items]).sum(1) - seen.values
    assert trained.loss_ == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_so_are_those_of_choices(session, file, seen):
    settings = {"k": 4, "penalty": 0.2, "confidence": 6.0, "sweeps": 4, "blocks": 3}
    trained = SparkImplicitFactorization(**settings).fit(session, file, "source")
    users, items = trained.user_factors_.double(), trained.item_factors_.double()
    expected = solved_choices(seen.users, seen.items, items, USERS, 0.2, 6.0)
    torch.testing.assert_close(users, expected, rtol=1e-4, atol=1e-4)
    chosen = torch.zeros(USERS, ITEMS, dtype=torch.float64)
    chosen[seen.users, seen.items] = 1
    weight = 1 + 5 * chosen
    loss = (weight * (chosen - users @ items.T).square()).sum() / weight.sum()
    assert trained.loss_ == pytest.approx(loss.item(), rel=1e-5)


def test_it_reaches_what_an_independent_als_reaches(session, file, seen):
    """By the objective: the factors themselves depend on where each starts."""

    def objective(users, items) -> float:
        error = ((users[seen.users] * items[seen.items]).sum(1) - seen.values).square().sum()
        counts = torch.bincount(seen.users, minlength=USERS), torch.bincount(seen.items, minlength=ITEMS)
        squares = [(n * x.square().sum(1)).sum() for n, x in zip(counts, (users, items), strict=True)]
        return (error + 0.5 * sum(squares)).item()

    users = torch.randn(USERS, 2, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(60):
        items = solved(seen.items, seen.users, seen.values, users, ITEMS, 0.5)
        users = solved(seen.users, seen.items, seen.values, items, USERS, 0.5)
    trained = SparkFactorization(k=2, penalty=0.5, sweeps=60, blocks=2).fit(session, file, "source")
    found = objective(trained.user_factors_.double(), trained.item_factors_.double())
    assert found == pytest.approx(objective(users, items), rel=1e-3)


def test_draws_follow_from_seed_and_purpose(session, file):
    def fit(purpose: str) -> torch.Tensor:
        return SparkFactorization(k=3, sweeps=2, blocks=2).fit(session, file, purpose).user_factors_

    torch.testing.assert_close(fit("source"), fit("source"))
    assert (fit("source") - fit("target")).abs().max() > 0.01


def test_nothing_to_train_on_is_refused(session, file):
    nothing = RatingFile(file.path, 0, USERS, ITEMS, 0, np.arange(USERS, dtype=np.int32))
    with pytest.raises(ValueError, match=r"ratings.parquet has no ratings to train on; look at its split"):
        SparkFactorization().fit(session, nothing, "source")


def test_it_listens_on_loopback_alone(session):
    """Local addresses of all sockets in which the JVM waits for connections."""
    process = session.sparkContext._gateway.proc.pid
    sockets = {os.readlink(f) for f in Path(f"/proc/{process}/fd").iterdir() if f.is_symlink()}
    heard = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                heard.append(fields[1].split(":")[0])
    # 127.0.0.1 as IPv4 and within IPv6.
    assert heard
    assert set(heard) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert session.sparkContext.uiWebUrl is None


def test_a_second_spark_in_one_process_is_refused(session):
    with pytest.raises(SparkUnavailable, match="has a Spark already"), spark_session():
        pass


def jvms(parent: int) -> list[int]:
    """Children of a process that are a java."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, ppid, name in rows if int(ppid) == parent and name.startswith("java")]


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


SCRIPT = """
import signal, sys, time
from ml.factorization.spark_session import spark_session

def mine(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, mine)
for number in range(int(sys.argv[1])):
    with spark_session("local[1]") as session:
        assert signal.getsignal(signal.SIGINT) is mine
        print(session.range(10).count(), session.sparkContext._gateway.proc.pid, flush=True)
        if sys.argv[2] == "wait":
            time.sleep(120)
"""


def started(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    # As a terminal would: background jobs of a shell ignore Ctrl-C.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_the_jvm_ends_with_the_block_and_another_may_follow():
    process = started("2", "go on")
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    rows = [line.split() for line in out.splitlines()]
    assert [count for count, _ in rows] == ["10", "10"]
    assert len({pid for _, pid in rows}) == 2
    assert not any(alive(int(pid)) for _, pid in rows)
    # Nothing of what Spark and its JVM like to say.
    assert errors == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_jvm_is_left_by_a_process_that_is_stopped(number):
    process = started("1", "wait")
    jvm = int(process.stdout.readline().split()[1])
    assert alive(jvm)
    process.send_signal(number)
    process.communicate(timeout=60)
    end = time.monotonic() + 30
    while alive(jvm) and time.monotonic() < end:
        time.sleep(0.2)
    assert not alive(jvm)


def test_a_java_that_does_not_start_spark_says_why(tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(
        "#!/bin/sh\ncase $1 in -version) echo 'openjdk version \"21.0.8\"' >&2;;\n"
        "*) echo 'Module jdk.incubator.vector not found' >&2; exit 1;; esac\n"
    )
    java.chmod(0o755)
    text = "from ml.factorization.spark_session import *\nwith spark_session(): pass"
    found = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "JAVA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    last = found.stderr.strip().splitlines()[-1]
    assert "Spark at local[*] did not start: " in last
    assert "Module jdk.incubator.vector not found" in last


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home in which the tiny task was run from the command line, each step a process as ever."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "profiles").mkdir()
    (folder / "profiles" / "by_spark.yaml").write_text(PROFILE)
    environment = {
        **os.environ,
        "DIFFCDR_HOME": str(folder / "home"),
        "DIFFCDR_PROFILES": str(folder / "profiles"),
        "DIFFCDR_SPARK": "local[2]",
    }
    command = [sys.executable, "-m", "pipeline.main", "run", "-t", "tiny", "-b", "0.2", "-s", "0"]
    ran = subprocess.run(
        [*command, "-p", "by_spark"], env=environment, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr
    return folder, ran


@pytest.fixture
def profile(made):
    return load_profiles(str(made[0] / "profiles"))["by_spark"]


def test_a_profile_that_chooses_it_runs_as_any_other(made, profile):
    folder, ran = made
    assert "WARN" not in ran.stderr + ran.stdout
    store = Store(home=str(folder / "home"))
    for objective in ("rating", "ranking"):
        factors = store.target_factors("by_spark", CELL, objective)
        assert factors.require()["ratings"] == len(target_table(store, profile, CELL))
        assert factors.table("curves.parquet")["epoch"].tolist() == [1]
        for name in ("tgt", "emcdr", "diffcdr"):
            metrics = store.model("by_spark", name, CELL, objective).table("metrics.parquet")
            assert metrics["value"].notna().all()
    page = folder / "home" / "reports" / "report" / "report.html"
    assert page.exists()


@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_a_new_user_is_served_by_the_vector_that_was_trained(made, profile, objective):
    store = Store(home=str(made[0] / "home"))
    gate = gate_of(store, profile, "diffcdr", CELL, objective)
    domain = gate.cold_start.source
    folded = encoder_of(gate)(domain.tensors(), domain.n_users).factors
    trained = gate.factors["source"]
    torch.testing.assert_close(folded.factors, trained["users"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(folded.item_factors, trained["items"])
