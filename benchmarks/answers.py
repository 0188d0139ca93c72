"""`python -m benchmarks.answers --task T`: how long the served champion takes for an answer, over HTTP.

With `--large` in place of a task, a fabricated one of 64,443 target items (`benchmarks.large`), in a home of
its own that is removed at the end. With `--show` it prints one call and its answer, and times nothing.

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
from collections.abc import Callable, Iterator
from functools import partial
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
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    work = _show if arguments.show else partial(_time, calls=arguments.calls)
    if arguments.task:
        _served(arguments.task, work)
        return 0
    with tempfile.TemporaryDirectory() as home:
        os.environ["DIFFCDR_HOME"] = home
        _register_large()
        _served(DEMO, work)
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


def _served(task: str, work: Callable[[_Client], None]) -> None:
    """Do the work with a client of a server of the task's champion."""
    command = [sys.executable, "-m", "pipeline.main", "serve", "--task", task, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line.split()[-1] for line in server.stdout if line.startswith("try it"))
            work(_Client(address, server.pid))
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

    def ask(self, *requests: dict) -> list[dict]:
        body = json.dumps({"inputs": requests})
        self._connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        answers = json.loads(self._connection.getresponse().read())["predictions"]
        for answer in answers:
            if "error" in answer:
                raise RuntimeError(answer["error"])
        return answers

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
    new = [{"history": [_typed(each) for each in history]} for history in client.histories]
    known = [{"user_id": user} for user in client.users]
    items = [each["item"] for each in client.ask(known[0])[0]["items"]]
    kinds = {
        "top 20 of a known user": known,
        "the same, with reasons": [each | {"because": True} for each in known],
        f"top 20 of a new user with up to {HISTORY} ratings": new,
        "the same, with reasons, too": [each | {"because": True} for each in new],
    }
    if client.about["stars"]:
        kinds["ratings of 20 items"] = [each | {"item_ids": items} for each in known]
    return {name: itertools.cycle(requests) for name, requests in kinds.items()}


def _show(client: _Client) -> None:
    """One call with a known user, a history and an item to be rated, and the answer to it."""
    example = client.about["example"]
    history = [_typed(each) for each in example["history"]]
    requests = [{"user_id": example["user"], "k": 3}, {"history": history, "k": 3, "because": True}]
    if client.about["stars"]:
        [listed] = client.ask(requests[0])
        requests.append({"user_id": example["user"], "item_ids": [listed["items"][0]["item"]]})
    for name, rows in (("inputs", requests), ("predictions", client.ask(*requests))):
        print(f'{{"{name}": [\n  ' + ",\n  ".join(_short(row) for row in rows) + "]}\n")


def _typed(rated: dict) -> dict:
    """A rating of the page as a request takes it."""
    return {name: value for name, value in rated.items() if name != "title"}


def _short(row: dict) -> str:
    """As JSON with four digits of each number, a line for each item of an answer."""
    rounded = json.loads(json.dumps(row), parse_float=lambda text: float(f"{float(text):.4g}"))
    parts = [
        f'"{name}": ' + (f"[\n    {_lines(value)}]" if name in ("items", "ratings") else json.dumps(value))
        for name, value in rounded.items()
    ]
    return "{" + ", ".join(parts) + "}"


def _lines(rows: list[dict]) -> str:
    return ",\n    ".join(json.dumps(row) for row in rows)


def _time(client: _Client, calls: int) -> None:
    Console().print(_table(client, calls))


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
