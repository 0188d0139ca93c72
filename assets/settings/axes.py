"""The axes: domain, task, and cell = task × β × seed.

Dagster's multi-partitions take two dimensions, so β and seed share one, `test_split`: `b20-s0` is β = 20 %,
seed 0. They are listed β-major, so that a backfill in runs of `len(seeds)` partitions puts the seeds of one
(task, β) into one run, where they are trained together as replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import dagster as dg

from assets.settings.catalog import Catalog, Domain


@dataclass(frozen=True, order=True)
class Cell:
    """One experiment: a task, β (the share of overlapping users that become test users) and a seed, with the
    task's two domains. Its partition key is `task|b20-s0`."""

    task: str
    beta: float
    seed: int
    source: Domain = field(compare=False, repr=False)
    target: Domain = field(compare=False, repr=False)

    @property
    def place(self) -> str:
        """β and seed: `b20-s0`."""
        return place(self.beta, self.seed)

    @property
    def key(self) -> str:
        return f"{self.task}|{self.place}"

    @property
    def folder(self) -> str:
        """The cell's part of a storage path, hive style."""
        return f"task={self.task}/beta={self.beta}/seed={self.seed}"


@dataclass(frozen=True)
class Axes:
    """The partitions of a catalogue, and the cells that their keys stand for."""

    catalog: Catalog

    @cached_property
    def domains(self) -> dg.StaticPartitionsDefinition:
        return dg.StaticPartitionsDefinition(list(self.catalog.domains))

    @cached_property
    def tasks(self) -> dg.StaticPartitionsDefinition:
        return dg.StaticPartitionsDefinition(list(self.catalog.tasks))

    @cached_property
    def cells(self) -> dg.MultiPartitionsDefinition:
        catalog = self.catalog
        places = [place(beta, seed) for beta in catalog.betas for seed in catalog.seeds]
        # A key is in the order of the dimensions' names: the task must come first.
        return dg.MultiPartitionsDefinition(
            {"task": self.tasks, "test_split": dg.StaticPartitionsDefinition(places)}
        )

    @property
    def domain_to_task(self) -> dg.StaticPartitionMapping:
        """A task reads two domains, and a domain that no task reads maps to none."""
        readers: dict[str, list[str]] = {}
        for task in self.catalog.tasks.values():
            for domain in (task.source, task.target):
                readers.setdefault(domain, []).append(task.name)
        return dg.StaticPartitionMapping(readers)

    @property
    def seeds_together(self) -> dg.BackfillPolicy:
        """The seeds of one task and β in one run."""
        return dg.BackfillPolicy.multi_run(len(self.catalog.seeds))

    def cell(self, task: str, beta: float, seed: int) -> Cell:
        known, domains = self.catalog.tasks[task], self.catalog.domains
        return Cell(task, beta, seed, domains[known.source], domains[known.target])

    def parse(self, key: str) -> Cell:
        """The cell of a partition key."""
        task, test_split = str(key).split("|")
        beta, seed = test_split.removeprefix("b").split("-s")
        return self.cell(task, int(beta) / 100, int(seed))

    def by_task(self, keys: Iterable[str]) -> dict[str, list[Cell]]:
        """Cells of the partition keys, by task and in order."""
        groups: dict[str, list[Cell]] = {}
        for cell in sorted(self.parse(key) for key in keys):
            groups.setdefault(cell.task, []).append(cell)
        return groups

    def of_task(self, task: str) -> list[Cell]:
        """All cells of a task, β-major."""
        return [self.cell(task, beta, seed) for beta in self.catalog.betas for seed in self.catalog.seeds]


def place(beta: float, seed: int) -> str:
    """β and seed as a partition key has them: `b20-s0`."""
    return f"b{round(beta * 100):02d}-s{seed}"


def span(group: Sequence[Cell]) -> str:
    """Cells of one task as a reader likes them in a log: `task|b20-s0 … b20-s4`."""
    first, last = group[0], group[-1]
    return first.key if first == last else f"{first.key} … {last.place}"
