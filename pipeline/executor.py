"""The executor of every run: steps one after another in the run's process, which waits for a pool audibly.

Dagster's own in-process executor waits for a slot without a pause, deaf to signals, and for ever where the
holder was killed.
"""

import itertools
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextvars import ContextVar

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.base import Executor
from dagster._core.executor.init import InitExecutorContext
from dagster._utils.interrupts import pop_captured_interrupt

from assets.state.progress import Steps
from pipeline import processes, recovery

log = logging.getLogger("diffcdr")
# How often a waiting step looks at the pool, and how often it says that it still waits.
LOOK_SECONDS, SAY_SECONDS = 0.5, 60.0
# Who is told of each step that begins in this process.
WATCHED: ContextVar[Steps | None] = ContextVar("watched steps", default=None)
# The command line's runs carry this tag with their id: who stops the command has canceled its run.
FROM_COMMAND_LINE = f"{processes.HIDDEN}command_line"


class InProcess(Executor):
    """Executes the steps of a run in this process and marks the run with it."""

    @property
    def retries(self) -> RetryMode:
        return RetryMode.ENABLED

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        instance, run = plan_context.instance, plan_context.dagster_run
        instance.add_run_tags(run.run_id, processes.tags(run.run_id))
        here = EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute)
        yield DagsterEvent.engine_event(plan_context, f"Executing steps in process {os.getpid()}", here)
        try:
            yield from ExecuteRunWithPlanIterable(
                execution_plan=execution_plan,
                iterator=_steps,
                execution_context_manager=PlanExecutionContextManager(
                    job=plan_context.job,
                    retry_mode=plan_context.retry_mode,
                    execution_plan=execution_plan,
                    run_config=plan_context.run_config,
                    dagster_run=run,
                    instance=instance,
                    raise_on_error=plan_context.raise_on_error,
                    output_capture=plan_context.output_capture,
                    step_dependency_config=self.step_dependency_config,
                ),
            )
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            # Dagster calls what nobody asked it to cancel a failure.
            if run.tags.get(FROM_COMMAND_LINE) == run.run_id:
                instance.report_run_canceling(run, "The command was stopped by Ctrl-C or TERM.")
            raise


@dg.executor(name="in_process", config_schema={})
def in_process(_: InitExecutorContext) -> Executor:
    """All steps of a run in its own process, one after another."""
    return InProcess()


class Pools(InstanceConcurrencyContext):
    """Slots of the instance's pools for the steps of one run."""

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Wait for a slot. Raises DagsterExecutionInterruptedError on a signal."""
        said, since = "", 0.0
        while not super().claim(concurrency_key, step_key, step_priority):
            # Dagster would ask less and less often, every 15 seconds in the end.
            self._pending_timeouts[step_key] = 0.0
            recovery.free_abandoned(self._instance, concurrency_key)
            holders = self._holders(concurrency_key) or self._nobody(concurrency_key)
            if holders and (holders != said or time.monotonic() - since > SAY_SECONDS):
                log.info("%s waits for a slot of pool %s: %s", step_key, concurrency_key, holders)
                said, since = holders, time.monotonic()
            time.sleep(LOOK_SECONDS)
            if pop_captured_interrupt():
                raise DagsterExecutionInterruptedError(f"stopped while waiting for pool {concurrency_key}")
        return True

    def _holders(self, pool: str) -> str:
        claims = self._instance.event_log_storage.get_concurrency_info(pool).claimed_slots
        return ", ".join(filter(None, (self._holder(claim.run_id, claim.step_key) for claim in claims)))

    def _nobody(self, pool: str) -> str:
        """Why no slot is free though nobody has one; "" where one may be at the next look."""
        limit = self._instance.event_log_storage.get_concurrency_info(pool).slot_count
        return "" if limit else "its limit is 0; raise it in the UI, under Deployment, Concurrency"

    def _holder(self, run_id: str, step: str) -> str:
        run = self._instance.get_run_by_id(run_id)
        if run is None:
            return ""
        where = run.tags.get(processes.PROCESS, "unknown")
        if (host := run.tags.get(processes.HOST)) not in (None, processes.host()):
            where += f" on {host}; if that machine is gone, terminate the run in the UI"
        return f"{step} of run {run_id[:8]} has it, process {where}"


def _steps(job_context: PlanExecutionContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
    with Pools(job_context.instance, job_context.dagster_run) as pools:
        events = inner_plan_execution_iterator(job_context, execution_plan, pools)
        # Up to its first event it starts the processes that copy the output of steps. A terminal sends Ctrl-C
        # to them as well, and they would answer with a traceback; what is blocked here stays so in them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            first = next(events)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for event in itertools.chain([first], events):
            if event.is_step_start and (steps := WATCHED.get()) is not None:
                steps.begin(event.step_key.replace("__", "/"))
            yield event
