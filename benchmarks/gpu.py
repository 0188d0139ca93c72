"""What a GPU is worth here: results against the CPU, training steps, throughput, a cell of Table 1, kernels.

    python -m benchmarks.gpu gpu.json --budget 300

Needs `ml` alone. A part that fails is printed and does not stop the others; the exit code is then 1. Parts
that no longer fit into the budget are named. All data are generated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.capture import CapturedFactorization, CapturedSteps
from benchmarks.data import LinkedDomains, random_problem, random_ratings
from benchmarks.measure import processor
from ml.diffusion import affine, network
from ml.diffusion.solver import plan
from ml.distribution.diffusion import VectorDiffusion, normal_points
from ml.evaluation.ranking import rank_metrics, top_k
from ml.evaluation.ratings import predict, rating_errors
from ml.factorization.adam import DeferredAdam, MatrixFactorization, RatingTable, _FlatTables, _step
from ml.models.diffcdr import DiffCDR
from ml.models.registry import MODELS, build, facts
from ml.models.transfer import Batch, Stack
from ml.replicas import EpochPlan, replica_generator
from tests.ml.cells import ITEMS, cell, small

TOLERANCE = 2e-3  # of the largest number: float32 sums in another order, through some hundred steps
EXACT = "top 20 of 50,000 items"
REPLICAS = (1, 5, 60)
PAPER = {  # the batch sizes and rates of the paper's profile, Task 1
    "emcdr": {"batch": 64},
    "sscdr": {"batch": 64},
    "lacdr": {"batch": 64, "lr": 0.001},
    "ptupcdr": {"batch": 128},
    "diffcdr": {"batch": 128},
}


@dataclass
class Bench:
    """One run: its options, and the rows of each part by name."""

    device: str
    quick: bool
    budget: float
    epochs: int
    start: float = field(default_factory=time.perf_counter)
    rows: dict[str, list[dict]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def say(self, text: str) -> None:
        print(f"{self.elapsed:6.1f} s  {text}", flush=True)

    def add(self, part: str, **row: object) -> None:
        self.rows.setdefault(part, []).append(row)
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        self.say(f"{part}: {', '.join(shown)}")

    @contextmanager
    def piece(self, part: str, name: str) -> Iterator[None]:
        """What fails inside is reported and remembered; what lacks a package is named."""
        try:
            yield
        except ModuleNotFoundError as error:
            self.skipped.append(f"{part} {name}: {error}")
            self.say(f"{part} {name}: left out, {error}")
        except Exception:
            self.failed.append(f"{part} {name}")
            self.say(f"{part} {name}: FAILED\n{traceback.format_exc()}")

    def fits(self, part: str, name: str) -> bool:
        if self.elapsed < self.budget:
            return True
        self.skipped.append(f"{part} {name}: the budget of {self.budget:.0f} s is spent")
        return False

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    @cached_property
    def domains(self) -> LinkedDomains:
        self.say("generating ratings")
        return LinkedDomains("tiny" if self.quick else "task1")


# Results.


def check(bench: Bench) -> None:
    """Each piece on the CPU and on the device, on small data."""
    for name, work in {**exact_pieces(), **model_pieces()}.items():
        if not bench.fits("check", name):
            continue
        with bench.piece("check", name):
            ours, theirs = ([x.detach().cpu().double() for x in work(d)] for d in (bench.device, "cpu"))
            worst = max(apart(a, b) for a, b in zip(ours, theirs, strict=True))
            allowed = 0.0 if name == EXACT else TOLERANCE
            bench.add("check", piece=name, difference=worst, tolerance=allowed)
            if not worst <= allowed:
                raise ValueError(f"{name} differs by {worst:.3g} of its largest value")


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))


def exact_pieces() -> dict[str, Callable[[str], list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    parameters = {n: v[None] for n, v in network.initial(10, 10, 128, generator).items()}
    x, c = torch.randn(2, 1, 300, 10, generator=generator)
    # Whole numbers: sums are exact, so equal scores are equal everywhere and the order is one.
    users, items = (torch.randint(-3, 4, (n, 10), generator=generator).float() for n in (500, 50_000))
    held = random_ratings(500, 50_000, 5_000, generator)
    draws, condition = torch.randn(4, 200, 6, generator=generator), torch.randn(200, 5, generator=generator)

    def folded(device: str) -> list[Tensor]:
        moved = {n: v.to(device) for n, v in parameters.items()}
        return [affine.transport(moved, plan(30, "fast"), 0.1, "none", x.to(device), c.to(device))]

    def stepwise(device: str) -> list[Tensor]:
        moved = {n: v.to(device) for n, v in parameters.items()}
        return [affine.solve_stepwise(moved, plan(30, "fast"), 0.1, "silu", x.to(device), c.to(device))]

    def top(device: str) -> list[Tensor]:
        return list(top_k(users.to(device), items.to(device), 20, held))

    def metrics(device: str) -> list[Tensor]:
        ranks = rank_metrics(users.to(device), items.to(device), held)
        moved = held.to(device)
        errors = rating_errors(predict(users.to(device), items.to(device), moved), moved.values, moved.users)
        return [torch.tensor(list({**ranks, **errors}.values()))]

    def vectors(device: str) -> list[Tensor]:
        model = VectorDiffusion(steps=100)
        trained = model.fit(draws.to(device), condition.to(device), 0)
        return [model.sample(trained, condition.to(device), normal_points(32, 6, 0).to(device))]

    def factors(replicas: int) -> Callable[[str], list[Tensor]]:
        def work(device: str) -> list[Tensor]:
            tables = [table(2_000, 300, 120, seed) for seed in range(replicas)]
            trainer = MatrixFactorization(epochs=2).fit(tables, "check", device)
            return [trainer.user_factors_, trainer.item_factors_]

        return work

    return {
        "folded solver": folded,
        "stepwise solver": stepwise,
        EXACT: top,
        "metrics": metrics,
        "vector diffusion": vectors,
        "matrix factorization, 1 replica": factors(1),
        "matrix factorization, 5 replicas": factors(5),
    }


def model_pieces() -> dict[str, Callable[[str], list[Tensor]]]:
    def trained(name: str) -> Callable[[str], list[Tensor]]:
        def work(device: str) -> list[Tensor]:
            model, given = small(name), [cell(seed, facts(name).needs) for seed in (0, 1)]
            for _ in model.fit([each.data for each in given], device):
                pass
            found = [model.scores(given[0].test.users, torch.arange(ITEMS))]
            if "rating" in model.objectives:
                found.append(model.predict(given[1].test.users, given[1].test.ratings, 1).mean)
            return found

        return work

    return {name: trained(name) for name in MODELS}


def table(ratings: int, users: int, items: int, seed: int) -> RatingTable:
    drawn = random_ratings(users, items, ratings, torch.Generator().manual_seed(seed))
    return RatingTable(drawn.users, drawn.items, drawn.values, users, items, seed)


# Steps.


@dataclass
class Loop:
    """DiffCDR's training laid open: its stack, its optimizer and the blocks of one epoch."""

    model: DiffCDR
    stack: Stack
    optimizer: object
    blocks: list[Batch]

    @classmethod
    def of(cls, replicas: int, device: str, quick: bool, size: int) -> Loop:
        """Blocks of `size` steps, the last ones that are not full left out."""
        users, ratings, items = (200, 2_560, 100) if quick else (14_000, 20_480, 64_443)
        problems = [random_problem(users, ratings, items, seed) for seed in range(replicas)]
        model = DiffCDR(**PAPER["diffcdr"])
        generators = [replica_generator(p.seed, model.name) for p in problems]
        model.begin(problems, generators, device)
        stack = Stack(problems, device)
        model.prepare(stack)
        drawn = EpochPlan.draw([ratings] * replicas, model.batch, generators)
        draws = drawn.spread(
            [model.draws(p, o, g) for p, o, g in zip(problems, drawn.orders, generators, strict=True)]
        )
        drawn, draws = drawn.to(device), {name: draw.to(device) for name, draw in draws.items()}

        def cut(tensor: Tensor, start: int) -> Tensor:
            return tensor[:, start : start + size].transpose(0, 1).contiguous()

        blocks = [
            Batch(cut(drawn.rows, s), cut(drawn.weight, s), {n: cut(d, s) for n, d in draws.items()})
            for s in range(0, drawn.steps - size + 1, size)
        ]
        return cls(model, stack, model.optimizer(), blocks)

    def eager(self, block: Batch) -> Tensor:
        full = dataclasses.replace(block, inputs=self.model.inputs(self.stack, block))
        losses = [self.model.step(self.stack, batch, self.optimizer) for batch in full.steps()]
        return torch.stack([torch.stack(list(loss.values())) for loss in losses])


@dataclass
class Factors:
    """The factorization's training laid open: its optimizer and the planned steps of one block."""

    adam: DeferredAdam
    flat: _FlatTables
    orders: list[Tensor]

    @classmethod
    def of(cls, replicas: int, device: str, quick: bool) -> Factors:
        size = (5_000, 300, 120) if quick else (400_000, 123_960, 50_052)
        first, trainer = table(*size, 0), MatrixFactorization()
        tables = [dataclasses.replace(first, seed=seed) for seed in range(replicas)]
        generators = [replica_generator(t.seed, "steps") for t in tables]
        initial = [trainer._initial(t, g) for t, g in zip(tables, generators, strict=True)]
        adam = DeferredAdam(torch.cat(initial).to(device), trainer.lr, 10 * trainer._steps(first))
        orders = [torch.randperm(len(t), generator=g) for t, g in zip(tables, generators, strict=True)]
        return cls(adam, _FlatTables(tables, trainer.batch, device), orders)

    @torch.no_grad()
    def plan(self, begin: int, end: int) -> list:
        return self.flat.plan(self.adam, list(range(len(self.orders))), self.orders, begin, end, 1)

    @torch.no_grad()
    def eager(self, steps: list) -> Tensor:
        return torch.stack([_step(self.adam, step) for step in steps])


def steps(bench: Bench) -> None:
    """Milliseconds a step, launched one by one and as a graph of one or sixteen steps."""
    for replicas in REPLICAS if not bench.quick else (1, 2):
        for size in (1, 4 if bench.quick else 16):
            name = f"diffcdr, {replicas} replicas, blocks of {size}"
            if bench.fits("steps", name):
                with bench.piece("steps", name):
                    diffcdr_steps(bench, replicas, size)
        name = f"mf, {replicas} replicas"
        if bench.fits("steps", name):
            with bench.piece("steps", name):
                factor_steps(bench, replicas)


def diffcdr_steps(bench: Bench, replicas: int, size: int) -> None:
    loop = Loop.of(replicas, bench.device, bench.quick, size)
    blocks = loop.blocks[: max(2, 128 // size)]
    first = loop.eager(blocks[0])
    bench_row(
        bench,
        "diffcdr",
        replicas,
        f"launched, blocks of {size}",
        size * (len(blocks) - 1),
        lambda: [loop.eager(block) for block in blocks[1:]],
    )
    again = Loop.of(replicas, bench.device, bench.quick, size)
    graph = CapturedSteps(again.model, again.stack, again.optimizer, again.blocks[0])
    torch.testing.assert_close(graph(again.blocks[0]), first, rtol=1e-4, atol=1e-5)
    bench_row(
        bench,
        "diffcdr",
        replicas,
        f"graph of {size}",
        size * (len(blocks) - 1),
        lambda: [graph(block) for block in again.blocks[1 : len(blocks)]],
    )
    for name, value in loop.model.parameters_.items():
        same(f"diffcdr's {name}", again.model.parameters_[name], value)


def factor_steps(bench: Bench, replicas: int) -> None:
    work, count = Factors.of(replicas, bench.device, bench.quick), 8 if bench.quick else 64
    planned: list = []
    work.plan(0, 2)
    bench_row(bench, "mf", replicas, "planning", count, lambda: planned.extend(work.plan(2, 2 + count)))
    work.eager(planned[:2])
    bench_row(bench, "mf", replicas, "launched", count - 2, lambda: work.eager(planned[2:]))
    again, size = Factors.of(replicas, bench.device, bench.quick), 4 if bench.quick else 16
    again.plan(0, 2)
    planned = again.plan(2, 2 + count)
    again.eager(planned[:2])
    rest = planned[2 : 2 + (count - 2) // size * size]
    parts = [rest[s : s + size] for s in range(0, len(rest), size)]
    with torch.no_grad():
        graph = CapturedFactorization(again.adam, parts[0])
        bench_row(bench, "mf", replicas, f"graph of {size}", len(rest), lambda: [graph(p) for p in parts])
    again.eager(planned[2 + len(rest) :])
    same("the factors", again.adam.rest, work.adam.rest)


@torch.no_grad()
def same(name: str, captured: Tensor, launched: Tensor) -> None:
    """Raise ValueError where a graph trains something else; one number may part where a slope is near 0."""
    distance = float((captured - launched).norm() / launched.norm())
    if not distance <= TOLERANCE:
        raise ValueError(f"{name} by a graph is {distance:.3g} of its norm away from that by launched steps")


def bench_row(bench: Bench, name: str, replicas: int, how: str, count: int, work: Callable) -> None:
    seconds = bench.seconds(work)
    bench.add(
        "steps", model=name, replicas=replicas, how=how, ms=1e3 * seconds / count, per_second=count / seconds
    )


# Throughput and a cell.


def table4(bench: Bench) -> None:
    """Thousands of rating rows a second in training (one epoch) and in prediction of the test users."""
    domains, factors = bench.domains, bench.domains.random_factors(0)
    members = domains.test_members(0.2, 0)
    users, held = domains.source_users(members, factors[0]), domains.ratings_of(members)
    for replicas in (1, 5) if not bench.quick else (1, 2):
        problems = [domains.problem(0.2, seed, *factors) for seed in range(replicas)]
        rows = sum(len(p.ratings) for p in problems)
        for name, settings in PAPER.items():
            if not bench.fits("table4", f"{name}, {replicas} replicas"):
                continue
            with bench.piece("table4", f"{name}, {replicas} replicas"):
                model = build(name, epochs=1, **settings)
                train = bench.seconds(lambda m=model, p=problems: m.trained(p, bench.device))

                def test(model=model, people=(users,) * replicas) -> None:
                    for vectors in model.transfer(people):
                        predict(vectors, factors[1][1], held)

                test()
                seconds = bench.seconds(test)
                bench.add(
                    "table4",
                    model=name,
                    replicas=replicas,
                    train=rows / train / 1e3,
                    test=replicas * len(held) / seconds / 1e3,
                    train_seconds=train,
                )


def task1(bench: Bench) -> None:
    """A cell of Table 1's Task 1 by stage: factors of both domains, DiffCDR, its two evaluations."""
    runs = [(bench.device, r, bench.epochs) for r in ((1, 5) if not bench.quick else (1, 2))]
    for device, replicas, epochs in [*runs, ("cpu", 1, 1)] if bench.device != "cpu" else runs:
        name = f"{device}, {replicas} seeds"
        if bench.fits("task1", name):
            with bench.piece("task1", name):
                cell_of_task1(bench, device, replicas, epochs)


def cell_of_task1(bench: Bench, device: str, replicas: int, epochs: int) -> None:
    domains, seeds = bench.domains, range(replicas)

    def stage(name: str, work: Callable[[], object], done: int) -> object:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        found: list = []
        seconds = bench.seconds(lambda: found.append(work()))
        memory = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None
        bench.add(
            "task1", device=device, seeds=replicas, stage=name, epochs=done, seconds=seconds, peak_mb=memory
        )
        return found[0]

    def fitted(tables: list[RatingTable], purpose: str) -> list[tuple[Tensor, Tensor]]:
        trainer = MatrixFactorization(epochs=epochs).fit(tables, purpose, device)
        return list(zip(trainer.user_factors_.cpu(), trainer.item_factors_.cpu(), strict=True))

    source = stage(
        "source factors", lambda: fitted([domains.source_table(s) for s in seeds], "source"), epochs
    )
    target = stage(
        "target factors", lambda: fitted([domains.target_table(0.2, s) for s in seeds], "target"), epochs
    )
    problems = [domains.problem(0.2, s, source[s], target[s]) for s in seeds]
    model = stage(
        "diffcdr", lambda: DiffCDR(**PAPER["diffcdr"], epochs=epochs).trained(problems, device), epochs
    )
    members = [domains.test_members(0.2, s) for s in seeds]
    held = [domains.ratings_of(m) for m in members]
    users = [domains.source_users(m, f) for m, f in zip(members, source, strict=True)]
    moved = stage("transfer of the test users", lambda: model.transfer(users), 0)

    def rated() -> float:
        for vectors, (_, items), ratings in zip(moved, target, held, strict=True):
            errors = rating_errors(predict(vectors, items, ratings), ratings.values, ratings.users)
        return errors["mae"]

    def ranked() -> None:
        for vectors, (_, items), ratings in zip(moved, target, held, strict=True):
            rank_metrics(vectors.to(device), items.to(device), ratings)

    stage("rating metrics", rated, 0)
    stage("ranking metrics", ranked, 0)


# Kernels.


def kernels(bench: Bench) -> None:
    """Of each training step: what runs, how often, and how long the device is at work."""
    for replicas in (1, 5):
        with bench.piece("kernels", f"diffcdr, {replicas} replicas"):
            loop = Loop.of(replicas, bench.device, bench.quick, 2 if bench.quick else 16)
            loop.eager(loop.blocks[0])
            profile(bench, "diffcdr", replicas, len(loop.blocks[1].rows), lambda g=loop: g.eager(g.blocks[1]))
        with bench.piece("kernels", f"mf, {replicas} replicas"):
            work = Factors.of(replicas, bench.device, bench.quick)
            planned = work.plan(0, 18)
            work.eager(planned[:2])
            profile(bench, "mf", replicas, 16, lambda w=work, p=planned: w.eager(p[2:]))


def profile(bench: Bench, name: str, replicas: int, count: int, work: Callable[[], object]) -> None:
    # Profiled runs are slowed by the profiler: the share at work is of a run without it.
    wall = bench.seconds(work)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if bench.device != "cpu" else []
    with torch.profiler.profile(activities=kinds) as profiler:
        work()
        bench.wait()
    there = torch.autograd.DeviceType.CUDA if bench.device != "cpu" else torch.autograd.DeviceType.CPU
    events = pd.DataFrame(
        [
            (e.name[:90], e.time_range.elapsed_us() if bench.device != "cpu" else e.self_cpu_time_total)
            for e in profiler.events()
            if e.device_type == there
        ],
        columns=["name", "us"],
    )
    total = events["us"].sum()
    bench.add(
        "kernels",
        model=name,
        replicas=replicas,
        launched_a_step=len(events) / count,
        busy_us_a_step=total / count,
        wall_us_a_step=1e6 * wall / count,
        busy=total / 1e6 / wall,
    )
    top = events.groupby("name")["us"].agg(["sum", "count"]).sort_values("sum", ascending=False).head(10)
    for kernel, (us, calls) in top.iterrows():
        bench.rows.setdefault("top10", []).append(
            {
                "model": name,
                "replicas": replicas,
                "kernel": kernel,
                "us_a_step": us / count,
                "calls_a_step": calls / count,
            }
        )


PARTS = {"check": check, "steps": steps, "kernels": kernels, "table4": table4, "task1": task1}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("output", type=Path, help="the JSON file to write")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    arguments.add_argument("--budget", type=float, default=300, help="seconds after which no piece begins")
    arguments.add_argument("--epochs", type=int, default=2, help="of the Task 1 cell; the paper has 10")
    arguments.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    given = arguments.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        print("No CUDA device is there; choose --device cpu.", file=sys.stderr)
        return 2
    bench = Bench(given.device, given.quick, given.budget, given.epochs)
    facts_of_machine = {
        "device": torch.cuda.get_device_name() if given.device != "cpu" else "CPU",
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    bench.say(", ".join(f"{name} {value}" for name, value in facts_of_machine.items()))
    for name in given.only or PARTS:
        if bench.fits(name, "all of it"):
            with bench.piece(name, "all of it"):
                PARTS[name](bench)
        written = {
            "machine": facts_of_machine,
            "seconds": bench.elapsed,
            "parts": bench.rows,
            "failed": bench.failed,
            "skipped": bench.skipped,
        }
        given.output.write_text(json.dumps(written, indent=1))
    with pd.option_context("display.width", 160, "display.max_columns", 20, "display.max_colwidth", 90):
        for name, rows in bench.rows.items():
            print(f"\n{name}\n{pd.DataFrame(rows).to_string(index=False, float_format='{:.4g}'.format)}")
    print(
        f"\nfailed: {', '.join(bench.failed) or 'nothing'}\nskipped: {'; '.join(bench.skipped) or 'nothing'}"
    )
    return bool(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
