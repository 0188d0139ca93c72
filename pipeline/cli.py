"""The command line: `diffcdr run` chains the stages, `diffcdr results` prints every number."""

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from assets.store import PROJECT

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
errors = Console(stderr=True)
log = logging.getLogger("diffcdr")


class Format(StrEnum):
    csv = "csv"
    json = "json"
    table = "table"


@app.callback()
def main() -> None:
    """Diffusion cross-domain recommendation: from rating files to cold-start results."""
    for name in ("DIFFCDR_HOME", "DIFFCDR_CATALOG", "DIFFCDR_PROFILES"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])
    # Dagster's state folders in dagster.yaml are relative to the project.
    os.chdir(PROJECT)


@app.command()
def run(
    task: Annotated[list[str], typer.Option(help="Task of the catalogue; may be repeated.")],
    beta: Annotated[
        list[float], typer.Option(help="Share of test users; default: all of the catalogue.")
    ] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seed; default: all of the catalogue.")] = [],  # noqa: B006
    profile: Annotated[list[str], typer.Option(help="Profile of settings.")] = ["paper"],  # noqa: B006
    model: Annotated[list[str], typer.Option(help="Model; default: all of the profile.")] = [],  # noqa: B006
    debug: Annotated[bool, typer.Option(help="Show the whole traceback of an error.")] = False,
) -> None:
    """Run every stage of a task; what is up to date is not done again."""
    _log_to_terminal()
    start = time.perf_counter()
    with _errors_in_one_line(debug):
        from pipeline.chain import Chain

        with _dagster_instance() as instance:
            chain = Chain(instance, task, beta, seed, profile, model)
            for title, step in chain.steps():
                log.info("— %s", title)
                step()
        _print_tables(chain.tasks, chain.profiles)
    errors.print(f"done in {time.perf_counter() - start:.0f} s")


@app.command()
def results(
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    profile: Annotated[str | None, typer.Option(help="Only this profile.")] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """Print one row per metric of every finished cell."""
    from assets.results import read_results
    from assets.store import Store

    frame = read_results(Store(), task, profile)
    if format is Format.csv:
        frame.to_csv(sys.stdout, index=False)
    elif format is Format.json:
        print(frame.to_json(orient="records", indent=1))
    else:
        _print_rows(list(frame.columns), frame.astype(str).values.tolist(), len(frame.columns) - 1, "Results")


def _log_to_terminal() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


@contextlib.contextmanager
def _errors_in_one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if debug:
            raise
        # Dagster wraps what an asset raises; the reader wants the asset's own sentence.
        while error.__cause__ is not None:
            error = error.__cause__
        errors.print(f"error: {type(error).__name__}: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _dagster_instance() -> Iterator:
    """The project's Dagster instance: DAGSTER_HOME's where it is set, else the one of ./dagster.yaml."""
    from dagster import DagsterInstance
    from dagster._core.instance.ref import InstanceRef

    if os.environ.get("DAGSTER_HOME"):
        with DagsterInstance.get() as instance:
            yield instance
        return
    with (
        tempfile.TemporaryDirectory() as home,
        DagsterInstance.from_ref(InstanceRef.from_dir(home, config_dir=str(PROJECT))) as instance,
    ):
        yield instance


def _print_tables(task_names: Sequence[str], profiles: Sequence[str]) -> None:
    from assets.parts import table1_layouts, table2_layouts
    from assets.profiles import load_profiles
    from assets.results import read_results
    from assets.store import Store

    store = Store()
    for layout in table1_layouts(store, task_names):
        _print_layout(layout, "Table 1: data statistics")
    for name in profiles:
        results = read_results(store, profile=name)
        for layout in table2_layouts(load_profiles()[name], results[results["task"].isin(task_names)]):
            _print_layout(layout, f"Table 2, profile {name}: {layout.caption}")
    folders = [store.report("table1"), *(store.report(name, "table2") for name in profiles)]
    for folder in [*folders, store.report("report")]:
        for file in sorted(folder.glob("*.[hm][td]*")):
            print(f"wrote {_short(file)}")


def _print_layout(layout, title: str) -> None:
    for heading, part in layout.parts():
        names = [" ".join(filter(None, c)) if isinstance(c, tuple) else c for c in part.columns]
        # Spreads are in the files; here the columns must fit a terminal.
        rows = [[text.split(" ± ")[0] for text in row] for row in part.without_repeats()]
        _print_rows(names, rows, max(1, part.keys), f"{title}. {heading}" if heading else title)


def _short(path: Path) -> str:
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def _print_rows(names: Sequence[str], rows: Sequence[Sequence[str]], left: int, title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, name in enumerate(names):
        table.add_column(name, justify="left" if position < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_styled, row))
    width = None if sys.stdout.isatty() else 400
    Console(width=width).print(table)


def _styled(cell: str) -> str:
    marked = cell.replace("[", r"\[")
    return marked if "**" not in marked else "[bold]" + marked.replace("**", "") + "[/bold]"
