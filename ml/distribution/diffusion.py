"""A diffusion model of user vectors given what is known of the user, sampled from noise.

The forward process is the paper's, x_t = α_t x_0 + σ_t ε (Equation 5), with x_0 = C⁻¹(θ − m_c) the target
vector measured from its Gaussian prior N(m_c, C Cᵀ). The network predicts v = α_t ε − σ_t x_0 (Salimans and
Ho, ICLR 2022), so that

    ε̂(x_t, c) = σ_t x_t + α_t v(x_t, t, c).

v = 0 is exact where x_0 is standard normal: the untrained model *is* the Gaussian prior, and what is learned
is how users depart from it. The paper's noise prediction would have to learn that Gaussian first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ml.descent import Adam
from ml.diffusion.network import time_embedding
from ml.diffusion.schedule import TRAINING_STEPS, LinearSchedule, training_levels
from ml.diffusion.solver import plan, solve
from ml.replicas import linear, replica_generator

EMBEDDING = 16
CHUNK = 1 << 17  # vectors moved through the solver at a time
LAYERS = ("input", "middle", "output")


@dataclass
class VectorDiffusion:
    """hidden: width of the network's two SiLU layers; steps, batch, lr, decay: AdamW's; nfe: network
    evaluations of the DPM-Solver. There is no guidance (the paper's Equation 3): only s = 1 samples the
    distribution that was learned, and no other s was better on validation users at every β.
    """

    hidden: int = 32
    steps: int = 1200
    batch: int = 256
    lr: float = 2e-3
    decay: float = 1e-2
    nfe: int = 12

    def fit(self, draws: Tensor, condition: Tensor, seed: int) -> dict[str, Tensor]:
        """Parameters fitted to draws (S, n, D) of the n users' whitened vectors under condition (n, q).

        A training row is one draw of one user: the network learns vectors as uncertain as they are. The
        parameters returned are the means over the second half of the steps. Computed where `draws` and
        `condition` lie, by what is drawn on the CPU.
        """
        generator = replica_generator(seed, "vector diffusion")
        initial = self._initial(draws.shape[2], condition.shape[1], generator)
        parameters = {name: value.to(draws.device).requires_grad_() for name, value in initial.items()}
        optimizer = Adam(parameters, self.lr, self.steps, 0.0, self.decay)
        mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for step in range(self.steps):
            optimizer.descend(self._loss(parameters, draws, condition, generator))
            if step >= self.steps // 2:
                for name, value in parameters.items():
                    mean[name] += value.detach() / (self.steps - self.steps // 2)
        return mean

    def _initial(self, width: int, q: int, generator: torch.Generator) -> dict[str, Tensor]:
        shapes = ((self.hidden, width + EMBEDDING + q), (self.hidden, self.hidden), (width, self.hidden))
        parameters = {}
        for layer, (out, into) in zip(LAYERS, shapes, strict=True):
            weight = linear(out, into, generator) if layer != "output" else torch.zeros(out, into)
            parameters[f"{layer}.weight"] = weight
            parameters[f"{layer}.bias"] = torch.zeros(out)
        return parameters

    def _loss(
        self, parameters: dict[str, Tensor], draws: Tensor, condition: Tensor, generator: torch.Generator
    ) -> Tensor:
        signal, level = training_levels()
        users = torch.randint(draws.shape[1], (self.batch,), generator=generator).to(draws.device)
        drawn = torch.randint(draws.shape[0], (self.batch,), generator=generator).to(draws.device)
        x = draws[drawn, users]
        half = torch.randint(TRAINING_STEPS, (-(-self.batch // 2),), generator=generator)
        time = torch.cat([half, TRAINING_STEPS - 1 - half])[: self.batch]
        alpha, sigma = signal[time, None].to(x), level[time, None].to(x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        embedding = _embeddings()[time].to(x)
        predicted = velocity(parameters, alpha * x + sigma * noise, embedding, condition[users])
        return (predicted - alpha * noise + sigma * x).square().mean()

    @torch.no_grad()
    def sample(self, parameters: dict[str, Tensor], condition: Tensor, noise: Tensor) -> Tensor:
        """Whitened vectors (n, K, D) of n users from noise (K, D), the same for all users, so that a user's
        samples do not depend on who is sampled with it."""
        parts = condition.split(max(1, CHUNK // len(noise)))
        return torch.cat([self._solve(parameters, part, noise) for part in parts])

    def _solve(self, parameters: dict[str, Tensor], condition: Tensor, noise: Tensor) -> Tensor:
        steps = plan(self.nfe, "fast")
        n, count = len(condition), len(noise)
        x = noise.repeat(n, 1)
        condition = condition.repeat_interleave(count, 0)
        labels = torch.tensor(steps.labels, dtype=torch.float64)
        embeddings = time_embedding(labels, EMBEDDING).to(x)
        times = (labels + 1).numpy() / TRAINING_STEPS
        alphas, sigmas = LinearSchedule().alpha(times), LinearSchedule().sigma(times)

        def noise_prediction(state: Tensor, evaluation: int) -> Tensor:
            embedding = embeddings[evaluation].expand(len(state), -1)
            v = velocity(parameters, state, embedding, condition)
            return float(sigmas[evaluation]) * state + float(alphas[evaluation]) * v

        return solve(steps, noise_prediction, x).view(n, count, -1)


def velocity(parameters: dict[str, Tensor], x: Tensor, embedding: Tensor, condition: Tensor) -> Tensor:
    """v (m, D) from x (m, D), τ(t) (m, 16) and c (m, q)."""
    z = torch.cat([x, embedding, condition], 1)
    for layer in LAYERS[:-1]:
        z = torch.nn.functional.silu(
            torch.addmm(parameters[f"{layer}.bias"], z, parameters[f"{layer}.weight"].T)
        )
    return torch.addmm(parameters["output.bias"], z, parameters["output.weight"].T)


@lru_cache(maxsize=1)
def _embeddings() -> Tensor:
    """τ of every training step, (1000, 16) float64."""
    return time_embedding(torch.arange(TRAINING_STEPS), EMBEDDING)


@lru_cache(maxsize=16)
def normal_points(count: int, width: int, seed: int) -> Tensor:
    """Low-discrepancy standard normal points (count, width) float32 from a scrambled Sobol sequence; the same
    tensor for the same numbers, not to be changed."""
    uniform = torch.quasirandom.SobolEngine(width, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)).float()
