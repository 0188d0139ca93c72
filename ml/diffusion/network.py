"""The score network of DIM (paper section 3.1, Figure 2) predicts the noise in x from x, time and condition.

Parameters carry the replica axis R; k is the width of the target factors, q of the source factors, h the
hidden width, which is also the width of the time embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ml.replicas import bias, linear

ACTIVATIONS = {
    "none": lambda z: z,
    "silu": torch.nn.functional.silu,
    "relu": torch.nn.functional.relu,
}

NAMES = tuple(
    f"{layer}.{part}"
    for layer in ("time", "condition", "layer1", "layer2", "layer3")
    for part in ("weight", "bias")
)


def initial(k: int, q: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of one replica, without the replica axis, drawn as torch.nn.Linear draws them."""
    shapes = {
        "time": (k, hidden),
        "condition": (k, q),
        "layer1": (hidden, k),
        "layer2": (hidden, hidden),
        "layer3": (k, hidden),
    }
    parameters = {}
    for name, shape in shapes.items():
        parameters[f"{name}.weight"] = linear(*shape, generator)
        parameters[f"{name}.bias"] = bias(*shape, generator)
    return parameters


def time_embedding(labels: Tensor, width: int) -> Tensor:
    """Sinusoids of `labels` (...): (..., width) float64, sines first, then cosines.

    Frequencies fall geometrically from 1 to 1/10000. `width` must be even and at least 4.
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=labels.device) / (half - 1))
    phase = labels.to(torch.float64)[..., None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], -1)


def affine(parameters: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Linear layer `name` with bias on x (R, B, in): (R, B, out)."""
    return torch.baddbmm(parameters[f"{name}.bias"][:, None], x, parameters[f"{name}.weight"].mT)


def layers(parameters: dict[str, Tensor], z: Tensor, activation: str) -> Tensor:
    """The three linear layers k → h → h → k with the activation between them: z (R, B, k) to (R, B, k)."""
    between = ACTIVATIONS[activation]
    z = between(affine(parameters, "layer1", z))
    z = between(affine(parameters, "layer2", z))
    return affine(parameters, "layer3", z)


def noise(
    parameters: dict[str, Tensor],
    x: Tensor,
    embedding: Tensor,
    condition: Tensor,
    mask: Tensor,
    activation: str,
) -> Tensor:
    """ε(x, c) = layers(x + W_t τ + b_t + m (W_c c + b_c)): (R, B, k).

    x: (R, B, k); embedding: (R, B, h), τ of each row's label; condition: (R, B, q); mask: (R, B), 0 where the
    row is unconditional. The mask hides the condition's bias too.
    """
    shift = mask[..., None] * affine(parameters, "condition", condition)
    return layers(parameters, x + affine(parameters, "time", embedding) + shift, activation)


def guided_noise(
    parameters: dict[str, Tensor],
    x: Tensor,
    time: Tensor,
    shift: Tensor,
    guidance: float | Tensor,
    activation: str,
) -> Tensor:
    """Classifier-free guidance ε(x, ∅) + s (ε(x, c) − ε(x, ∅)) (paper Equation 3): (R, B, k).

    time: (R, 1 or B, k), the time layer's output; shift: (R, B, k), the condition layer's output.
    """
    conditional = layers(parameters, x + time + shift, activation)
    if not isinstance(guidance, Tensor) and guidance == 1:
        return conditional
    free = layers(parameters, x + time, activation)
    return free + guidance * (conditional - free)
