"""The axes: domain, task, and cell = task × trial, where a trial is one β and one seed.

Dagster's multi-partitions take two dimensions, so β and seed share one: `b20-s0` is β = 20 %, seed 0.
Trials are listed β-major, so that a backfill in runs of `len(seeds)` partitions puts the seeds of one
(task, β) into one run, where they are trained together as replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from assets.settings.catalog import load_catalog

CATALOG = load_catalog()


@dataclass(frozen=True, order=True)
class Trial:
    """One β (share of overlapping users that become test users) and one seed."""

    beta: float
    seed: int

    @property
    def key(self) -> str:
        return f"b{round(self.beta * 100):02d}-s{self.seed}"

    @classmethod
    def parse(cls, key: str) -> Trial:
        beta, seed = key.removeprefix("b").split("-s")
        return cls(int(beta) / 100, int(seed))


@dataclass(frozen=True, order=True)
class Cell:
    """One experiment: a task, a β and a seed. Its partition key is `task|b20-s0`."""

    task: str
    trial: Trial

    @property
    def beta(self) -> float:
        return self.trial.beta

    @property
    def seed(self) -> int:
        return self.trial.seed

    @property
    def key(self) -> str:
        return f"{self.task}|{self.trial.key}"

    @property
    def folder(self) -> str:
        """The cell's part of a storage path, hive style."""
        return f"task={self.task}/beta={self.beta}/seed={self.seed}"

    @classmethod
    def parse(cls, key: str) -> Cell:
        task, trial = str(key).split("|")
        return cls(task, Trial.parse(trial))


def span(group: Sequence[Cell]) -> str:
    """Cells of one task as a reader likes them in a log: `task b20-s0 … b20-s4`."""
    first, last = group[0], group[-1]
    return f"{first.key}" if first == last else f"{first.key} … {last.trial.key}"


def by_task(keys: Iterable[str]) -> dict[str, list[Cell]]:
    """Cells of the partition keys, by task and in order."""
    groups: dict[str, list[Cell]] = {}
    for cell in sorted(Cell.parse(key) for key in keys):
        groups.setdefault(cell.task, []).append(cell)
    return groups


domains = dg.StaticPartitionsDefinition(list(CATALOG.domains))
tasks = dg.StaticPartitionsDefinition(list(CATALOG.tasks))
trials = dg.StaticPartitionsDefinition([Trial(b, s).key for b in CATALOG.betas for s in CATALOG.seeds])
cells = dg.MultiPartitionsDefinition({"task": tasks, "trial": trials})

# A task reads two domains, and a domain that no task reads maps to none.
DOMAIN_TO_TASK = dg.StaticPartitionMapping(
    {
        domain: [task.name for task in CATALOG.tasks.values() if domain in (task.source, task.target)]
        for domain in CATALOG.domains
        if any(domain in (task.source, task.target) for task in CATALOG.tasks.values())
    }
)

SEEDS_TOGETHER = dg.BackfillPolicy.multi_run(len(CATALOG.seeds))
