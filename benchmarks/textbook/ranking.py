"""Top-k of the full catalogue by sorting it for one user at a time."""

from __future__ import annotations

import numpy as np


def top_k(users: np.ndarray, items: np.ndarray, k: int = 20) -> np.ndarray:
    """The k items of highest u·v of each user: (n, k) int64, best first."""
    best = np.empty((len(users), k), dtype=np.int64)
    for row, user in enumerate(users):
        best[row] = np.argsort(-(items @ user))[:k]
    return best
