"""`diffcdr run`: every stage of tasks, or of two files of one's own."""

import os
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.cli import options, own_files
from pipeline.cli.home import check_tracking, perform, sources
from pipeline.cli.outcome import print_outcome
from pipeline.cli.terminal import errors, errors_in_one_line, log_to_terminal, print_rows


def run(
    task: options.Tasks = [],
    beta: Annotated[
        list[float],
        typer.Option(
            "--beta", "-b", metavar="SHARE", help="Share of test users; default: all of the catalogue."
        ),
    ] = [],
    seed: Annotated[
        list[int],
        typer.Option("--seed", "-s", metavar="NUMBER", help="Seed; default: all of the catalogue."),
    ] = [],
    profile: Annotated[
        list[str], typer.Option("--profile", "-p", metavar="NAME", help="Profile of settings.")
    ] = ["paper"],
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", metavar="NAME", help="Model; default: all of the profile."),
    ] = [],
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
    debug: options.Debug = False,
    source: options.Source = None,
    target: options.Target = None,
    user_col: options.UserColumn = [],
    item_col: options.ItemColumn = [],
    rating_col: options.RatingColumn = [],
    time_col: options.TimeColumn = [],
    title_col: options.TitleColumn = [],
    scale: options.Scale = (1.0, 5.0),
    source_scale: options.SourceScale = None,
    target_scale: options.TargetScale = None,
    on_bad_rows: options.BadRows = options.BadRowsAre.fail,
) -> None:
    """Run every stage of a task, or of two files of your own; what is up to date is not done again.

    Example: diffcdr run -t demo_video_music -b 0.2 -s 0 -m emcdr

    Example: diffcdr run --source movies.csv --target albums.parquet -p tuned
    """
    log_to_terminal()
    start = time.perf_counter()
    with errors_in_one_line(debug):
        if not tracking:
            os.environ["DIFFCDR_TRACKING"] = "off"
        files = own_files.files(task, source, target)
        if dry_run:
            _print_plan(files, task, beta, seed, profile, model)
            return
        check_tracking()
        if files:
            _refuse_unknown_cells(beta, seed, profile, model)
            columns = own_files.columns(user_col, item_col, rating_col, time_col, title_col)
            pair = own_files.read(files, columns, scale, source_scale, target_scale, on_bad_rows)
            task = [own_files.enter(pair)]
        _run(task, beta, seed, profile, model, tables)
    if files:
        print(f"see it: DIFFCDR_CATALOG={os.environ['DIFFCDR_CATALOG']} make ui")
    errors.print(f"done in {time.perf_counter() - start:.0f} s")


def _run(tasks, betas, seeds, profiles, models, tables: bool) -> None:
    from pipeline.chain import Chain

    chain = Chain(tasks, betas, seeds, profiles, models)
    perform(chain.steps())
    print_outcome(chain.tasks, sources(chain.profiles), tables)


def _print_plan(files, tasks, betas, seeds, profiles, models) -> None:
    from assets.state.store import Store
    from pipeline.chain import Chain
    from pipeline.overview import plan

    if files:
        raise own_files.Ambiguous(
            "--dry-run is for a task of the catalogue; look at files of your own with `diffcdr inspect`"
        )
    # Nothing is run, so that no history is opened.
    rows = plan(Chain(tasks, betas, seeds, profiles, models), Store())
    if rows:
        print_rows(
            ["stage", "models", "which"], rows, ["models"], "To be computed, models once for each objective"
        )
    else:
        print("everything is up to date; a run makes the tables anew")


def _refuse_unknown_cells(
    betas: Sequence[float], seeds: Sequence[int], profiles: Sequence[str], models: Sequence[str]
) -> None:
    from assets.settings.catalog import load_catalog
    from assets.settings.profile import load_profiles
    from pipeline.asked import check_cells

    check_cells(load_catalog(), load_profiles(), betas, seeds, profiles, models)
