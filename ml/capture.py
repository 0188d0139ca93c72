"""A training step as one CUDA graph: recorded once, then replayed without launching its kernels one by one.

A step of these models is some fifty kernels of a few microseconds each; launching them takes longer than
running them. All batches of a training have one shape (short replicas are padded at weight 0) and a step
branches on nothing it computes, so one recording serves for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ml.models.base import Batch

WARM_UPS = 3  # PyTorch's advice: libraries allocate their workspaces before anything is recorded
Step = Callable[["Batch"], dict[str, Tensor]]
Record = Callable[[Callable[[], dict[str, Tensor]]], tuple[dict[str, Tensor], Callable[[], object]]]


def wanted(device: torch.device) -> bool:
    """Whether steps on `device` are to be recorded: on the first CUDA device, if `DIFFCDR_CUDA_GRAPHS` is 1.

    Streams and graphs belong to the current device, which nothing here changes.
    """
    return device.type == "cuda" and not device.index and os.environ.get("DIFFCDR_CUDA_GRAPHS") == "1"


def record_cuda(run: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], Callable[[], object]]:
    """What `run` returns, as tensors that every replay overwrites, and the replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = run()
    return losses, graph.replay


class CapturedStep:
    """`step`, recorded on the tensors of the first batch, into which every later batch is copied.

    state: all tensors that a step changes, parameters and moments; recording leaves them as they were.
    """

    def __init__(self, step: Step, state: Sequence[Tensor], record: Record = record_cuda) -> None:
        self.step, self.state, self.record = step, list(state), record
        self.held: Batch | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The losses (R,) by name of a step on `batch`."""
        if self.held is None:
            self._record(batch)
        torch._foreach_copy_(self.held.tensors(), batch.tensors())
        self.replay()
        return {name: loss.clone() for name, loss in self.losses.items()}

    @torch.no_grad()
    def _record(self, batch: Batch) -> None:
        held = batch.clone()
        before = [tensor.clone() for tensor in self.state]
        with torch.enable_grad():
            self.losses, self.replay = self.record(lambda: self.step(held))
        torch._foreach_copy_(self.state, before)
        self.held = held
