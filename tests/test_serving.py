"""The registered model behind `mlflow models serve`: answers, refusals, and that it stays alive."""

import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from assets.serving.bundle import Bundle
from assets.serving.pyfunc_recommender import Request, ServedRecommender
from assets.serving.registry import save_pyfunc
from assets.state.tracking import _mlflow
from ml.data import Data, Problem, Ratings, SourceUsers, Users
from ml.encoder import ItemStatistics, SourceEncoder, liked
from ml.fold_in import FoldIn
from ml.models.registry import build
from ml.models.statistics import source_statistics
from ml.recommender import Recommender, Served, UserRatings

USERS, SOURCE_ITEMS, TARGET_ITEMS, WIDTH = 30, 12, 25, 4
# Of every other item.
TITLES = np.array([None if row % 2 else f"Title {row}" for row in range(TARGET_ITEMS)], dtype=object)
NOTE = "nothing is known of this user: the most popular items"


def names(letter: str, count: int) -> np.ndarray:
    return np.array([f"{letter}{number}" for number in range(count)], dtype=object)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Lists by a small PTUPCDR, which reads histories, and stars by item means and source biases. User u0
    rated nothing, item t24 may not be listed, and u7 has rated t3 and t4."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = torch.arange(4 * (USERS - 1))
    values = torch.randint(1, 6, (len(rows),), generator=generator).float()
    source = Ratings(rows % (USERS - 1) + 1, rows % SOURCE_ITEMS, values)
    target = Ratings(rows % USERS, rows % TARGET_ITEMS, values)
    source_items = normal(SOURCE_ITEMS, WIDTH)
    fold_in = FoldIn.of(normal(USERS, WIDTH), source_items, source)
    factors = SourceUsers(fold_in(source, USERS), liked(source, USERS, 3), source_items)
    every = torch.arange(USERS)
    statistics = source_statistics(source, USERS, SOURCE_ITEMS, (1.0, 5.0))
    users = Users(every, torch.full_like(every, -1), factors, statistics=statistics)
    problem = Problem(factors, normal(USERS, WIDTH), normal(TARGET_ITEMS, WIDTH), target, 0)
    sizes = USERS, SOURCE_ITEMS, USERS, TARGET_ITEMS
    data = Data(0, source, target, *sizes, users, target, every, problem=problem)
    served = {}
    for name, kind, settings, needs in (
        ("lists", "ptupcdr", {"epochs": 2}, ("factors",)),
        ("stars", "item_source_bias", {}, ("ratings",)),
    ):
        model = build(kind, **settings)
        list(model.fit([data]))
        own = build(kind, **settings).load_state_dict(model.state_dict()).bind([data])
        encoder = SourceEncoder(
            needs,
            SOURCE_ITEMS,
            (1.0, 5.0),
            3.0,
            factors=fold_in if name == "lists" else None,
            statistics=ItemStatistics.of(source, SOURCE_ITEMS) if name == "stars" else None,
        )
        served[name] = Served(kind, kind, own, encoder, users)
    rated = Ratings(torch.tensor([7, 7]), torch.tensor([3, 4]), torch.tensor([4.0, 1]))
    recommender = Recommender(
        **served,
        history=UserRatings.of(source, USERS),
        rated=UserRatings.of(rated, USERS),
        popularity=torch.arange(TARGET_ITEMS),
        allowed=torch.arange(TARGET_ITEMS - 1),
        scale=(1.0, 5.0),
    )
    ids = names("u", USERS), names("s", SOURCE_ITEMS), names("t", TARGET_ITEMS)
    return Bundle("made up", "tiny|b20-s0", recommender, *ids, (1.0, 5.0), target_titles=TITLES)


def test_ids_that_are_numbers_in_the_data_are_numbers_in_answers_and_may_be_in_requests(bundle, tmp_path):
    """Without a server: what it calls."""
    ids = {
        name: np.array([str(row) for row in range(50)], dtype=object) for name in ("user_ids", "source_ids")
    }
    numbered = frozenset({"user_ids", "source_item_ids", "target_item_ids"})
    targets = np.array([str(100 + row) for row in range(TARGET_ITEMS)], dtype=object)
    answering = []
    for name, made in {
        "text": bundle,
        "numbers": dataclasses.replace(bundle, **ids, target_ids=targets, numbered=numbered),
    }.items():
        (tmp_path / name).mkdir()
        for file, content in made.files().items():
            (tmp_path / name / file).write_bytes(content)
        answering.append(ServedRecommender())
        files = {path.stem: str(path) for path in (tmp_path / name).iterdir()}
        answering[-1].load_context(SimpleNamespace(artifacts={"config": files.pop("config"), **files}))
    text, numbers = answering
    history = [{"item": 3, "rating": 5.0}, {"item": 8, "rating": 2.0}]
    asked = [
        ({"user_id": 7, "k": 3}, {"user_id": "u7", "k": 3}),
        ({"user_id": "7", "item_ids": [104]}, {"user_id": "u7", "item_ids": ["t4"]}),
        (
            {"history": history, "k": 2, "because": True},
            {"history": [{**each, "item": f"s{each['item']}"} for each in history], "k": 2, "because": True},
        ),
    ]
    for mine, theirs in asked:
        [got] = numbers.predict(None, [Request.model_validate(mine)])
        [expected] = text.predict(None, [Request.model_validate(theirs)])
        found, wanted = (answer.get("items") or answer.get("ratings") for answer in (got, expected))
        assert [each["item"] for each in found] == [100 + int(each["item"][1:]) for each in wanted]
        assert [each["rating"] for each in found] == [each["rating"] for each in wanted]
        reasons = [[int(item[1:]) for item in each.get("because", [])] for each in wanted]
        assert [each.get("because", []) for each in found] == reasons
    with pytest.raises(ValidationError, match="valid string"):
        Request.model_validate({"user_id": True})


class Server:
    """`mlflow models serve` on a free port, with its default host."""

    def __init__(self, model, log) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model)]
        command += ["--env-manager", "local", "--port", str(self.port)]
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("PYTHONPATH", None)
        self.log = log
        self.process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stop(self) -> None:
        """End the server and its worker; MLflow hands a signal on as SIGINT, which background jobs ignore."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)

    def wait(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                return self.send("GET", "/ping")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.1)

    def send(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def ask(self, *requests) -> tuple[int, dict]:
        status, body = self.send("POST", "/invocations", json.dumps({"inputs": list(requests)}).encode())
        return status, json.loads(body)

    def predict(self, *requests) -> list[dict]:
        status, answer = self.ask(*requests)
        assert status == 200, answer
        return answer["predictions"]


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    _mlflow()
    served = Server(save_pyfunc(folder, bundle, "# Card"), folder / "log")
    try:
        served.wait()
        yield served
    finally:
        served.stop()


def expected(bundle: Bundle, asked, k: int, include_rated: bool = False) -> dict:
    listed = bundle.recommender.recommend(asked, k, include_rated=include_rated)
    items = [
        {"item": f"t{item}", "rank": rank + 1}
        | ({"title": TITLES[item]} if TITLES[item] else {})
        | {n: pytest.approx(v, rel=1e-4) for n, v in numbers.items()}
        for rank, item in enumerate(listed.items[0].tolist())
        if item >= 0
        for numbers in [
            {
                "score": listed.scores[0, rank].item(),
                "rating": listed.mean[0, rank].item(),
                "median": listed.median[0, rank].item(),
            }
        ]
    ]
    return {"model": "ptupcdr", "items": items}


def known(bundle: Bundle, *rows: int):
    return bundle.recommender.known_users(torch.tensor(rows))


def test_a_known_user_gets_the_best_items_but_those_rated(server, bundle):
    assert server.predict({"user_id": "u7", "k": 3}) == [expected(bundle, known(bundle, 7), 3)]
    [default] = server.predict({"user_id": "u7"})
    assert default == expected(bundle, known(bundle, 7), 20)
    [everything] = server.predict({"user_id": "u7", "k": 1000})
    allowed = {f"t{n}" for n in range(TARGET_ITEMS - 1)}
    assert {each["item"] for each in everything["items"]} == allowed - {"t3", "t4"}
    [again] = server.predict({"user_id": "u7", "k": 1000, "include_rated": True})
    assert {each["item"] for each in again["items"]} == allowed


HISTORY = [{"item": "s3", "rating": 5}, {"item": "s8", "rating": 4.5}, {"item": "s1", "rating": 1}]


def new(bundle: Bundle):
    ratings = Ratings(torch.zeros(3, dtype=torch.int64), torch.tensor([3, 8, 1]), torch.tensor([5, 4.5, 1]))
    return bundle.recommender.new_users(ratings, 1)


def test_a_new_user_is_folded_in(server, bundle):
    assert server.predict({"history": HISTORY, "k": 6}) == [expected(bundle, new(bundle), 6)]
    twice = [{"item": "s3", "rating": 1}, *HISTORY]
    assert server.predict({"history": twice, "k": 6}) == server.predict({"history": HISTORY, "k": 6})


def test_reasons_are_source_items_of_the_users_history(server, bundle):
    [answer] = server.predict({"history": HISTORY, "k": 4, "because": True})
    items = torch.tensor([int(each["item"][1:]) for each in answer["items"]])
    reasons = bundle.recommender.because(new(bundle), 0, items)
    assert [each["because"] for each in answer["items"]] == [[f"s{n}" for n in rows] for rows in reasons]
    assert any(reasons)
    assert "because" not in server.predict({"history": HISTORY, "k": 1})[0]["items"][0]


def test_of_whom_nothing_is_known_gets_popular_items_and_is_told_so(server):
    for request in ({"user_id": "u0"}, {"user_id": "nobody"}, {"history": []}):
        [answer] = server.predict({**request, "k": 2, "because": True})
        assert (answer["model"], answer["note"]) == ("popularity", NOTE)
        shown = [(each["item"], each["rank"], each["score"]) for each in answer["items"]]
        assert shown == [("t23", 1, 23.0), ("t22", 2, 22.0)]


def test_ratings_are_those_of_the_star_model(server, bundle):
    wanted = [f"t{n}" for n in range(TARGET_ITEMS)]
    [answer] = server.predict({"user_id": "u7", "item_ids": wanted})
    asked = known(bundle, 7)
    every = torch.arange(TARGET_ITEMS)
    raw = bundle.recommender.rate(asked, torch.zeros_like(every), every).mean
    assert answer["model"] == "item_source_bias"
    assert [each["item"] for each in answer["ratings"]] == wanted
    np.testing.assert_allclose([each["rating"] for each in answer["ratings"]], raw, rtol=1e-4)
    assert all(1 <= each["rating"] <= 5 for each in answer["ratings"])


def test_one_call_answers_many_in_order(server):
    requests = [
        {"user_id": "u3", "k": 2},
        {"history": [{"item": "s0", "rating": 5}], "k": 4},
        {"user_id": "u3", "item_ids": ["t1"]},
        {"user_id": "u9", "k": 1},
    ]
    together = server.predict(*requests)
    # In one product or another the last digit may differ.
    near = [
        json.loads(json.dumps(each), parse_float=lambda text: pytest.approx(float(text))) for each in together
    ]
    assert near == [server.predict(request)[0] for request in requests]
    assert [len(answer.get("items", [])) for answer in together] == [2, 4, 0, 1]
    assert server.predict() == []


BAD = [
    ({"user_id": 7.5}, "inputs[0].user_id: Input should be a valid string"),
    ({}, "inputs[0]: give either user_id or history"),
    ({"user_id": "u1", "history": []}, "inputs[0]: give either user_id or history"),
    ({"user": "u1"}, "inputs[0].user: Extra inputs are not permitted"),
    ({"user_id": "u1", "k": 0}, "inputs[0].k is 0, give 1 to 1000"),
    ({"user_id": "u1", "k": 10**9}, "inputs[0].k is 1000000000, give 1 to 1000"),
    ({"user_id": "u1", "k": "5"}, "inputs[0].k: Input should be a valid integer"),
    (
        {"user_id": "u1", "k": 5, "item_ids": []},
        "inputs[0]: give k for the best items or item_ids for ratings, not both",
    ),
    ({"user_id": "u1", "item_ids": ["t1", "x"]}, "inputs[0].item_ids[1]: unknown target item 'x'"),
    (
        {"history": [{"item": "s1", "rating": 4}, {"item": "t1", "rating": 4}]},
        "inputs[0].history[1].item: unknown source item 't1'",
    ),
    ({"history": [{"item": "s1", "rating": 9}]}, "inputs[0].history[0].rating is 9, give 1 to 5"),
    (
        {"history": [{"item": "s1", "rating": float("nan")}]},
        "inputs[0].history[0].rating is nan, give 1 to 5",
    ),
    (
        {"history": [{"item": "s1", "rating": "4"}]},
        "inputs[0].history[0].rating: Input should be a valid number",
    ),
    ({"history": [{"item": "s1"}]}, "inputs[0].history[0].rating: Field required"),
    (
        {"history": [{"item": "s1", "rating": 4, "timestamp": 7.5}]},
        "inputs[0].history[0].timestamp: Input should be a valid integer",
    ),
    (
        {"history": [{"item": "s1", "rating": 4, "timestamp": 7}, {"item": "s2", "rating": 4}]},
        "inputs[0].history[1].timestamp is missing: give one with every rating of a history, or with none",
    ),
    ({"history": "s1"}, "inputs[0].history: Input should be a valid list"),
    (
        {"user_id": "u1", "list": "coverage"},
        "inputs[0]: list 'coverage' is none that ptupcdr makes; it makes probability",
    ),
    ({"user_id": "u1", "k": 500, "because": True}, "inputs[0].k is 500, with because give 1 to 100"),
    (
        {"user_id": "u1", "item_ids": ["x" * 10**5]},
        f"inputs[0].item_ids[0]: unknown target item '{'x' * 60}…'",
    ),
    (7, "inputs[0]: Input should be a valid dictionary or instance of Request"),
]


@pytest.mark.parametrize(("request_", "sentence"), BAD)
def test_a_bad_request_fails_alone_in_one_sentence(server, request_, sentence):
    good = {"user_id": "u3", "k": 1}
    [error, answer] = server.predict(request_, good)
    assert error == {"error": sentence}
    assert answer == server.predict(good)[0]


RUBBISH = [
    (os.urandom(10 << 20), "application/json", 413, "the request is longer than the 1048576 bytes"),
    (b"\xff" * 1000, "application/json", 400, "the request is not JSON"),
    (b"[" * 100_000, "application/json", 400, "the request is not JSON"),
    (b"[]", "application/json", 400, "send an object with the one key inputs"),
    (b'{"dataframe_records": []}', "application/json", 400, "send an object with the one key inputs"),
    (b'{"inputs": 5}', "application/json", 400, "inputs: send a list of requests"),
    (b"user_id\nu1\n", "text/csv", 415, "send JSON with the header"),
    (b"{}", "", 415, "send JSON with the header"),
    (b"", "application/json", 400, "the request is not JSON"),
]


@pytest.mark.parametrize(("body", "kind", "status", "sentence"), RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_refused_and_the_server_lives(server, body, kind, status, sentence):
    answered, answer = server.send("POST", "/invocations", body, kind)
    assert answered == status
    assert json.loads(answer)["message"].startswith(sentence)
    assert len(answer) < 300
    assert server.send("GET", "/ping")[0] == 200
    assert len(server.predict({"user_id": "u1", "k": 1})) == 1


def test_too_many_requests_in_one_call_are_refused(server):
    status, answer = server.ask(*[{"user_id": "u1"}] * 1001)
    assert (status, answer["message"]) == (400, "1001 requests in one call, at most 1000 are taken")


def test_it_listens_on_the_loopback_alone(server):
    assert f"running on http://127.0.0.1:{server.port} " in server.log.read_text()


def test_only_the_documented_endpoints_are_there(server):
    assert [server.send("GET", path)[0] for path in ("/ping", "/health", "/version")] == [200] * 3
    for method, path, status in (
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/redoc", 404),
        ("POST", "/", 404),
        ("GET", "/invocations", 405),
        ("DELETE", "/ping", 405),
    ):
        answered, body = server.send(method, path)
        assert answered == status
        assert json.loads(body)["message"]


def raw(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=40)


def ended(connection: socket.socket) -> bytes:
    """What the server says until it closes."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionError:
        pass
    return said


def test_headers_are_limited(server):
    with raw(server) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n")
        assert ended(connection).partition(b"\r\n")[0] in (
            b"HTTP/1.1 431 Request Header Fields Too Large",
            b"",
        )
    with raw(server) as connection:
        try:
            for _ in range(2000):
                connection.sendall(b"X: " + b"a" * 5000)
        except OSError:
            pass
        assert b"200" not in ended(connection)[:20]
    assert len(server.predict({"user_id": "u1", "k": 1})) == 1


def test_slow_connections_are_closed(server):
    """Half a head, half a body, and nothing after an answer: none is waited for for ever."""
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    half_head, half_body, silent = raw(server), raw(server), raw(server)
    with half_head, half_body, silent:
        start = time.monotonic()
        half_head.sendall(head)
        half_body.sendall(head + b'Content-Length: 500\r\n\r\n{"inputs"')
        assert ended(silent) == b""
        assert b"200" not in ended(half_head)[:20]
        assert time.monotonic() - start < 15
        assert ended(half_body).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 30
    assert len(server.predict({"user_id": "u1", "k": 1})) == 1
