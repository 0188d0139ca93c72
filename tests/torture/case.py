"""What a case is."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.judge import Expected, Replied, Reply

# In a home that has been lived in: what `lived` cases ask about.
TINY = ("--task", "tiny", "--profile", "strict")


def nothing(_folder: Path, _draw: random.Random) -> None: ...


@dataclass(frozen=True)
class Case:
    """A command line. The working directory is a folder of the case's own, which environment may name as
    {folder}.

    process: needs a new process, not a fork, because what it is about is read at import.
    lived: the home is one in which a model of the tiny task is trained and registered.
    stop: when a signal is sent, as forks.py takes it.
    mend: does what a refusal says, after which the same command must succeed; for lived cases.
    seconds: a case that takes longer hangs; the slowest good one takes five.
    """

    name: str
    expected: Expected
    arguments: tuple[str, ...]
    prepare: Callable[[Path, random.Random], None] = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    process: bool = False
    lived: bool = False
    stop: Mapping[str, object] = field(default_factory=dict)
    mend: Callable[[Path], None] | None = None
    seconds: float = 20

    @property
    def group(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Ask:
    """A request to a server of the champion of the lived home, which runs for all of them; ask: sends it to
    a host and port."""

    name: str
    expected: Replied
    ask: Callable[[tuple[str, int]], Reply]

    @property
    def group(self) -> str:
        return self.name.split("/")[0]


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
