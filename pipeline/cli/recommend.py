"""`diffcdr recommend`: lists for the users of a file."""

import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import options
from pipeline.cli.home import known_profile
from pipeline.cli.terminal import errors_in_one_line, log_to_terminal


def recommend(
    task: options.OneTask,
    users: Annotated[
        Path,
        typer.Option(
            "--users",
            "-u",
            metavar="FILE",
            help="Parquet or CSV: user_id, or user_id, item_id, rating and, where known, timestamp.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Parquet or CSV file to write.")
    ],
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="NAME",
            help="Profile of settings; default: the champion's, else tuned.",
        ),
    ] = None,
    cell: Annotated[
        str,
        typer.Option(
            metavar="CELL", help="β and seed, such as b20-s0; default: the champion, else the first trained."
        ),
    ] = "",
    k: Annotated[int, typer.Option("-k", "--k", min=1, metavar="NUMBER", help="Items for each user.")] = 20,
    list: Annotated[
        options.ListOrder,
        typer.Option(help="Order items each by itself, or as a set that covers possible tastes."),
    ] = options.ListOrder.probability,
    include_rated: Annotated[
        bool, typer.Option("--include-rated", help="List what a user has rated already, too.")
    ] = False,
    exclude: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file of item ids, never recommended.")
    ] = None,
    min_ratings: Annotated[
        int, typer.Option(min=0, metavar="NUMBER", help="Only items with so many ratings.")
    ] = 1,
    debug: options.Debug = False,
) -> None:
    """Recommend items to the users of a file, by the champion or by the best models of a cell.

    Example: diffcdr recommend -t demo_video_music -u users.csv -o lists.parquet -k 10
    """
    log_to_terminal()
    start = time.perf_counter()
    with errors_in_one_line(debug):
        from assets.serving.answering import ANY_CELL, answering
        from assets.serving.bundle import Filters
        from assets.serving.lists import Wanted
        from assets.serving.user_files import check_files, recommend_file
        from assets.settings.axes import Axes
        from assets.settings.catalog import load_catalog
        from assets.state.store import Store
        from assets.state.tracking import MlflowTracking

        settings = known_profile(task, profile or "tuned")
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
