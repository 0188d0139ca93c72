"""The recommender as MLflow serves it: users or histories of the source domain in, target items out.

MLflow copies this file and `ml` into the registered model and runs them there, without the rest of the
project. A server takes a JSON object `{"inputs": [request, …]}` and answers `{"predictions": [answer, …]}`.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import mlflow  # noqa: TID253 - MLflow runs this file itself, no pipeline process imports it
import pandas as pd
import torch  # noqa: TID253
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE  # noqa: TID253
from mlflow.pyfunc import PythonModel  # noqa: TID253
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import load_file

from ml.data import Ratings
from ml.distribution.recommender import StarRecommender
from ml.recommender import Recommender

log = logging.getLogger("diffcdr")
RECOMMENDERS = {each.kind: each for each in (Recommender, StarRecommender)}
DEFAULT_K = 20
# What one call may ask for: far more than a page shows, far less than what would hold up other callers.
MOST_ITEMS, MOST_RATINGS, MOST_REQUESTS, MOST_BYTES = 1000, 10_000, 1000, 1 << 20
POPULARITY = "popularity"


class Rated(BaseModel):
    """A source item and the user's rating of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: str
    rating: float


class Request(BaseModel):
    """One user, by user_id or by history; the k best items, or the ratings of item_ids."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: str | None = None
    history: list[Rated] | None = None
    k: int | None = None
    item_ids: list[str] | None = None


class RefusedRequest(MlflowException):
    """A request that cannot be answered; the sentence says what is wrong with it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)


class ServedRecommender(PythonModel):
    """Answers requests about users of the source domain, known or new."""

    def load_context(self, context) -> None:
        files = {name: Path(path) for name, path in context.artifacts.items()}
        config = json.loads(files["config"].read_text())
        held = load_file(files["tensors"])
        self.name, self.source_scale = config["name"], config["source_scale"]
        self.target_scale = config["target_scale"]
        kind = RECOMMENDERS[config["recommender"]]
        self.recommender = kind.restore(config["settings"], held, load_file(files["weights"]))
        # Known users were transferred when the model was registered.
        self.users, self.known = held["users"], held["known"]
        self.user_rows, self.source_rows = _rows(files["user_ids"]), _rows(files["source_item_ids"])
        self.target_ids = pd.read_parquet(files["target_item_ids"])["id"].tolist()
        self.target_rows = {item: row for row, item in enumerate(self.target_ids)}
        if "mlflow.pyfunc.scoring_server.app" in sys.modules:
            guard_server()

    # Without a return type MLflow takes the output schema from the example: it has no type for these answers.
    def predict(self, context, model_input: list[Request], params=None):
        """An answer to each request: model, and items (item, score) or ratings (item, rating; of a model of
        distributions also median and probabilities by level).

        Raises RefusedRequest, which a server answers with status 400.
        """
        if len(model_input) > MOST_REQUESTS:
            raise RefusedRequest(
                f"{len(model_input)} requests in one call, at most {MOST_REQUESTS} are taken"
            )
        requests = [_checked(each, f"inputs[{i}]") for i, each in enumerate(model_input)]
        rows, known = self._users(requests)
        ranked = [i for i, request in enumerate(requests) if request.item_ids is None]
        k = max((requests[i].k or DEFAULT_K for i in ranked), default=1)
        items, scores = self.recommender.top(rows[ranked], known[ranked], k)
        answers = {
            i: self._top(requests[i], bool(known[i]), items[place], scores[place])
            for place, i in enumerate(ranked)
        }
        return [
            answers.get(i) or self._ratings(request, f"inputs[{i}]", rows[i])
            for i, request in enumerate(requests)
        ]

    def _users(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (n, width) of the users asked about, and whether there is something to go by (n,) bool."""
        rows = self.users.new_zeros(len(requests), self.users.shape[1])
        known = torch.zeros(len(requests), dtype=torch.bool)
        new = [i for i, request in enumerate(requests) if request.user_id is None]
        if new:
            folded = self.recommender.fold(self._histories(requests, new), len(new))
            rows[new] = self.recommender.transfer(folded)
            known[new] = self.recommender.known(folded)
        for i, request in enumerate(requests):
            if request.user_id is not None:
                row = _row(self.user_rows, request.user_id, f"inputs[{i}].user_id", "user")
                rows[i], known[i] = self.users[row], self.known[row]
        return rows, known

    def _histories(self, requests: Sequence[Request], new: Sequence[int]) -> Ratings:
        users, items, values = [], [], []
        for place, i in enumerate(new):
            rated = {}
            for j, each in enumerate(requests[i].history):
                field = f"inputs[{i}].history[{j}]"
                self._check_rating(each.rating, f"{field}.rating")
                # Of two ratings of one item the latter counts, and it is the later one.
                row = _row(self.source_rows, each.item, f"{field}.item", "source item")
                rated.pop(row, None)
                rated[row] = each.rating
            users += [place] * len(rated)
            items += rated.keys()
            values += rated.values()
        kinds = (torch.int64, torch.int64, torch.float32)
        return Ratings(
            *(torch.tensor(c, dtype=t) for c, t in zip((users, items, values), kinds, strict=True))
        )

    def _check_rating(self, rating: float, field: str) -> None:
        """Raise RefusedRequest for a source rating off the scale or, where the model has them, its levels."""
        low, high = self.source_scale
        if not low <= rating <= high:
            raise RefusedRequest(f"{field} is {rating:g}, give {low:g} to {high:g}")
        levels = self.recommender.source_levels
        # As 32-bit numbers, as all ratings are kept.
        if levels is not None and not (levels == torch.tensor(rating).double()).any():
            known = ", ".join(f"{level:g}" for level in levels.tolist())
            raise RefusedRequest(f"{field} is {rating:g}, none of the levels {known}; round it to one")

    def _top(self, request: Request, known: bool, items: torch.Tensor, scores: torch.Tensor) -> dict:
        k = request.k or DEFAULT_K
        ranked = zip(items[:k].tolist(), scores[:k].tolist(), strict=True)
        return {
            "model": self.name if known else POPULARITY,
            "items": [{"item": self.target_ids[item], "score": score} for item, score in ranked],
        }

    def _ratings(self, request: Request, place: str, row: torch.Tensor) -> dict:
        items = [
            _row(self.target_rows, item, f"{place}.item_ids[{j}]", "target item")
            for j, item in enumerate(request.item_ids)
        ]
        rated = self.recommender.rate(row, torch.tensor(items, dtype=torch.int64))
        columns = {"item": request.item_ids, "rating": rated.mean.clamp(*self.target_scale).tolist()}
        if rated.probabilities is not None:
            levels = [f"{level:g}" for level in rated.levels.tolist()]
            columns["median"] = rated.median.tolist()
            columns["probabilities"] = [
                dict(zip(levels, each, strict=True)) for each in rated.probabilities.tolist()
            ]
        each = zip(*columns.values(), strict=True)
        return {"model": self.name, "ratings": [dict(zip(columns, one, strict=True)) for one in each]}


def _rows(path: Path) -> dict[str, int]:
    """The row of each id of a Parquet file with a column id."""
    return {each: row for row, each in enumerate(pd.read_parquet(path)["id"].tolist())}


def _row(rows: dict[str, int], wanted: str, field: str, kind: str) -> int:
    if wanted not in rows:
        raise RefusedRequest(f"{field}: unknown {kind} {_short(wanted)}")
    return rows[wanted]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _checked(request: Request, field: str) -> Request:
    """The request, or RefusedRequest where its fields do not go together."""
    if (request.user_id is None) == (request.history is None):
        raise RefusedRequest(f"{field}: give either user_id or history")
    if request.k is not None and request.item_ids is not None:
        raise RefusedRequest(f"{field}: give k for the best items or item_ids for ratings, not both")
    if request.k is not None and not 1 <= request.k <= MOST_ITEMS:
        raise RefusedRequest(f"{field}.k is {request.k}, give 1 to {MOST_ITEMS}")
    for name in ("history", "item_ids"):
        if len(getattr(request, name) or ()) > MOST_RATINGS:
            raise RefusedRequest(f"{field}.{name} is too long, at most {MOST_RATINGS} entries are taken")
    return request


# In a server.


def guard_server() -> None:
    """Have MLflow's server in this process answer every bad request with a 4xx and one sentence.

    By itself it sends the whole request back, and stack traces, and answers deeply nested JSON and a missing
    content type with a 500.
    """
    from mlflow.pyfunc import scoring_server

    # Requests are answered in threads of their own, side by side; each is too small to be divided further.
    torch.set_num_threads(1)
    scoring_server.invocations = guarded(scoring_server.invocations, scoring_server.InvocationsResponse)


def guarded(invocations: Callable, response: Callable) -> Callable:
    """MLflow's `invocations`, which answers a request, behind checks of the request."""

    @wraps(invocations)
    def answer(data, content_type, model, input_schema):
        if len(data) > MOST_BYTES:
            return _refusal(
                response, 413, f"the request has {len(data)} bytes, at most {MOST_BYTES} are taken"
            )
        if (content_type or "").partition(";")[0].strip() != "application/json":
            return _refusal(response, 415, "send JSON with the header Content-Type: application/json")
        try:
            requests = parsed(data)
            return invocations({"inputs": requests}, "application/json", model, input_schema)
        except RefusedRequest as refused:
            return _refusal(response, 400, refused.args[0])
        except MlflowException:
            log.exception("the model failed on a request")
            return _refusal(response, 500, "the model failed on this request; its log has the reason")

    return answer


def _refusal(response: Callable, status: int, sentence: str):
    return response(json.dumps({"message": sentence}), status, "application/json")


def parsed(data: bytes) -> list[dict]:
    """The requests in the body of a call; RefusedRequest for anything else."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise RefusedRequest('the request is not JSON; send {"inputs": [{"user_id": "…"}]}') from None
    if not isinstance(body, dict) or set(body) != {"inputs"}:
        raise RefusedRequest('send an object with the one key inputs: {"inputs": [{"user_id": "…"}]}')
    try:
        TypeAdapter(list[Request]).validate_python(body["inputs"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RefusedRequest(f"{_field(first['loc'])}: {first['msg']}") from None
    return body["inputs"]


def _field(location: Sequence[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:60]}" for part in location)
    return "inputs" + "".join(parts)


mlflow.models.set_model(ServedRecommender())
