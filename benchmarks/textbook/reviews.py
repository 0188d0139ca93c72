"""The data side in plain Python and pandas."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def read_reviews(path: Path) -> pd.DataFrame:
    """user, item, rating, timestamp of a 2014 file, the latest of each (user, item), by user and time.

    Codes count the sorted ids. The result stays in memory.
    """
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            review = json.loads(line)
            rows.append(
                {
                    "user_id": review["reviewerID"],
                    "item_id": review["asin"],
                    "rating": float(review["overall"]),
                    "timestamp": int(review["unixReviewTime"]),
                }
            )
    frame = pd.DataFrame(rows)
    frame = frame.sort_values("timestamp", kind="stable")
    frame = frame.drop_duplicates(["user_id", "item_id"], keep="last")
    for side in ("user", "item"):
        codes = {name: code for code, name in enumerate(sorted(frame[f"{side}_id"].unique()))}
        frame[side] = frame[f"{side}_id"].map(codes)
    # Time is sorted already and line order with it: a stable sort by user keeps both.
    return frame.sort_values("user", kind="stable")[["user", "item", "rating", "timestamp"]]


def liked_histories(ratings: pd.DataFrame, users: Sequence[int]) -> list[list[int]]:
    """The liked items of each of `users`, oldest first, by a filter over all ratings for each."""
    histories = []
    for user in users:
        mine = ratings[(ratings["user"] == user) & (ratings["rating"] > 3)]
        histories.append(mine.sort_values("timestamp", kind="stable")["item"].tolist())
    return histories
