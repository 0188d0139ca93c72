"""The campaign: `python -m tests.torture [--checkout DIR] [--minutes M] [--seed S] [--only TEXT]`.

Cases first, then kills, then a few kills beside an object store, all within the minutes. `--cases` alone does
no kills, `--kills N` only those, `--store N` only those beside the store.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.torture.cases import cases
from tests.torture.judge import VERDICTS
from tests.torture.kills import KILLS_A_HOME, ONE_MODEL, RUN, Killer
from tests.torture.progress import Progress, in_words
from tests.torture.runner import Outcome, Runner

KILLS, KILLS_BESIDE_A_STORE = 100, 10
# How much of the minutes the cases may take; the kills have what is left.
SHARE_OF_CASES = 0.5


def main() -> int:
    options = _options()
    # As Ctrl-C: what was begun is ended, and the folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start, sound = time.monotonic(), True
    end = start + options.minutes * 60
    whole = options.kills is None and options.store is None and not options.cases and not options.only
    with tempfile.TemporaryDirectory(prefix="torture-", dir=_fast()) as scratch:
        if whole or options.cases or options.only:
            until = start + options.minutes * 60 * (SHARE_OF_CASES if whole else 1.0)
            sound = _cases(options, Path(scratch), until)
        if count := options.kills if options.kills is not None else KILLS * whole:
            sound = _kills(options, Path(scratch) / "kills", count, end) and sound
        if count := options.store if options.store is not None else KILLS_BESIDE_A_STORE * whole:
            with _store() as store:
                sound = _kills(options, Path(scratch) / "store", count, end, store) and sound
    print(f"\n{in_words(time.monotonic() - start)} in all: {'nothing' if sound else 'something'} was found")
    return int(not sound)


def _kills(options: argparse.Namespace, scratch: Path, asked: int, end: float, store: str = "") -> bool:
    start, command = time.monotonic(), ONE_MODEL if store else RUN
    if start > end:
        print(f"\nno time was left for {asked} kills{' beside a store' * bool(store)}")
        return False
    killer, told = Killer(options.checkout, scratch, options.seed, command, store=store), set()
    progress = Progress("kills beside a store" if store else "kills", asked)
    try:
        for line in killer.kill(asked, options.a_home):
            progress.clear()
            for each in [line] * options.verbose + [each for each in killer.tally.told() if each not in told]:
                print(each, flush=True)
            told |= set(killer.tally.told())
            progress.reach(killer.tally.kills.total())
            if time.monotonic() > end:
                break
    finally:
        progress.clear()
        killer.close()
    place = ", entries in an object store" if store else ""
    print(f"\n{options.checkout}, seed {options.seed}{place}, {in_words(time.monotonic() - start)}")
    print(killer.tally.table(), flush=True)
    if (done := killer.tally.kills.total()) < asked:
        print(f"{asked - done} kills were not begun within {options.minutes:g} minutes")
    return killer.tally.good and done >= asked


def _cases(options: argparse.Namespace, scratch: Path, end: float) -> bool:
    chosen = [case for case in cases(options.mutations) if options.only in case.name]
    start = time.monotonic()
    runner = Runner(options.checkout, scratch, options.seed, processes=options.processes)
    outcomes, progress = [], Progress("cases", len(chosen))
    for outcome in runner.run(chosen, end - start, options.workers):
        outcomes.append(outcome)
        if outcome.verdict != "good" or options.verbose:
            progress.clear()
            _print(outcome)
        progress.reach(len(outcomes))
    progress.clear()
    print(f"\n{options.checkout}, seed {options.seed}, {in_words(time.monotonic() - start)}")
    print(table(outcomes), flush=True)
    if len(outcomes) < len(chosen):
        print(f"{len(chosen) - len(outcomes)} cases were not begun in time")
    return len(outcomes) == len(chosen) and all(outcome.verdict == "good" for outcome in outcomes)


def table(outcomes: list[Outcome]) -> str:
    """Counts by group of cases and verdict."""
    groups = list(dict.fromkeys(outcome.case.group for outcome in outcomes))
    counts = Counter((outcome.case.group, outcome.verdict) for outcome in outcomes)
    rows = [["", "cases", *VERDICTS]]
    rows += [[g, sum(counts[g, v] for v in VERDICTS), *(counts[g, v] for v in VERDICTS)] for g in groups]
    rows.append(["all", *(sum(row[n] for row in rows[1:]) for n in range(1, len(rows[0])))])
    return "\n".join(f"{name:12}" + "".join(f"{cell!s:>11}" for cell in cells) for name, *cells in rows)


@contextlib.contextmanager
def _store() -> Iterator[str]:
    """An object store's address, served by this process."""
    from tests import s3

    # It would print a line for each request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3.serving():
        yield f"s3://{s3.BUCKET}"


def _fast() -> str | None:
    """A folder in memory where there is one: databases wait for the disk most of the time."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _print(outcome: Outcome) -> None:
    why = f" ({outcome.why})" if outcome.why else ""
    print(f"{outcome.verdict:9} {outcome.case.name}{why}\n          {outcome.said[:400]!r}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("--checkout", type=Path, default=here, help="whose code is run; default: this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="what all may take; cases have half of it")
    parser.add_argument("--mutations", type=int, default=60, help="how many randomly damaged files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--processes", action="store_true", help="each case in a new process: slow, no forks")
    parser.add_argument("--cases", action="store_true", help="cases and no kills")
    parser.add_argument(
        "--kills", type=int, help=f"kills and no cases, so many; else {KILLS} after the cases"
    )
    parser.add_argument("--store", type=int, help="only kills beside an object store, so many")
    parser.add_argument("--a-home", type=int, default=KILLS_A_HOME, help="kills in one home before the next")
    parser.add_argument("--verbose", action="store_true", help="print good answers too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
