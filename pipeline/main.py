"""The `diffcdr` command: signals first, then the command line, whose import takes its time."""

import gc
import signal
import sys
from typing import NoReturn

from pipeline import stopping


def main() -> None:
    """Run the command line; Ctrl-C and TERM end it with one line and 130 or 143, wherever it is."""
    try:
        stopping.listen()
        # Half a million objects are imported and stay: looking through them at every 700 new ones takes a
        # twentieth of a run.
        gc.set_threshold(50_000)
        from pipeline.cli import app

        app()
    except KeyboardInterrupt:
        _stop()
    except SystemExit as end:
        # Typer makes its own exit, without a word, of what comes before or after the command's work.
        if end.code == stopping.exit_code(None) and not stopping.told:
            _stop()
        raise
    finally:
        # Nothing is left to save: a signal that comes while the interpreter ends need not print where.
        for number in stopping.SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def _stop() -> NoReturn:
    print(stopping.line(), file=sys.stderr)
    sys.exit(stopping.exit_code(stopping.received()))


if __name__ == "__main__":
    main()
