"""`python -m benchmarks.growth`: time and memory as the work grows, with fitted exponents and log-log plots.

An exponent is the slope of log time against log size over the upper half of the sizes, where fixed costs no
longer show: 1 is linear.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from assets.data.ingest import ingest
from benchmarks.data import K, no_history, random_problem
from benchmarks.measure import Result, machine, measured
from benchmarks.paths.reviews import DOMAIN
from ml.data import SourceUsers
from ml.diffusion import affine
from ml.diffusion.solver import plan
from ml.evaluation.ranking import top_k
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.models.diffcdr import DiffCDR

matplotlib.use("Agg")

RESULTS = Path(__file__).with_name("growth.json")
PLOTS = Path(__file__).parents[1] / "docs" / "plots"
BLOCK = 100_000  # reviews of a generated file that differ only in user ids from the next as many


@dataclass(frozen=True)
class Curve:
    """A piece of work at each size of an axis; work(size, folder) prepares the call that is measured."""

    axis: str
    name: str
    sizes: Sequence[int]
    work: Callable[[int, Path], Callable[[], object]]


def factor_epoch(ratings: int, folder: Path) -> Callable[[], object]:
    """Users and items grow with the ratings, as in a larger data set."""
    table = _rating_table(ratings, seed=0)
    return lambda: MatrixFactorization(epochs=1).fit([table], "growth")


def _rating_table(ratings: int, seed: int) -> RatingTable:
    generator = torch.Generator().manual_seed(seed)
    n_users, n_items = max(10, ratings // 15), max(10, ratings // 20)
    return RatingTable(
        torch.randint(n_users, (ratings,), generator=generator, dtype=torch.int32),
        torch.randint(n_items, (ratings,), generator=generator, dtype=torch.int32),
        torch.randint(1, 6, (ratings,), generator=generator).float(),
        n_users,
        n_items,
        seed,
    )


def read_file(reviews: int, folder: Path) -> Callable[[], object]:
    path = folder / f"{reviews}.json.gz"
    rng = np.random.default_rng(0)
    size = min(reviews, BLOCK)
    columns = [rng.integers(high, size=size).tolist() for high in (size // 8, size // 8, 5, 10**9)]
    line = (
        '{{"reviewerID": "A@@@{:06d}", "asin": "B{:06d}", "reviewText": "As good as the last one.", '
        '"overall": {}.0, "unixReviewTime": {}}}\n'
    )
    block = "".join(line.format(u, i, 1 + s, t) for u, i, s, t in zip(*columns, strict=True))
    with gzip.open(path, "wt", compresslevel=1, encoding="ascii") as file:
        for number in range(reviews // size):
            file.write(block.replace("@@@", f"{number:03d}"))
    return lambda: ingest(path, folder / "growth", DOMAIN)


def recommend(users: int, folder: Path) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    factors, items = (torch.randn(rows, K, generator=generator) for rows in (users, 64_443))
    return lambda: top_k(factors, items)


def transfer(users: int, folder: Path) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    state = DiffCDR().initial(random_problem(1, 1, 1, 0), generator)
    source = SourceUsers(torch.randn(users, K, generator=generator), no_history(users), torch.zeros(1, K))
    return lambda: DiffCDR().load_state_dict(state).transfer([source])


def diffcdr_epoch(seeds: int, folder: Path) -> Callable[[], object]:
    problems = [random_problem(5_000, 5_000, 1_000, seed) for seed in range(seeds)]
    return lambda: DiffCDR(epochs=1).trained(problems)


def factor_epoch_of_seeds(seeds: int, folder: Path) -> Callable[[], object]:
    tables = [_rating_table(50_000, 0) for _ in range(seeds)]
    return lambda: MatrixFactorization(epochs=1).fit(tables, "growth")


def solve(folded: bool, nfe: int, folder: Path) -> Callable[[], object]:
    """20 folds, or one stepwise solve of 1,000 users."""
    generator = torch.Generator().manual_seed(0)
    state = DiffCDR().initial(random_problem(1, 1, 1, 0), generator)
    parameters = {name: value[None] for name, value in state.items()}
    x = torch.randn(1, 1_000, K, generator=generator)
    steps = plan(nfe)
    if folded:
        return lambda: [affine.fold(parameters, steps, 0.1) for _ in range(20)]
    return lambda: affine.solve_stepwise(parameters, steps, 0.1, "none", x, x)


CURVES = (
    Curve("ratings", "mf, one epoch", (10**4, 10**5, 10**6, 10**7), factor_epoch),
    Curve("ratings", "ingestion", (10**4, 10**5, 10**6, 10**7), read_file),
    Curve("users", "top-20 of 64,443 items", (10**2, 10**3, 10**4), recommend),
    Curve("users", "diffcdr transfer", (10**3, 10**4, 10**5, 10**6), transfer),
    Curve("seeds", "diffcdr, one epoch", (1, 2, 5, 10, 20), diffcdr_epoch),
    Curve("seeds", "mf, one epoch", (1, 2, 5, 10, 20), factor_epoch_of_seeds),
    Curve("nfe", "fold", (5, 10, 20, 40, 80), partial(solve, True)),
    Curve("nfe", "step by step", (5, 10, 20, 40, 80), partial(solve, False)),
)


def main() -> None:
    wanted = _options().axis
    torch.set_num_threads(1)  # also while inputs are made: a pool of threads would not survive the forks
    before = json.loads(RESULTS.read_text()) if wanted else []
    kept = {axis: list(group) for axis, group in itertools.groupby(before, key=lambda row: row["axis"])}
    rows = []
    for axis, curves in itertools.groupby(CURVES, key=lambda curve: curve.axis):
        again = not wanted or axis in wanted
        rows += [row for curve in curves for row in measure(curve)] if again else kept.get(axis, [])
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    PLOTS.mkdir(exist_ok=True)
    for axis, group in itertools.groupby(rows, key=lambda row: row["axis"]):
        plot(axis, list(group), PLOTS / f"growth_{axis}.png")
    _print(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    axes = list(dict.fromkeys(curve.axis for curve in CURVES))
    parser.add_argument("--axis", nargs="+", choices=axes, help="measure these again; default: all")
    return parser.parse_args()


def measure(curve: Curve) -> list[dict]:
    """A row for each size: axis, curve, size, seconds, memory_mb, and the curve's exponent of time."""
    runs = []
    for size in curve.sizes:
        with tempfile.TemporaryDirectory() as folder:
            small = curve.work(curve.sizes[0], Path(folder))
            runs.append(measured(_call, small, curve.work(size, Path(folder))))
        print(f"{curve.name}, {size:,} {curve.axis}: {runs[-1].seconds:.3g} s", file=sys.stderr, flush=True)
    slope = exponent(curve.sizes, [run.seconds for run in runs])
    return [
        {
            "axis": curve.axis,
            "curve": curve.name,
            "size": size,
            "seconds": run.seconds,
            "memory_mb": run.memory_mb,
            "exponent": slope,
            "machine": machine("cpu"),
        }
        for size, run in zip(curve.sizes, runs, strict=True)
    ]


def _call(work: Callable[[], object]) -> Callable[[], Result]:
    work()
    return dict


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds against log size over the upper half of the sizes, at least two."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def plot(axis: str, rows: list[dict], path: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for curve, group in itertools.groupby(rows, key=lambda row: row["curve"]):
        points = list(group)
        sizes = [row["size"] for row in points]
        label = f"{curve}: {axis}^{points[0]['exponent']:.2f}"
        panels[0].loglog(sizes, [row["seconds"] for row in points], "o-", label=label)
        # A logarithmic axis has no zero, and the peak moves in pages.
        panels[1].loglog(sizes, [max(row["memory_mb"], 0.1) for row in points], "o-", label=curve)
    for panel, title in zip(panels, ("processor time, s", "peak memory above the start, MiB"), strict=True):
        panel.set(xlabel=axis, title=title)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _print(rows: list[dict]) -> None:
    table = Table(title=f"Growth. {rows[0]['machine']}", title_justify="left")
    for title in ("axis", "curve", "sizes", "seconds", "MiB", "exponent"):
        table.add_column(title, justify="left" if title in ("axis", "curve") else "right")
    for (axis, curve), group in itertools.groupby(rows, key=lambda row: (row["axis"], row["curve"])):
        points = list(group)
        columns = [
            " ".join(f"{row[field]:{form}}" for row in points)
            for field, form in (("size", ".0e"), ("seconds", ".2g"), ("memory_mb", ".0f"))
        ]
        table.add_row(axis, curve, *columns, f"{points[0]['exponent']:.2f}")
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    main()
