"""The campaign: `python -m tests.torture [--checkout DIR] [--minutes M] [--seed S] [--only TEXT]`."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.torture.cases import cases
from tests.torture.judge import VERDICTS
from tests.torture.runner import Outcome, Runner


def main() -> int:
    options = _options()
    chosen = [case for case in cases(options.mutations) if options.only in case.name]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        runner = Runner(options.checkout, Path(scratch), options.seed, processes=options.processes)
        outcomes = []
        for outcome in runner.run(chosen, options.minutes * 60, options.workers):
            outcomes.append(outcome)
            if outcome.verdict != "good" or options.verbose:
                _print(outcome)
    print(f"\n{options.checkout}, seed {options.seed}, {time.monotonic() - start:.0f} s")
    print(table(outcomes))
    if len(outcomes) < len(chosen):
        print(f"{len(chosen) - len(outcomes)} cases were not begun within {options.minutes:g} minutes")
    return int(any(outcome.verdict != "good" for outcome in outcomes) or len(outcomes) < len(chosen))


def table(outcomes: list[Outcome]) -> str:
    """Counts by group of cases and verdict."""
    groups = list(dict.fromkeys(outcome.case.group for outcome in outcomes))
    counts = Counter((outcome.case.group, outcome.verdict) for outcome in outcomes)
    rows = [["", "cases", *VERDICTS]]
    rows += [[g, sum(counts[g, v] for v in VERDICTS), *(counts[g, v] for v in VERDICTS)] for g in groups]
    rows.append(["all", *(sum(row[n] for row in rows[1:]) for n in range(1, len(rows[0])))])
    return "\n".join(f"{name:12}" + "".join(f"{cell!s:>11}" for cell in cells) for name, *cells in rows)


def _print(outcome: Outcome) -> None:
    why = f" ({outcome.why})" if outcome.why else ""
    print(f"{outcome.verdict:9} {outcome.case.name}{why}\n          {outcome.said[:400]!r}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    here = Path(__file__).resolve().parents[2]
    parser.add_argument("--checkout", type=Path, default=here, help="whose code is run; default: this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10, help="budget; no case is begun after it")
    parser.add_argument("--mutations", type=int, default=60, help="how many randomly damaged files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--processes", action="store_true", help="each case in a new process: slow, no forks")
    parser.add_argument("--verbose", action="store_true", help="print good answers too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
