"""The command line: `run` chains the stages, `inspect` looks at data, `results` prints every number."""

import contextlib
import json
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

from assets.state.store import PROJECT

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
errors = Console(stderr=True)
log = logging.getLogger("diffcdr")


class Format(StrEnum):
    csv = "csv"
    json = "json"
    table = "table"


class ReportFormat(StrEnum):
    json = "json"
    table = "table"


Source = Annotated[Path | None, typer.Option(help="Rating file of your own: CSV, TSV, JSON lines, Parquet.")]
Target = Annotated[Path | None, typer.Option(help="Rating file of the domain to recommend in.")]
UserColumn = Annotated[list[str], typer.Option(help="Column of the user ids; once for each file.")]
ItemColumn = Annotated[list[str], typer.Option(help="Column of the item ids.")]
RatingColumn = Annotated[list[str], typer.Option(help="Column of the ratings.")]
TimeColumn = Annotated[list[str], typer.Option(help="Column of the times.")]
Scale = Annotated[tuple[float, float], typer.Option(help="Lowest and highest legal rating of own files.")]
Debug = Annotated[bool, typer.Option(help="Show the whole traceback of an error.")]


@app.callback()
def main(context: typer.Context) -> None:
    """Diffusion cross-domain recommendation: from rating files to cold-start results."""
    context.obj = Path.cwd()
    for name in ("DIFFCDR_HOME", "DIFFCDR_CATALOG", "DIFFCDR_PROFILES"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])
    # Dagster's state folders in dagster.yaml are relative to the project.
    os.chdir(PROJECT)


@app.command()
def run(
    context: typer.Context,
    task: Annotated[list[str], typer.Option(help="Task of the catalogue; may be repeated.")] = [],  # noqa: B006
    source: Source = None,
    target: Target = None,
    beta: Annotated[
        list[float], typer.Option(help="Share of test users; default: all of the catalogue.")
    ] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seed; default: all of the catalogue.")] = [],  # noqa: B006
    profile: Annotated[list[str], typer.Option(help="Profile of settings.")] = ["paper"],  # noqa: B006
    model: Annotated[list[str], typer.Option(help="Model; default: all of the profile.")] = [],  # noqa: B006
    user_col: UserColumn = [],  # noqa: B006
    item_col: ItemColumn = [],  # noqa: B006
    rating_col: RatingColumn = [],  # noqa: B006
    time_col: TimeColumn = [],  # noqa: B006
    scale: Scale = (1.0, 5.0),
    debug: Debug = False,
) -> None:
    """Run every stage of a task, or of two files of your own; what is up to date is not done again."""
    _log_to_terminal()
    start = time.perf_counter()
    with _errors_in_one_line(debug):
        files = _files(context, task, source, target)
        if files:
            pair = _read_pair(files, user_col, item_col, rating_col, time_col, scale)
            task = [_enter(pair)]
        from pipeline.chain import Chain

        with _dagster_instance() as instance:
            chain = Chain(instance, task, beta, seed, profile, model)
            _perform(chain.steps())
        _print_tables(chain.tasks, chain.profiles)
    if files:
        print(f"see it: DIFFCDR_CATALOG={os.environ['DIFFCDR_CATALOG']} make ui")
    errors.print(f"done in {time.perf_counter() - start:.0f} s")


@app.command()
def inspect(
    context: typer.Context,
    task: Annotated[str | None, typer.Option(help="Task of the catalogue.")] = None,
    source: Source = None,
    target: Target = None,
    user_col: UserColumn = [],  # noqa: B006
    item_col: ItemColumn = [],  # noqa: B006
    rating_col: RatingColumn = [],  # noqa: B006
    time_col: TimeColumn = [],  # noqa: B006
    scale: Scale = (1.0, 5.0),
    format: Annotated[ReportFormat, typer.Option(help="How to print.")] = ReportFormat.table,
    debug: Debug = False,
) -> None:
    """Report on two domains and the users they share, before anything is trained."""
    _log_to_terminal()
    with _errors_in_one_line(debug):
        files = _files(context, [task] if task else [], source, target)
        if files:
            from assets.data.own_data import examine

            report = examine(_read_pair(files, user_col, item_col, rating_col, time_col, scale))
        else:
            report = _inspect_task(task)
        _print_report(report, format)


@app.command()
def results(
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    profile: Annotated[str | None, typer.Option(help="Only this profile.")] = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.table,
) -> None:
    """Print one row per metric of every finished cell."""
    from assets.report.results import read_results
    from assets.state.store import Store

    frame = read_results(Store(), task, profile)
    if format is Format.csv:
        frame.to_csv(sys.stdout, index=False)
    elif format is Format.json:
        print(frame.to_json(orient="records", indent=1))
    else:
        _print_rows(list(frame.columns), frame.astype(str).values.tolist(), len(frame.columns) - 1, "Results")


@app.command()
def verdict(
    task: Annotated[list[str], typer.Option(help="Task of the catalogue; default: all with results.")] = [],  # noqa: B006
    profile: Annotated[str, typer.Option(help="Profile whose models are compared.")] = "tuned",
    debug: Debug = False,
) -> None:
    """Say whether transfer helps, by how much, and which model to use, from the cells that are finished."""
    with _errors_in_one_line(debug):
        from assets.report.parts import verdict_layouts
        from assets.settings.axes import CATALOG
        from assets.state.store import Store

        for name in task or list(CATALOG.tasks):
            settings = _known_profile(name, profile)
        shown = verdict_layouts(Store(), settings, task or list(CATALOG.tasks))
        if not shown:
            raise LookupError(
                f"no finished cell of profile {profile} with validation users; run "
                f"`diffcdr run --task … --profile {profile}` first"
            )
        for layout in shown:
            _print_layout(layout, layout.caption or f"Verdict, profile {profile}")


class Ambiguous(ValueError):
    """Neither a task nor two files were given, or both."""


def _files(
    context: typer.Context, tasks: Sequence[str], source: Path | None, target: Path | None
) -> list[Path]:
    """Source and target as absolute paths, or nothing where tasks were given."""
    given = [file for file in (source, target) if file is not None]
    if bool(tasks) == bool(given) or len(given) == 1:
        raise Ambiguous("give either --task, or --source and --target")
    return [context.obj / file for file in given]


def _read_pair(files, users, items, ratings, times, scale):
    from assets.data.own_data import Options, read_pair
    from assets.state.store import Store

    columns = {"user": users, "item": items, "rating": ratings, "timestamp": times}
    return read_pair(Store(), *files, Options(columns, scale))


def _enter(pair) -> str:
    """Check two files, enter them in the home's catalogue, make it this process's, return the task's name."""
    from assets.data.own_data import enter, examine
    from assets.state.store import Store

    _print_report(examine(pair), ReportFormat.table)
    task, file = enter(Store(), pair)
    os.environ["DIFFCDR_CATALOG"] = str(file)
    return task


def _inspect_task(task: str):
    """The report of a task, its ratings fetched and read where they are not there yet."""
    from assets.data.overview import inspect_task
    from assets.settings.axes import CATALOG
    from assets.state.store import Store
    from pipeline.chain import Chain

    with _dagster_instance() as instance:
        _perform(Chain(instance, [task], [], [], [], []).data_steps())
    return inspect_task(Store(), CATALOG, task)


def _perform(steps) -> None:
    for title, step in steps:
        log.info("— %s", title)
        step()


def _print_report(report, format: ReportFormat) -> None:
    if format is ReportFormat.json:
        print(json.dumps(report.as_json(), indent=1))
        return
    names = ["", f"source: {report.source.name}", f"target: {report.target.name}"]
    _print_rows(names, report.rows(), 1, "Data before training")
    for warning in report.warnings:
        print(f"warning: {warning}")


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
        while type(error).__module__.startswith("dagster.") and error.__cause__ is not None:
            error = error.__cause__
        line = f"error: {type(error).__name__}: {error}"
        errors.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
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
    from assets.report.parts import table1_layouts, table2_layouts, verdict_layouts
    from assets.report.results import read_results
    from assets.settings.profile import load_profiles
    from assets.state.store import Store

    store = Store()
    for layout in table1_layouts(store, task_names):
        _print_layout(layout, "Table 1: data statistics")
    for name in profiles:
        results = read_results(store, profile=name)
        for layout in table2_layouts(load_profiles()[name], results[results["task"].isin(task_names)]):
            _print_layout(layout, f"Table 2, profile {name}: {layout.caption}")
    for name in profiles:
        for layout in verdict_layouts(store, load_profiles()[name], task_names):
            _print_layout(layout, f"Verdict, profile {name}. {layout.caption}".rstrip(". "))
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


@app.command()
def register(
    task: Annotated[str, typer.Option(help="Task of the catalogue.")],
    profile: Annotated[str, typer.Option(help="Profile whose models are compared.")] = "tuned",
    force: Annotated[bool, typer.Option(help="Promote a model that beats nothing trivial, too.")] = False,
    debug: Debug = False,
) -> None:
    """Put the best model of a task into MLflow's registry as the champion, ready to be served."""
    _log_to_terminal()
    with _errors_in_one_line(debug):
        from assets.serving import registry
        from assets.state.store import Store
        from assets.state.tracking import MlflowTracking

        tracking = MlflowTracking()
        settings = _known_profile(task, profile)
        done = registry.register(Store(), tracking, task, settings, force)
        print(f"{done.name} version {done.version}: {done.model} of {done.cell.key} is the {registry.ALIAS}")
        print(
            f"serve it: MLFLOW_TRACKING_URI={tracking.uri} mlflow models serve -m {done.uri} "
            "--env-manager local --port 5001"
        )


@app.command()
def recommend(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="Task of the catalogue.")],
    users: Annotated[Path, typer.Option(help="Parquet: user_id, or user_id, item_id and rating.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write.")],
    profile: Annotated[str, typer.Option(help="Profile of settings.")] = "tuned",
    cell: Annotated[
        str, typer.Option(help="β and seed, such as b20-s0; default: the first that is trained.")
    ] = "",
    k: Annotated[int, typer.Option(min=1, help="Items for each user.")] = 20,
    exclude: Annotated[Path | None, typer.Option(help="Text file of item ids, never recommended.")] = None,
    min_ratings: Annotated[int, typer.Option(min=0, help="Only items with so many ratings.")] = 1,
    debug: Debug = False,
) -> None:
    """Recommend items to the users of a Parquet file, by the best model of a cell."""
    _log_to_terminal()
    start = time.perf_counter()
    with _errors_in_one_line(debug):
        from assets.serving.recommendations import RecommendationConfig, load_bundle, recommend_file
        from assets.state.store import Store

        settings = _known_profile(task, profile)
        excluded = str(context.obj / exclude) if exclude else ""
        config = RecommendationConfig(k=k, exclude=excluded, min_ratings=min_ratings)
        bundle = load_bundle(Store(), settings, task, cell, config)
        counts = recommend_file(bundle, context.obj / users, context.obj / output, k)
    seconds = time.perf_counter() - start
    print(
        f"wrote {output}: {counts['users']} users by {bundle.name}, {counts['by_popularity']} of them by "
        f"popularity, in {seconds:.0f} s"
    )


def _known_profile(task: str, name: str):
    """The profile `name`; raises ValueError where it or the task is not known."""
    from assets.settings.axes import CATALOG
    from assets.settings.profile import load_profiles

    profiles = load_profiles()
    for kind, asked, known in (("task", task, CATALOG.tasks), ("profile", name, profiles)):
        if asked not in known:
            raise ValueError(f"unknown {kind}: {asked}; known are {', '.join(known)}")
    return profiles[name]
