"""Runs as Ray jobs, with a GPU for those that use one; `deploy/ray/dagster.yaml` names this launcher."""

import json
from typing import Any, Self

from dagster import DagsterRun, Field
from dagster._serdes import ConfigurableClassData
from dagster_ray import RayRunLauncher

# The op tag, and the run tag of the same name, in which dagster-ray looks for what is needed.
NEEDS = "dagster-ray/config"


class OpTagsRunLauncher(RayRunLauncher):
    """dagster-ray's launcher, which gives a GPU to a run if one of its ops asks for some by op tag.

    dagster-ray reads op tags only where each op is a Ray job of its own, with imports of half a minute each;
    our runs execute their ops in one process. Tags of jobs would miss backfills from the UI.
    gpus: for a run with ops that use CUDA, a share where it is below 1; 0 on a cluster without GPUs.
    """

    def __init__(self, gpus: float = 0, **config: Any) -> None:
        super().__init__(**config)
        self._gpus = gpus

    @classmethod
    def config_type(cls) -> dict:
        about = "GPUs of a run with ops that use CUDA; 0 where the cluster has none."
        return {**super().config_type(), "gpus": Field(float, is_required=False, description=about)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: dict) -> Self:
        return cls(inst_data=inst_data, gpus=config_value.get("gpus", 0), **config_value["ray"])

    def _launch_ray_job(self, submission_id: str, entrypoint: str, run: DagsterRun) -> None:
        plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        steps = [step for step in plan.steps if step.key in plan.step_keys_to_execute]
        uses_cuda = any(json.loads((step.tags or {}).get(NEEDS, "{}")).get("num_gpus") for step in steps)
        needs = {"num_gpus": self._gpus if uses_cuda else 0, **json.loads(run.tags.get(NEEDS, "{}"))}
        super()._launch_ray_job(
            submission_id, entrypoint, run.with_tags({**run.tags, NEEDS: json.dumps(needs)})
        )
