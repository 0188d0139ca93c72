"""The command line: `app`, one function a command. What is slow to import, commands import themselves."""

import importlib.metadata
from typing import Annotated

import typer

from pipeline.cli import champion, demo, finished, inspect, recommend, run, ui

# As `diffcdr --help` shows them.
COMMANDS = {
    "Train": {"demo": demo.demo, "inspect": inspect.inspect, "run": run.run},
    "See": {
        "verdict": finished.verdict,
        "results": finished.results,
        "report": finished.report,
        "ui": ui.ui,
        "status": finished.status,
        "list": finished.list_names,
    },
    "Use": {"register": champion.register, "serve": champion.serve, "recommend": recommend.recommend},
}

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for _group, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_group)(_command)


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
    """Diffusion cross-domain recommendation: from two files of ratings to lists for users of one of them.

    State lies in the folder that DIFFCDR_HOME names, else in .diffcdr of the working folder.
    """
