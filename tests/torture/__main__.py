"""The campaign: `python -m tests.torture [--checkout DIR] [--minutes M] [--seed S] [--only TEXT]`.

Cases first, then kills; `--kills N` alone does no cases, `--cases` alone no kills.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.torture.cases import cases
from tests.torture.judge import VERDICTS
from tests.torture.kills import KILLS_A_HOME, Killer
from tests.torture.runner import Outcome, Runner

KILLS = 100


def main() -> int:
    options = _options()
    sound = True
    with tempfile.TemporaryDirectory(prefix="torture-", dir=_fast()) as scratch:
        if options.kills is None or options.only or options.cases:
            sound = _cases(options, Path(scratch))
        if options.kills is not None or not (options.only or options.cases):
            sound = _kills(options, Path(scratch) / "kills") and sound
    return int(not sound)


def _kills(options: argparse.Namespace, scratch: Path) -> bool:
    start, asked = time.monotonic(), KILLS if options.kills is None else options.kills
    killer, said = Killer(options.checkout, scratch, options.seed), set()
    try:
        for line in killer.kill(asked, options.a_home):
            if options.verbose:
                print(line, flush=True)
            for told in killer.tally.told():
                if told not in said:
                    print(told, flush=True)
                    said.add(told)
            if time.monotonic() - start > options.minutes * 60:
                break
    finally:
        killer.close()
    print(f"\n{options.checkout}, seed {options.seed}, {time.monotonic() - start:.0f} s")
    print(killer.tally.table(), flush=True)
    if (done := killer.tally.kills.total()) < asked:
        print(f"{asked - done} kills were not begun within {options.minutes:g} minutes")
    return killer.tally.good and done == asked


def _cases(options: argparse.Namespace, scratch: Path) -> bool:
    chosen = [case for case in cases(options.mutations) if options.only in case.name]
    start = time.monotonic()
    runner = Runner(options.checkout, scratch, options.seed, processes=options.processes)
    outcomes = []
    for outcome in runner.run(chosen, options.minutes * 60, options.workers):
        outcomes.append(outcome)
        if outcome.verdict != "good" or options.verbose:
            _print(outcome)
    print(f"\n{options.checkout}, seed {options.seed}, {time.monotonic() - start:.0f} s")
    print(table(outcomes), flush=True)
    if len(outcomes) < len(chosen):
        print(f"{len(chosen) - len(outcomes)} cases were not begun within {options.minutes:g} minutes")
    return len(outcomes) == len(chosen) and all(outcome.verdict == "good" for outcome in outcomes)


def table(outcomes: list[Outcome]) -> str:
    """Counts by group of cases and verdict."""
    groups = list(dict.fromkeys(outcome.case.group for outcome in outcomes))
    counts = Counter((outcome.case.group, outcome.verdict) for outcome in outcomes)
    rows = [["", "cases", *VERDICTS]]
    rows += [[g, sum(counts[g, v] for v in VERDICTS), *(counts[g, v] for v in VERDICTS)] for g in groups]
    rows.append(["all", *(sum(row[n] for row in rows[1:]) for n in range(1, len(rows[0])))])
    return "\n".join(f"{name:12}" + "".join(f"{cell!s:>11}" for cell in cells) for name, *cells in rows)


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
    parser.add_argument("--minutes", type=float, default=15, help="budget of the cases, and of the kills")
    parser.add_argument("--mutations", type=int, default=60, help="how many randomly damaged files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--processes", action="store_true", help="each case in a new process: slow, no forks")
    parser.add_argument("--cases", action="store_true", help="cases and no kills")
    parser.add_argument(
        "--kills", type=int, help=f"kills and no cases, so many; else {KILLS} after the cases"
    )
    parser.add_argument("--a-home", type=int, default=KILLS_A_HOME, help="kills in one home before the next")
    parser.add_argument("--verbose", action="store_true", help="print good answers too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
