"""A home that has been lived in: a model of the tiny task is trained in it, and registered."""

import shutil
import threading
from pathlib import Path

from tests.torture.case import TINY
from tests.torture.servers import ForkServer, LiveServer, heavy, patience, said

MADE_BY = (
    ("run", *TINY, "--beta", "0.2", "--seed", "0", "--model", "emcdr"),
    ("register", *TINY, "--force"),
)


class Lived:
    """Made when it is first asked for, once; so are the server of its champion, and the one of forks."""

    def __init__(self, checkout: Path, scratch: Path) -> None:
        self.checkout, self._folder = checkout, scratch / "lived"
        self._lock = threading.RLock()
        self._forks: ForkServer | None = None
        self._live: LiveServer | None = None

    def copy(self, folder: Path) -> None:
        """A home like it in the folder."""
        shutil.copytree(self._home(), folder / "home", dirs_exist_ok=True)

    def run(
        self, arguments: tuple[str, ...], environment: dict, folder: Path, seconds: float, **stop
    ) -> dict:
        """What forks.py answers; one at a time."""
        with self._lock:
            if self._forks is None:
                self._forks = heavy(self.checkout)
            return self._forks.run(
                arguments, environment, folder, folder / ".said", patience(seconds), **stop
            )

    def address(self) -> tuple[str, int] | None:
        """Where its champion answers."""
        with self._lock:
            if self._live is None:
                self._live = LiveServer(self.checkout, self._home())
            return self._live.address

    def close(self) -> None:
        for server in (self._forks, self._live):
            if server is not None:
                server.close()

    def _home(self) -> Path:
        home = self._folder / "home"
        with self._lock:
            if not self._folder.exists():
                self._folder.mkdir(parents=True)
                for command in MADE_BY:
                    answer = self.run(command, {"DIFFCDR_HOME": str(home)}, self._folder, 300)
                    if answer["code"] != 0:
                        raise RuntimeError(f"{' '.join(command)}: {said(self._folder / '.said')[1][-500:]}")
        return home
