"""`diffcdr ui`: the pages of Dagster and MLflow."""

from pipeline.cli import options
from pipeline.cli.terminal import errors_in_one_line


def ui(debug: options.Debug = False) -> None:
    """Start the Dagster and MLflow pages on this machine, until Ctrl-C.

    Example: diffcdr ui
    """
    with errors_in_one_line(debug, stopped="both servers are down; runs and results are kept"):
        from pipeline.ui import serve

        serve()
