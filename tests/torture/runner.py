"""Runs cases through the command line of a checkout."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.torture.cases import Case
from tests.torture.judge import Answer, judge, said_of

PROGRAM = [sys.executable, "-c", "from pipeline.cli import app; app()"]
FORKS = Path(__file__).with_name("forks.py")


@dataclass(frozen=True)
class Outcome:
    """A case with its verdict, the reason of one that is not good, and what the command said last."""

    case: Case
    verdict: str
    why: str
    said: str
    seconds: float


class Runner:
    """Runs cases of a seed in folders under `scratch`, by the code of `checkout`."""

    def __init__(self, checkout: Path, scratch: Path, seed: int, *, processes: bool = False) -> None:
        self.checkout, self.scratch, self.seed, self.processes = checkout, scratch, seed, processes
        self.servers: SimpleQueue[ForkServer] = SimpleQueue()

    def run(self, cases: Sequence[Case], budget: float, workers: int = 2) -> Iterator[Outcome]:
        """Outcomes in the order of the cases, as many as are begun within `budget` seconds."""
        end = time.monotonic() + budget
        servers = [] if self.processes else [ForkServer(self.checkout) for _ in range(workers)]
        for server in servers:
            self.servers.put(server)
        try:
            with ThreadPoolExecutor(workers) as pool:
                for outcome in pool.map(lambda case: self._outcome(case, end), cases):
                    if outcome is not None:
                        yield outcome
        finally:
            for server in servers:
                server.close()

    def _outcome(self, case: Case, end: float) -> Outcome | None:
        if time.monotonic() > end:
            return None
        folder = self.scratch / re.sub(r"\W+", "_", case.name)
        home = folder / "home"
        folder.mkdir(parents=True)
        case.prepare(folder, random.Random(f"{self.seed} {case.name}"))
        before, start = _listed(home), time.monotonic()
        code, out, err = self._command(case, folder)
        left = tuple(sorted(_listed(home) - before))
        answer = Answer(code, out, err, left)
        verdict, why = judge(case.expected, answer)
        said = next(reversed(said_of(answer)), out[-200:])
        hint = getattr(case.expected, "hint", "")
        if verdict == "good" and hint and not self._hint_works(case, folder, hint, said):
            verdict, why = "unclear", f"no hint {hint} that works as printed"
        outcome = Outcome(case, verdict, why, said, time.monotonic() - start)
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _hint_works(self, case: Case, folder: Path, hint: str, said: str) -> bool:
        found = re.search(hint, said)
        # `run` would go on to train: `inspect` takes the same options.
        arguments = ("inspect", *case.arguments[1:])
        return (
            found is not None
            and self._command(dataclasses.replace(case, arguments=(*arguments, *found[0].split())), folder)[0]
            == 0
        )

    def _command(self, case: Case, folder: Path) -> tuple[int | None, str, str]:
        environment = {
            "PYTHONPATH": str(self.checkout),
            "DIFFCDR_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            **{name: value.replace("{folder}", str(folder)) for name, value in case.environment.items()},
        }
        run = self._in_process if self.processes or case.process else self._in_fork
        return run(list(case.arguments), environment, folder, case.seconds)

    def _in_process(self, arguments: list[str], environment: dict, folder: Path, seconds: float):
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=folder,
            env=_without_settings() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=patience(seconds))
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            code = None
        return code, out.decode(errors="replace"), err.decode(errors="replace")

    def _in_fork(self, arguments: list[str], environment: dict, folder: Path, seconds: float):
        server = self.servers.get()
        try:
            answer = server.run(arguments, environment, folder, folder / ".said", patience(seconds))
        finally:
            self.servers.put(server)
        return answer["code"], *said(folder / ".said")


class ForkServer:
    """A process of a checkout that has imported much and answers command lines in forks; see forks.py."""

    def __init__(self, checkout: Path, modules: Sequence[str] = (), **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FORKS), *modules],
            env=_without_settings()
            | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
            | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{checkout} cannot be imported")

    def run(
        self, arguments: Sequence[str], environment: dict, folder: Path, out: Path, seconds: float, **stop
    ) -> dict:
        """What forks.py answers. stop: signal and after."""
        asked = {"arguments": list(arguments), "environment": environment, "seconds": seconds, **stop}
        self._process.stdin.write(json.dumps({**asked, "folder": str(folder), "out": str(out)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def copied(checkout: Path, place: Path) -> Path:
    """A copy of a checkout's code in another place."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    return Path(shutil.copytree(checkout, place, ignore=ignored))


def said(out: Path) -> list[str]:
    """What a command of a ForkServer wrote on stdout and stderr."""
    return [Path(f"{out}.{part}").read_text(errors="replace") for part in ("out", "err")]


def patience(seconds: float) -> float:
    """How long to wait for what takes so long on an idle machine: longer where others are at work."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _without_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("DIFFCDR_", "MLFLOW_", "DAGSTER_"))}


def _listed(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")} if home.exists() else set()
