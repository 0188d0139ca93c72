"""What the training users chose who are most alike in the source domain.

s(u, i) = Σ_v sim(u, v) x_vi / Σ_v sim(u, v) over the K nearest training users v, plus a share of popularity;
sim is the cosine of source rows weighted by log(users / item count).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack

from ml.ranking.ranker import (
    Choices,
    HeldOutScores,
    Ranker,
    State,
    is_dense,
    packed,
    product,
    rare_rows,
    transposed,
    unpacked,
)


@dataclass
class UserNeighbourhood(Ranker):
    """neighbours: K; popular: weight of an item's share of all training choices."""

    name: ClassVar[str] = "user_neighbourhood"
    title: ClassVar[str] = "User neighbourhood"
    summary: ClassVar[str] = "Lists what the training users chose whose source choices are most alike."
    source: ClassVar[str] = "Herlocker et al., SIGIR 1999, across domains"
    warms_by: ClassVar[str] = "choices"

    neighbours: int = 100
    popular: float = 0.1

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        yield {
            "source_items": torch.tensor(choices.source.shape[1]),
            "rarity": torch.from_numpy(choices.rarity),
            **packed("source", rare_rows(choices.source, choices.rarity)),
            **packed("target", choices.target),
            **packed("choices", choices.source),
            "users": torch.tensor(choices.target.shape[0] + choices.target_alone.shape[0]),
            "choices": torch.tensor(choices.popularity.sum()),
            "share": torch.from_numpy(choices.popularity / max(1, choices.popularity.sum())).float(),
        }

    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        rows = rare_rows(source, state["rarity"].numpy())
        return self._of_neighbours(state, (rows @ transposed("source", state)).toarray())

    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        """By the source items alone that occur in `source`, whose rows are often nearly the same."""
        rows = rare_rows(source, state["rarity"].numpy())
        present = np.unique(rows.indices)
        rows, by_item = rows[:, present], transposed("source", state)[present]
        alike = product(rows.toarray(), by_item) if is_dense(rows) else (rows @ by_item).toarray()
        return self._of_neighbours(state, alike, items)

    def held_out(self, choices: Choices, state: State, device: torch.device | str = "cpu") -> HeldOutScores:
        """Every training user's neighbours but themselves."""
        known, by_item = unpacked("source", state), transposed("source", state)

        def scores(rows: np.ndarray) -> np.ndarray:
            alike = (known[rows] @ by_item).toarray()
            alike[np.arange(len(rows)), rows] = 0
            return self._of_neighbours(state, alike)

        return scores

    def score_after(self, state: State, source: csr_matrix, observed: csr_matrix) -> np.ndarray:
        """With the cosine over the rows of both domains."""
        popularity = state["share"].numpy() * state["choices"].item()
        target = unpacked("target", state)
        rarity = np.log(state["users"].item() / popularity.clip(1)).clip(min=0).astype(np.float32)
        both = np.concatenate([state["rarity"].numpy(), rarity])
        known = rare_rows(hstack([unpacked("choices", state), target]).tocsr(), both)
        rows = rare_rows(hstack([source, observed]).tocsr(), both)
        return self._of_neighbours(state, (rows @ known.T).toarray())

    def _of_neighbours(
        self, state: State, alike: np.ndarray, items: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """Scores (m, t) from similarities (m, n); of some `items` (k,) alone, (m, k)."""
        k = min(self.neighbours, alike.shape[1])
        best = torch.from_numpy(alike).topk(k, dim=1, sorted=False)
        weight, nearest = best.values.numpy(), best.indices.numpy()
        rows = csr_matrix(
            (weight.ravel(), nearest.ravel(), np.arange(0, weight.size + 1, k)), shape=alike.shape
        )
        total = np.maximum(weight.sum(1, keepdims=True), 1e-9)
        whole = isinstance(items, slice)
        target = unpacked("target", state) if whole else transposed("target", state)[items].T
        chosen = (rows @ target).toarray()
        chosen /= total
        chosen += self.popular * state["share"].numpy()[items]
        return chosen
