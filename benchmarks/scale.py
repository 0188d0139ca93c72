"""`python -m benchmarks.scale`: a cell of many generated ratings through the product's own steps, each alone
in a process, with its time and peak memory: what one machine takes.

Half of the ratings are the source domain's, half the target's; half of the source's users are in both. Users
and items are drawn with a long tail. The ratings mean nothing, so no error is printed. Every size that was
measured is kept, and how time and memory grow is a plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import torch
from rich.console import Console
from rich.table import Table

from assets.data.ratings import ingest_domain
from assets.data.reviews import obtain
from assets.data.splits import draw_split, find_overlap
from assets.settings.axes import Axes
from assets.settings.catalog import load_catalog
from assets.settings.profile import Profile, load_profiles
from assets.state.compute import Compute
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.factors import train_source, train_target
from assets.training.run import Training
from benchmarks.measure import in_child, machine, peak_mb
from ml.evaluation.selection import OBJECTIVES

RESULTS = Path(__file__).with_name("scale.json")
PLOT = Path(__file__).parents[1] / "docs" / "plots" / "scale_ratings.png"
PER_USER, PER_ITEM = 50, 400  # ratings
CATALOG = """
domains:
  wide_source:
    {{url: {folder}/source.parquet, kind: parquet, columns: {{user: u, item: i, rating: r, timestamp: t}}}}
  wide_target:
    {{url: {folder}/target.parquet, kind: parquet, columns: {{user: u, item: i, rating: r, timestamp: t}}}}
tasks:
  wide: {{source: wide_source, target: wide_target}}
"""
MODELS = ("emcdr", "diffcdr")
BEFORE_SEEDS = 2  # stages


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = options.ratings, options.seeds, options.epochs
        rows = []
        for row in measure(Path(folder), *size, options.objective):
            rows.append(row)
            # After each stage, since the largest take hours.
            runs = _keep(rows, options)
    _print(rows, options)
    if options.output == RESULTS:
        plot(runs, PLOT)


def _keep(rows: list[dict], options: argparse.Namespace) -> list[dict]:
    """All that was measured, in the file too: what `rows` has anew takes the place of what it was."""
    asked = {name: getattr(options, name) for name in ("ratings", "epochs", "objective")}
    known = json.loads(options.output.read_text()) if options.output.exists() else []
    same = [run for run in known if all(run[name] == value for name, value in asked.items())]
    new = {(row["stage"], row["seeds"]) for row in rows}
    stages = [row for run in same for row in run["stages"] if (row["stage"], row["seeds"]) not in new]
    runs = [run for run in known if run not in same]
    runs.append({"machine": machine("cpu"), **asked, "stages": [*stages, *rows]})
    runs.sort(key=lambda run: (run["objective"], run["ratings"]))
    options.output.write_text(json.dumps(runs, indent=1) + "\n")
    return runs


def measure(folder: Path, ratings: int, seeds: Sequence[int], epochs: int, objective: str) -> Iterator[dict]:
    """A row a stage: stage, how many seeds it was for, wall and processor seconds, peak memory in MiB, and
    that of an idle process. What comes before the splits is for any number of seeds and measured once."""
    in_child(lambda: generate(folder, ratings))
    (folder / "catalog.yaml").write_text(CATALOG.format(folder=folder))
    for number in seeds:
        for name, work in stages(folder, number, epochs, objective)[
            0 if number == seeds[0] else BEFORE_SEEDS :
        ]:
            row = {"stage": name, "seeds": number, **in_child(lambda work=work: _measured(work))}
            print(f"{name}, {number}: {row['wall']:.0f} s, {row['peak_mb']:,.0f} MiB", flush=True)
            yield row


def generate(folder: Path, ratings: int) -> None:
    """source.parquet and target.parquet: users u, items i, stars r and seconds t."""
    users, items = ratings // 2 // PER_USER, ratings // 2 // PER_ITEM
    for side, first in (("source", 0), ("target", users // 2)):
        with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder)}) as con:
            con.execute("SELECT setseed(0.5)")
            con.execute(
                f"""COPY (SELECT 'U' || ({first} + floor({users} * random() ** 2)::BIGINT) AS u,
                                 'I' || floor({items} * random() ** 2)::BIGINT AS i,
                                 1 + floor(5 * random())::INTEGER AS r, 1000000000 + range AS t
                          FROM range({ratings // 2})) TO '{folder}/{side}.parquet'"""
            )


def stages(folder: Path, seeds: int, epochs: int, objective: str) -> list[tuple[str, Callable[[], object]]]:
    """The steps of a cell by name, in their order."""
    catalog = load_catalog(folder / "catalog.yaml")
    axes = Axes(catalog)
    store, compute = Store(home=str(folder / "home")), Compute(device="cpu")
    profile = _profile(seeds, epochs, objective)
    cells = [axes.parse(f"wide|b20-s{seed}") for seed in range(seeds)]
    tracking = MlflowTracking(home=str(folder / "home"))

    def data(side: str) -> Callable[[], object]:
        domain = catalog.domains[f"wide_{side}"]
        return lambda: (obtain(store, domain), ingest_domain(store, domain))

    def split() -> None:
        find_overlap(store, catalog, "wide")
        for cell in cells:
            draw_split(store, catalog, cell)

    def model(name: str) -> Callable[[], object]:
        judged = OBJECTIVES[objective]
        return lambda: Training(store, compute, tracking, catalog, profile, name, judged, {}).run(cells)

    return [
        ("ingest source", data("source")),
        ("ingest target", data("target")),
        ("overlap and split", split),
        ("source factors", lambda: train_source(store, compute, catalog, profile, cells, objective)),
        ("target factors", lambda: train_target(store, compute, catalog, profile, cells, objective)),
        *((name, model(name)) for name in MODELS),
    ]


def _profile(seeds: int, epochs: int, objective: str) -> Profile:
    """The paper's, for one objective and as many epochs; of another name for each number of seeds, so that
    none finds its factors made."""
    paper = load_profiles()["paper"]
    entries = {
        name: dataclasses.replace(entry, settings={**entry.settings, "epochs": epochs})
        for name, entry in paper.entries.items()
        if name in MODELS
    }
    return dataclasses.replace(
        paper,
        name=f"paper_{seeds}",
        objectives=(objective,),
        base_factors={**paper.base_factors, "epochs": epochs},
        entries={**paper.entries, **entries},
    )


def _measured(work: Callable[[], object]) -> dict[str, float]:
    idle, wall = peak_mb(), time.perf_counter()
    work()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": time.perf_counter() - wall,
        "processor": used.ru_utime + used.ru_stime,
        "peak_mb": peak_mb(),
        "idle_mb": idle,
    }


def plot(runs: list[dict], path: Path) -> None:
    """Time and peak memory of each stage by ratings, for one seed, one epoch and ratings as objective."""
    from matplotlib.figure import Figure

    stages: dict[str, list[tuple[int, dict]]] = {}
    for run in runs:
        for row in run["stages"] if (run["objective"], run["epochs"]) == ("rating", 1) else []:
            if row["seeds"] == 1:
                stages.setdefault(row["stage"], []).append((run["ratings"], row))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for stage, rows in stages.items():
        sizes = [size for size, _ in rows]
        panels[0].loglog(sizes, [max(row["processor"], 0.1) for _, row in rows], "o-", label=stage)
        panels[1].loglog(sizes, [row["peak_mb"] for _, row in rows], "o-", label=stage)
    for panel, title in zip(panels, ("processor time, s", "peak memory, MiB"), strict=True):
        panel.set(xlabel="ratings of both domains", title=title)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def _print(rows: list[dict], options: argparse.Namespace) -> None:
    title = f"{options.ratings:,} ratings, {options.epochs} epochs, {options.objective}. {machine('cpu')}"
    table = Table(title=title, title_justify="left")
    for name in ("stage", "seeds", "wall, s", "processor, s", "peak, MiB", "above idle, bytes a rating"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        above = (row["peak_mb"] - row["idle_mb"]) * 2**20 / options.ratings
        numbers = f"{row['wall']:.0f}", f"{row['processor']:.0f}", f"{row['peak_mb']:,.0f}", f"{above:.1f}"
        table.add_row(row["stage"], str(row["seeds"]), *numbers)
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--ratings", type=int, default=100_000_000, help="of both domains together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="how many, one run for each number")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="rating")
    parser.add_argument("--folder", help="where files are made and removed; default: the system's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
