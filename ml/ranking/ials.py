"""Collective implicit matrix factorization: one user table over the union of both domains' choices.

Alternating least squares with confidences (Hu, Koren and Volinsky, ICDM 2008), by the library `implicit`. A
cold user's vector is the exact solution on their source choices, with the items fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix, hstack, vstack
from threadpoolctl import threadpool_limits

from ml.ranking.ranker import Choices, Ranker, State, times
from ml.replicas import replica_generator

BLOCK = 1 << 19  # numbers of user systems held at a time


@dataclass
class CollectiveALS(Ranker):
    """rank: width of the vectors; confidence c: weight of a choice beside 1 of a non-choice; penalty: λ."""

    name: ClassVar[str] = "collective_als"
    title: ClassVar[str] = "Collective iALS"
    summary: ClassVar[str] = "Factorizes the choices of both domains together, one vector a user."
    source: ClassVar[str] = "Hu et al., ICDM 2008, on both domains; library implicit"
    warms_by: ClassVar[str] = "choices"
    role: ClassVar[str] = "learned"

    rank: int = 32
    confidence: float = 5.0
    penalty: float = 50.0
    sweeps: int = 15

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        union = vstack(
            [
                hstack([choices.source, choices.target]),
                hstack([choices.source_alone, empty(choices.source_alone, choices.target)]),
                hstack([empty(choices.target_alone, choices.source), choices.target_alone]),
            ]
        ).tocsr()
        seed = torch.randint(1 << 31, (), generator=replica_generator(choices.seed, self.name))
        # Its own threads share the rows; the products within them must not start others, of which it warns.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.rank,
                alpha=self.confidence,
                regularization=self.penalty,
                iterations=self.sweeps,
                num_threads=torch.get_num_threads(),
                random_state=int(seed),
            )
            model.fit(union, show_progress=False)
        items = torch.from_numpy(np.array(model.item_factors, dtype=np.float32))
        yield {
            "source_items": torch.tensor(choices.source.shape[1]),
            "source_vectors": items[: choices.source.shape[1]],
            "target_vectors": items[choices.source.shape[1] :],
            "gram": items.double().T @ items.double(),
        }

    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        return self.vectors(state, source) @ state["target_vectors"].numpy().T

    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        return self.vectors(state, source) @ state["target_vectors"].numpy()[items].T

    def score_after(self, state: State, source: csr_matrix, observed: csr_matrix) -> np.ndarray:
        return self.vectors(state, source, observed) @ state["target_vectors"].numpy().T

    def vectors(self, state: State, source: csr_matrix, observed: csr_matrix | None = None) -> np.ndarray:
        """User vectors (m, rank) float32 of source rows (m, s), and target rows (m, t), with the items J:
        (VᵀV + λI + (c − 1) V_JᵀV_J) p = c V_Jᵀ1."""
        vectors, rows = state["source_vectors"].numpy(), source
        if observed is not None:
            vectors = np.concatenate([vectors, state["target_vectors"].numpy()])
            rows = hstack([source, observed]).tocsr()
        base = state["gram"].numpy() + self.penalty * np.eye(self.rank)
        out = np.empty((rows.shape[0], self.rank), dtype=np.float32)
        size = max(1, BLOCK // self.rank**2)
        for begin in range(0, len(out), size):
            some = rows[begin : begin + size].astype(np.float64)
            present, place = np.unique(some.indices, return_inverse=True)
            items = vectors[present].astype(np.float64)
            some = csr_matrix((some.data, place, some.indptr), shape=(some.shape[0], len(present)))
            outer = (items[:, :, None] * items[:, None, :]).reshape(len(items), -1)
            systems = times(some, outer).reshape(-1, self.rank, self.rank) * (self.confidence - 1) + base
            sides = self.confidence * (some @ items)
            out[begin : begin + size] = np.linalg.solve(systems, sides[:, :, None])[:, :, 0]
        return out


def empty(rows: csr_matrix, columns: csr_matrix) -> csr_matrix:
    return csr_matrix((rows.shape[0], columns.shape[1]), dtype=np.float32)
