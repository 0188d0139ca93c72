"""Whole training steps as one CUDA graph: a measurement, not a part of the product.

A graph replays what was launched while it was recorded, on the same memory. So inputs are copied to tensors
that stay, nothing in the step may ask the device for a value, and warming up must leave no trace in it.
On a CPU there are no graphs: the step is called instead, on the same tensors, which tests all but the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ml.factorization.adam import DeferredAdam, _gather, _pace, _Step
from ml.models.transfer import Batch, Stack, TransferModel
from ml.replicas import ReplicaAdam

WARM_UP = 3


class Captured:
    """`work()` recorded once and replayed by each call; `state` is what it changes in place."""

    def __init__(self, work: Callable[[], Tensor], state: Sequence[Tensor]) -> None:
        self.work, self.graph, self.result = work, None, None
        if state[0].device.type != "cuda":
            return
        kept = [tensor.detach().clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = work()
        with torch.no_grad():
            torch._foreach_copy_([tensor.detach() for tensor in state], kept)

    def __call__(self) -> Tensor:
        """What `work` returns; the next call overwrites it."""
        if self.graph is None:
            return self.work()
        self.graph.replay()
        return self.result


class CapturedSteps:
    """The steps of a block of batches of one transfer model, with the gathering of their inputs."""

    def __init__(self, model: TransferModel, stack: Stack, optimizer: object, like: Batch) -> None:
        self.rows, self.weight = like.rows.clone(), like.weight.clone()
        self.draws = {name: draw.clone() for name, draw in like.draws.items()}
        parts = [optimizer] if isinstance(optimizer, ReplicaAdam) else [o for o in optimizer if o is not None]
        state = [p for part in parts for p in (*part.parameters, part.first, part.second, part.steps)]

        def work() -> Tensor:
            block = Batch(self.rows, self.weight, self.draws)
            block = Batch(self.rows, self.weight, self.draws, model.inputs(stack, block))
            losses = [model.step(stack, batch, optimizer) for batch in block.steps()]
            return torch.stack([torch.stack(list(loss.values())) for loss in losses])

        self.captured = Captured(work, state)

    def __call__(self, block: Batch) -> Tensor:
        """Losses (S, names, R) of the S steps of a block of the same shape as the first."""
        self.rows.copy_(block.rows)
        self.weight.copy_(block.weight)
        for name, draw in self.draws.items():
            draw.copy_(block.draws[name])
        return self.captured()


class CapturedFactorization:
    """Steps of a matrix factorization. The product lists the repeats of a row, as many as there are; here
    every row is added to its first, so that all steps have one shape."""

    def __init__(self, adam: DeferredAdam, steps: Sequence[_Step]) -> None:
        self.adam = adam
        self.inputs = [[tensor.clone() for tensor in self._tensors(step)] for step in steps]
        shape = steps[0].touch.shape

        def work() -> Tensor:
            return torch.stack([self._step(shape, *each) for each in self.inputs])

        self.captured = Captured(work, [adam.rest, adam.first, adam.root_second])

    @staticmethod
    def _tensors(step: _Step) -> list[Tensor]:
        touch = step.touch
        touched = [touch.rows, touch.first, touch.decay1, touch.root_decay2, touch.eps, touch.pace]
        return [*touched, step.values, step.weight]

    def __call__(self, steps: Sequence[_Step]) -> Tensor:
        """Errors (S, R, B) of as many steps as there were at first."""
        for inputs, step in zip(self.inputs, steps, strict=True):
            torch._foreach_copy_(inputs, self._tensors(step))
        return self.captured()

    def _step(self, shape: torch.Size, rows, first, decay1, root_decay2, eps, pace, values, weight) -> Tensor:
        adam, shape = self.adam, (*shape, -1)
        rest = adam.rest.index_select(0, rows).view(shape)
        moment = _gather(adam.first, rows, decay1).view(shape)
        root_second = _gather(adam.root_second, rows, root_decay2).view(shape)
        rest.addcdiv_(moment, _pace(root_second, eps, pace))
        errors = torch.linalg.vecdot(rest[0], rest[1]) - values
        slope = rest.flip(0).mul_((errors * weight)[..., None]).flatten(0, -2)
        slope = torch.zeros_like(slope).index_add_(0, first, slope).index_select(0, first).view(shape)
        moment.add_(slope)
        root_second.square_().addcmul_(slope, slope).sqrt_()
        rest.addcdiv_(moment, _pace(root_second, eps, pace), value=-1)
        for table, values in ((adam.rest, rest), (adam.first, moment), (adam.root_second, root_second)):
            table.index_copy_(0, rows, values.flatten(0, -2))
        return errors
