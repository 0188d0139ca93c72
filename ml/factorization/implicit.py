"""Implicit matrix factorization: vectors of users and items from who chose what, by the library `implicit`.

Model:      p̂ = p_u·q_i, with p = 1 for a choice and 0 for everything else
Minimises   Σ_ui c_ui (p_ui − p_u·q_i)² + penalty (Σ ‖p_u‖² + Σ ‖q_i‖²),   c = confidence for a choice, else 1

over all pairs of users and items, by alternating least squares (Hu, Koren and Volinsky, "Collaborative
filtering for implicit feedback datasets", 2008, equations 3 to 5). Users are solved last, so a user's vector
is the exact solution on the final items, (QᵀQ + (c − 1) Σ_J q qᵀ + penalty I) p = c Σ_J q over the chosen
items J, as it would be for a new user with the same choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from ml.data import check_rows
from ml.factorization.adam import RatingTable
from ml.replicas import Epoch, replica_generator


@dataclass
class ImplicitFactorization:
    """k: width of p and q; penalty, confidence: as in the objective at the head of this module; sweeps:
    solves of either side.

    After every sweep of `train`, and after `fit`: `user_factors_` (n_users, k), `item_factors_` (n_items, k),
    float32. A user or an item without choices is 0.
    """

    k: int = 32
    penalty: float = 10.0
    confidence: float = 5.0
    sweeps: int = 15

    def __post_init__(self) -> None:
        for field in ("k", "sweeps"):
            if getattr(self, field) < 1:
                raise ValueError(f"implicit mf: {field} must be at least 1, not {getattr(self, field)}")
        if not 0 < self.penalty < float("inf"):
            raise ValueError(f"implicit mf: penalty must be positive and finite, not {self.penalty}")
        if not 1 < self.confidence < float("inf"):
            raise ValueError(
                f"implicit mf: confidence must be finite and above 1, what a non-choice has, "
                f"not {self.confidence}"
            )

    def fit(self, table: RatingTable, purpose: str) -> ImplicitFactorization:
        """Train to the last sweep and return self."""
        for _ in self.train(table, purpose):
            pass
        return self

    def train(self, table: RatingTable, purpose: str) -> Iterator[Epoch]:
        """Solve items, then users, and yield {"loss": [the objective, by pair and confidence]} after each
        such sweep. The values of the ratings are not read; a pair given twice is one choice.

        The first vectors are drawn from `replica_generator(table.seed, purpose)`; one thread, so equal calls
        give equal bits. Raises ValueError, naming the row, for an empty table and an id out of range.
        """
        chosen = _chosen(table)
        seed = torch.randint(1 << 31, (), generator=replica_generator(table.seed, purpose))
        # One thread of BLAS: the library's own share the rows, and it warns where there are others.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=self.k,
                alpha=self.confidence,
                regularization=self.penalty,
                # The library draws both sides first and goes on from what it has when it fits again.
                iterations=1,
                use_cg=False,
                calculate_training_loss=True,
                num_threads=1,
                random_state=int(seed),
            )
        losses: list[float] = []
        for number in range(1, self.sweeps + 1):
            with threadpool_limits(1, "blas"):
                # The library solves rows first: items are its rows, so that users are solved last.
                model.fit(chosen, show_progress=False, callback=lambda _, __, loss: losses.append(loss))
            self.item_factors_ = torch.from_numpy(np.array(model.user_factors, dtype=np.float32))
            self.user_factors_ = torch.from_numpy(np.array(model.item_factors, dtype=np.float32))
            yield Epoch(number, {"loss": [float(losses[-1])]})


def _chosen(table: RatingTable) -> csr_matrix:
    """1 where an item was chosen by a user: (n_items, n_users) float32."""
    if len(table) == 0:
        raise ValueError("implicit mf: the table has no ratings; look at its split")
    table = table.flat(wide=False)
    check_rows("users", table.users, table.n_users)
    check_rows("items", table.items, table.n_items)
    ones = np.ones(len(table), dtype=np.float32)
    matrix = csr_matrix(
        (ones, (table.items.numpy(), table.users.numpy())), shape=(table.n_items, table.n_users)
    )
    matrix.data[:] = 1
    return matrix
