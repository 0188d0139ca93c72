"""Threads and memory of training, looked at in a process of its own: both are settings of a whole process."""

import json
import os
import subprocess
import sys

from assets.state.code import OURS

BODY = """
import json, resource, sys
import dagster as dg
from assets.state.compute import Compute
import scipy.linalg, numpy, threadpoolctl, torch

def blas():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

def new_pages():
    def step():
        return [torch.ones(1 << 16, dtype=torch.float64) for _ in range(64)]

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

threads = int(sys.argv[1])
before = blas()
with dg.build_resources({"compute": Compute(threads=threads)}):
    pass
found = {"before": before, "blas": blas(), "torch": torch.get_num_threads(), "new_pages": new_pages()}
print(json.dumps(found))
"""


def threads(wanted: int) -> dict:
    environment = os.environ | {"PYTHONPATH": str(OURS), "OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3"}
    command = [sys.executable, "-c", BODY, str(wanted)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_torch_and_every_blas_take_the_threads_of_the_resource():
    found = threads(1)
    assert len(found["before"]) > 1
    assert set(found["blas"]) == {1}
    assert found["torch"] == 1


def test_memory_that_a_step_has_freed_is_there_for_the_next():
    # A step touches 8192 pages, which without the resource most of the ten get from the system anew.
    assert threads(1)["new_pages"] < 8192
