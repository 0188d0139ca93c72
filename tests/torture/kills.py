"""`diffcdr run` is killed at random moments and started again in the same home, until it may finish.

A home at the end must be as if nobody had killed anything: the same results, whatever was finished kept, no
run of Dagster or MLflow that is said to be going on, no file that an undisturbed home does not have.
"""

import contextlib
import random
import re
import shutil
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.runner import ForkServer, patience, said

# Spelled out, since older checkouts have no short options.
RUN = (
    *("run", "--task", "tiny", "--profile", "strict", "--beta", "0.2", "--seed", "0", "--seed", "1"),
    *("--model", "emcdr", "--model", "diffcdr"),
)
RESULTS = ("results", "--format", "csv")
# Imported once, before the forks; the last two are one module's places in newer and older checkouts.
MODULES = ("pipeline.chain", "torch", "mlflow", "matplotlib.figure", "assets.training.run", "assets.models")
WAIT = 30  # seconds that a run may be kept waiting by what was killed, or take to end on a signal
# A third of the kills can be answered.
SIGNALS = (signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143}, signal.SIGINT: {130}}
KILLS_A_HOME = 20
FLIPS_A_HOME = 10
OPEN_IN_DAGSTER = ("QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING")
# "12:00:00 — reviews and ratings of …", in newer checkouts "— step 2 of 7: strict/diffcdr".
_STAGE = re.compile(r"^[\d:]+ — (?:step [^:]*: )?(\w+)", re.MULTILINE)
_RANDOM = re.compile(r"\d{8}T\d{6}-|[0-9a-f]{4,}")


@dataclass
class Tally:
    """What came of the kills. stages: after the beginning of which stage they fell, by its first word."""

    homes: int = 0
    flips: int = 0
    kills: Counter = field(default_factory=Counter)
    stages: Counter = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    open_runs: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    longest: float = 0.0

    @property
    def good(self) -> bool:
        return not list(self.told())

    def table(self) -> str:
        names = ["homes", "kills", "TERM", "Ctrl-C", "lost", "leftovers", "open runs", "hangs", "faults"]
        counts = [self.homes, self.kills.total(), self.kills[signal.SIGTERM], self.kills[signal.SIGINT]]
        counts += map(len, (self.lost, self.leftovers, self.open_runs, self.hangs, self.faults))
        names, counts = [*names, "flips", "lies"], [*counts, self.flips, len(self.lies)]
        rows = ["".join(f"{each!s:>11}" for each in row) for row in (names, counts)]
        stages = ", ".join(f"{count} in {stage}" for stage, count in self.stages.items())
        return "\n".join([*rows, f"they fell: {stages}; the longest end took {self.longest:.0f} s"])

    def told(self) -> Iterator[str]:
        for name in ("hangs", "faults", "lost", "leftovers", "open_runs", "lies"):
            yield from (f"{name}: {each}" for each in getattr(self, name))


class Killer:
    """Kills a command of a checkout in homes under `scratch`, by a seed."""

    def __init__(
        self, checkout: Path, scratch: Path, seed: int, run: tuple[str, ...] = RUN, flips: int = FLIPS_A_HOME
    ) -> None:
        self.checkout, self.scratch, self.seed, self.tally = checkout, scratch, seed, Tally()
        self.run, self.flips = run, flips
        self._servers: dict[int, ForkServer] = {}

    def close(self) -> None:
        for server in self._servers.values():
            server.close()

    def _server(self, number: int) -> ForkServer:
        if number not in self._servers:
            catalog = str(self.checkout / "tests" / "catalog.yaml")
            quiet = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
            self._servers[number] = ForkServer(self.checkout, MODULES, DIFFCDR_CATALOG=catalog, **quiet)
        return self._servers[number]

    def kill(self, count: int, a_home: int = KILLS_A_HOME) -> Iterator[str]:
        """Do so many kills, in homes of `a_home` each; yields a line for each, and for each home."""
        self._undisturbed()
        while (done := self.tally.kills.total()) < count:
            self.tally.homes += 1
            yield from self._home(self._new(f"home{self.tally.homes}"), min(a_home, count - done))

    def _undisturbed(self) -> None:
        """What a home is like, and how long it takes, when nobody kills."""
        home = self._new("undisturbed")
        answer = self._run(home, self.run, 600)
        if answer["code"] != 0:
            raise RuntimeError(
                f"an undisturbed run does not succeed: {said(home.parent / '.said')[1][-500:]}"
            )
        self.span, self.files, self.results = answer["seconds"], _files(home), self._results(home)

    def _home(self, home: Path, kills: int) -> Iterator[str]:
        draw, before = random.Random(f"{self.seed} {home.parent.name}"), {}
        for number in range(kills):
            # Most fall early, so that a home sees many before it is finished.
            number_of, after = draw.choice(SIGNALS), self.span * draw.random() ** 3
            answer = self._run(home, self.run, self._limit, signal=number_of, after=after)
            before = self._compare_entries(home, before, number)
            yield self._judge_kill(home, answer, number_of, after)
            if answer["code"] is None:
                return
        two = self.tally.homes % 2 == 0
        yield f"{home.parent.name}: " + self._judge_end(home, self._finish(home, two), before)
        self._flip(home, draw)
        shutil.rmtree(home.parent, ignore_errors=True)

    @property
    def _limit(self) -> float:
        return 2 * self.span + patience(WAIT)

    def _judge_kill(self, home: Path, answer: dict, number: signal.Signals, after: float) -> str:
        text = said(home.parent / ".said")[1]
        stage = next(reversed(_STAGE.findall(text)), "the start")
        line = f"{number.name} after {after:.1f} s, in {stage}"
        if answer["code"] is None:
            self.tally.hangs.append(f"{line}: {text[-300:]!r}")
            return f"{line}: hang"
        if not answer["stopped"] and answer["code"] == 0:
            return f"{line}: it had finished before"
        self.tally.kills[number] += 1
        self.tally.stages[stage] += 1
        self.tally.longest = max(self.tally.longest, answer["ended"])
        if answer["ended"] > patience(WAIT):
            self.tally.hangs.append(f"{line}: it took {answer['ended']:.0f} s to end")
        if "Traceback" in text or answer["code"] not in CODES[number] | {0}:
            self.tally.faults.append(f"{line}: exit code {answer['code']}, {text[-300:]!r}")
        return line

    def _judge_end(self, home: Path, answers: list[dict], before: dict[str, bytes]) -> str:
        for number, answer in enumerate(answers):
            text = said(home.parent / f".said{number or ''}")[1]
            if answer["code"] is None:
                self.tally.hangs.append(f"the end of {home.parent.name}: {text[-300:]!r}")
                return "hang"
            if answer["code"] != 0:
                self.tally.faults.append(f"the end of {home.parent.name}: {text[-300:]!r}")
                return "it could not be finished"
        self._compare_entries(home, before, len(self.tally.kills))
        if (results := self._results(home)) != self.results:
            wrong = len(set(results.splitlines()) ^ set(self.results.splitlines()))
            self.tally.faults.append(f"{home.parent.name}: {wrong} rows of results are others")
        extra = _files(home) - self.files
        self.tally.leftovers += [f"{home.parent.name}: {path}" for path in sorted(extra)]
        self.tally.open_runs += [f"{home.parent.name}: {run}" for run in _open_runs(home)]
        together = ", by two runs at once" if len(answers) > 1 else ""
        return f"finished in {max(answer['seconds'] for answer in answers):.0f} s{together}"

    def _flip(self, home: Path, draw: random.Random) -> None:
        """Change one bit of a file of an entry: results are those of before, or some are missing and the
        entry is named."""
        files = [path for manifest in home.rglob("manifest.json") for path in manifest.parent.rglob("*")]
        files = sorted(path for path in files if path.is_file() and path.stat().st_size)
        known = set(self.results.splitlines())
        for _ in range(self.flips):
            file = draw.choice(files)
            content = file.read_bytes()
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            found, problem = self._results(home), said(home.parent / ".said")[1]
            file.write_bytes(content)
            self.tally.flips += 1
            place = file.relative_to(home).as_posix()
            if set(found.splitlines()) - known:
                self.tally.lies.append(f"{place}: other numbers")
            elif found != self.results and place.rpartition("/seed=")[0] not in problem:
                self.tally.lies.append(
                    f"{place}: numbers are missing and it is not named: {problem[-200:]!r}"
                )

    def _compare_entries(self, home: Path, before: dict[str, bytes], number: int) -> dict[str, bytes]:
        """The manifests that are there; those of before must be among them as they were."""
        now = {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("manifest.json")}
        self.tally.lost += [f"kill {number}: {path}" for path in before if now.get(path) != before[path]]
        return now

    # Running

    def _new(self, name: str) -> Path:
        home = self.scratch / name / "home"
        home.mkdir(parents=True)
        ours, project = (self.checkout / place / "dagster.yaml" for place in ("pipeline", ""))
        if not ours.exists():
            _dagster_home(project, home / "dagster")
        return home

    def _run(self, home: Path, arguments: tuple[str, ...], seconds: float, server: int = 0, **stop) -> dict:
        environment = {"DIFFCDR_HOME": str(home)}
        if not (self.checkout / "pipeline" / "dagster.yaml").exists():
            environment["DAGSTER_HOME"] = str(home / "dagster")
        out = home.parent / f".said{server or ''}"
        return self._server(server).run(arguments, environment, home.parent, out, seconds, **stop)

    def _finish(self, home: Path, two: bool) -> list[dict]:
        """One run that nobody kills, or two at once."""
        answers: dict[int, dict] = {}

        def run(server: int) -> None:
            answers[server] = self._run(home, self.run, self._limit * (2 if two else 1), server)

        threads = [threading.Thread(target=run, args=(server,)) for server in range(1 + two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [answers[server] for server in sorted(answers)]

    def _results(self, home: Path) -> str:
        self._run(home, RESULTS, patience(60))
        return said(home.parent / ".said")[0]


def _dagster_home(settings: Path, folder: Path) -> None:
    """The settings of a checkout that keeps Dagster's state in the project, for a folder of the home."""
    import yaml

    folder.mkdir()
    kept = yaml.safe_load(settings.read_text())
    for key in ("storage", "local_artifact_storage", "compute_logs"):
        kept.pop(key, None)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(kept))


def _files(home: Path) -> set[str]:
    """Paths of a home, random parts of their names left out; logs and artifacts of single runs apart.

    Of an entry's generations each is counted, so that one too many is another path.
    """
    seen: Counter = Counter()
    found = set()
    for path in sorted(home.rglob("*")):
        place = path.relative_to(home).as_posix()
        if place.startswith(("dagster/storage/", "mlflow/artifacts/", "dagster/history/runs/")):
            continue
        name = _RANDOM.sub("*", place)
        seen[name] += 1
        found.add(name if seen[name] == 1 or not path.is_dir() else f"{name}, number {seen[name]}")
    return found


def _open_runs(home: Path) -> list[str]:
    """Runs of Dagster and MLflow that are said to be going on."""
    marks = ", ".join("?" * len(OPEN_IN_DAGSTER))
    asked = {
        "runs.db": (f"SELECT run_id, status FROM runs WHERE status IN ({marks})", OPEN_IN_DAGSTER),
        "mlflow.db": ("SELECT run_uuid, status FROM runs WHERE status = ?", ("RUNNING",)),
    }
    found = []
    for name, (query, values) in asked.items():
        for file in home.rglob(name):
            with contextlib.closing(sqlite3.connect(file)) as connection:
                rows = connection.execute(query, values).fetchall()
            found += [f"{file.name}: {run} {status}" for run, status in rows]
    return found
