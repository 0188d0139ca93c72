"""A recorded step against the plain one. Without a GPU the recording is simulated: the replay runs the step
on the held tensors and overwrites the losses of the recording, as a CUDA graph does."""

from __future__ import annotations

import pytest
import torch

from ml import capture
from ml.capture import CapturedStep, wanted
from ml.models.registry import MODELS
from tests.ml.problems import random_problem

torch.set_num_threads(1)
PROBLEMS = [random_problem(seed, users=20 + 9 * seed, ratings=70 + 41 * seed) for seed in range(3)]


def simulated(run):
    for _ in range(capture.WARM_UPS):
        run()
    losses = {name: loss.clone() for name, loss in run().items()}

    def replay() -> None:
        for name, loss in run().items():
            losses[name].copy_(loss)

    return losses, replay


def trained(kind, monkeypatch, recorded: bool):
    """States and losses of two epochs in batches of 32."""
    if recorded:
        monkeypatch.setattr(capture, "wanted", lambda device: True)
        monkeypatch.setattr(CapturedStep.__init__, "__defaults__", (simulated,))
    model = kind(epochs=2, batch=32)
    losses = [epoch.losses for epoch in model.train(PROBLEMS)]
    return [model.state_dict(r) for r in range(len(PROBLEMS))], losses


@pytest.mark.parametrize("kind", [kind for name, kind in MODELS.items() if name != "emcdr_ridge"])
def test_a_recorded_step_trains_as_the_plain_one(kind, monkeypatch):
    plain, losses = trained(kind, monkeypatch, recorded=False)
    replayed, again = trained(kind, monkeypatch, recorded=True)
    assert losses == again
    for a, b in zip(plain, replayed, strict=True):
        for name in a:
            assert torch.equal(a[name], b[name]), name


def test_each_replay_has_losses_of_its_own():
    class Batch:
        def __init__(self, value: float) -> None:
            self.value = torch.tensor([value])

        def tensors(self):
            return [self.value]

        def clone(self):
            return Batch(self.value.item())

    total = torch.zeros(1)
    step = CapturedStep(lambda batch: {"loss": total.add_(batch.value)}, [total], simulated)
    losses = [step(Batch(value))["loss"].item() for value in (1.0, 2.0, 4.0)]
    assert losses == [1.0, 3.0, 7.0]


def test_only_cuda_is_recorded_and_only_when_asked(monkeypatch):
    monkeypatch.delenv("DIFFCDR_CUDA_GRAPHS", raising=False)
    assert not wanted(torch.device("cuda"))
    monkeypatch.setenv("DIFFCDR_CUDA_GRAPHS", "1")
    assert wanted(torch.device("cuda"))
    assert not wanted(torch.device("cuda:1"))
    assert not wanted(torch.device("cpu"))
