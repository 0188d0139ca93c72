"""What is there: `diffcdr list`, `status`, `results`, `verdict`; `report` makes the tables anew."""

from typing import Annotated

import typer

from pipeline.cli import options
from pipeline.cli.home import known_profile, perform, refuse_unknown, sources
from pipeline.cli.options import Format
from pipeline.cli.terminal import (
    errors_in_one_line,
    log_to_terminal,
    print_frame,
    print_rows,
    print_table,
    short,
)


def list_names(debug: options.Debug = False) -> None:
    """Print the tasks, profiles and models that the other commands know.

    Example: diffcdr list
    """
    with errors_in_one_line(debug):
        from assets.settings.catalog import load_catalog
        from assets.settings.profile import load_profiles

        catalog = load_catalog()
        tasks = [[task.name, task.source, task.target] for task in catalog.tasks.values()]
        print_rows(["task", "source", "target"], tasks, (), "Tasks")
        axes = [["β", *map(str, catalog.betas)], ["seed", *map(str, catalog.seeds)]]
        print_rows(["axis", "values"], [[name, ", ".join(values)] for name, *values in axes], (), "Axes")
        models = [
            [profile.name, name, profile.title_of(name)]
            for profile in load_profiles().values()
            for name in profile.trained
        ]
        print_rows(["profile", "model", "title"], models, (), "Models")


def status(
    task: options.MaybeTask = None,
    profile: options.MaybeProfile = None,
    format: options.HowToPrint = Format.table,
    debug: options.Debug = False,
) -> None:
    """Print what is finished, stale, missing or diverged, for each profile, task, β and seed.

    Example: diffcdr status -t demo_video_music -p strict
    """
    with errors_in_one_line(debug):
        from assets.settings.catalog import load_catalog
        from assets.settings.profile import load_profiles
        from assets.state.store import Store
        from pipeline import overview

        refuse_unknown(task, profile)
        store, catalog, known = Store(), load_catalog(), load_profiles()
        profiles = [known[profile]] if profile else list(known.values())
        shown = overview.status(store, catalog, profiles, task)
        if len(shown) or format is not Format.table:
            print_frame(shown, format, "Models, once for each objective")
        absent = overview.not_begun(store, catalog, profiles, shown, task)
        if absent and format is Format.table:
            print(f"nothing yet of {'; '.join(absent)}")


def results(
    task: options.MaybeTask = None,
    profile: options.MaybeProfile = None,
    format: options.HowToPrint = Format.table,
    debug: options.Debug = False,
) -> None:
    """Print one row per metric of every finished cell, with numbers of six digits.

    Example: diffcdr results -t demo_video_music -p strict -f csv
    """
    with errors_in_one_line(debug):
        from assets.report.results import read_results

        refuse_unknown(task, profile)
        frame = read_results(sources([profile] if profile else []), task)
        frame["value"] = frame["value"].map(lambda value: float(f"{value:.6g}"))
        print_frame(frame, format, "Results")


def verdict(
    task: Annotated[
        list[str],
        typer.Option(
            "--task", "-t", metavar="NAME", help="Task of the catalogue; default: all with results."
        ),
    ] = [],
    profile: options.OneProfile = "tuned",
    debug: options.Debug = False,
) -> None:
    """Say which model to use for stars and for lists, what it gains, and whether knowing the user helps.

    Example: diffcdr verdict -t demo_video_music -p tuned
    """
    with errors_in_one_line(debug):
        from assets.report.verdict import verdict_of_tasks
        from assets.settings.catalog import load_catalog

        names = task or list(load_catalog().tasks)
        for name in names:
            known_profile(name, profile)
        (source,) = sources([profile])
        shown = verdict_of_tasks(source, names)
        if not shown:
            asked = " ".join(f"--task {name}" for name in task or ["…"])
            raise LookupError(
                f"no finished cell of profile {profile} with validation users; run "
                f"`diffcdr run {asked} --profile {profile}` first"
            )
        for table in shown:
            print_table(table, table.caption or f"Verdict, profile {profile}")


def report(debug: options.Debug = False) -> None:
    """Make every table, every picture and the report anew from what is finished; nothing is trained.

    Example: diffcdr report
    """
    log_to_terminal()
    with errors_in_one_line(debug):
        from assets.state.store import Store
        from pipeline.chain import Chain

        perform(Chain([], [], [], [], []).report_steps())
        for file in sorted(Store().report("report").iterdir()):
            print(f"wrote {short(file)}")
