"""`python -m benchmarks.answers --task T`: how long the served champion takes for an answer, over HTTP.

With `--large` in place of a task, a fabricated one of 64,443 target items (`benchmarks.large`), in a home of
its own that is removed at the end.

Starts `diffcdr serve` on a free port and asks it as one client does, one call after the other. Wall time is
the client's; processor time is the server's own, which other programs disturb less. The known users asked for
are those with the most ratings, whose reasons take longest.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine

HISTORY = 20  # source ratings of a new user
DEMO = "demo_video_music"
BATCH = 4096  # users


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--task")
    asked.add_argument("--large", action="store_true")
    parser.add_argument("--calls", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.task:
        _ask(arguments.task, arguments.calls)
        return 0
    with tempfile.TemporaryDirectory() as home:
        os.environ["DIFFCDR_HOME"] = home
        _register_large()
        _ask(DEMO, arguments.calls)
    return 0


def _register_large() -> None:
    """As the champion of the demo's task, in the home that the environment names; and how fast the batch path
    of `diffcdr recommend` makes lists with it."""
    from assets.serving.registry import log_version
    from assets.state.tracking import MlflowTracking
    from benchmarks.large import large

    bundle = large()
    users = bundle.recommender.known_users(torch.arange(BATCH))
    begun, processor = time.perf_counter(), time.process_time()
    bundle.recommender.recommend(users, 20)
    wall, processor = time.perf_counter() - begun, time.process_time() - processor
    print(f"{BATCH:,} lists of 20 with stars in one batch, users a second: {BATCH / wall:.0f}")
    print(f"milliseconds of the processor a user: {1000 * processor / BATCH:.1f}", flush=True)
    log_version(MlflowTracking(), DEMO, bundle, "Fabricated: its lists mean nothing.", {"cell": bundle.cell})


def _ask(task: str, calls: int) -> None:
    command = [sys.executable, "-m", "pipeline.main", "serve", "--task", task, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line.split()[-1] for line in server.stdout if line.startswith("try it"))
            Console().print(_table(_Client(address, server.pid), calls))
        finally:
            server.terminate()


class _Client:
    """One connection to a server of this machine, whose process is known."""

    def __init__(self, address: str, process: int) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        self._process = process
        self.about = self.get("about")
        users = [each["id"] for each in self.get("users")]
        self.histories = [self.get("history", user=user)[-HISTORY:] for user in users]
        self.users = users

    def get(self, path: str, **query: str):
        self._connection.request("GET", f"/page/{path}?{urlencode(query)}")
        return json.loads(self._connection.getresponse().read())

    def ask(self, request: dict) -> dict:
        body = json.dumps({"inputs": [request]})
        self._connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        [answer] = json.loads(self._connection.getresponse().read())["predictions"]
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def timed(self, requests: Iterator[dict], calls: int) -> tuple[np.ndarray, float]:
        """Seconds (calls,) of each call, and the server's processor seconds of one."""
        self.ask(next(requests))
        walls, start = np.empty(calls), self._processor()
        for call in range(calls):
            begun = time.perf_counter()
            self.ask(next(requests))
            walls[call] = time.perf_counter() - begun
        return walls, (self._processor() - start) / calls

    def _processor(self) -> float:
        fields = Path(f"/proc/{self._process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kinds(client: _Client) -> dict[str, Iterator[dict]]:
    """Requests without end, by what they ask."""
    new = [
        {"history": [{name: each[name] for name in each.keys() - {"title"}} for each in history]}
        for history in client.histories
    ]
    known = [{"user_id": user} for user in client.users]
    items = [each["item"] for each in client.ask(known[0])["items"]]
    kinds = {
        "top 20 of a known user": known,
        "the same, with reasons": [each | {"because": True} for each in known],
        f"top 20 of a new user with up to {HISTORY} ratings": new,
        "the same, with reasons, too": [each | {"because": True} for each in new],
    }
    if client.about["stars"]:
        kinds["ratings of 20 items"] = [each | {"item_ids": items} for each in known]
    return {name: itertools.cycle(requests) for name, requests in kinds.items()}


def _table(client: _Client, calls: int) -> Table:
    about = client.about
    title = (
        f"{about['name']} version {about['version']}: {about['lists']}, {about['stars']}; "
        f"{about['target_items']:,} target items, {about['users']:,} users, {calls} calls, {machine('cpu')}"
    )
    table = Table("one client", "p50 ms", "p99 ms", "processor ms", title=title, title_justify="left")
    for name, requests in _kinds(client).items():
        walls, processor = client.timed(requests, calls)
        numbers = (*np.percentile(walls, (50, 99)), processor)
        table.add_row(name, *(f"{1000 * seconds:.1f}" for seconds in numbers))
    return table


if __name__ == "__main__":
    sys.exit(main())
