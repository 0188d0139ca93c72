"""`diffcdr serve`: a registered version behind MLflow's scoring server in this process, and a page to try it.

The application is the one that `mlflow models serve` runs, with the checks that the model brings for it
(`pyfunc_recommender.py`); beside its endpoints stand those of the page.
"""

import asyncio
import errno
import gc
import ipaddress
import json
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import requests

from assets.serving.page import Served, routes
from assets.serving.versions import ALIAS, require
from assets.state.tracking import MlflowTracking

# Connections at a time, idle ones too, and how many wait to be accepted.
MOST_CONNECTIONS, BACKLOG = 256, 128
KEEP_ALIVE_SECONDS = 5
MOST_HEAD = 1 << 14  # bytes of the headers of a request to the page; MLflow's endpoints have their own limit
ANSWER_SECONDS = 60  # for the first answer
END_SECONDS = 1  # for answers that are under way when the server is stopped


class NotServed(RuntimeError):
    """The server cannot start, or does not answer as it should; the message says why and what to do."""


def serve(
    tracking: MlflowTracking,
    task: str,
    profile: str = "",
    host: str = "127.0.0.1",
    port: int = 5001,
    page: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the champion of a task, or the latest version of a profile, until a signal; `say` what it is and
    how to ask it once it answers. Port 0 is any that is free.

    Raises NotRegistered without a version, NotServed where the address is taken.
    """
    version = require(tracking, task, profile)
    with listening(host, port) as connection, tempfile.TemporaryDirectory() as folder:
        model = version.download(tracking, Path(folder))
        served = Served.of_files(version, model / "artifacts")
        address = _address(connection)
        application = _application(model, served, host if page else None)
        _run(application, connection, lambda: _announce(served, address, page, profile, say))


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises NotServed where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Its connections inherit it. An answer goes out as head and body: without it the kernel holds the
        # body back until the head is acknowledged, which the other side puts off for 40 ms.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise NotServed(
                f"port {port} of {host} is taken: stop what answers there, or give another with --port"
            ) from None
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise NotServed(
            f"cannot listen on {host} port {port}: {reason}; give another with --host or --port"
        ) from None
    except OverflowError:
        raise NotServed(f"there is no port {port}; give one from 1 to 65535 with --port") from None


def _address(connection: socket.socket) -> str:
    host, port = connection.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _application(model: Path, served: Served, host: str | None):
    """MLflow's application of the model, with the page where it listens on `host`, without for None."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Mount

    scoring = _scoring(model)
    if host is None:
        return scoring
    # A page of another site whose name leads here could read histories.
    names = [host, "127.0.0.1", "localhost", "::1"] if _is_loopback(host) else ["*"]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    whole = [Middleware(ShortHeads), trusted]
    return Starlette(routes=[*routes(served), Mount("/", app=scoring)], middleware=whole)


class ShortHeads:
    """Answers a request with more than MOST_HEAD bytes of headers by a 431."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        from starlette.responses import PlainTextResponse

        answer = self.app
        if sum(len(name) + len(value) for name, value in scope.get("headers", ())) > MOST_HEAD:
            answer = PlainTextResponse(f"the headers are too long, at most {MOST_HEAD} bytes are taken", 431)
        await answer(scope, receive, send)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _scoring(model: Path):
    """The application that `mlflow models serve` runs."""
    from mlflow.pyfunc import scoring_server

    os.environ[scoring_server._SERVER_MODEL_PATH] = str(model)
    # The model answers with the code that it was registered with: its own `ml`, not this project's.
    for name in [each for each in sys.modules if each.partition(".")[0] == "ml"]:
        del sys.modules[name]
    from mlflow.pyfunc.scoring_server.app import app

    return app


def _run(application, connection: socket.socket, started: Callable[[], None]) -> None:
    """Answer until a signal; once it listens, `started` runs beside it, and its error ends the server."""
    import uvicorn

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            saying = asyncio.get_running_loop().run_in_executor(None, started)
            saying.add_done_callback(self._said)
            await super().main_loop()
            if saying.done():
                saying.result()

        def _said(self, saying: asyncio.Future) -> None:
            self.should_exit = self.should_exit or saying.exception() is not None

    config = uvicorn.Config(
        application,
        # Others take the wake-up pipe by which the command line knows which signal came.
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    try:
        Server(config).run(sockets=[connection])
    finally:
        # At its end the interpreter would look through half a million objects for seconds, to free nothing.
        gc.freeze()


def _announce(served: Served, address: str, page: bool, profile: str, say: Callable[[str], None]) -> None:
    """Ask the example of the server itself, and print how it was asked."""
    example, about = served.example(), served.about()
    fields = ("item", "rating", "timestamp")
    history = [{name: each[name] for name in fields if name in each} for each in example["history"]]
    body = {
        "inputs": [
            {"user_id": example["user"], "k": 3},
            {"history": history, "k": 3, "because": True},
        ]
    }
    with requests.Session() as session:
        session.trust_env = False  # no proxy stands between
        reply = session.post(f"{address}/invocations", json=body, timeout=ANSWER_SECONDS)
    answers = reply.json().get("predictions", []) if reply.ok else []
    if not answers or any("items" not in each for each in answers):
        raise NotServed(
            f"{about['name']} version {about['version']} does not answer as it should: {reply.text[:300]}; "
            "register it again with this version of diffcdr"
        )
    models = about["lists"]
    if about["stars"] and about["stars"] != models:
        models += f" for lists and {about['stars']} for stars"
    what = f"the latest of profile {profile}" if profile else f"the {ALIAS}"
    say(f"{about['name']} version {about['version']}, {what}: {models} of {about['cell']}")
    if about["forced"]:
        say("PROMOTED BY FORCE: it did not pass the comparison with the simple rows, as its card says")
    if about["synthetic"]:
        say("the data are synthetic")
    say(f"it answers at {address}/invocations (Ctrl-C stops)")
    if not _is_loopback(urlsplit(address).hostname):
        say("whoever reaches this machine can ask it: there is no login")
    if page:
        say(f"try it in a browser: {address}/")
    say("ask it:")
    rows = ",\n  ".join(json.dumps(each) for each in body["inputs"])
    sent = shlex.quote(f'{{"inputs": [\n  {rows}]}}')
    say(f"curl -s {address}/invocations -H 'Content-Type: application/json' -d {sent}")
