"""Runs cases through the command line of a checkout."""

import dataclasses
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.torture.case import Ask, Case
from tests.torture.judge import Answer, judge, said_of
from tests.torture.lived import Lived
from tests.torture.servers import PROGRAM, ForkServer, patience, said, without_settings
from tests.torture.serving import request

# What a case leaves of its home is compared by these.
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Outcome:
    """A case with its verdict, the reason of one that is not good, and what the command said last."""

    case: Case | Ask
    verdict: str
    why: str
    said: str
    seconds: float


class Runner:
    """Runs cases of a seed in folders under `scratch`, by the code of `checkout`."""

    def __init__(self, checkout: Path, scratch: Path, seed: int, *, processes: bool = False) -> None:
        self.checkout, self.scratch, self.seed, self.processes = checkout, scratch, seed, processes
        self.servers: SimpleQueue[ForkServer] = SimpleQueue()
        self.lived = Lived(checkout, scratch)

    def run(self, cases: Sequence[Case | Ask], budget: float, workers: int = 2) -> Iterator[Outcome]:
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
            for server in (*servers, self.lived):
                server.close()

    def _outcome(self, case: Case | Ask, end: float) -> Outcome | None:
        if time.monotonic() > end:
            return None
        start = time.monotonic()
        try:
            verdict, why, said = self._ask(case) if isinstance(case, Ask) else self._run(case)
        except (RuntimeError, OSError) as error:
            # Not even what the case needs could be made.
            verdict, why, said = "unclear", f"{type(error).__name__}", str(error)
        return Outcome(case, verdict, why, said, time.monotonic() - start)

    def _ask(self, case: Ask) -> tuple[str, str, str]:
        """Verdict, why and what was said; the server must go on afterwards."""
        address = self.lived.address()
        if address is None:
            raise RuntimeError("there is no server to ask")
        reply = case.ask(address)
        verdict, why = case.expected.judge(reply)
        if verdict == "good" and request(address, "GET", "/ping").status != 200:
            verdict, why = "hang", "the server does not answer afterwards"
        return verdict, why, f"{reply.status} {reply.text[:300]}"

    def _run(self, case: Case) -> tuple[str, str, str]:
        folder = self.scratch / re.sub(r"\W+", "_", case.name)
        home = folder / "home"
        folder.mkdir(parents=True)
        if case.lived:
            self.lived.copy(folder)
        case.prepare(folder, random.Random(f"{self.seed} {case.name}"))
        before = _listed(home)
        entries = {path for path in before if path.endswith(MANIFEST)}
        answer = self._command(case, folder)
        now = _listed(home)
        lost, left = sorted(entries - now), sorted(now - before)
        answer = dataclasses.replace(answer, lost=tuple(lost), left=tuple(left))
        verdict, why = judge(case.expected, answer)
        said = next(reversed(said_of(answer)), answer.stdout[-200:])
        hint = getattr(case.expected, "hint", "")
        if verdict == "good" and hint and not self._hint_works(case, folder, hint, said):
            verdict, why = "unclear", f"no hint {hint} that works as printed"
        if verdict == "good" and case.mend is not None and answer.code != 0:
            case.mend(home)
            again = self._command(case, folder)
            if again.code != 0:
                verdict, why = "unclear", f"done as it says, it fails: {again.stderr[-300:]!r}"
        shutil.rmtree(folder, ignore_errors=True)
        return verdict, why, said

    def _hint_works(self, case: Case, folder: Path, hint: str, said: str) -> bool:
        found = re.search(hint, said)
        if found is None:
            return False
        # `run` would go on to train: `inspect` takes the same options.
        arguments = ("inspect", *case.arguments[1:], *found[0].split())
        return self._command(dataclasses.replace(case, arguments=arguments), folder).code == 0

    def _command(self, case: Case, folder: Path) -> Answer:
        places = {"{folder}": str(folder), "{checkout}": str(self.checkout)}
        environment = {
            "PYTHONPATH": str(self.checkout),
            "DIFFCDR_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }
        for name, value in case.environment.items():
            for place, path in places.items():
                value = value.replace(place, path)
            environment[name] = value
        if case.lived:
            return _of_fork(
                self.lived.run(case.arguments, environment, folder, case.seconds, **case.stop), folder
            )
        run = self._in_process if self.processes or case.process else self._in_fork
        return run(list(case.arguments), environment, folder, case.seconds)

    def _in_process(self, arguments: list[str], environment: dict, folder: Path, seconds: float) -> Answer:
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=folder,
            env=without_settings() | environment,
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
        return Answer(code, out.decode(errors="replace"), err.decode(errors="replace"))

    def _in_fork(self, arguments: list[str], environment: dict, folder: Path, seconds: float) -> Answer:
        server = self.servers.get()
        try:
            answer = server.run(arguments, environment, folder, folder / ".said", patience(seconds))
        finally:
            self.servers.put(server)
        return _of_fork(answer, folder)


def _of_fork(answer: dict, folder: Path) -> Answer:
    out, err = said(folder / ".said")
    return Answer(answer["code"], out, err, outlived=answer["left"])


def _listed(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")} if home.exists() else set()
