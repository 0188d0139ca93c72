"""Noise schedules: the discrete one that trains the network, the continuous one that the solver follows.

Both describe one variance-preserving process: β_n of the discrete schedule is β(t)/1000, and continuous time
t is network label 1000·(t − 1/1000), so t = 1 is the last training step, 999.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

TRAINING_STEPS = 1000


@dataclass(frozen=True)
class LinearSchedule:
    """Continuous variance-preserving schedule with β(t) = beta_min + t·(beta_max − beta_min).

    x_t = α(t) x_0 + σ(t) ε with α² + σ² = 1 (paper, appendix A). Sampling runs from `start` down to `end`.
    Every method maps float64 numbers or arrays to float64 elementwise.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1.0
    end: float = 1e-4

    def log_alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        """log α(t) = −½ ∫_0^t β(s) ds."""
        t = np.asarray(t, dtype=np.float64)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: ArrayLike) -> NDArray[np.float64]:
        return np.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        return np.sqrt(-np.expm1(2 * self.log_alpha(t)))

    def lambda_(self, t: ArrayLike) -> NDArray[np.float64]:
        """Half the log signal-to-noise ratio, λ = log α − log σ; falls strictly with t > 0."""
        log_alpha = self.log_alpha(t)
        return log_alpha - np.log(-np.expm1(2 * log_alpha)) / 2

    def inverse_lambda(self, lambda_: ArrayLike) -> NDArray[np.float64]:
        """The time t > 0 whose half log-SNR is `lambda_`.

        −log α = ½ log(1 + e^{−2λ}) is a quadratic in t; this form of its root loses no digits at small t.
        """
        level = np.logaddexp(0, -2 * np.asarray(lambda_, dtype=np.float64)) / 2
        half = self.beta_min / 2
        return 2 * level / (half + np.sqrt(half**2 + (self.beta_max - self.beta_min) * level))


def network_label(t: ArrayLike) -> NDArray[np.float64]:
    """The label that the network is given for continuous time t: 1000·max(t − 1/1000, 0), not rounded."""
    return TRAINING_STEPS * np.maximum(np.asarray(t, dtype=np.float64) - 1 / TRAINING_STEPS, 0)


@lru_cache(maxsize=1)
def training_levels() -> tuple[Tensor, Tensor]:
    """√ᾱ_n and √(1 − ᾱ_n) of the training steps n = 0..999, β linear from 1e-4 to 0.02: (1000,) float64, the
    same tensors in every call, not to be changed."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TRAINING_STEPS, dtype=torch.float64), 0)
    return kept.sqrt(), (1 - kept).sqrt()
