"""The command line: `run` chains the stages, `inspect` looks at data, `results` prints every number."""

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import stopping

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


class BadRowsAre(StrEnum):
    fail = "fail"
    quarantine = "quarantine"


Source = Annotated[Path | None, typer.Option(help="Rating file of your own: CSV, TSV, JSON lines, Parquet.")]
Target = Annotated[Path | None, typer.Option(help="Rating file of the domain to recommend in.")]
UserColumn = Annotated[list[str], typer.Option(help="Column of the user ids; once for each file.")]
ItemColumn = Annotated[list[str], typer.Option(help="Column of the item ids.")]
RatingColumn = Annotated[list[str], typer.Option(help="Column of the ratings.")]
TimeColumn = Annotated[list[str], typer.Option(help="Column of the times.")]
TitleColumn = Annotated[list[str], typer.Option(help="Column of the items' titles, for readers.")]
Scale = Annotated[tuple[float, float], typer.Option(help="Lowest and highest legal rating of own files.")]
SideScale = Annotated[
    tuple[float, float] | None, typer.Option(help="The same of this file alone, where the two differ.")
]
BadRows = Annotated[
    BadRowsAre, typer.Option("--on-bad-rows", help="Refuse own files with bad rows, or go on.")
]
Tasks = Annotated[list[str], typer.Option("--task", "-t", help="Task of the catalogue; may be repeated.")]
OneTask = Annotated[str, typer.Option("--task", "-t", help="Task of the catalogue.")]
MaybeTask = Annotated[str | None, typer.Option("--task", "-t", help="Task of the catalogue.")]
OneProfile = Annotated[str, typer.Option("--profile", "-p", help="Profile of settings.")]
Debug = Annotated[bool, typer.Option(help="Show the whole traceback of an error.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"diffcdr {importlib.metadata.version('diffcdr')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Diffusion cross-domain recommendation: from rating files to cold-start results.

    State lies in the folder that DIFFCDR_HOME names, else in .diffcdr of the working folder.
    """


@app.command()
def run(
    task: Tasks = [],  # noqa: B006
    source: Source = None,
    target: Target = None,
    beta: Annotated[
        list[float],
        typer.Option("--beta", "-b", help="Share of test users; default: all of the catalogue."),
    ] = [],  # noqa: B006
    seed: Annotated[
        list[int], typer.Option("--seed", "-s", help="Seed; default: all of the catalogue.")
    ] = [],  # noqa: B006
    profile: Annotated[list[str], typer.Option("--profile", "-p", help="Profile of settings.")] = ["paper"],  # noqa: B006
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Model; default: all of the profile.")
    ] = [],  # noqa: B006
    user_col: UserColumn = [],  # noqa: B006
    item_col: ItemColumn = [],  # noqa: B006
    rating_col: RatingColumn = [],  # noqa: B006
    time_col: TimeColumn = [],  # noqa: B006
    title_col: TitleColumn = [],  # noqa: B006
    scale: Scale = (1.0, 5.0),
    source_scale: SideScale = None,
    target_scale: SideScale = None,
    on_bad_rows: BadRows = BadRowsAre.fail,
    tracking: Annotated[
        bool, typer.Option("--tracking/--no-tracking", help="Record trainings in MLflow, or nowhere.")
    ] = True,
    tables: Annotated[
        bool,
        typer.Option("--tables", help="Print Tables 1 and 2 and the verdict in full, up to 165 columns."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only print what would be computed; with --task.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run every stage of a task, or of two files of your own; what is up to date is not done again.

    diffcdr run -t demo_video_music -b 0.2 -s 0 -m emcdr

    diffcdr run --source movies.csv --target albums.parquet -p tuned
    """
    _log_to_terminal()
    start = time.perf_counter()
    with _errors_in_one_line(debug):
        if not tracking:
            os.environ["DIFFCDR_TRACKING"] = "off"
        files = _files(task, source, target)
        if dry_run:
            _print_plan(files, task, beta, seed, profile, model)
            return
        _check_tracking()
        if files:
            _refuse_unknown_cells(beta, seed, profile, model)
            columns = _columns(user_col, item_col, rating_col, time_col, title_col)
            pair = _read_pair(files, columns, scale, source_scale, target_scale, on_bad_rows)
            task = [_enter(pair)]
        from pipeline.chain import Chain

        chain = Chain(task, beta, seed, profile, model)
        _perform(chain.steps())
        _print_outcome(chain.tasks, chain.profiles, tables)
    if files:
        print(f"see it: DIFFCDR_CATALOG={os.environ['DIFFCDR_CATALOG']} make ui")
    errors.print(f"done in {time.perf_counter() - start:.0f} s")


@app.command()
def demo(debug: Debug = False) -> None:
    """Try it in minutes on synthetic data: train, register a champion, show what it is worth."""
    _log_to_terminal()
    with _errors_in_one_line(debug):
        from assets.state.store import Store
        from pipeline import demo as demonstration

        _check_tracking()
        with _opened_instance() as instance:
            registered = demonstration.run(instance)
        (source,) = _sources([demonstration.PROFILE])
        page = Store().report("report") / "report.html"
        for line in demonstration.ending(source, registered, page, _called()):
            print(line)


@app.command()
def inspect(
    task: MaybeTask = None,
    source: Source = None,
    target: Target = None,
    user_col: UserColumn = [],  # noqa: B006
    item_col: ItemColumn = [],  # noqa: B006
    rating_col: RatingColumn = [],  # noqa: B006
    time_col: TimeColumn = [],  # noqa: B006
    title_col: TitleColumn = [],  # noqa: B006
    scale: Scale = (1.0, 5.0),
    source_scale: SideScale = None,
    target_scale: SideScale = None,
    on_bad_rows: BadRows = BadRowsAre.fail,
    format: Annotated[
        ReportFormat, typer.Option("--format", "-f", help="How to print.")
    ] = ReportFormat.table,
    debug: Debug = False,
) -> None:
    """Report on two domains and the users they share, before anything is trained.

    diffcdr inspect --source movies.csv --target albums.parquet
    """
    _log_to_terminal()
    with _errors_in_one_line(debug):
        files = _files([task] if task else [], source, target)
        if files:
            from assets.data.own_data import examine

            columns = _columns(user_col, item_col, rating_col, time_col, title_col)
            report = examine(_read_pair(files, columns, scale, source_scale, target_scale, on_bad_rows))
        else:
            report = _inspect_task(task)
        _print_report(report, format)


@app.command()
def results(
    task: MaybeTask = None,
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Only this profile.")] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
    debug: Debug = False,
) -> None:
    """Print one row per metric of every finished cell, with numbers of six digits.

    diffcdr results -t demo_video_music -p strict -f csv
    """
    with _errors_in_one_line(debug):
        from assets.report.results import read_results

        _refuse_unknown(task, profile)
        frame = read_results(_sources([profile] if profile else []), task)
        frame["value"] = frame["value"].map(lambda value: float(f"{value:.6g}"))
        _print_frame(frame, format, left=len(frame.columns) - 1, title="Results")


@app.command("list")
def list_names(debug: Debug = False) -> None:
    """Print the tasks, profiles and models that the other commands know.

    diffcdr list
    """
    with _errors_in_one_line(debug):
        from assets.settings.catalog import load_catalog
        from assets.settings.profile import load_profiles

        catalog = load_catalog()
        _print_rows(
            ["task", "source", "target"],
            [[task.name, task.source, task.target] for task in catalog.tasks.values()],
            3,
            "Tasks",
        )
        axes = [["β", *map(str, catalog.betas)], ["seed", *map(str, catalog.seeds)]]
        _print_rows(["axis", "values"], [[name, ", ".join(values)] for name, *values in axes], 2, "Axes")
        models = [
            [profile.name, name, profile.title_of(name)]
            for profile in load_profiles().values()
            for name in profile.trained
        ]
        _print_rows(["profile", "model", "title"], models, 3, "Models")


@app.command()
def status(
    task: MaybeTask = None,
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Only this profile.")] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
    debug: Debug = False,
) -> None:
    """Print what is finished, stale, missing or diverged, for each profile, task, β and seed.

    diffcdr status -t demo_video_music -p strict
    """
    with _errors_in_one_line(debug):
        from assets.settings.catalog import load_catalog
        from assets.settings.profile import load_profiles
        from assets.state.store import Store
        from pipeline import overview

        _refuse_unknown(task, profile)
        store, catalog, known = Store(), load_catalog(), load_profiles()
        profiles = [known[profile]] if profile else list(known.values())
        shown = overview.status(store, catalog, profiles, task)
        _print_frame(shown, format, left=2, title="Models, once for each objective")
        absent = overview.not_begun(store, catalog, profiles, shown, task)
        if absent and format is Format.table:
            print(f"nothing yet of {'; '.join(absent)}")


@app.command()
def ui(debug: Debug = False) -> None:
    """Start the Dagster and MLflow pages on this machine, until Ctrl-C.

    diffcdr ui
    """
    with _errors_in_one_line(debug):
        from pipeline.ui import serve

        serve()


@app.command()
def report(debug: Debug = False) -> None:
    """Make every table, every picture and the report anew from what is finished; nothing is trained."""
    _log_to_terminal()
    with _errors_in_one_line(debug):
        from assets.state.store import Store
        from pipeline.chain import Chain

        _perform(Chain([], [], [], [], []).report_steps())
        for file in sorted(Store().report("report").iterdir()):
            print(f"wrote {_short(file)}")


@app.command()
def verdict(
    task: Annotated[
        list[str], typer.Option("--task", "-t", help="Task of the catalogue; default: all with results.")
    ] = [],  # noqa: B006
    profile: OneProfile = "tuned",
    debug: Debug = False,
) -> None:
    """Say which model to use for stars and for lists, what it gains, and whether knowing the user helps.

    diffcdr verdict -t demo_video_music -p tuned
    """
    with _errors_in_one_line(debug):
        from assets.report.verdict import verdict_of_tasks
        from assets.settings.catalog import load_catalog

        names = task or list(load_catalog().tasks)
        for name in names:
            _known_profile(name, profile)
        (source,) = _sources([profile])
        shown = verdict_of_tasks(source, names)
        if not shown:
            raise LookupError(
                f"no finished cell of profile {profile} with validation users; run "
                f"`diffcdr run --task … --profile {profile}` first"
            )
        for table in shown:
            _print_table(table, table.caption or f"Verdict, profile {profile}")


class Ambiguous(ValueError):
    """Neither a task nor two files were given, or both."""


def _files(tasks: Sequence[str], source: Path | None, target: Path | None) -> list[Path]:
    """Source and target, or nothing where tasks were given."""
    given = [file for file in (source, target) if file is not None]
    if bool(tasks) == bool(given) or len(given) == 1:
        raise Ambiguous("give either --task, or --source and --target")
    return [file.absolute() for file in given]


def _columns(users, items, ratings, times, titles) -> dict[str, Sequence[str]]:
    return {"user": users, "item": items, "rating": ratings, "timestamp": times, "title": titles}


def _read_pair(files, columns, scale, source_scale, target_scale, on_bad_rows):
    from assets.data.own_data import Options, read_pair
    from assets.state.store import Store

    scales = {side: ends for side, ends in (("source", source_scale), ("target", target_scale)) if ends}
    return read_pair(Store(), *files, Options(columns, scale, scales, str(on_bad_rows)))


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
    from assets.settings.catalog import load_catalog
    from assets.state.store import Store
    from pipeline.chain import Chain

    _perform(Chain([task], [], [], [], []).data_steps())
    return inspect_task(Store(), load_catalog(), task)


def _perform(steps) -> None:
    from pipeline.chain import perform

    with _opened_instance() as instance:
        perform(instance, steps)


def _print_plan(files, tasks, betas, seeds, profiles, models) -> None:
    from assets.state.store import Store
    from pipeline.chain import Chain
    from pipeline.overview import plan

    if files:
        raise Ambiguous(
            "--dry-run is for a task of the catalogue; look at files of your own with `diffcdr inspect`"
        )
    # Nothing is run, so that no history is opened.
    rows = plan(Chain(tasks, betas, seeds, profiles, models), Store())
    if rows:
        _print_rows(["stage", "models", "which"], rows, 3, "To be computed, models once for each objective")
    else:
        print("everything is up to date; a run makes the tables anew")


def _print_frame(frame, format: Format, left: int, title: str) -> None:
    """A frame as CSV, JSON or a table whose first `left` columns are words."""
    if format is Format.csv:
        frame.to_csv(sys.stdout, index=False)
    elif format is Format.json:
        print(frame.to_json(orient="records", indent=1, double_precision=15))
    else:
        _print_rows(list(frame.columns), frame.astype(str).values.tolist(), left, title)


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
    except (SystemExit, GeneratorExit):
        raise
    except Exception as error:
        if stopping.received():
            # A library that was at work may call the interruption an error of its own.
            raise _stopped() from None
        if debug:
            raise
        # Dagster wraps what an asset raises; the reader wants the asset's own sentence.
        while type(error).__module__.startswith("dagster.") and error.__cause__ is not None:
            error = error.__cause__
        line = _printable(f"error: {type(error).__name__}: {error}")
        errors.print(line, style="red", markup=False, emoji=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except BaseException:
        # Stopped, or what Dagster makes of it.
        raise _stopped() from None


def _printable(text: str) -> str:
    """One line, with what is no character of a text (a NUL, half of one) as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.splitlines()))


def _stopped() -> typer.Exit:
    """Say so in one line, and the exit of a stopped command."""
    line = stopping.line("what is finished is kept, and the same command goes on from there")
    errors.print(line, highlight=False, soft_wrap=True)
    return typer.Exit(stopping.exit_code(stopping.received()))


@contextlib.contextmanager
def _opened_instance() -> Iterator:
    """The home's Dagster instance, in which no run that was killed is left open."""
    from pipeline.instance import dagster_instance
    from pipeline.recovery import close_dead_runs

    with dagster_instance() as instance:
        close_dead_runs(instance)
        yield instance


def _check_tracking() -> None:
    from assets.state.tracking import MlflowTracking

    MlflowTracking().check()


def _sources(profiles: Sequence[str] = ()) -> list:
    """What the tables of these profiles are made from; of all where none is named."""
    from assets.report.results import source
    from assets.settings.catalog import load_catalog
    from assets.settings.profile import load_profiles
    from assets.state.store import Store

    store, catalog, known = Store(), load_catalog(), load_profiles()
    return [source(store, catalog, known[name]) for name in profiles or known]


def _print_outcome(task_names: Sequence[str], profiles: Sequence[str], full: bool) -> None:
    """What each profile is worth in a few lines and a narrow table, or all tables; where the rest is."""
    from assets.state.store import Store

    sources = _sources(profiles)
    if full:
        _print_tables(task_names, sources)
    for source in sources:
        _print_headlines(source, task_names)
    page = Store().report("report") / "report.html"
    print(f"all tables and figures: {_short(page)}" + ("" if full else " (here: --tables)"))


def _print_headlines(source, task_names: Sequence[str]) -> None:
    from assets.report.forest import forest_frame, sentences, short_table

    frame = forest_frame(source)
    frame = frame[frame["task"].isin(task_names)]
    if len(frame):
        _print_table(short_table(frame, source.names), f"Profile {source.profile.name}")
    else:  # nothing simple was run to set models beside
        _print_table2(source, task_names)
    for sentence in sentences(source, frame):
        print(sentence)


def _print_tables(task_names: Sequence[str], sources: Sequence) -> None:
    from assets.report.table1 import table1_of_tasks
    from assets.report.verdict import verdict_of_tasks
    from assets.settings.catalog import load_catalog
    from assets.state.store import Store

    for table in table1_of_tasks(Store(), load_catalog(), task_names):
        _print_table(table, "Table 1: data statistics")
    for source in sources:
        _print_table2(source, task_names)
    for source in sources:
        for table in verdict_of_tasks(source, task_names):
            _print_table(table, f"Verdict, profile {source.profile.name}. {table.caption}".rstrip(". "))


def _print_table2(source, task_names: Sequence[str]) -> None:
    from assets.report.table2 import table2_of_tasks

    for table in table2_of_tasks(source, task_names):
        _print_table(table, f"Table 2, profile {source.profile.name}: {table.caption}")


def _print_table(table, title: str) -> None:
    from assets.report.table import to_rich

    for part in to_rich(table, title):
        _console().print(part)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 400)


def _called() -> str:
    """What this command is called from here: by its name where a shell finds it, else by its place."""
    own = Path(sys.argv[0]).absolute()
    found = shutil.which("diffcdr")
    if own.name != "diffcdr":
        return f"{_short(Path(sys.executable))} -m pipeline.main"
    return "diffcdr" if found and Path(found).samefile(own) else _short(own)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _print_rows(names: Sequence[str], rows: Sequence[Sequence[str]], left: int, title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, name in enumerate(names):
        table.add_column(name, justify="left" if position < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    _console().print(table)


@app.command()
def register(
    task: OneTask,
    profile: OneProfile = "tuned",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Promote what does not beat the simple rows, too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Put the best models of a task into MLflow's registry as the champion, ready to be served.

    diffcdr register -t demo_video_music
    """
    _log_to_terminal()
    with _errors_in_one_line(debug):
        from assets.serving import registry
        from assets.settings.axes import Axes
        from assets.settings.catalog import load_catalog
        from assets.state.store import Store
        from assets.state.tracking import MlflowTracking

        tracking, axes = MlflowTracking(), Axes(load_catalog())
        settings = _known_profile(task, profile)
        done = registry.register(Store(), tracking, axes, task, settings, force)
        for each in done.judged:
            print(each)
        if done.forced:
            errors.print("PROMOTED BY FORCE, with a warning on its card", style="bold red")
        print(f"{done.name} version {done.version}: {done.model} of {done.cell.key} is the {registry.ALIAS}")
        print(f"serve it: diffcdr serve --task {task}")


@app.command()
def serve(
    task: OneTask,
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", help="Its latest version; default: the champion, of whichever."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, help="Port; 0 is any that is free.")] = 5001,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no login.")] = "127.0.0.1",
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="With a page to try it, or MLflow's endpoints alone.")
    ] = True,
    debug: Debug = False,
) -> None:
    """Serve a registered version on this machine until Ctrl-C, with a page to try it.

    diffcdr serve -t demo_video_music
    """
    with _errors_in_one_line(debug):
        from assets.serving import server
        from assets.state.tracking import MlflowTracking

        _refuse_unknown(task, profile)
        say = functools.partial(print, flush=True)
        server.serve(MlflowTracking(), task, profile or "", host, port, page, say)


class ListOrder(StrEnum):
    probability = "probability"
    coverage = "coverage"


@app.command()
def recommend(
    task: OneTask,
    users: Annotated[
        Path,
        typer.Option(
            "--users", "-u", help="Parquet or CSV: user_id, or user_id, item_id and rating of the source."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet or CSV file to write.")],
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", help="Profile of settings; default: the champion's, else tuned."),
    ] = None,
    cell: Annotated[
        str, typer.Option(help="β and seed, such as b20-s0; default: the champion, else the first trained.")
    ] = "",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items for each user.")] = 20,
    list: Annotated[
        ListOrder, typer.Option(help="Order items each by itself, or as a set that covers possible tastes.")
    ] = ListOrder.probability,
    include_rated: Annotated[bool, typer.Option(help="List what a user has rated already, too.")] = False,
    exclude: Annotated[Path | None, typer.Option(help="Text file of item ids, never recommended.")] = None,
    min_ratings: Annotated[int, typer.Option(min=0, help="Only items with so many ratings.")] = 1,
    debug: Debug = False,
) -> None:
    """Recommend items to the users of a file, by the champion or by the best models of a cell.

    diffcdr recommend -t demo_video_music -u users.csv -o lists.parquet -k 10
    """
    _log_to_terminal()
    start = time.perf_counter()
    with _errors_in_one_line(debug):
        from assets.serving.answering import ANY_CELL, answering
        from assets.serving.bundle import Filters
        from assets.serving.lists import Wanted
        from assets.serving.user_files import check_files, recommend_file
        from assets.settings.axes import Axes
        from assets.settings.catalog import load_catalog
        from assets.state.store import Store
        from assets.state.tracking import MlflowTracking

        settings = _known_profile(task, profile or "tuned")
        excluded = str(exclude.absolute()) if exclude else ""
        check_files(users.absolute(), output.absolute(), excluded)
        filters, axes = Filters.read(excluded, min_ratings), Axes(load_catalog())
        of_cell = cell or (ANY_CELL if profile else "")
        found = answering(Store(), MlflowTracking(), axes, task, settings, of_cell)
        print(f"answering by {found.what}")
        wanted = Wanted(k, list.value, include_rated)
        counts = recommend_file(found.bundle.filtered(filters), users.absolute(), output.absolute(), wanted)
    seconds = time.perf_counter() - start
    print(
        f"wrote {output}: {counts['users']} users by {found.bundle.names}, {counts['by_popularity']} of them "
        f"by popularity, in {seconds:.0f} s"
    )


def _known_profile(task: str, name: str):
    """The profile `name`; raises ValueError where it or the task is not known."""
    from assets.settings.profile import load_profiles

    _refuse_unknown(task, name)
    return load_profiles()[name]


def _refuse_unknown_cells(betas, seeds, profiles, models) -> None:
    from assets.settings.catalog import load_catalog
    from assets.settings.profile import load_profiles
    from pipeline.asked import check_cells

    check_cells(load_catalog(), load_profiles(), betas, seeds, profiles, models)


def _refuse_unknown(task: str | None, profile: str | None) -> None:
    """Raise ValueError for a task or a profile that is asked for and not known; the message lists what is."""
    from assets.settings.catalog import load_catalog
    from assets.settings.profile import load_profiles

    for kind, asked, known in (("task", task, load_catalog().tasks), ("profile", profile, load_profiles())):
        if asked is not None and asked not in known:
            raise ValueError(f"unknown {kind}: {asked}; known are {', '.join(known)}")
