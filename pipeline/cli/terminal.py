"""How every command speaks: its log, its tables, its errors in one line, its end by a signal."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import stopping
from pipeline.cli.options import Format

GOES_ON = "what is finished is kept, and the same command goes on from there"
errors = Console(stderr=True)
log = logging.getLogger("diffcdr")


def log_to_terminal() -> None:
    """Progress goes to stderr from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


@contextlib.contextmanager
def errors_in_one_line(debug: bool, stopped: str = GOES_ON) -> Iterator[None]:
    """Errors and signals end the command with a line and an exit code. stopped: what then is true."""
    try:
        yield
    except (SystemExit, GeneratorExit):
        raise
    except Exception as error:
        if stopping.received():
            # A library that was at work may call the interruption an error of its own.
            raise _stopped(stopped) from None
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
        raise _stopped(stopped) from None


def print_frame(frame, format: Format, title: str) -> None:
    """A frame as CSV, JSON or a table, numbers to the right."""
    if format is Format.csv:
        frame.to_csv(sys.stdout, index=False)
    elif format is Format.json:
        print(frame.to_json(orient="records", indent=1, double_precision=15))
    else:
        numbers = set(frame.select_dtypes("number"))
        print_rows(list(frame.columns), frame.astype(str).values.tolist(), numbers, title)


def print_rows(
    names: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str], title: str
) -> None:
    """A table of text; the columns called `numbers` are set to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    _console().print(table)


def print_table(table, title: str) -> None:
    """A table of the report."""
    from assets.report.table import to_rich

    for part in to_rich(table, title):
        _console().print(part)


def called() -> str:
    """What this command is called from here: by its name where a shell finds it, else by its place."""
    own = Path(sys.argv[0]).absolute()
    found = shutil.which("diffcdr")
    if own.name != "diffcdr":
        return f"{short(Path(sys.executable))} -m pipeline.main"
    return "diffcdr" if found and Path(found).samefile(own) else short(own)


def short(path: Path) -> str:
    """A path as it is written from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _printable(text: str) -> str:
    """One line, with what is no character of a text (a NUL, half of one) as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.splitlines()))


def _stopped(sentence: str) -> typer.Exit:
    """Say so in one line, and the exit of a stopped command."""
    errors.print(stopping.line(sentence), highlight=False, soft_wrap=True)
    return typer.Exit(stopping.exit_code(stopping.received()))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 400)
