"""`python -m benchmarks.run`: measure the hot paths, print the table, write `results.json`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import in_child
from benchmarks.paths import PATHS
from benchmarks.paths.path import Options, compare

RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)  # also while inputs are made: a pool of threads would not survive the forks
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        options = Options(arguments.quick, arguments.device, Path(folder))
        for name in arguments.only or PATHS:
            # A fork for each path: its inputs are gone with it.
            rows.append(in_child(lambda name=name: compare(PATHS[name], options)))
            if not arguments.quick:
                _write(rows)
    _print(rows)
    wrong = [row["path"] for row in rows if not row["difference"] <= row["tolerance"]]
    if wrong:
        print(f"results differ by more than the tolerance: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Each hot path against a textbook version of it.")
    parser.add_argument("--only", action="append", choices=PATHS, help="measure this path; may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once; nothing is written")
    parser.add_argument("--device", default="cpu", help="where the models' tensors live, such as cuda")
    return parser.parse_args()


def _write(rows: list[dict]) -> None:
    """Replace the rows measured now, keep the others."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    by_path = {row["path"]: row for row in [*known, *rows]}
    ordered = [by_path[name] for name in PATHS if name in by_path]
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def _print(rows: list[dict]) -> None:
    table = Table(title=f"Ours against the textbook, medians. {rows[0]['machine']}", title_justify="left")
    for title in ("path", "work"):
        table.add_column(title)
    for title in (
        "ours, s",
        "textbook, s",
        "ratio",
        "target",
        "difference",
        "tolerance",
        "MiB",
        "MiB textbook",
    ):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row["path"],
            row["work"],
            f"{row['ours']:.3g}",
            f"{row['textbook']:.3g}",
            f"[{'green' if row['ratio'] >= row['target'] else 'red'}]{row['ratio']:.1f}[/]",
            f"{row['target']:g}",
            f"{row['difference']:.1e}",
            f"{row['tolerance']:g}",
            f"{row['ours_memory_mb']:.0f}",
            f"{row['textbook_memory_mb']:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    sys.exit(main())
