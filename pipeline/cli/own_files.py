"""Two rating files of one's own, in place of a task of the catalogue: `run` and `inspect`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli.options import ReportFormat
from pipeline.cli.terminal import print_rows


class Ambiguous(ValueError):
    """Neither a task nor two files were given, or both."""


def files(tasks: Sequence[str], source: Path | None, target: Path | None) -> list[Path]:
    """Source and target, or nothing where tasks were given; raises Ambiguous."""
    given = [file for file in (source, target) if file is not None]
    if bool(tasks) == bool(given) or len(given) == 1:
        raise Ambiguous("give either --task, or --source and --target")
    return [file.absolute() for file in given]


def columns(users, items, ratings, times, titles) -> dict[str, Sequence[str]]:
    """Names of columns by what they hold."""
    return {"user": users, "item": items, "rating": ratings, "timestamp": times, "title": titles}


def read(files, columns, scale, source_scale, target_scale, on_bad_rows):
    """Both files as a Pair, checked; raises OwnDataError."""
    from assets.data.own_data import Options, read_pair
    from assets.state.store import Store

    scales = {side: ends for side, ends in (("source", source_scale), ("target", target_scale)) if ends}
    return read_pair(Store(), *files, Options(columns, scale, scales, str(on_bad_rows)))


def enter(pair) -> str:
    """Report on a pair and make it a task of this process's catalogue, in the home; returns its name."""
    from assets.data import own_data
    from assets.state.store import Store

    print_report(own_data.examine(pair), ReportFormat.table)
    task, file = own_data.enter(Store(), pair)
    os.environ["DIFFCDR_CATALOG"] = str(file)
    return task


def print_report(report, format: ReportFormat) -> None:
    """What two domains hold, as `inspect` says it."""
    if format is ReportFormat.json:
        print(json.dumps(report.as_json(), indent=1))
        return
    names = ["", f"source: {report.source.name}", f"target: {report.target.name}"]
    print_rows(names, report.rows(), names[1:], "Data before training")
    for warning in report.warnings:
        print(f"warning: {warning}")
