"""Exact shortcuts for the network without activation, where everything is affine.

Three linear layers in a row are one affine map of k + 1 numbers, so the network, its gradient and the whole
guided solve are computed on the k + 1 basis points {e_1, ..., e_k, 0} instead of on every user: x_0 is
A_x x_T + A_c c + d. Vectors are rows here, and M is the k x k product of the three weights in row form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ml.diffusion import network
from ml.diffusion.solver import Plan, solve


class Composed(NamedTuple):
    """The layers' outputs on the basis: e_1..e_k without biases, then z = 0 with them.

    So layers(z) = z · third[:, :k] + third[:, k], and M is third[:, :k].
    first, second: (R, k + 1, h); third: (R, k + 1, k).
    """

    first: Tensor
    second: Tensor
    third: Tensor


class Trace(NamedTuple):
    """What `forward` keeps for `backward`."""

    composed: Composed
    z: Tensor
    embedding: Tensor
    condition: Tensor
    mask: Tensor


@dataclass(frozen=True)
class AffineMap:
    """x_0 = A_x x_T + A_c c + d. a_x: (R, k, k); a_c: (R, k, q); d: (R, k)."""

    a_x: Tensor
    a_c: Tensor
    d: Tensor

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        """x_0 (R, B, k) of x_T = x (R, B, k) under condition c (R, B, q)."""
        return torch.baddbmm(torch.baddbmm(self.d[:, None], x, self.a_x.mT), c, self.a_c.mT)


def compose(parameters: dict[str, Tensor]) -> Composed:
    first = torch.cat([parameters["layer1.weight"].mT, parameters["layer1.bias"][:, None]], 1)
    second = first @ parameters["layer2.weight"].mT
    second[:, -1] += parameters["layer2.bias"]
    third = second @ parameters["layer3.weight"].mT
    third[:, -1] += parameters["layer3.bias"]
    return Composed(first, second, third)


def forward(
    parameters: dict[str, Tensor], x: Tensor, embedding: Tensor, condition: Tensor, mask: Tensor
) -> tuple[Tensor, Trace]:
    """`network.noise` without activation, shapes as there, and the trace from which `backward` starts."""
    composed = compose(parameters)
    z = x + network.affine(parameters, "time", embedding)
    z = torch.addcmul(z, mask[..., None], network.affine(parameters, "condition", condition))
    noise = torch.baddbmm(composed.third[:, -1:], z, composed.third[:, :-1])
    return noise, Trace(composed, z, embedding, condition, mask)


def backward(parameters: dict[str, Tensor], trace: Trace, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of the network's parameters, by name, from the gradient (R, B, k) of the loss by the noise.

    The batch enters the three layers only through zᵀ·gradient, so they are backpropagated on the basis.
    """
    first, second, third = trace.composed
    on_third = torch.cat([trace.z.mT @ gradient, gradient.sum(1, keepdim=True)], 1)
    on_second = on_third @ parameters["layer3.weight"]
    on_first = on_second @ parameters["layer2.weight"]
    on_z = gradient @ third[:, :-1].mT
    on_shift = trace.mask[..., None] * on_z
    return {
        "time.weight": on_z.mT @ trace.embedding,
        "time.bias": on_z.sum(1),
        "condition.weight": on_shift.mT @ trace.condition,
        "condition.bias": on_shift.sum(1),
        "layer1.weight": on_first[:, :-1].mT,
        "layer1.bias": on_first[:, -1],
        "layer2.weight": on_second.mT @ first,
        "layer2.bias": on_second[:, -1],
        "layer3.weight": on_third.mT @ second,
        "layer3.bias": on_third[:, -1],
    }


class Polynomials(NamedTuple):
    """A plan's steps as polynomials in M: entry j of a row is the coefficient of M^j, j = 0..3.

    Step i maps x to x·S_i(M) + Σ_n c_n·C_in(M), with c_n the noise that evaluation n predicts at x = 0.
    state: (steps, 4), S; constant: (steps, 4), Σ_n C_in; evaluations: (steps · 4, nfe), C;
    embedding: (nfe, h), τ of the plan's labels.
    """

    state: Tensor
    constant: Tensor
    evaluations: Tensor
    embedding: Tensor


@lru_cache(maxsize=32)
def polynomials(plan: Plan, hidden: int, dtype: torch.dtype, device: torch.device) -> Polynomials:
    """Found by running the solver on polynomials: multiplying by M moves every coefficient one place up."""
    labels = plan.labels
    state = torch.zeros(len(plan.steps), 4, dtype=torch.float64)
    evaluations = torch.zeros(len(plan.steps), 4, len(labels), dtype=torch.float64)
    done = 0
    for index, step in enumerate(plan.steps):
        # Columns: the state at the start of the step, then the constants c_n of its stages.
        start = torch.zeros(4, 1 + len(step), dtype=torch.float64)
        start[0, 0] = 1
        units = torch.eye(1 + len(step), dtype=torch.float64)

        def noise(x: Tensor, n: int, units: Tensor = units) -> Tensor:
            return torch.cat([units[n + 1 : n + 2], x[:-1]])

        end = solve(Plan((step,)), noise, start)
        state[index] = end[:, 0]
        evaluations[index, :, done : done + len(step)] = end[:, 1:]
        done += len(step)
    embedding = network.time_embedding(torch.tensor(labels, dtype=torch.float64), hidden)
    found = (state, evaluations.sum(2), evaluations.flatten(0, 1), embedding)
    return Polynomials(*(table.to(device, dtype) for table in found))


def fold(
    parameters: dict[str, Tensor],
    plan: Plan,
    guidance: float | Tensor,
    spread: Callable[[Tensor], Tensor] = lambda each: each,
) -> AffineMap:
    """The guided solve of a network without activation as one affine map, exact up to rounding.

    The guided noise is ε̂ = x M + c_n + s (W_c c + b_c) M (paper Equation 3), with one s or one for
    each replica (R, 1, 1). The state is carried on three blocks of basis rows: x_T, the guidance term
    s (W_c c + b_c) M, and 1; it knows no s. spread: of a tensor with a row a network one with a row a
    replica, where several replicas share a network.
    """
    third = compose(parameters).third
    m, offset = third[:, :-1], third[:, -1:]
    replicas, k = m.shape[:2]
    hidden = parameters["time.weight"].shape[2]
    tables = polynomials(plan, hidden, m.dtype, m.device)
    steps = len(tables.state)

    square = m @ m
    unit = torch.eye(k, dtype=m.dtype, device=m.device).expand_as(m)
    powers = torch.stack([unit, m, square, square @ m], 1)
    by_state = (tables.state @ powers.flatten(2)).view(replicas, steps, k, k)
    by_guidance = (tables.constant @ powers.flatten(2)).view(replicas, steps, k, k)

    embedding = tables.embedding.expand(replicas, -1, -1)
    constants = torch.baddbmm(offset, network.affine(parameters, "time", embedding), m)
    by_one = (tables.evaluations @ constants).view(replicas, steps, 4 * k) @ powers.flatten(1, 2)

    added = torch.cat([torch.zeros_like(by_state), by_guidance, by_one[:, :, None]], 2)
    rows = torch.cat([unit, m.new_zeros(replicas, k + 1, k)], 1)
    for index in range(steps):
        rows = torch.baddbmm(added[:, index], rows, by_state[:, index])

    from_shift = guidance * spread(m @ rows[:, k:-1])
    d = torch.baddbmm(spread(rows[:, -1:]), spread(parameters["condition.bias"])[:, None], from_shift)
    a_c = from_shift.mT @ spread(parameters["condition.weight"])
    return AffineMap(spread(rows[:, :k].mT), a_c, d[:, 0])


def transport(
    parameters: dict[str, Tensor],
    plan: Plan,
    guidance: float | Tensor,
    activation: str,
    x: Tensor,
    c: Tensor,
    spread: Callable[[Tensor], Tensor] = lambda each: each,
) -> Tensor:
    """DIM's output x_0 (R, B, k) (paper Equation 4) of x_T = x (R, B, k) under condition c (R, B, q).

    guidance: s, one number or one for each replica (R, 1, 1); spread: as in `fold`.
    Folded where the network has no activation, solved step by step where it has one.
    """
    if activation == "none":
        return fold(parameters, plan, guidance, spread)(x, c)
    parameters = {name: spread(value) for name, value in parameters.items()}
    return solve_stepwise(parameters, plan, guidance, activation, x, c)


def solve_stepwise(
    parameters: dict[str, Tensor], plan: Plan, guidance: float | Tensor, activation: str, x: Tensor, c: Tensor
) -> Tensor:
    """`transport` by evaluating the guided network at every stage of the plan, with any activation."""
    embedding = polynomials(plan, parameters["time.weight"].shape[2], x.dtype, x.device).embedding
    time = network.affine(parameters, "time", embedding.expand(len(x), -1, -1))
    shift = network.affine(parameters, "condition", c)

    def noise_prediction(state: Tensor, n: int) -> Tensor:
        return network.guided_noise(parameters, state, time[:, n, None], shift, guidance, activation)

    return solve(plan, noise_prediction, x)
