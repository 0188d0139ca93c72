"""DPM-Solver, single-step "fast" (Lu et al., 2022), on every row and in the order of the formulas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BETA_0, BETA_1 = 0.1, 20.0


def log_alpha(t: Tensor) -> Tensor:
    return -0.25 * t**2 * (BETA_1 - BETA_0) - 0.5 * t * BETA_0


def alpha(t: Tensor) -> Tensor:
    return torch.exp(log_alpha(t))


def sigma(t: Tensor) -> Tensor:
    return torch.sqrt(1 - torch.exp(2 * log_alpha(t)))


def half_log_snr(t: Tensor) -> Tensor:
    return log_alpha(t) - torch.log(sigma(t))


def time_of(half_log_snr: Tensor) -> Tensor:
    """The inverse of `half_log_snr`."""
    level = torch.nn.functional.softplus(-2 * half_log_snr)
    root = torch.sqrt(BETA_0**2 + 2 * (BETA_1 - BETA_0) * level)
    return 2 * level / (BETA_0 + root)


def first_order(noise: Callable, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    h = half_log_snr(t) - half_log_snr(s)
    return alpha(t) / alpha(s) * x - sigma(t) * torch.expm1(h) * noise(x, s)


def second_order(noise: Callable, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    r = 0.5
    start = half_log_snr(s)
    h = half_log_snr(t) - start
    between = time_of(start + r * h)
    noise_s = noise(x, s)
    x_between = alpha(between) / alpha(s) * x - sigma(between) * torch.expm1(r * h) * noise_s
    noise_between = noise(x_between, between)
    return (
        alpha(t) / alpha(s) * x
        - sigma(t) * torch.expm1(h) * noise_s
        - sigma(t) / (2 * r) * torch.expm1(h) * (noise_between - noise_s)
    )


def third_order(noise: Callable, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    r1, r2 = 1 / 3, 2 / 3
    start = half_log_snr(s)
    h = half_log_snr(t) - start
    t1, t2 = time_of(start + r1 * h), time_of(start + r2 * h)
    noise_s = noise(x, s)
    x1 = alpha(t1) / alpha(s) * x - sigma(t1) * torch.expm1(r1 * h) * noise_s
    difference1 = noise(x1, t1) - noise_s
    x2 = (
        alpha(t2) / alpha(s) * x
        - sigma(t2) * torch.expm1(r2 * h) * noise_s
        - sigma(t2) * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1) * difference1
    )
    difference2 = noise(x2, t2) - noise_s
    return (
        alpha(t) / alpha(s) * x
        - sigma(t) * torch.expm1(h) * noise_s
        - sigma(t) / r2 * (torch.expm1(h) / h - 1) * difference2
    )


STEPS = {1: first_order, 2: second_order, 3: third_order}


def orders(nfe: int) -> list[int]:
    if nfe % 3 == 0:
        return [3] * (nfe // 3 - 1) + [2, 1]
    return [3] * (nfe // 3) + [nfe % 3]


def sample(noise: Callable[[Tensor, Tensor], Tensor], x: Tensor, nfe: int = 30) -> Tensor:
    """x_0 from x_T = `x` (n, k); noise(x, t) is evaluated `nfe` times, at scalar times t."""
    # Float64 for the handful of scalars: near t = 0 float32 loses 1 − ᾱ.
    ends = torch.tensor([1.0, 1e-4], dtype=torch.float64, device=x.device)
    steps = orders(nfe)
    edges = time_of(torch.linspace(*half_log_snr(ends).tolist(), len(steps) + 1, dtype=torch.float64))
    for order, s, t in zip(steps, edges[:-1].to(x.device), edges[1:].to(x.device), strict=True):
        x = STEPS[order](noise, x, s, t)
    return x
