"""Threads of training, looked at in a process of its own: they are settings of the whole process."""

import json
import os
import subprocess
import sys

from assets.state.code import OURS

BODY = """
import json, sys
import dagster as dg
from assets.state.compute import Compute
import scipy.linalg, numpy, threadpoolctl, torch

def blas():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

threads = int(sys.argv[1])
before = blas()
with dg.build_resources({"compute": Compute(threads=threads)}):
    pass
print(json.dumps({"before": before, "blas": blas(), "torch": torch.get_num_threads()}))
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
