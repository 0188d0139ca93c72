"""The `diffcdr` command: signals first, then the command line, whose import takes its time."""

import signal
import sys

from pipeline import stopping


def main() -> None:
    """Run the command line; Ctrl-C and TERM end it with one line and 130 or 143, wherever it is."""
    stopping.listen()
    try:
        from pipeline.cli import app

        app()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(stopping.exit_code(stopping.received()))
    finally:
        # Nothing is left to save: a signal that comes while the interpreter ends need not print where.
        for number in stopping.SIGNALS:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
