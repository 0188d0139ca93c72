"""Adam without a replica axis, against torch's own classes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ml.descent import Adam

torch.set_num_threads(1)
STEPS = 7


def _loss(parameters: dict[str, torch.Tensor], step: int) -> torch.Tensor:
    target = torch.linspace(-1, 1, 12).view(3, 4) * (step + 1)
    return ((parameters["weight"] * parameters["scale"] - target) ** 2).mean() + parameters[
        "bias"
    ].square().sum()


def _start() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"weight": (3, 4), "scale": (4,), "bias": (2,)}
    return {n: torch.randn(s, generator=generator).double().requires_grad_() for n, s in shapes.items()}


@pytest.mark.parametrize("end", [1.0, 0.02, 0.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_torch_with_a_rate_that_falls_linearly(end, decay):
    ours, theirs = _start(), _start()
    adam = Adam(ours, 0.05, STEPS, end, decay)
    reference = torch.optim.AdamW(theirs.values(), 0.05, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LinearLR(reference, 1.0, end, STEPS)
    for step in range(STEPS + 2):
        adam.descend(_loss(ours, step))
        reference.zero_grad()
        _loss(theirs, step).backward()
        reference.step()
        schedule.step()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-14)


def test_the_compiler_is_not_imported():
    code = (
        "import sys, torch; from ml.descent import Adam; x = torch.ones(2, requires_grad=True);"
        "Adam({'x': x}, 0.1).descend(x.sum()); assert x[0] < 1; sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
