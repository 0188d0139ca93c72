"""The same list for everyone: the items that most training users chose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix

from ml.ranking.ranker import Choices, Ranker, State


@dataclass
class Popular(Ranker):
    name: ClassVar[str] = "popular"
    title: ClassVar[str] = "Popularity"
    summary: ClassVar[str] = "Lists the items that most training users chose, the same for everyone."
    role: ClassVar[str] = "blind"

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        yield {
            "source_items": torch.tensor(choices.source.shape[1]),
            "counts": torch.from_numpy(choices.popularity).float(),
        }

    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        return np.repeat(state["counts"].numpy()[None], source.shape[0], 0)
