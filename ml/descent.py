"""Adam for small programs without a replica axis, by torch's own fused kernel.

The classes of `torch.optim` import torch's compiler at their first use, some two seconds of processor time in
every process, and are slower than the kernel where the tables are small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8


class Adam:
    """Adam over named parameters, whose rate falls from lr in equal parts to end · lr after `steps` steps.

    decay: shrinks a parameter by rate · decay a step, apart from the moments (Loshchilov and Hutter, ICLR
    2019). Equals torch.optim.AdamW with LinearLR(1, end, steps), Adam's where there is no decay.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        lr: float,
        steps: int = 1,
        end: float = 1.0,
        decay: float = 0.0,
    ) -> None:
        self.parameters = list(parameters.values())
        self.lr, self.steps, self.end, self.decay = lr, steps, end, decay
        self.first, self.second = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.taken = [torch.zeros((), device=p.device) for p in self.parameters]
        self.step = 0

    @property
    def rate(self) -> float:
        """That of the next step."""
        return self.lr * (1 + (self.end - 1) * min(self.step / self.steps, 1))

    def descend(self, loss: Tensor) -> None:
        """Take a step against the gradient of `loss`, of which each parameter is a part."""
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            torch._foreach_add_(self.taken, 1)
            torch._fused_adamw_(
                self.parameters,
                gradients,
                self.first,
                self.second,
                [],
                self.taken,
                lr=self.rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=self.decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )
        self.step += 1
