"""The stages of `diffcdr run` in order, each a Dagster run of one job."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.execution.execute_in_process import merge_run_tags
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.utils import make_new_run_id
from dagster._core.workspace.load_target import WorkspaceFileTarget

from assets.report.page import PARTS
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import load_catalog
from assets.settings.profile import Profile, load_profiles
from assets.state.progress import Steps
from assets.training.choose import role
from assets.training.first_choices import list_models
from assets.training.models import BASES, upstream
from assets.training.trials import plan
from assets.training.warming import sampling_models
from ml.factorization.spark_session import require_spark
from pipeline import processes, stopping
from pipeline.asked import check_cells, check_tasks
from pipeline.definitions import build_defs
from pipeline.executor import FROM_COMMAND_LINE, WATCHED
from pipeline.instance import WORKSPACE

log = logging.getLogger("diffcdr")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
REPOSITORY = "__repository__"
# The UI lists a run under its job and on the timeline by this tag, which it sets itself on runs it launches.
# The daemon starts nothing again that somebody started by hand.
OUR_RUNS = {".dagster/repository": f"{REPOSITORY}@diffcdr", "dagster/max_retries": "0"}
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
# What a step of training that has no trials counts as, and a model that is trained, at least: in trials.
SIMPLE, TRAINED = 2, 8


@dataclass(frozen=True)
class Step:
    """A stage of the chain. perform: does it with an instance; parts: (asset, share of the work) of what it
    makes."""

    title: str
    perform: Callable[[dg.DagsterInstance], None]
    parts: tuple[tuple[str, float], ...]


class Chain:
    """What `diffcdr run` was asked for, checked, and the steps that do it.

    Empty betas, seeds or models mean all of them. Raises UnknownName before anything is run.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        betas: Sequence[float],
        seeds: Sequence[int],
        profiles: Sequence[str],
        models: Sequence[str],
    ) -> None:
        self.known = known = load_profiles()
        self.axes = Axes(load_catalog())
        self.catalog = catalog = self.axes.catalog
        check_tasks(catalog, tasks)
        check_cells(catalog, known, betas, seeds, profiles, models)
        self.tasks, self.profiles = list(tasks), list(profiles)
        self.whole = not models  # analyses compare all models of a profile
        self.betas = [beta for beta in catalog.betas if not betas or beta in betas]
        self.seeds = [seed for seed in catalog.seeds if not seeds or seed in seeds]
        self.models = {
            name: [m for m in known[name].trained if not models or m in models] for name in profiles
        }

    @functools.cached_property
    def defs(self) -> dg.Definitions:
        return build_defs(self.axes, self.known)

    def steps(self) -> Iterator[Step]:
        """Every stage: domains, tasks, cells by β, analyses, tables. Raises SparkUnavailable before the first
        of them where a profile needs a Spark that cannot be used."""
        self._require_spark()
        yield from self.data_steps()
        for profile in self.profiles:
            yield from self._training_steps(profile)
        yield from self.report_steps()

    def _require_spark(self) -> None:
        for name, models in self.models.items():
            profile = self.known[name]
            bases = {base for model in models for base in upstream(profile, model)}
            with_factors = {"source_factors", "target_factors"} & bases
            if with_factors and any(map(profile.by_spark, profile.objectives)):
                require_spark()

    def data_steps(self) -> Iterator[Step]:
        """The stages before anything is trained: domains and tasks."""
        wanted = [self.catalog.tasks[name] for name in self.tasks]
        for domain in dict.fromkeys(side for task in wanted for side in (task.source, task.target)):
            title = f"reviews and ratings of {domain}"
            yield self._step(title, "ingest", {"reviews": 1, "ratings": 1}, domain, domain)
        for task in wanted:
            yield self._step(f"overlap of {task.name}", "pair", {"overlap": 1}, task.name, task.name)

    def report_steps(self) -> Iterator[Step]:
        """The last stage, from what is finished."""
        wanted = [self.known[name] for name in self.profiles] or list(self.known.values())
        parts = [
            f"{profile.name}/{part.name}" for profile in wanted for part in PARTS if part.wanted(profile)
        ]
        parts = dict.fromkeys(["table1", *parts, "report"], 1)
        yield self._step("tables, figures and the report", "tables", parts)

    def _training_steps(self, profile: str) -> Iterator[Step]:
        settings, models = self.known[profile], self.models[profile]
        bases = {asset for assets in BASES.values() for asset in assets}
        needed = [key for model in models for key in upstream(settings, model) if key in bases]
        warming = ["warming_up"] if self.whole and sampling_models(settings) else []
        warming += ["warming_up_lists"] if self.whole and list_models(settings) else []
        keys = dict.fromkeys([*needed, *models, *warming])
        for task in self.tasks:
            for first, last in self._ranges(task):
                title = f"{profile} on {task}, {first.place} to {last.place}"
                parts = {"split": 1, **{f"{profile}/{key}": _size(settings, key, task) for key in keys}}
                yield self._step(title, f"train_{profile}", parts, first.key, last.key)
        for task in self.tasks if self.whole and self._analysis(profile) else ():
            # One cell a task, as in the paper; others are materialized from the UI where wanted.
            cell = self.axes.cell(task, self.betas[0], self.seeds[0]).key
            parts = dict.fromkeys((f"{profile}/{name}" for name in self._analysis(profile)), 3 * TRAINED)
            yield self._step(f"{profile} analysis of {cell}", "analyse", parts, cell, cell)

    def _analysis(self, profile: str) -> list[str]:
        # Figure 4 takes a while and says much the same for every profile: the first one asked for has it.
        first = next((name for name in self.profiles if self.known[name].plain), None)
        embedded = ["embeddings"] if profile == first else []
        searched = ["search"] if self.known[profile].search else []
        return [*embedded, *searched]

    def _ranges(self, task: str) -> Iterator[tuple[Cell, Cell]]:
        """First and last cell of each block of adjacent seeds, by β: what is trained together."""
        for beta in self.betas:
            for block in adjacent(self.seeds, self.catalog.seeds):
                yield self.axes.cell(task, beta, block[0]), self.axes.cell(task, beta, block[-1])

    def _step(
        self,
        title: str,
        job: str,
        parts: Mapping[str, float],
        first: str | None = None,
        last: str | None = None,
    ) -> Step:
        """A job's `parts`, assets by their names, on the partitions from first to last."""
        span = {} if first == last else {RANGE_START: first, RANGE_END: last}
        perform = functools.partial(
            execute,
            job=self.defs.resolve_job_def(job),
            assets=[dg.AssetKey(name.split("/")) for name in parts],
            tags={**OUR_RUNS, **span},
            partition=first if first == last else None,
        )
        return Step(title, perform, tuple(parts.items()))


def perform(instance: dg.DagsterInstance, steps: Iterable[Step]) -> None:
    """Do them in their order, and say which of how many begins and about how long the rest will take."""
    steps = list(steps)
    token = WATCHED.set(Steps([part for step in steps for part in step.parts]))
    try:
        for step in steps:
            log.info("%s", step.title)
            step.perform(instance)
    finally:
        WATCHED.reset(token)


def _size(profile: Profile, name: str, task: str) -> float:
    """The share of the work that an asset of a profile is, in trials of a model."""
    if name not in profile.entries or role(profile, name) != "learned":
        return SIMPLE
    return len(profile.objectives_of(name)) * max(TRAINED, len(plan(profile, name, task, 0)))


def execute(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    assets: Sequence[dg.AssetKey] | None = None,
    tags: Mapping[str, str] | None = None,
    partition: str | None = None,
) -> None:
    """Run a job in this process, by its own executor; raises what a step raises.

    `JobDefinition.execute_in_process` would put another executor in its place, which waits for pools unheard.
    """
    run = _new_run(instance, job, list(assets or ()), tags or {}, partition)
    execute_run(InMemoryJob(job), run, instance, raise_on_error=True)
    # A signal that came between two steps has been noted, and nothing more.
    stopping.raise_if_received()


def _new_run(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    assets: list[dg.AssetKey],
    tags: Mapping[str, str],
    partition: str | None,
) -> DagsterRun:
    """A run that the UI takes for one of its own: it knows the job, and can start it again."""
    run_id = make_new_run_id()
    tags = {**tags, **processes.tags(run_id), FROM_COMMAND_LINE: run_id}
    return instance.create_run_for_job(
        job,
        run_id=run_id,
        run_config=QUIET,
        tags={**job.run_tags, **merge_run_tags(job, partition, tags, assets, instance, QUIET)},
        asset_selection=frozenset(assets) or None,
        remote_job_origin=_origin(job.name),
    )


@functools.cache
def _origin(job: str) -> RemoteJobOrigin:
    """Where the UI finds a job: in the one code location of its workspace."""
    [location] = WorkspaceFileTarget([str(WORKSPACE)]).create_origins()
    return RemoteRepositoryOrigin(location, REPOSITORY).get_job_origin(job)


def adjacent(chosen: Sequence[int], axis: Sequence[int]) -> list[list[int]]:
    """`chosen` in blocks that lie side by side on `axis`; both in the axis' order."""
    blocks: list[list[int]] = []
    for value in chosen:
        if blocks and axis.index(value) == axis.index(blocks[-1][-1]) + 1:
            blocks[-1].append(value)
        else:
            blocks.append([value])
    return blocks
