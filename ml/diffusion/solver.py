"""DPM-Solver, single-step, noise prediction (Lu et al., NeurIPS 2022; the solver of the paper's Equation 4).

All coefficients depend on the schedule alone, so a `Plan` holds them as float64 numbers and solving is the
network evaluations and a weighted sum after each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import expm1

import numpy as np
from torch import Tensor

from ml.diffusion.schedule import LinearSchedule, network_label

SOLVERS = ("fast", "dpm1", "dpm2", "dpm3")


@dataclass(frozen=True)
class Stage:
    """One network evaluation, at `label`, and the weights of the state that follows it:

    start · (state at the start of the step) + first · (first noise of the step) + latest · (this noise).
    """

    label: float
    start: float
    first: float
    latest: float


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a solve from t = start to t = end; a step of order p has p stages. Hashed by identity."""

    steps: tuple[tuple[Stage, ...], ...]

    @property
    def labels(self) -> list[float]:
        """The network's label at each evaluation, in the order of evaluation."""
        return [stage.label for step in self.steps for stage in step]


def step_orders(nfe: int, solver: str) -> list[int]:
    """The order of each step when the network may be evaluated exactly `nfe` times.

    dpm1, dpm2, dpm3: as many steps of that order as fit, then one of what is left. fast: as dpm3, but where
    nothing is left the last step of order 3 becomes one of order 2 and one of order 1 (Lu et al., the
    singlestep solver they call DPM-Solver-fast).
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1, not {nfe}")
    order = 3 if solver == "fast" else int(solver[-1])
    steps, left = divmod(nfe, order)
    if solver == "fast" and left == 0:
        return [3] * (steps - 1) + [2, 1]
    return [order] * steps + [left] * (left > 0)


@lru_cache(maxsize=32)
def plan(nfe: int = 30, solver: str = "fast", schedule: LinearSchedule | None = None) -> Plan:
    """The plan of `nfe` network evaluations with steps uniform in log-SNR.

    `schedule` is LinearSchedule() where none is given. Raises ValueError for an unknown solver or nfe < 1.
    """
    schedule = schedule or LinearSchedule()
    orders = step_orders(nfe, solver)
    ends = schedule.lambda_([schedule.start, schedule.end])
    edges = np.linspace(*ends, len(orders) + 1)
    return Plan(
        tuple(
            _stages(schedule, float(begin), float(end), order)
            for begin, end, order in zip(edges[:-1], edges[1:], orders, strict=True)
        )
    )


def _stages(schedule: LinearSchedule, begin: float, end: float, order: int) -> tuple[Stage, ...]:
    """The stages of one step between two values of λ.

    A stage evaluates the noise at λ = begin + at·h and moves to λ = begin + to·h:
        x_to = α_to/α_s x_s − σ_to (e^{to·h} − 1) ε_s − σ_to·correction·(ε_at − ε_s)
    with s the start of the step (Lu et al., Equation 3.7 and Algorithms 1 and 2).
    """
    h = end - begin
    r1, r2 = 1 / 3, 2 / 3
    nodes = {
        1: [(0, 1, 0)],
        # r1 = 1/2 makes the factor 1 / (2 r1) of Algorithm 1 one.
        2: [(0, 1 / 2, 0), (1 / 2, 1, expm1(h))],
        3: [
            (0, r1, 0),
            (r1, r2, r2 / r1 * (expm1(r2 * h) / (r2 * h) - 1)),
            (r2, 1, (expm1(h) / h - 1) / r2),
        ],
    }
    alpha_start = schedule.alpha(schedule.inverse_lambda(begin))
    stages = []
    for at, to, correction in nodes[order]:
        time = schedule.inverse_lambda(begin + to * h)
        sigma = schedule.sigma(time)
        stages.append(
            Stage(
                label=float(network_label(schedule.inverse_lambda(begin + at * h))),
                start=float(schedule.alpha(time) / alpha_start),
                first=float(-sigma * (expm1(to * h) - correction)),
                latest=float(-sigma * correction),
            )
        )
    return tuple(stages)


def solve(plan: Plan, noise_prediction: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """x_0 from x_T = `x` of any shape.

    noise_prediction(state, n) is the n-th evaluation of the network, at plan.labels[n]; it is called exactly
    once for each n, in order.
    """
    evaluation = 0
    for step in plan.steps:
        state = first = x
        for stage in step:
            noise = noise_prediction(state, evaluation)
            first = noise if stage is step[0] else first
            state = stage.start * x + stage.first * first + stage.latest * noise
            evaluation += 1
        x = state
    return x
