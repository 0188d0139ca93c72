"""Ridge regression of target choices on source choices: EASE (Steck, WWW 2019) across domains.

B = argmin ‖Y − X B‖² + λ ‖B‖², with X the source rows weighted by rarity. In the dual form only a matrix of
training users by training users is solved, scores are x Xᵀ (X Xᵀ + λ I)⁻¹ Y, and what they would be had a
training user not been there is ŷ = y − [C Y]_u / C_uu with C = (X Xᵀ + λ I)⁻¹, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg.lapack import spotrf, spotri
from scipy.sparse import csr_matrix

from ml.ranking.ranker import (
    Choices,
    HeldOutScores,
    Ranker,
    State,
    packed,
    product,
    rare_rows,
    times,
    transposed,
    unpacked,
    weighted,
)


@dataclass
class ItemRegression(Ranker):
    """normalised: rows of length 1, so that a long history weighs no more than a short one; penalty: λ, some
    thousands where they are not; users: at most so many training users, those with most source choices, for
    the matrix grows with their square."""

    name: ClassVar[str] = "item_regression"
    title: ClassVar[str] = "Item regression"
    summary: ClassVar[str] = "Ridge regression of every target item on the source items chosen."
    source: ClassVar[str] = "EASE, Steck, WWW 2019, across domains"

    normalised: bool = True
    penalty: float = 10.0
    users: int = 8192

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        length = np.diff(choices.source.indptr)
        kept = np.sort(np.argsort(-length, kind="stable")[: self.users])
        rows = self._rows(choices.source[kept], choices.rarity)
        gram = (rows @ rows.T).toarray()
        gram[np.diag_indices_from(gram)] += self.penalty
        yield {
            "source_items": torch.tensor(choices.source.shape[1]),
            "rarity": torch.from_numpy(choices.rarity),
            "kept": torch.from_numpy(kept),
            "inverse": torch.from_numpy(inverse(gram)),
            **packed("source", rows),
            **packed("target", choices.target[kept]),
        }

    def _rows(self, source: csr_matrix, rarity: np.ndarray) -> csr_matrix:
        return rare_rows(source, rarity) if self.normalised else weighted(source, rarity)

    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        rows = self._rows(source, state["rarity"].numpy())
        weights = (rows @ transposed("source", state)).toarray() @ state["inverse"].numpy()
        return product(weights, unpacked("target", state))

    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        """By the entries of B for `items` and the source items that occur in `source`."""
        rows = self._rows(source, state["rarity"].numpy())
        present, inverted = np.unique(rows.indices), state["inverse"].numpy()
        left, right = transposed("source", state)[present], transposed("target", state)[items]
        # C is symmetric: it is multiplied by the side that is cheaper.
        if left.nnz < right.nnz:
            coefficients = (right @ times(left, inverted).T).T
        else:
            coefficients = left @ times(right, inverted).T
        return rows[:, present] @ coefficients

    def held_out(self, choices: Choices, state: State, device: torch.device | str = "cpu") -> HeldOutScores:
        place = np.full(len(choices), -1)
        place[state["kept"].numpy()] = np.arange(len(state["kept"]))
        inverted, target = state["inverse"].numpy(), unpacked("target", state)

        def scores(rows: np.ndarray) -> np.ndarray:
            out = np.empty((len(rows), target.shape[1]), dtype=np.float32)
            mine = place[rows]
            seen, new = np.flatnonzero(mine >= 0), np.flatnonzero(mine < 0)
            own = inverted[mine[seen]] / inverted[mine[seen], mine[seen]][:, None]
            own[np.arange(len(seen)), mine[seen]] = 0
            out[seen] = product(-own, target)
            out[new] = self.score(state, choices.source[rows[new]])
            return out

        return scores


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a positive definite matrix, float32, by its Cholesky factor."""
    factor, failed = spotrf(matrix.astype(np.float32), lower=1, overwrite_a=1)
    half, broken = spotri(factor, lower=1, overwrite_c=1)
    if failed or broken:
        raise ValueError("item_regression: the rows cannot be inverted in float32; raise the penalty")
    lower = np.tril(half)
    return np.ascontiguousarray(lower + np.tril(half, -1).T)
