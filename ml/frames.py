"""Ratings in a pandas DataFrame, as tables of rows: what a notebook has, as models take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch

from ml.cold_start import DomainRatings
from ml.data import Ratings

COLUMNS = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}


@dataclass(frozen=True)
class Domain:
    """A domain's ratings with its ids. users, items: ids by row, each of its own type, sorted; ratings: each
    user's oldest first where there are timestamps, else in the order given; scale: lowest and highest
    rating."""

    users: pd.Index
    items: pd.Index
    ratings: DomainRatings
    scale: tuple[float, float]

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        name: str,
        columns: Mapping[str, str] = COLUMNS,
        scale: tuple[float, float] | None = None,
    ) -> Self:
        """The ratings in `frame`, one a row; of a pair that is rated twice the latest counts.

        name: what messages call it; columns: what its columns are called; scale: of its ratings where given.
        Raises ValueError for a column that is missing, a value that is missing, a rating that is no number or
        outside the scale, and where there is no row.
        """
        rated = _rated(frame, name, columns)
        if scale is None:
            scale = float(rated["rating"].min()), float(rated["rating"].max())
        _check_scale(rated["rating"], name, columns["rating"], scale)
        rated = _latest(rated, frame, columns)
        rows, users = pd.factorize(rated["user"], sort=True)
        item_rows, items = pd.factorize(rated["item"], sort=True)
        by_user = np.argsort(rows, kind="stable")
        table = DomainRatings(
            rows[by_user].astype(np.int32),
            item_rows[by_user].astype(np.int32),
            rated["rating"].to_numpy(dtype=np.float32)[by_user],
            len(users),
            len(items),
            _times(frame, columns, np.asarray(rated.index)[by_user]),
        )
        return cls(pd.Index(users), pd.Index(items), table, scale)

    def rows(self, kind: str, ids: pd.Series, name: str) -> np.ndarray:
        """Rows (n,) int64 of ids of `users` or `items`. Raises ValueError for one that is not there."""
        found = getattr(self, kind).get_indexer(ids)
        if (found < 0).any():
            stranger = ids.iloc[int((found < 0).argmax())]
            raise ValueError(
                f"{name}: {kind[:-1]} '{stranger}' has no rating in the domain; leave that row out"
            )
        return found.astype(np.int64)

    def histories(
        self, frame: pd.DataFrame, name: str, columns: Mapping[str, str]
    ) -> tuple[pd.Index, Ratings]:
        """Ratings of users who need not be in the domain, ordered and told apart as by `of`: their ids in
        order of appearance, and the ratings, users in 0..n−1. Raises ValueError as `of` does, and for an item
        that is not in the domain."""
        rated = _rated(frame, name, columns)
        _check_scale(rated["rating"], name, columns["rating"], self.scale)
        rated = rated.assign(code=pd.factorize(rated["user"])[0], row=self.rows("items", rated["item"], name))
        users = pd.Index(rated["user"].unique())
        rated = _latest(rated, frame, columns).sort_values("code", kind="stable")
        times = _times(frame, columns, rated.index.to_numpy())
        return users, Ratings(
            torch.from_numpy(rated["code"].to_numpy(dtype=np.int64)),
            torch.from_numpy(rated["row"].to_numpy(dtype=np.int64)),
            torch.from_numpy(rated["rating"].to_numpy(dtype=np.float32)),
            None if times is None else torch.from_numpy(times),
        )


def checked(
    frame: pd.DataFrame, name: str, needed: tuple[str, ...], columns: Mapping[str, str]
) -> pd.DataFrame:
    """The `needed` columns under their own names, complete. Raises ValueError as `Domain.of` does."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{name} is a {type(frame).__name__}; give a pandas DataFrame")
    absent = [columns[each] for each in needed if columns[each] not in frame]
    if absent:
        raise ValueError(
            f"{name} has no column {absent[0]!r}, only {', '.join(map(repr, frame.columns))}; "
            "say with `columns` what its columns are called"
        )
    found = frame[[columns[each] for each in needed]].set_axis(list(needed), axis=1).reset_index(drop=True)
    if len(found) == 0:
        raise ValueError(f"{name} has no row")
    for each in needed:
        if found[each].isna().any():
            row = int(found[each].isna().argmax())
            raise ValueError(f"{name}, row {row}: {columns[each]} is missing; fill it in or drop that row")
    return found


def _latest(rated: pd.DataFrame, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The rows of `rated`, by rising time where the frame has times, without all but the latest of a pair."""
    if columns["timestamp"] in frame:
        rated = rated.iloc[np.argsort(frame[columns["timestamp"]].to_numpy(), kind="stable")]
    return rated.drop_duplicates(["user", "item"], keep="last")


def _times(frame: pd.DataFrame, columns: Mapping[str, str], rows: np.ndarray) -> np.ndarray | None:
    """Days (m,) float32 of the frame's `rows`, from datetimes or unix seconds; None without a column of them,
    and where one is missing."""
    if columns["timestamp"] not in frame:
        return None
    found = frame[columns["timestamp"]].iloc[rows]
    if pd.api.types.is_datetime64_any_dtype(found):
        days = (found - pd.Timestamp(0, tz=found.dt.tz)) / pd.Timedelta(days=1)
    elif pd.api.types.is_numeric_dtype(found):
        days = found / 86_400
    else:
        return None
    return None if days.isna().any() else days.to_numpy(dtype=np.float32)


def _rated(frame: pd.DataFrame, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    found = checked(frame, name, ("user", "item", "rating"), columns)
    if not pd.api.types.is_numeric_dtype(found["rating"]):
        raise ValueError(
            f"{name}: {columns['rating']} is {found['rating'].dtype}, no number; "
            "convert it with pandas.to_numeric"
        )
    return found


def _check_scale(ratings: pd.Series, name: str, column: str, scale: tuple[float, float]) -> None:
    outside = ~ratings.between(*scale)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"{name}, row {row}: {column} is {ratings.iloc[row]}, outside the scale {scale[0]:g} to "
            f"{scale[1]:g}; correct it or give another scale"
        )
