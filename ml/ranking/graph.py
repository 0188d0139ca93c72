"""A graph filter on the users × (source and target items) matrix; nothing is trained (S²CDR, WWW 2026).

With Â the choices of the training users, degree-normalised on both sides, and r a cold user's source row:

    y = low · r V Vᵀ + r ÂᵀÂ,    score = (y − sharpen · y Â_tᵀÂ_t) · degree^lift

V are Â's leading right singular vectors, the ideal low pass; columns are those of the target items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, hstack
from scipy.sparse.linalg import svds

from ml.ranking.ranker import Choices, Ranker, State, packed, unpacked


@dataclass
class GraphFilter(Ranker):
    """rank: of the low pass; low: its weight beside the linear filter; sharpen: γ; lift: power of an item's
    number of choices by which its score is raised."""

    name: ClassVar[str] = "graph_filter"
    title: ClassVar[str] = "Graph filter"
    summary: ClassVar[str] = "Passes a user's source choices through a filter of the graph of choices."
    source: ClassVar[str] = "S²CDR, WWW 2026"

    rank: int = 64
    low: float = 0.1
    sharpen: float = 0.0
    lift: float = 0.25

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        both = hstack([choices.source, choices.target]).tocsr()
        users, items = (np.asarray(both.sum(axis)).ravel().clip(min=1) for axis in (1, 0))
        normal = (diags(users**-0.5) @ both @ diags(items**-0.5)).tocsr()
        rank = min(self.rank, min(normal.shape) - 1)
        if rank < 1:
            raise ValueError("graph_filter: one training user or item alone has no graph; add users")
        _, _, right = svds(normal.astype(np.float64), k=rank, rng=np.random.default_rng(choices.seed))
        split = choices.source.shape[1]
        yield {
            "source_items": torch.tensor(split),
            "degrees": torch.from_numpy(items.astype(np.float32)),
            "source_vectors": torch.from_numpy(right[:, :split].T.astype(np.float32).copy()),
            "target_vectors": torch.from_numpy(right[:, split:].T.astype(np.float32).copy()),
            **packed("source", normal[:, :split]),
            **packed("target", normal[:, split:]),
        }

    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        degrees = state["degrees"].numpy()
        split = source.shape[1]
        length = np.diff(source.indptr).clip(min=1)
        rows = (diags(length**-0.5) @ source @ diags(degrees[:split] ** -0.5)).tocsr()
        target = unpacked("target", state)
        linear = ((rows @ unpacked("source", state).T) @ target).toarray()
        passed = (rows @ state["source_vectors"].numpy()) @ state["target_vectors"].numpy().T
        found = self.low * passed + linear
        if self.sharpen:
            found = found - self.sharpen * (target.T @ (target @ found.T)).T
        return (found * degrees[split:] ** self.lift).astype(np.float32)
