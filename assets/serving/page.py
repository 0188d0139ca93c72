"""The page of `diffcdr serve`: choose a known user or type a history, and see a list beside the popular one.

The page asks the server's own `/invocations` for lists, as any client does. What it shows besides, names of
users, histories and items, comes from the files of the served version.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from assets.serving.versions import Version
from ml.models.registry import MODELS, facts

PAGE = Path(__file__).with_suffix(".html")
FOUND = 20  # names that a search gives
HISTORY = ("offsets", "items", "values", "times")  # tensors of the users' ratings, times where there are any
DAY = 86_400  # seconds
MOST_LEVELS = 21  # ratings to choose from
# The page holds all that it needs, and runs nothing from elsewhere.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src data:",
    ]
)


@dataclass(frozen=True)
class Served:
    """What a served version knows by name.

    users, items: ids of source users and source items by row; target_items: ids of target items; titles:
    of source items and target items by id, as far as the data have any; offsets (users + 1,), rated, values
    and times, in days where the lists follow them: source ratings of the users in compressed rows, each
    user's oldest first.
    """

    version: Version
    config: Mapping[str, Any]
    users: Sequence[str]
    items: Sequence[str]
    target_items: Sequence[str]
    titles: Mapping[str, Mapping[str, str]]
    offsets: np.ndarray
    rated: np.ndarray
    values: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def of_files(cls, version: Version, folder: Path) -> "Served":
        """From the artifacts of a registered version."""
        from safetensors import safe_open

        tables = {
            name: pd.read_parquet(folder / f"{name}.parquet")
            for name in ("user_ids", "source_item_ids", "target_item_ids")
        }
        ids = [table["id"].tolist() for table in tables.values()]
        titles = {side: _titles(tables[f"{side}_item_ids"]) for side in ("source", "target")}
        with safe_open(folder / "tensors.safetensors", framework="numpy") as held:
            names = set(held.keys())
            history = [held.get_tensor(each) for name in HISTORY if (each := f"history/{name}") in names]
        config = json.loads((folder / "config.json").read_text())
        return cls(version, config, *ids, titles, *history)

    @cached_property
    def user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users)}

    def history(self, user: str) -> list[dict] | None:
        """A user's source ratings, the latest first; None for a user who is not known."""
        row = self.user_rows.get(user)
        if row is None:
            return None
        mine = slice(self.offsets[row], self.offsets[row + 1])
        columns = {"rating": self.values[mine].tolist()}
        if self.times is not None:
            columns["timestamp"] = np.rint(self.times[mine].astype(np.float64) * DAY).astype(int).tolist()
        rows = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
        rated = zip(self.rated[mine].tolist(), rows, strict=True)
        return [self._item(item) | row for item, row in reversed(list(rated))]

    def find_users(self, text: str) -> list[dict]:
        """Users whose id holds the text, those with the most source ratings first."""
        counts = np.diff(self.offsets)
        rows = _matching([self._users_lowered], text, counts)
        return [{"id": self.users[row], "ratings": int(counts[row])} for row in rows]

    def find_items(self, text: str) -> list[dict]:
        """Source items whose id or title holds the text, those with the most ratings first."""
        return [self._item(row) for row in _matching(self._items_lowered, text, self._item_counts)]

    @property
    def ratings(self) -> list[float]:
        """What a source rating may be chosen from: the ratings that were given, or the whole numbers of the
        scale where those are too many."""
        given = np.unique(self.values).tolist()
        low, high = self.config["source_scale"]
        return given if len(given) <= MOST_LEVELS else np.linspace(low, high, MOST_LEVELS).round(2).tolist()

    def example(self) -> dict:
        """A user with as many source ratings as most have, and the last three of them, oldest first."""
        counts = np.diff(self.offsets)
        typical = np.median(counts[counts > 0])
        row = int(np.argmin(np.abs(counts - typical)))
        return {"user": self.users[row], "history": self.history(self.users[row])[2::-1]}

    def about(self) -> dict:
        """What the page says of the version."""
        models, tags = self.config["recommender"], self.version.tags
        stars = models["lists"] if models["shared"] else models["stars"]
        named = [models["lists"]["name"], *([stars["name"]] if stars else [])]
        return {
            "name": self.version.name,
            "version": self.version.number,
            "cell": self.config["cell"],
            "profile": self.config["profile"],
            "lists": models["lists"]["name"],
            "stars": stars["name"] if stars else None,
            # A model of the user's own has the name that its profile gives it, and no other.
            "model_titles": {name: facts(name).title for name in named if name in MODELS},
            "synthetic": tags.get("synthetic") == "true",
            "forced": tags.get("forced", ""),
            "users": len(self.users),
            "source_items": len(self.items),
            "target_items": len(self.target_items),
            "ratings": self.ratings,
            "timed": self.times is not None,
            "target_scale": models["scale"],
            "example": self.example(),
            "titles": self.titles["target"],
        }

    def _item(self, row: int) -> dict:
        item = self.items[row]
        title = self.titles["source"].get(item)
        return {"item": item, **({"title": title} if title else {})}

    @cached_property
    def _users_lowered(self) -> list[str]:
        return [user.lower() for user in self.users]

    @cached_property
    def _items_lowered(self) -> list[list[str]]:
        titles = self.titles["source"]
        return [
            [item.lower() for item in self.items],
            *([[titles.get(item, "").lower() for item in self.items]] if titles else []),
        ]

    @cached_property
    def _item_counts(self) -> np.ndarray:
        return np.bincount(self.rated, minlength=len(self.items))


def _titles(table: pd.DataFrame) -> dict[str, str]:
    if "title" not in table:
        return {}
    known = table.dropna(subset="title")
    return dict(zip(known["id"], known["title"], strict=True))


def _matching(texts: Sequence[Sequence[str]], text: str, weight: np.ndarray) -> list[int]:
    """Rows any of whose texts holds `text`, whole matches first, then by falling weight."""
    wanted = text.strip().lower()
    rows = {row for column in texts for row, each in enumerate(column) if wanted in each}
    whole = {row for row in rows if wanted and any(column[row] == wanted for column in texts)}
    return sorted(rows, key=lambda row: (row not in whole, -int(weight[row]), row))[:FOUND]


def routes(served: Served) -> list[Route]:
    """`GET /` and what it asks for: `/page/about`, `/page/users`, `/page/items` and `/page/history`."""
    text = PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}

    def page(_: Request) -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    def about(_: Request) -> JSONResponse:
        return JSONResponse(served.about())

    def users(request: Request) -> JSONResponse:
        return JSONResponse(served.find_users(request.query_params.get("q", "")))

    def items(request: Request) -> JSONResponse:
        return JSONResponse(served.find_items(request.query_params.get("q", "")))

    def history(request: Request) -> JSONResponse:
        user = request.query_params.get("user", "")
        found = served.history(user)
        if found is None:
            return JSONResponse({"message": f"unknown user {user[:60]!r}"}, status_code=404)
        return JSONResponse(found)

    return [
        Route("/", page),
        *(Route(f"/page/{each.__name__}", each) for each in (about, users, items, history)),
    ]
