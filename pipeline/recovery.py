"""What a killed run leaves behind: its slots of the pools, and two histories that say it still runs."""

import logging

import dagster as dg
from dagster import DagsterRunStatus as Status

from assets.state.tracking import MlflowTracking
from pipeline import processes

log = logging.getLogger("diffcdr")
# A queued run has no process yet; the daemon starts it.
UNFINISHED = [Status.NOT_STARTED, Status.STARTING, Status.STARTED, Status.CANCELING]


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Close the runs whose process has ended, in Dagster and MLflow, and give back their slots of the pools.

    A run's process is in its tags since it began. Runs of other machines are left alone.
    """
    of_this_host = dg.RunsFilter(statuses=UNFINISHED, tags={processes.HOST: processes.host()})
    for run in instance.get_runs(of_this_host):
        if processes.is_gone(run.run_id, run.tags):
            _close(instance, run)
    for pool in instance.event_log_storage.get_concurrency_keys():
        free_abandoned(instance, pool)


def free_abandoned(instance: dg.DagsterInstance, pool: str) -> None:
    """Give back the slots of a pool, and the places in its queue, that belong to no run that is going on."""
    info = instance.event_log_storage.get_concurrency_info(pool)
    for run_id in {claim.run_id for claim in [*info.claimed_slots, *info.pending_steps]}:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished and processes.is_gone(run.run_id, run.tags):
            _close(instance, run)
        elif run is None or run.is_finished:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    info = instance.event_log_storage.get_concurrency_info(pool)
    if not info.claimed_slots and info.pending_steps and not info.assigned_step_count:
        # A step that queues in the moment the slot is given back is in nobody's list.
        instance.event_log_storage.assign_pending_steps([pool])


def _close(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    reason = f"its process ({run.tags[processes.PROCESS]}) ended without a word: it was killed"
    # MLflow first: if this is killed, too, the run is still found by the next.
    MlflowTracking().close_abandoned(run.run_id, reason)
    if run.status == Status.CANCELING:
        instance.report_run_canceled(run, reason)
    else:
        instance.report_run_failed(run, reason)
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    log.info("closed run %s of %s: %s", run.run_id[:8], run.job_name, reason)
