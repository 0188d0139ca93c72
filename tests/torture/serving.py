"""`diffcdr serve`: where it cannot start, when it is stopped, and requests to a living server."""

import json
import signal
import socket
import time
from collections.abc import Iterable, Mapping

from tests.torture.case import Ask, Case
from tests.torture.judge import Refused, Replied, Reply, Stopped

SERVE = ("serve", "--task", "tiny")
# What it says on stdout when it answers.
ANSWERS = "/invocations"
KINDS = {"Content-Type": "application/json"}
# How long an answer is waited for; the server gives a request 20 seconds to arrive.
ANSWER_SECONDS = 45
REFUSED, ABSENT, TOO_LONG = (400, 413, 415, 422), (404, 405), (400, 414, 431)


def serving() -> list[Case | Ask]:
    return [*_starts(), *_stops(), *_requests(), *_connections()]


def _starts() -> list[Case]:
    port = str(_taken().getsockname()[1])
    lines = {
        "port is taken": ((*SERVE, "--port", port), (port, "--port")),
        "no such port": ((*SERVE, "--port", "99999"), ("99999", "--port")),
        "address of another machine": ((*SERVE, "--host", "192.0.2.1"), ("192.0.2.1", "--host")),
        "address of nobody": ((*SERVE, "--host", "nowhere.invalid"), ("nowhere.invalid", "--host")),
        "no version of a profile": ((*SERVE, "--profile", "tuned"), ("tuned",)),
        "unknown task": (("serve", "--task", "*"), ("*",)),
    }
    made = [
        Case(f"serving/{name}", Refused(words), line, lived=True, seconds=30)
        for name, (line, words) in lines.items()
    ]
    catalog = {"DIFFCDR_CATALOG": "{checkout}/tests/catalog.yaml"}
    none = Case("serving/no champion", Refused(("tiny",)), SERVE, environment=catalog, process=True)
    return [none, *made]


_listening: list[socket.socket] = []


def _taken() -> socket.socket:
    """A port at which this process listens as long as it lives."""
    if not _listening:
        _listening.append(socket.create_server(("127.0.0.1", 0)))
    return _listening[0]


def _stops() -> list[Case]:
    """While it starts, and when it answers; to its group as a terminal does, or to it alone."""
    moments = {
        "at once": {"after": 0.1},
        "starting": {"after": 1.5},
        "serving": {"once": ANSWERS},
        "serving, alone": {"once": ANSWERS, "alone": True},
    }
    return [
        Case(
            f"serving/{number.name} {moment}",
            Stopped(number),
            (*SERVE, "--port", "0"),
            lived=True,
            stop={"signal": number, **when},
            seconds=60,
        )
        for number in (signal.SIGTERM, signal.SIGINT)
        for moment, when in moments.items()
    ]


def _requests() -> list[Ask]:
    rating = {"item": "i", "rating": 3.0}
    inputs: dict[str, tuple[object, tuple[str, ...]]] = {
        "user is a fraction": ({"user_id": 7.5}, ("user_id",)),
        "user is a truth value": ({"user_id": True}, ("user_id",)),
        "user is a list": ({"user_id": ["u"]}, ("user_id",)),
        "nothing asked": ({}, ("inputs[0]",)),
        "unknown key": ({"user": "u1"}, ("inputs[0]", "user")),
        "k of zero": ({"user_id": "u1", "k": 0}, ("k",)),
        "k of a billion": ({"user_id": "u1", "k": 10**9}, ("k",)),
        "k of text": ({"user_id": "u1", "k": "many"}, ("k",)),
        "rating of text": ({"history": [{"item": "i", "rating": "good"}]}, ("rating",)),
        "rating of NaN": ({"history": [{"item": "i", "rating": float("nan")}]}, ("rating",)),
        "rating off the scale": ({"history": [{"item": "i", "rating": 1e9}]}, ("rating",)),
        "history of 20,000": ({"history": [rating] * 20_000}, ("history",)),
        "a number for a request": (7, ("inputs[0]",)),
    }
    bodies = {
        "JSON is cut": b'{"inputs": [{"user_id": "u',
        "no JSON": b"\x00\xff\xfe",
        "nothing": b"",
        "a number": b"7",
        "text for requests": b'{"inputs": "u1"}',
        "nested 100,000 times": b"[" * 100_000,
        "a number of 5,000 digits": b'{"inputs": [{"user_id": "u", "k": ' + b"9" * 5000 + b"}]}",
        "half a character": b'{"inputs": [{"user_id": "\\ud800"}]}',
        "1,001 requests": json.dumps({"inputs": [{"user_id": "u"}] * 1001}).encode(),
        "two megabytes": b"x" * (2 << 20),
    }
    made = [
        _ask(name, Replied(REFUSED, names), "POST", "/invocations", json.dumps({"inputs": [each]}).encode())
        for name, (each, names) in inputs.items()
    ]
    made += [
        # An unknown user, whatever its name, is answered.
        _ask(name, Replied(REFUSED + (200,) * (name == "half a character")), "POST", "/invocations", body)
        for name, body in bodies.items()
    ]
    paths = {
        "GET": ("/docs", "/redoc", "/openapi.json", "/page/nothing", "/page/../../etc/passwd", "/invocations",
                "/%2e%2e/%2e%2e/etc/passwd", "/page/%00", "//elsewhere.example/", "/metrics"),
        "POST": ("/", "/ping", "/page/about"),
        "DELETE": ("/invocations", "/"),
        "TRACE": ("/",),
    }  # fmt: skip
    made += [
        _ask(f"{method} {path.replace('/', '|')}", Replied((400, *ABSENT)), method, path)
        for method, each in paths.items()
        for path in each
    ]
    many = {f"X{number}": "x" for number in range(10_000)}
    odd: dict[str, tuple[tuple[int, ...], str, str, dict[str, str]]] = {
        "XML": (REFUSED, "POST", "/invocations", {"Content-Type": "application/xml"}),
        "page of another site": ((400,), "GET", "/page/users", {"Host": "else.example"}),
        "query of a megabyte": (TOO_LONG, "GET", f"/page/users?q={'x' * 10**6}", {}),
        "header of a megabyte": (TOO_LONG, "GET", "/", {"X": "x" * 10**6}),
        "10,000 headers to the page": (TOO_LONG, "GET", "/", many),
        "10,000 headers": (TOO_LONG, "GET", "/ping", many),
        "length below zero": ((400,), "POST", "/invocations", {"Content-Length": "-1"}),
        "two lengths": ((400,), "POST", "/invocations", {"content-length": "9"}),
    }
    return made + [
        _ask(name, Replied(statuses, closes=statuses != REFUSED), method, path, b"{}", headers)
        for name, (statuses, method, path, headers) in odd.items()
    ]


def _connections() -> list[Ask]:
    head = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = head + b"Content-Length: 100\r\n\r\n"
    gone = Replied((400, 408), closes=True)
    made: dict[str, Iterable[bytes]] = {
        "silent": (),
        "a byte a second of headers": head,
        "headers without an end": (head,),
        "a body that does not come": (body,),
        "a byte a second of a body": (body, *b"{" * 60),
    }
    asks = [
        Ask(f"serving/{name}", gone, lambda address, sent=sent: exchange(address, _slowly(sent)))
        for name, sent in made.items()
    ]
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    for name, content in {"not HTTP": tls, "HTTP of version 9": b"GET / HTTP/9.9\r\n\r\n"}.items():
        asks.append(Ask(f"serving/{name}", gone, lambda address, sent=content: exchange(address, (sent,))))
    return [*asks, Ask("serving/300 idle connections", Replied((200, 503), closes=True), _crowded)]


def _slowly(parts: Iterable[bytes | int]) -> Iterable[bytes]:
    for part in parts:
        yield part if isinstance(part, bytes) else bytes([part])
        time.sleep(1)


def _crowded(address: tuple[str, int]) -> Reply:
    crowd = [socket.create_connection(address, timeout=10) for _ in range(300)]
    try:
        return request(address, "GET", "/ping")
    finally:
        for each in crowd:
            each.close()


def _ask(
    name: str,
    expected: Replied,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] = KINDS,
) -> Ask:
    return Ask(f"serving/{name}", expected, lambda address: request(address, method, path, body, headers))


def request(
    address: tuple[str, int], method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = KINDS
) -> Reply:
    """One request, as it is given: nothing is corrected."""
    sent = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
    return exchange(address, ("\r\n".join(lines).encode() + body,))


def exchange(address: tuple[str, int], parts: Iterable[bytes], seconds: float = ANSWER_SECONDS) -> Reply:
    """Send the parts until there is an answer; returns it once the server ends the connection."""
    end, answer = time.monotonic() + seconds, b""
    with socket.create_connection(address, timeout=seconds) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                if _answered(connection):
                    break
            while time.monotonic() < end and (piece := connection.recv(1 << 16)):
                answer += piece
        except TimeoutError:
            return _reply(answer, closed=False)
        except ConnectionError:
            # It had read enough.
            pass
    return _reply(answer, closed=True)


def _answered(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(ANSWER_SECONDS)
    return True


def _reply(answer: bytes, closed: bool) -> Reply:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
    return Reply(status, body.decode(errors="replace"), closed)
