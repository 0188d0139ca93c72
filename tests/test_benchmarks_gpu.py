"""The GPU benchmark on the CPU: its steps train what the product trains, and failures are told."""

import json

import pytest
import torch
from torch.testing import assert_close

from benchmarks import gpu
from benchmarks.capture import CapturedFactorization, CapturedSteps
from benchmarks.data import random_problem
from ml.factorization.adam import MatrixFactorization


def test_captured_steps_of_diffcdr_train_what_train_trains():
    loop = gpu.Loop.of(2, "cpu", quick=True, size=4)
    steps = CapturedSteps(loop.model, loop.stack, loop.optimizer, loop.blocks[0])
    for block in loop.blocks:
        assert steps(block).isfinite().all()
    problems = [random_problem(200, 2_560, 100, seed) for seed in range(2)]
    trained = next(_after_one_epoch(problems))
    for name, value in trained.parameters_.items():
        assert_close(loop.model.parameters_[name], value)


def _after_one_epoch(problems):
    model = gpu.DiffCDR(batch=128)
    for _ in model.train(problems):
        yield model


@pytest.mark.parametrize("replicas", [1, 3])
def test_captured_steps_of_the_factorization_train_what_fit_trains(replicas):
    # 5,000 ratings are 19 full batches of 256 and one that is filled up.
    work = gpu.Factors.of(replicas, "cpu", quick=True)
    planned = work.plan(0, 20)
    with torch.no_grad():
        steps = CapturedFactorization(work.adam, planned[:4])
        for begin in range(0, 20, 4):
            steps(planned[begin : begin + 4])
    first = gpu.table(5_000, 300, 120, 0)
    tables = [gpu.dataclasses.replace(first, seed=seed) for seed in range(replicas)]
    fitted = MatrixFactorization(epochs=1).fit(tables, "steps")
    rows = torch.arange(len(work.adam.rest)).view(replicas, -1)
    factors = work.adam.read(rows, torch.tensor(20))
    assert_close(factors[:, :300], fitted.user_factors_, rtol=1e-4, atol=1e-5)
    assert_close(factors[:, 300:-1], fitted.item_factors_, rtol=1e-4, atol=1e-5)


def test_a_failure_is_told_and_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    def wrong(device: str) -> list[torch.Tensor]:
        return [torch.full((2,), next(numbers))]

    numbers = iter((1.0, 2.0))
    pieces = {"wrong": wrong, "right": lambda device: [torch.ones(2)]}
    monkeypatch.setattr(gpu, "exact_pieces", lambda: pieces)
    monkeypatch.setattr(gpu, "model_pieces", dict)
    assert run(monkeypatch, tmp_path, "--only", "check") == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["failed"] == ["check wrong"]
    assert [row["piece"] for row in written["parts"]["check"]] == ["wrong", "right"]
    assert "wrong differs by 0.5 of its largest value" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["steps", "kernels", "table4", "task1"])
def test_each_part_runs_and_writes_its_rows(part, tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path, "--only", part) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert not written["skipped"]
    assert written["parts"][part]


def test_what_no_longer_fits_the_budget_is_named(tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path, "--budget", "0") == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [line.split()[0] for line in written["skipped"]] == list(gpu.PARTS)


def run(monkeypatch, folder, *options: str) -> int:
    given = ["gpu", str(folder / "gpu.json"), "--device", "cpu", "--quick", "--epochs", "1", *options]
    monkeypatch.setattr("sys.argv", given)
    return gpu.main()
