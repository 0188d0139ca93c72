"""`diffcdr run` is killed at random moments and started again in the same home, until it may finish.

A home at the end must be as if nobody had killed anything: the same results, whatever was finished kept, no
run of Dagster or MLflow that is said to be going on, no file that an undisturbed home does not have. Nor may
a start be kept waiting by what was killed before it. Runs of two checkouts share the first home, which is
empty and where nobody is killed, and the end of every second one.
"""

import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.homes import Home
from tests.torture.servers import ForkServer, copied, heavy, patience, said
from tests.torture.waits import NO_WAIT, STEP, Wait, longest_silence, longest_wait

# Spelled out, since older checkouts have no short options.
RUN = (
    *("run", "--task", "tiny", "--profile", "strict", "--beta", "0.2", "--seed", "0", "--seed", "1"),
    *("--model", "emcdr", "--model", "diffcdr"),
)
# A third of the work, for where time is short.
ONE_MODEL = (*RUN[:9], *RUN[11:13])
RESULTS = ("results", "--format", "csv")
WAIT = 30  # seconds that a run may be kept waiting by what was killed, or take to end on a signal
# A third of the kills can be answered.
SIGNALS = (signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143}, signal.SIGINT: {130}}
KILLS_A_HOME = 20
FLIPS_A_HOME = 10
# The share of signals that reach the process and not its group, as `kill` and a lack of memory do.
ALONE = 0.5
# What may be wrong.
FOUND = ("lost", "leftovers", "open runs", "hangs", "waits", "faults", "lies")


@dataclass
class Tally:
    """What came of the kills. stages: after the beginning of which step they fell, by its first word; found:
    what is wrong, by its kind."""

    homes: int = 0
    starts: int = 0
    flips: int = 0
    together: int = 0
    kills: Counter = field(default_factory=Counter)
    alone: int = 0
    stages: Counter = field(default_factory=Counter)
    found: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in FOUND})
    longest_end: float = 0.0
    wait: Wait = NO_WAIT
    silence: Wait = NO_WAIT

    @property
    def good(self) -> bool:
        return not any(self.found.values())

    def table(self) -> str:
        counts = {
            "homes": self.homes,
            "starts": self.starts,
            "kills": self.kills.total(),
            "TERM": self.kills[signal.SIGTERM],
            "Ctrl-C": self.kills[signal.SIGINT],
            "two runs": self.together,
            "flips": self.flips,
            **{name: len(wrong) for name, wrong in self.found.items()},
        }
        rows = ["".join(f"{each!s:>10}" for each in row) for row in (counts, counts.values())]
        stages = ", ".join(f"{count} in {stage}" for stage, count in self.stages.items())
        return "\n".join(
            [
                *rows,
                f"they fell: {stages}; {self.alone} on the process without its group",
                f"the longest end took {self.longest_end:.1f} s",
                f"the longest wait was {self.wait.seconds:.1f} s, after: {self.wait.after[:150]}",
                f"the longest silence was {self.silence.seconds:.1f} s, after: {self.silence.after[:150]}",
            ]
        )

    def told(self) -> Iterator[str]:
        for name, wrong in self.found.items():
            yield from (f"{name}: {each}" for each in wrong)

    def tell(self, kind: str, *wrong: str) -> None:
        self.found[kind] += wrong


class Killer:
    """Kills a command of a checkout in homes under `scratch`, by a seed.

    store: where entries are kept, an s3:// address; in the homes where none is given. short: every home is
    finished by runs of two checkouts, and none begun by two.
    """

    def __init__(
        self,
        checkout: Path,
        scratch: Path,
        seed: int,
        run: tuple[str, ...] = RUN,
        flips: int = FLIPS_A_HOME,
        store: str = "",
        short: bool = False,
    ) -> None:
        self.checkout, self.scratch, self.seed, self.tally = checkout, scratch, seed, Tally()
        self.run, self.flips, self.store, self.short = run, flips, store, short
        self._servers: dict[bool, ForkServer] = {}

    def close(self) -> None:
        for server in self._servers.values():
            server.close()

    def kill(self, count: int, a_home: int = KILLS_A_HOME) -> Iterator[str]:
        """Do so many kills, in homes of `a_home` each; yields a line for each, and for each home."""
        yield self._undisturbed()
        if not self.short:
            yield self._together()
        while (done := self.tally.kills.total()) < count:
            self.tally.homes += 1
            yield from self._home(self._new(f"home{self.tally.homes}"), min(a_home, count - done))

    def _undisturbed(self) -> str:
        """What a home is like, and how long it takes, when nobody kills."""
        home = self._new("undisturbed")
        answer = self._run(home, self.run, 600)
        if answer["code"] != 0:
            raise RuntimeError(f"an undisturbed run does not succeed: {self._said(home)[1][-500:]}")
        self.span, self.files, self.results = answer["seconds"], home.files(), self._results(home)
        return f"an undisturbed run takes {self.span:.0f} s"

    def _together(self) -> str:
        """Two checkouts begin in an empty home at once."""
        home = self._new("together")
        found = "two checkouts at once: " + self._judge_end(home, self._finish(home, two=True), {})
        self._remove(home)
        return found

    def _home(self, home: Home, kills: int) -> Iterator[str]:
        draw, before = random.Random(f"{self.seed} {home.folder.name}"), {}
        for number in range(kills):
            # Most fall early, so that a home sees many before it is finished.
            number_of, after = draw.choice(SIGNALS), self.span * draw.random() ** 3
            alone = draw.random() < ALONE
            answer = self._run(home, self.run, self._limit, signal=number_of, after=after, alone=alone)
            before = self._compare_entries(home, before, number)
            yield self._judge_kill(home, answer, number_of, after, alone)
            if answer["code"] is None:
                return
        # The second of two may lose the first.
        two, moment = self.short or self.tally.homes % 2 == 0, self.span * draw.random()
        stop = {"signal": signal.SIGKILL, "after": moment} if self.tally.homes % 4 == 0 else {}
        yield f"{home.folder.name}: " + self._judge_end(home, self._finish(home, two, **stop), before)
        if not home.store:  # which checks itself what it keeps
            self._flip(home, draw)
        self._remove(home)

    @property
    def _limit(self) -> float:
        return 2 * self.span + patience(WAIT)

    def _judge_kill(
        self, home: Home, answer: dict, number: signal.Signals, after: float, alone: bool = False
    ) -> str:
        text = self._said(home)[1]
        stage = next(reversed([found[1] for _, line in answer["lines"] if (found := STEP.match(line))]), None)
        stage = stage or "the start"
        line = f"{number.name} after {after:.1f} s{', alone' * alone}, in {stage}"
        if answer["code"] is None:
            self.tally.tell("hangs", f"{line}: {text[-300:]!r}")
            return f"{line}: hang"
        if not answer["stopped"] and answer["code"] == 0:
            return f"{line}: it had finished before"
        self.tally.kills[number] += 1
        self.tally.alone += alone
        self.tally.stages[stage] += 1
        self.tally.longest_end = max(self.tally.longest_end, answer["ended"])
        if answer["ended"] > patience(WAIT):
            self.tally.tell("hangs", f"{line}: it took {answer['ended']:.0f} s to end")
        if "Traceback" in text or answer["code"] not in CODES[number] | {0}:
            self.tally.tell("faults", f"{line}: exit code {answer['code']}, {text[-300:]!r}")
        if answer["left"]:
            self.tally.tell("leftovers", f"{line}: {answer['left']} processes")
        return line

    def _judge_end(self, home: Home, answers: list[dict], before: dict[str, bytes]) -> str:
        for answer, text in zip(answers, self._said_by_each(home, len(answers)), strict=True):
            if answer["code"] is None:
                self.tally.tell("hangs", f"the end of {home.folder.name}: {text[-300:]!r}")
                return "hang"
            if answer["code"] != 0 and not (answer["stopped"] and answer["code"] == -signal.SIGKILL):
                self.tally.tell("faults", f"the end of {home.folder.name}: {text[-300:]!r}")
                return "it could not be finished"
        self._compare_entries(home, before, self.tally.kills.total())
        if (results := self._results(home)) != self.results:
            wrong = len(set(results.splitlines()) ^ set(self.results.splitlines()))
            self.tally.tell("faults", f"{home.folder.name}: {wrong} rows of results are others")
        if any(answer["stopped"] for answer in answers):
            # What the killed one of two left is closed by the next start.
            self._run(home, self.run, self._limit)
        extra = home.files() - self.files
        self.tally.tell("leftovers", *(f"{home.folder.name}: {path}" for path in sorted(extra)))
        self.tally.tell("open runs", *(f"{home.folder.name}: {run}" for run in home.open_runs()))
        seconds = max(answer["seconds"] for answer in answers)
        killed = any(answer["stopped"] for answer in answers)
        together = (", by two checkouts at once" + ", of which one was killed" * killed) * (len(answers) > 1)
        return f"finished in {seconds:.0f} s{together}"

    def _flip(self, home: Home, draw: random.Random) -> None:
        """Change one bit of a file of an entry: results are those of before, or some are missing and the
        entry is named."""
        files, known = home.entry_files(), set(self.results.splitlines())
        for _ in range(self.flips):
            place = draw.choice(sorted(files))
            content = files[place].read_bytes()
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            files[place].write_bytes(changed)
            found, problem = self._results(home), self._said(home)[1]
            files[place].write_bytes(content)
            self.tally.flips += 1
            if set(found.splitlines()) - known:
                self.tally.tell("lies", f"{place}: other numbers")
            elif found != self.results and place.rpartition("/seed=")[0] not in problem:
                self.tally.tell(
                    "lies", f"{place}: numbers are missing and it is not named: {problem[-200:]!r}"
                )

    def _compare_entries(self, home: Home, before: dict[str, bytes], number: int) -> dict[str, bytes]:
        """The manifests that are there; those of before must be among them as they were."""
        now = home.manifests()
        self.tally.tell(
            "lost", *(f"kill {number}: {path}" for path in before if now.get(path) != before[path])
        )
        return now

    # Running

    def _new(self, name: str) -> Home:
        home = Home(self.scratch / name, self.store)
        home.path.mkdir(parents=True)
        if not self._keeps_dagster:
            _dagster_home(self.checkout / "dagster.yaml", home.path / "dagster")
        return home

    def _remove(self, home: Home) -> None:
        shutil.rmtree(home.folder, ignore_errors=True)

    @property
    def _keeps_dagster(self) -> bool:
        """Whether the checkout keeps Dagster's state in the home by itself."""
        return (self.checkout / "pipeline" / "dagster.yaml").exists()

    def _server(self, other: bool) -> ForkServer:
        """Of the checkout, or of a copy of it in another place."""
        if other not in self._servers:
            checkout = copied(self.checkout, self.scratch / "other checkout") if other else self.checkout
            self._servers[other] = heavy(checkout)
        return self._servers[other]

    def _run(
        self, home: Home, arguments: tuple[str, ...], seconds: float, other: bool = False, **stop
    ) -> dict:
        environment = home.environment
        if not self._keeps_dagster:
            environment["DAGSTER_HOME"] = str(home.path / "dagster")
        out = home.folder / f".said{int(other) or ''}"
        answer = self._server(other).run(arguments, environment, home.folder, out, seconds, **stop)
        if arguments == self.run:
            self._time(home, answer, two=other)
        return answer

    def _time(self, home: Home, answer: dict, two: bool) -> None:
        """Take the time that a start was kept waiting."""
        self.tally.starts += 1
        wait = longest_wait(answer["lines"], answer["seconds"])
        silence = longest_silence(answer["lines"], answer["seconds"])
        self.tally.wait, self.tally.silence = max(self.tally.wait, wait), max(self.tally.silence, silence)
        for kind, found in (("waited", wait), ("said nothing", silence)):
            if found.seconds > patience(WAIT):
                where = f"{home.folder.name}, start {self.tally.starts}"
                self.tally.tell("waits", f"{where}: {kind} for {found.seconds:.0f} s after {found.after!r}")

    def _finish(self, home: Home, two: bool, **stop) -> list[dict]:
        """One run that nobody kills, or one of each checkout at once, of which the other may be killed."""
        answers: dict[bool, dict] = {}

        def run(other: bool) -> None:
            limit, killed = self._limit * (2 if two else 1), stop if other else {}
            answers[other] = self._run(home, self.run, limit, other, **killed)

        each = [False, True][: 1 + two]
        for other in each:
            self._server(other)
        threads = [threading.Thread(target=run, args=(other,)) for other in each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.tally.together += two
        return [answers[other] for other in each]

    def _results(self, home: Home) -> str:
        self._run(home, RESULTS, patience(60))
        return self._said(home)[0]

    def _said(self, home: Home) -> list[str]:
        return said(home.folder / ".said")

    def _said_by_each(self, home: Home, count: int) -> list[str]:
        return [said(home.folder / f".said{number or ''}")[1] for number in range(count)]


def _dagster_home(settings: Path, folder: Path) -> None:
    """The settings of a checkout that keeps Dagster's state in the project, for a folder of the home."""
    import yaml

    folder.mkdir()
    kept = yaml.safe_load(settings.read_text())
    for key in ("storage", "local_artifact_storage", "compute_logs"):
        kept.pop(key, None)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(kept))
