"""`diffcdr register` and `serve`: the champion of a task."""

import functools
from typing import Annotated

import typer

from pipeline.cli import options
from pipeline.cli.home import known_profile, refuse_unknown
from pipeline.cli.terminal import errors, errors_in_one_line, log_to_terminal


def register(
    task: options.OneTask,
    profile: options.OneProfile = "tuned",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Promote what does not beat the simple rows, too.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Put the best models of a task into MLflow's registry as the champion, ready to be served.

    Example: diffcdr register -t demo_video_music
    """
    log_to_terminal()
    with errors_in_one_line(debug):
        from assets.serving import registry
        from assets.settings.axes import Axes
        from assets.settings.catalog import load_catalog
        from assets.state.store import Store
        from assets.state.tracking import MlflowTracking

        tracking, axes = MlflowTracking(), Axes(load_catalog())
        settings = known_profile(task, profile)
        done = registry.register(Store(), tracking, axes, task, settings, force)
        for each in done.judged:
            print(each)
        if done.forced:
            errors.print("PROMOTED BY FORCE, with a warning on its card", style="bold red")
        print(f"{done.name} version {done.version}: {done.model} of {done.cell.key} is the {registry.ALIAS}")
        print(f"serve it: diffcdr serve --task {task}")


def serve(
    task: options.OneTask,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="NAME",
            help="Its latest version; default: the champion, of whichever.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Port; 0 is any that is free.")] = 5001,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; there is no login.")
    ] = "127.0.0.1",
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="With a page to try it, or MLflow's endpoints alone.")
    ] = True,
    debug: options.Debug = False,
) -> None:
    """Serve a registered version on this machine until Ctrl-C, with a page to try it.

    Example: diffcdr serve -t demo_video_music
    """
    with errors_in_one_line(debug, stopped="the server is down; the same command starts it again"):
        from assets.serving import server
        from assets.state.tracking import MlflowTracking

        refuse_unknown(task, profile)
        say = functools.partial(print, flush=True)
        server.serve(MlflowTracking(), task, profile or "", host, port, page, say)
