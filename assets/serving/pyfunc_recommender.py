"""The recommender as MLflow serves it: users or histories of the source domain in, target items out.

MLflow copies this file and `ml` into the registered model and runs them there, without the rest of the
project. A server takes a JSON object `{"inputs": [request, …]}` and answers `{"predictions": [answer, …]}`.
A request that cannot be answered gets `{"error": "…"}` in its place; the others are answered.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import mlflow  # noqa: TID253 - MLflow runs this file itself, no pipeline process imports it
import pandas as pd
import torch  # noqa: TID253
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE  # noqa: TID253
from mlflow.pyfunc import PythonModel  # noqa: TID253
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits

from ml.data import Ratings
from ml.recommender import Asked, Listed, Recommender

log = logging.getLogger("diffcdr")
DEFAULT_K = 20
# What one call may ask for: far more than a page shows, far less than what would hold up other callers.
MOST_ITEMS, MOST_RATINGS, MOST_REQUESTS, MOST_BYTES = 1000, 10_000, 1000, 1 << 20
# 1 January of 1900 and of 2100, in seconds: a time beyond them was meant in another unit.
FIRST_SECOND, LAST_SECOND = -2208988800, 4102444800
DAY = 86_400.0
# Reasons cost a pass over the history for each of these items.
MOST_REASONED = 100
POPULARITY = "popularity"
PLAIN = "probability"  # the order of a list where none is asked for
NOTE = "nothing is known of this user: the most popular items"


def _text(given: Any) -> Any:
    """An id as it is looked up: it may be a number in the data."""
    if isinstance(given, list):
        return [_text(each) for each in given]
    return str(given) if type(given) is int else given


class Rated(BaseModel):
    """A source item, the user's rating of it and, where it is known, when: whole seconds since 1970."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: str
    rating: float
    timestamp: int | None = None

    _item = field_validator("item", mode="before")(_text)


class Request(BaseModel):
    """One user, by user_id or by history; the k best items, or the ratings of item_ids. Of a user_id that the
    source domain does not have nothing is known, as of one with an empty history. A history has a timestamp
    with every rating or with none.

    Of lists: `list` is their order, by `probability` or, where the model can, as a set for `coverage`;
    `because` asks for the source items that speak most for each; `include_rated` for rated items, too.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: str | None = None
    history: list[Rated] | None = None
    k: int | None = None
    item_ids: list[str] | None = None
    list: str | None = None
    because: bool | None = None
    include_rated: bool | None = None

    _ids = field_validator("user_id", "item_ids", mode="before")(_text)


class RefusedRow(ValueError):
    """A request that cannot be answered; the sentence says what is wrong with it."""


class RefusedRequest(MlflowException):
    """A call that cannot be answered; the sentence says what is wrong with it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)


class ServedRecommender(PythonModel):
    """Answers requests about users of the source domain, known or new."""

    def load_context(self, context) -> None:
        files = {name: Path(path) for name, path in context.artifacts.items()}
        config = json.loads(files["config"].read_text())
        self.source_scale = config["source_scale"]
        self.recommender = Recommender.restore(config["recommender"], load_file(files["tensors"]))
        self.user_rows, self.source_rows = _rows(files["user_ids"]), _rows(files["source_item_ids"])
        self.source_ids = _shown(self.source_rows, "source_item_ids" in config["numbered"])
        self.target_rows = _rows(files["target_item_ids"])
        self.target_ids = _shown(self.target_rows, "target_item_ids" in config["numbered"])
        self.titles = _titles(files["target_item_ids"])
        if "mlflow.pyfunc.scoring_server.app" in sys.modules:
            guard_server()

    # Without a return type MLflow takes the output schema from the example: it has no type for these answers.
    def predict(self, context, model_input: list[Request], params=None):
        """An answer to each request: model, and items (item, its title where the data have one, rank,
        probability or score, rating, median and because) or ratings (item, rating, median; of a model of
        distributions also probabilities by level); or an error.

        Raises RefusedRequest, which a server answers with status 400, for too many requests.
        """
        _check_count(len(model_input))
        answers: dict[int, dict] = {}
        known: dict[int, int] = {}
        # With times and without: where one rating has none, none of a batch of ratings has.
        new: dict[bool, dict[int, dict[int, Rated]]] = {True: {}, False: {}}
        for i, request in enumerate(model_input):
            try:
                self._check(request, f"inputs[{i}]")
                if request.user_id in self.user_rows:
                    known[i] = self.user_rows[request.user_id]
                else:
                    history = request.history or []
                    rated = self._history(history, f"inputs[{i}].history")
                    new[_timed(history)][i] = rated
            except RefusedRow as refused:
                answers[i] = {"error": str(refused)}
        if known:
            rows = torch.tensor(list(known.values()))
            answers |= self._answers(model_input, list(known), self.recommender.known_users(rows))
        for timed, histories in new.items():
            if histories:
                asked = self.recommender.new_users(_ratings(list(histories.values()), timed), len(histories))
                answers |= self._answers(model_input, list(histories), asked)
        return [answers[i] for i in range(len(model_input))]

    # Reading requests.

    def _check(self, request: Request, field: str) -> None:
        """Raise RefusedRow where the fields do not go together or name what is not there."""
        if (request.user_id is None) == (request.history is None):
            raise RefusedRow(f"{field}: give either user_id or history")
        if request.k is not None and request.item_ids is not None:
            raise RefusedRow(f"{field}: give k for the best items or item_ids for ratings, not both")
        if request.k is not None and not 1 <= request.k <= MOST_ITEMS:
            raise RefusedRow(f"{field}.k is {request.k}, give 1 to {MOST_ITEMS}")
        if request.because and (request.k or DEFAULT_K) > MOST_REASONED:
            raise RefusedRow(f"{field}.k is {request.k}, with because give 1 to {MOST_REASONED}")
        for name in ("history", "item_ids"):
            if len(getattr(request, name) or ()) > MOST_RATINGS:
                raise RefusedRow(f"{field}.{name} is too long, at most {MOST_RATINGS} entries are taken")
        for j, item in enumerate(request.item_ids or ()):
            _row(self.target_rows, item, f"{field}.item_ids[{j}]", "target item")
        if request.item_ids is not None and self.recommender.stars is None:
            raise RefusedRow(
                f"{field}.item_ids: this model makes lists and was trained for no ratings; give k"
            )
        try:
            self.recommender.check_order(request.list or PLAIN)
        except ValueError as error:
            raise RefusedRow(f"{field}: {error}") from None

    def _history(self, history: Sequence[Rated], field: str) -> dict[int, Rated]:
        """Ratings by source item, the oldest first, by time where there is one: of two ratings of one item
        the latest counts."""
        rows = []
        for j, each in enumerate(history):
            self._check_rating(each.rating, f"{field}[{j}].rating")
            _check_time(each.timestamp, _timed(history), f"{field}[{j}].timestamp")
            rows.append(_row(self.source_rows, each.item, f"{field}[{j}].item", "source item"))
        rated: dict[int, Rated] = {}
        for each, row in sorted(zip(history, rows, strict=True), key=lambda pair: pair[0].timestamp or 0):
            rated.pop(row, None)
            rated[row] = each
        return rated

    def _check_rating(self, rating: float, field: str) -> None:
        """Raise RefusedRow for a source rating off the scale or, where the model has them, its levels."""
        low, high = self.source_scale
        if not low <= rating <= high:
            raise RefusedRow(f"{field} is {rating:g}, give {low:g} to {high:g}")
        levels = self.recommender.source_levels
        # As 32-bit numbers, as all ratings are kept.
        if levels is not None and not (levels == torch.tensor(rating).double()).any():
            known = ", ".join(f"{level:g}" for level in levels.tolist())
            raise RefusedRow(f"{field} is {rating:g}, none of the levels {known}; round it to one")

    # Answering.

    def _answers(self, requests: Sequence[Request], of: list[int], asked: Asked) -> dict[int, dict]:
        """Answers to the requests `of`, whose users are those of `asked` in that order."""
        answers, groups = {}, {}
        for user, i in enumerate(of):
            request = requests[i]
            if request.item_ids is not None:
                answers[i] = self._rated(request, asked, user)
            else:
                wanted = request.list or PLAIN, bool(request.include_rated)
                groups.setdefault(wanted, []).append((i, user))
        for (order, include_rated), members in groups.items():
            k = max(requests[i].k or DEFAULT_K for i, _ in members)
            users = asked if len(members) == len(asked) else asked.take(torch.tensor([u for _, u in members]))
            listed = self.recommender.recommend(users, k, order, include_rated)
            for place, (i, _) in enumerate(members):
                answers[i] = self._listed(requests[i], users, place, listed)
        return answers

    def _listed(self, request: Request, asked: Asked, user: int, listed: Listed) -> dict:
        known = bool(listed.known[user])
        items = listed.items[user, : request.k or DEFAULT_K]
        items = items[items >= 0]
        columns = {
            "item": [self.target_ids[item] for item in items.tolist()],
            "rank": range(1, len(items) + 1),
            self.recommender.lists.model.scored_by if known else "score": listed.scores[user].tolist(),
        }
        if self.recommender.stars is not None:
            columns |= {"rating": listed.mean[user].tolist(), "median": listed.median[user].tolist()}
        if request.because and known:
            reasons = self.recommender.because(asked, user, items)
            columns["because"] = [[self.source_ids[row] for row in rows] for rows in reasons]
        each = zip(*columns.values(), strict=False)  # scores are as many as were asked for in the call
        answer = {"model": self.recommender.lists.name if known else POPULARITY}
        answer |= {} if known else {"note": NOTE}
        return {**answer, "items": [self._titled(dict(zip(columns, one, strict=True))) for one in each]}

    def _titled(self, item: dict) -> dict:
        title = self.titles.get(str(item["item"]))
        return item if title is None else {"item": item["item"], "title": title} | item

    def _rated(self, request: Request, asked: Asked, user: int) -> dict:
        items = torch.tensor([self.target_rows[item] for item in request.item_ids], dtype=torch.int64)
        rated = self.recommender.rate(asked.take(torch.tensor([user])), torch.zeros_like(items), items)
        columns = {
            "item": [self.target_ids[item] for item in items.tolist()],
            "rating": rated.mean.tolist(),
            "median": rated.median.tolist(),
        }
        if rated.probabilities is not None:
            levels = [f"{level:g}" for level in rated.levels.tolist()]
            columns["probabilities"] = [
                dict(zip(levels, each, strict=True)) for each in rated.probabilities.tolist()
            ]
        each = zip(*columns.values(), strict=True)
        answer = {"model": self.recommender.stars.name}
        answer |= (
            {} if asked.known[user] else {"note": "nothing is known of this user: what a mean user gives"}
        )
        return {**answer, "ratings": [dict(zip(columns, one, strict=True)) for one in each]}


def _timed(history: Sequence[Rated]) -> bool:
    """Whether a rating has a time: then each must have one."""
    return any(each.timestamp is not None for each in history)


def _check_time(timestamp: int | None, timed: bool, field: str) -> None:
    if timestamp is None:
        if timed:
            raise RefusedRow(f"{field} is missing: give one with every rating of a history, or with none")
    elif not FIRST_SECOND <= timestamp < LAST_SECOND:
        raise RefusedRow(f"{field} is {timestamp}, give seconds since 1970, of the years 1900 to 2099")


def _ratings(histories: Sequence[dict[int, Rated]], timed: bool) -> Ratings:
    users = torch.arange(len(histories)).repeat_interleave(torch.tensor([len(each) for each in histories]))
    items = torch.tensor([item for each in histories for item in each], dtype=torch.int64)
    rated = [rated for each in histories for rated in each.values()]
    values = torch.tensor([each.rating for each in rated], dtype=torch.float32)
    if not timed:
        return Ratings(users, items, values)
    # In days, rounded as those of the data were.
    seconds = torch.tensor([each.timestamp for each in rated], dtype=torch.float64)
    return Ratings(users, items, values, (seconds / DAY).float())


def _check_count(count: int) -> None:
    if count > MOST_REQUESTS:
        raise RefusedRequest(f"{count} requests in one call, at most {MOST_REQUESTS} are taken")


def _rows(path: Path) -> dict[str, int]:
    """The row of each id of a Parquet file with a column id, in order."""
    return {each: row for row, each in enumerate(pd.read_parquet(path)["id"].tolist())}


def _shown(rows: dict[str, int], numbers: bool) -> list[str] | list[int]:
    """Ids by row, with the type that they have in the data."""
    return [int(each) for each in rows] if numbers else list(rows)


def _titles(path: Path) -> dict[str, str]:
    """Titles by id, of the items that have one."""
    table = pd.read_parquet(path)
    if "title" not in table:
        return {}
    return table.dropna(subset="title").set_index("id")["title"].to_dict()


def _row(rows: dict[str, int], wanted: str, field: str, kind: str) -> int:
    if wanted not in rows:
        raise RefusedRow(f"{field}: unknown {kind} {_short(wanted)}")
    return rows[wanted]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


# In a server.

# What it answers; anything else is not there.
ENDPOINTS = {"/ping": "GET", "/health": "GET", "/version": "GET", "/invocations": "POST"}
# Bytes before the body, and the seconds that a client may take for them and for the body.
MOST_HEAD, HEAD_SECONDS, BODY_SECONDS = 1 << 14, 10.0, 20.0
MOST_DRAINED = 1 << 24  # bytes of a refused body that are read


def guard_server() -> None:
    """Have MLflow's server in this process answer every bad request with a 4xx and one sentence, and none but
    its documented endpoints, and close connections that are too slow.

    By itself it sends the whole request back, and stack traces, and answers deeply nested JSON and a missing
    content type with a 500; it waits for ever for a client that does not go on.
    """
    import fastapi
    from mlflow.pyfunc import scoring_server

    # Requests are answered in threads of their own, side by side; each is too small to be divided further,
    # and threads that wait for a share of it take a core each while they do.
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")
    scoring_server.invocations = guarded(scoring_server.invocations, scoring_server.InvocationsResponse)
    limit_connections()
    # The server makes its one application after the model is loaded.
    fastapi.FastAPI = guarded_application(fastapi)


def guarded(invocations: Callable, response: Callable) -> Callable:
    """MLflow's `invocations`, which answers a call, behind checks of the call; rows that are no requests get
    an error of their own."""

    @wraps(invocations)
    def answer(data, content_type, model, input_schema):
        if (content_type or "").partition(";")[0].strip() != "application/json":
            return _refusal(response, 415, "send JSON with the header Content-Type: application/json")
        try:
            rows = parsed(data)
            errors = {i: sentence for i, row in enumerate(rows) if (sentence := malformed(row, i))}
            # A row that is left out would move the others: one that cannot be answered keeps its place.
            sent = [{} if i in errors else row for i, row in enumerate(rows)]
            given = invocations({"inputs": sent}, "application/json", model, input_schema)
        except RefusedRequest as refused:
            return _refusal(response, 400, refused.args[0])
        except MlflowException:
            log.exception("the model failed on a call")
            return _refusal(response, 500, "the model failed on this call; its log has the reason")
        if not errors:
            return given
        body = json.loads(given.response)
        for i, sentence in errors.items():
            body["predictions"][i] = {"error": sentence}
        return given._replace(response=json.dumps(body))

    return answer


def _refusal(response: Callable, status: int, sentence: str):
    return response(json.dumps({"message": sentence}), status, "application/json")


def parsed(data: bytes) -> list:
    """The rows in the body of a call; RefusedRequest for anything else."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise RefusedRequest('the request is not JSON; send {"inputs": [{"user_id": "…"}]}') from None
    if not isinstance(body, dict) or set(body) != {"inputs"}:
        raise RefusedRequest('send an object with the one key inputs: {"inputs": [{"user_id": "…"}]}')
    if not isinstance(body["inputs"], list):
        raise RefusedRequest('inputs: send a list of requests, {"inputs": [{"user_id": "…"}]}')
    _check_count(len(body["inputs"]))
    return body["inputs"]


def malformed(row: object, number: int) -> str:
    """Why a row is no request; "" where it is one."""
    try:
        Request.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{_field((number, *first['loc']))}: {first['msg']}"
    return ""


def _field(location: Sequence[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:60]}" for part in location)
    return "inputs" + "".join(parts)


def guarded_application(fastapi) -> type:
    """FastAPI's application for this process's one server: it knows ENDPOINTS alone, and reads a call's body
    within its size and time before anything else sees it."""
    base = fastapi.FastAPI

    class Guarded(base):
        def __init__(self, *args, **options) -> None:
            fastapi.FastAPI = base
            super().__init__(*args, **options, docs_url=None, redoc_url=None, openapi_url=None)

        async def __call__(self, scope, receive, send) -> None:
            if scope["type"] != "http":
                return await super().__call__(scope, receive, send)
            refused, body = await _read(scope, receive)
            if refused is not None:
                return await _send(send, *refused)
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay():
                return messages.pop() if messages else await receive()

            await super().__call__(scope, replay, send)

    return Guarded


async def _read(scope, receive) -> tuple[tuple[int, str] | None, bytes]:
    """The body of a call; or the status and sentence that refuse it."""
    allowed = ENDPOINTS.get(scope["path"])
    if allowed is None:
        return (404, f"there is no such endpoint; there are {', '.join(ENDPOINTS)}"), b""
    if scope["method"] != allowed:
        return (405, f"send a {allowed} request"), b""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEAD:
        return (431, f"the headers are too long, at most {MOST_HEAD} bytes are taken"), b""
    body, size, deadline = bytearray(), 0, asyncio.get_running_loop().time() + BODY_SECONDS
    while True:
        left = deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(receive(), max(left, 0))
        except TimeoutError:
            return (408, f"the request did not arrive within {BODY_SECONDS:g} seconds"), b""
        if message["type"] == "http.disconnect":
            return (400, "the request was not finished"), b""
        part = message.get("body", b"")
        size += len(part)
        if size <= MOST_BYTES:
            body += part
        # A client that is still sending hears no refusal: what is not far too long is read to its end.
        if not message.get("more_body", False) or size > MOST_DRAINED:
            break
    if size > MOST_BYTES:
        return (413, f"the request is longer than the {MOST_BYTES} bytes that are taken"), b""
    return None, bytes(body)


async def _send(send, status: int, sentence: str) -> None:
    body = json.dumps({"message": sentence}).encode()
    # What is left of a refused body is not waited for.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def limit_connections() -> None:
    """Have uvicorn close a connection whose next request has not begun, headers and all, within HEAD_SECONDS
    or within MOST_HEAD bytes and one packet; by itself it waits for ever, and takes all."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as Protocol

    made, received, completed = (
        Protocol.connection_made,
        Protocol.data_received,
        Protocol.on_response_complete,
    )

    def waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def expect_request(self) -> None:
        self.head_bytes, cycle = 0, self.cycle

        def close_if_none() -> None:
            if self.cycle is cycle and waiting(self):
                self.transport.close()

        self.loop.call_later(HEAD_SECONDS, close_if_none)

    def connection_made(self, transport) -> None:
        made(self, transport)
        expect_request(self)

    def data_received(self, data: bytes) -> None:
        received(self, data)
        self.head_bytes = self.head_bytes + len(data) if waiting(self) else 0
        if self.head_bytes > MOST_HEAD:
            self.transport.close()

    def on_response_complete(self) -> None:
        completed(self)
        if not self.transport.is_closing():
            expect_request(self)

    Protocol.connection_made, Protocol.data_received = connection_made, data_received
    Protocol.on_response_complete = on_response_complete


mlflow.models.set_model(ServedRecommender())
