"""Random score networks for the tests of diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from ml.diffusion import network
from ml.diffusion.schedule import LinearSchedule

HIDDEN = 16


SCHEDULE = LinearSchedule()


def random_parameters(replicas: int, k: int = 3, q: int | None = None, scale: float = 2) -> dict[str, Tensor]:
    """Float64 parameters (R, ...), `scale` times as large as at the start of training."""
    generator = torch.Generator().manual_seed(0)
    states = [network.initial(k, q or k, HIDDEN, generator) for _ in range(replicas)]
    return {name: scale * torch.stack([state[name] for state in states]).double() for name in network.NAMES}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
