"""A denoising auto-encoder from the source row to a softmax over the target items, over log popularity.

p(i | u) = softmax(log count_i + b_i + w_i · tanh(A x_u + a)), with x_u the source row weighted by rarity, of
which a share is dropped in training (Mult-DAE, Liang et al., WWW 2018, across domains).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix

from ml.descent import Adam
from ml.ranking.ranker import Choices, Ranker, State, rare_rows
from ml.replicas import replica_generator

SCALE = 3.0  # of the rows of length 1, so that a hidden unit's input is of size 1
COLUMNS = 2048  # target items whose scores are held at a time where only a few are asked for
LAYERS = ("encoder", "hidden", "decoder", "output")


@dataclass
class AutoEncoder(Ranker):
    """hidden: width; dropout: share of a row that is hidden; epochs, batch, lr, decay: AdamW's."""

    name: ClassVar[str] = "autoencoder"
    title: ClassVar[str] = "Auto-encoder"
    summary: ClassVar[str] = "A denoising network from source choices to target choices."
    source: ClassVar[str] = "Mult-DAE, Liang et al., WWW 2018, across domains"
    on_device: ClassVar[bool] = True
    role: ClassVar[str] = "learned"

    hidden: int = 64
    dropout: float = 0.5
    epochs: int = 12
    batch: int = 128
    lr: float = 3e-3
    decay: float = 0.1

    @property
    def total_epochs(self) -> int:
        return self.epochs

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        generator = replica_generator(choices.seed, self.name)
        source, target = rare_rows(choices.source, choices.rarity), choices.target
        some = np.flatnonzero(np.diff(target.indptr))
        shapes = (source.shape[1], self.hidden), (self.hidden, target.shape[1])
        state = {
            "encoder": torch.randn(shapes[0], generator=generator) * 0.05,
            "hidden": torch.zeros(self.hidden),
            "decoder": torch.randn(shapes[1], generator=generator) * 0.01,
            "output": torch.zeros(target.shape[1]),
        }
        layers = {name: value.to(device).requires_grad_() for name, value in state.items()}
        offset = torch.from_numpy(np.log(choices.popularity + 0.5)).float().to(device)
        optimizer = Adam(layers, self.lr, decay=self.decay)
        rows = len(some) / max(1, target.nnz)
        for _ in range(self.epochs):
            total = 0.0
            for part in torch.randperm(len(some), generator=generator).split(self.batch):
                users = some[part.numpy()]
                shown = source[users]
                kept = torch.rand(shown.shape, generator=generator) > self.dropout
                chosen = torch.from_numpy(target[users].toarray()).to(device)
                logp = (offset + forward(layers, shown, kept, SCALE / (1 - self.dropout))).log_softmax(1)
                # As if every user had the same number of choices in each batch, for a steady step.
                loss = -(chosen * logp).sum() / chosen.sum() / rows
                optimizer.descend(loss)
                total += loss.item() * len(part) / len(some)
            yield {
                **{name: value.detach().cpu().clone() for name, value in layers.items()},
                "source_items": torch.tensor(source.shape[1]),
                "rarity": torch.from_numpy(choices.rarity),
                "offset": offset.cpu(),
                "loss": torch.tensor(total),
            }

    @torch.no_grad()
    def score(self, state: State, source: csr_matrix) -> np.ndarray:
        """log p(i | u)."""
        hidden = self._hidden(state, source)
        utility = torch.addmm(state["offset"] + state["output"], hidden, state["decoder"])
        return utility.sub_(utility.logsumexp(1, keepdim=True)).numpy()

    @torch.no_grad()
    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        """The sum over all items goes by COLUMNS of them, which stay in the cache."""
        hidden, decoder = self._hidden(state, source).numpy(), state["decoder"].numpy()
        offset = state["offset"] + state["output"]
        held, parts = np.empty((len(hidden), COLUMNS), dtype=np.float32), []
        for begin in range(0, len(offset), COLUMNS):
            some, columns = offset[begin : begin + COLUMNS], decoder[:, begin : begin + COLUMNS]
            # On many processors numpy's product is twice as fast as torch's.
            utility = torch.from_numpy(np.matmul(hidden, columns, out=held[:, : len(some)])).add_(some)
            highest = utility.amax(1, keepdim=True)
            parts.append(utility.sub_(highest).exp_().sum(1).log_() + highest[:, 0])
        total = torch.stack(parts, 1).logsumexp(1, keepdim=True).numpy()
        return hidden @ decoder[:, items] + offset.numpy()[items] - total

    def _hidden(self, state: State, source: csr_matrix) -> torch.Tensor:
        """tanh(A x_u + a): (m, hidden)."""
        rows = rare_rows(source, state["rarity"].numpy()) * SCALE
        return torch.tanh(torch.from_numpy(rows @ state["encoder"].numpy()) + state["hidden"])


def forward(layers: State, rows: csr_matrix, kept: torch.Tensor, scale: float) -> torch.Tensor:
    """w · tanh(A x + a) + b (m, t) of sparse `rows` (m, s), where `kept` (m, s) lets them through, times
    `scale`. Only what a row holds is multiplied, forwards and backwards."""
    encoder = layers["encoder"]
    columns, starts = (torch.from_numpy(each).long() for each in (rows.indices, rows.indptr))
    place = torch.arange(len(kept)).repeat_interleave(starts.diff())
    values = torch.from_numpy(rows.data) * kept[place, columns] * scale
    summed = torch.nn.functional.embedding_bag(
        columns.to(encoder.device),
        encoder,
        starts[:-1].to(encoder.device),
        mode="sum",
        per_sample_weights=values.to(encoder.device),
    )
    return torch.addmm(layers["output"], torch.tanh(layers["hidden"] + summed), layers["decoder"])
