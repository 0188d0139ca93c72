"""Where tensors are computed: one resource, so that a run's device is a setting and not code."""

import os

import dagster as dg


class Compute(dg.ConfigurableResource):
    """The device of all training: `auto` takes CUDA where there is one, else the CPU."""

    device: str = ""

    @property
    def torch_device(self) -> str:
        import torch

        wanted = self.device or os.environ.get("DIFFCDR_DEVICE") or "auto"
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return wanted
