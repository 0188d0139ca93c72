"""`diffcdr inspect`: two domains before anything is trained."""

from typing import Annotated

import typer

from pipeline.cli import options, own_files
from pipeline.cli.home import perform
from pipeline.cli.terminal import errors_in_one_line, log_to_terminal


def inspect(
    task: options.MaybeTask = None,
    format: Annotated[
        options.ReportFormat, typer.Option("--format", "-f", help="How to print.")
    ] = options.ReportFormat.table,
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
    """Report on two domains and the users they share, before anything is trained.

    Example: diffcdr inspect --source movies.csv --target albums.parquet
    """
    log_to_terminal()
    with errors_in_one_line(debug):
        files = own_files.files([task] if task else [], source, target)
        if files:
            from assets.data.own_data import examine

            columns = own_files.columns(user_col, item_col, rating_col, time_col, title_col)
            pair = own_files.read(files, columns, scale, source_scale, target_scale, on_bad_rows)
            report = examine(pair)
        else:
            report = _inspect_task(task)
        own_files.print_report(report, format)


def _inspect_task(task: str):
    """The report of a task, its ratings fetched and read where they are not there yet."""
    from assets.data.overview import inspect_task
    from assets.settings.catalog import load_catalog
    from assets.state.store import Store
    from pipeline.chain import Chain

    perform(Chain([task], [], [], [], []).data_steps())
    return inspect_task(Store(), load_catalog(), task)
