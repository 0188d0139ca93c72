"""Where tensors are computed: one resource, so that a run's device is a setting and not code."""

import ctypes
import os

import dagster as dg
from pydantic import Field

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def gpu_tags(wanted: bool) -> dict:
    """Op tags of what computes on `Compute.torch_device`: on a cluster with GPUs its run is given one."""
    return {"dagster-ray/config": {"num_gpus": 1}} if wanted else {}


def keep_freed_memory() -> None:
    """Let glibc reuse what small steps free: to the system and back it would go at every one of them.

    These are the largest thresholds that its own rule comes to, and it comes to them late or never.
    """
    # Other C libraries have no such call.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_TRIM_THRESHOLD, 64 << 20)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)


class Compute(dg.ConfigurableResource):
    """Device and threads of all training. Empty settings mean the environment, then the default."""

    device: str = Field(default="", description="cpu, cuda, cuda:1 …; else DIFFCDR_DEVICE, else CUDA if any.")
    # A step is many small kernels: a second thread waits longer for the first than it helps, and on busy
    # cores the waiting multiplies (measured: 30 s in place of 0.5 s for DiffCDR on the demo).
    threads: int = Field(default=1, ge=1, description="CPU threads of torch and BLAS in training.")

    spark: str = Field(
        default="", description="Spark's master, for profiles that use it; else DIFFCDR_SPARK, else local[*]."
    )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        import scipy.linalg  # noqa: F401 - it and numpy bring a BLAS each, and only loaded ones are limited
        import threadpoolctl
        import torch

        torch.set_num_threads(self.threads)
        keep_freed_memory()
        threadpoolctl.threadpool_limits(self.threads, "blas")

    @property
    def device_name(self) -> str:
        """The device as a reader knows it, for throughput tables."""
        import torch

        device = self.torch_device
        if device.startswith("cuda"):
            return torch.cuda.get_device_name(device)
        return f"CPU, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def spark_master(self) -> str:
        return self.spark or os.environ.get("DIFFCDR_SPARK") or "local[*]"

    @property
    def spark_is_here(self) -> bool:
        """Whether Spark works on this machine and reads its files."""
        from ml.factorization.spark_session import is_local

        return is_local(self.spark_master)

    @property
    def torch_device(self) -> str:
        import torch

        wanted = self.device or os.environ.get("DIFFCDR_DEVICE") or "auto"
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return wanted
