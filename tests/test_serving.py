"""The registered model behind `mlflow models serve`: answers, refusals, and that it stays alive."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from assets.serving.recommendations import Bundle
from assets.serving.registry import save_pyfunc
from assets.settings.axes import Cell
from assets.state.tracking import _mlflow
from ml.data import History, Problem, Ratings, SourceUsers
from ml.fold_in import FoldIn
from ml.models.registry import build
from ml.recommender import Recommender

USERS, SOURCE_ITEMS, TARGET_ITEMS, WIDTH = 30, 12, 25, 4


def names(letter: str, count: int) -> np.ndarray:
    return np.array([f"{letter}{number}" for number in range(count)], dtype=object)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A small PTUPCDR, which reads histories. User u0 liked nothing, item t24 may not be recommended."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    counts = torch.tensor([0, *[3] * (USERS - 1)])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    liked = torch.randint(SOURCE_ITEMS, (int(offsets[-1]),), generator=generator)
    users = SourceUsers(normal(USERS, WIDTH), History(offsets, liked), normal(SOURCE_ITEMS, WIDTH))
    rows = torch.arange(4 * USERS)
    values = torch.randint(1, 6, (len(rows),), generator=generator).float()
    target = normal(TARGET_ITEMS, WIDTH)
    ratings = Ratings(rows % USERS, rows % TARGET_ITEMS, values)
    model = build("ptupcdr", epochs=2).trained([Problem(users, normal(USERS, WIDTH), target, ratings, 0)])
    fold_in = FoldIn.of(users.factors, users.item_factors, Ratings(rows % USERS, rows % SOURCE_ITEMS, values))
    recommender = Recommender(
        model, fold_in, target, torch.arange(TARGET_ITEMS), torch.arange(TARGET_ITEMS - 1), 3
    )
    return Bundle(
        name="ptupcdr",
        recommender=recommender,
        users=users,
        known=(counts > 0).numpy(),
        user_ids=names("u", USERS),
        source_ids=names("s", SOURCE_ITEMS),
        target_ids=names("t", TARGET_ITEMS),
        scale=(1.0, 5.0),
    )


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
    cell = Cell.parse("tiny|b20-s0")
    served = Server(save_pyfunc(folder, bundle, cell, "# Card"), folder / "log")
    try:
        served.wait()
        yield served
    finally:
        served.stop()


def expected(bundle: Bundle, users: SourceUsers, known: bool, k: int) -> dict:
    factors = bundle.recommender.transfer(users)
    items, scores = bundle.recommender.top(factors, torch.tensor([known]), k)
    pairs = zip(items[0].tolist(), scores[0].tolist(), strict=True)
    return {
        "model": "ptupcdr" if known else "popularity",
        "items": [{"item": f"t{item}", "score": pytest.approx(score, rel=1e-4)} for item, score in pairs],
    }


def test_a_known_user_gets_the_best_items(server, bundle):
    users = bundle.users.take(torch.tensor([7]))
    assert server.predict({"user_id": "u7", "k": 3}) == [expected(bundle, users, True, 3)]
    [default] = server.predict({"user_id": "u7"})
    assert default == expected(bundle, users, True, 20)
    [everything] = server.predict({"user_id": "u7", "k": 1000})
    assert {each["item"] for each in everything["items"]} == {f"t{n}" for n in range(TARGET_ITEMS - 1)}


def test_a_new_user_is_folded_in(server, bundle):
    history = [{"item": "s3", "rating": 5}, {"item": "s8", "rating": 4.5}, {"item": "s1", "rating": 1}]
    ratings = Ratings(torch.zeros(3, dtype=torch.int64), torch.tensor([3, 8, 1]), torch.tensor([5, 4.5, 1]))
    users = bundle.recommender.fold(ratings, 1)
    assert server.predict({"history": history, "k": 6}) == [expected(bundle, users, True, 6)]
    twice = [{"item": "s3", "rating": 1}, *history]
    assert server.predict({"history": twice, "k": 6}) == server.predict({"history": history, "k": 6})


def test_who_liked_nothing_gets_popular_items(server):
    popular = [{"item": f"t{n}", "score": float(n)} for n in (23, 22)]
    for request in ({"user_id": "u0"}, {"history": []}, {"history": [{"item": "s1", "rating": 3}]}):
        assert server.predict({**request, "k": 2}) == [{"model": "popularity", "items": popular}]


def test_ratings_lie_on_the_scale(server, bundle):
    wanted = [f"t{n}" for n in range(TARGET_ITEMS)]
    [answer] = server.predict({"user_id": "u7", "item_ids": wanted})
    factors = bundle.recommender.transfer(bundle.users.take(torch.tensor([7])))[0]
    raw = bundle.recommender.target_items @ factors
    assert [each["item"] for each in answer["ratings"]] == wanted
    np.testing.assert_allclose([each["rating"] for each in answer["ratings"]], raw.clamp(1, 5), rtol=1e-4)
    assert raw.min() < 1


def test_one_call_answers_many_in_order(server):
    requests = [
        {"user_id": "u3", "k": 2},
        {"history": [{"item": "s0", "rating": 5}], "k": 4},
        {"user_id": "u3", "item_ids": ["t1"]},
        {"user_id": "u9", "k": 1},
    ]
    together = server.predict(*requests)
    assert together == [server.predict(request)[0] for request in requests]
    assert [len(answer.get("items", [])) for answer in together] == [2, 4, 0, 1]
    assert server.predict() == []


BAD = [
    ({"user_id": "nobody"}, "inputs[0].user_id: unknown user 'nobody'"),
    ({"user_id": 7}, "inputs[0].user_id: Input should be a valid string"),
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
    ({"history": "s1"}, "inputs[0].history: Input should be a valid list"),
    ({"user_id": "x" * 10**5}, f"inputs[0].user_id: unknown user '{'x' * 60}…'"),
    (7, "inputs[0]: Input should be a valid dictionary or instance of Request"),
]


@pytest.mark.parametrize(("request_", "sentence"), BAD)
def test_a_bad_request_is_refused_in_one_sentence(server, request_, sentence):
    assert server.ask(request_) == (400, {"message": sentence})


RUBBISH = [
    (os.urandom(10 << 20), "application/json", 413, "the request has 10485760 bytes"),
    (b"\xff" * 1000, "application/json", 400, "the request is not JSON"),
    (b"[" * 100_000, "application/json", 400, "the request is not JSON"),
    (b"[]", "application/json", 400, "send an object with the one key inputs"),
    (b'{"dataframe_records": []}', "application/json", 400, "send an object with the one key inputs"),
    (b'{"inputs": 5}', "application/json", 400, "inputs: Input should be a valid list"),
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
