"""Matrix factorization by alternating least squares on Spark (MLlib), for ratings beyond one machine.

Model:      r̂ = p_u·q_i, without biases
Minimises   Σ (r − p_u·q_i)² + penalty (Σ n_u ‖p_u‖² + Σ n_i ‖q_i‖²),   n = how many ratings a row has

(Zhou, Wilkinson, Schreiber and Pan, "Large-scale parallel collaborative filtering for the Netflix prize",
2008), or of choices, where every rating counts as 1 and what was not rated as 0,

            Σ_ui c_ui (p_ui − p_u·q_i)² + penalty (Σ n_u ‖p_u‖² + Σ n_i ‖q_i‖²),   c = confidence or 1

over all pairs (Hu, Koren and Volinsky 2008, as in `ml.factorization.implicit`). A penalty by count lets a row
with many ratings keep as much of the shrinking as one with few, so that one value suits tables of any size.

Users are solved last, so a user's vector is the exact solution on the final items, as it would be for a new
user with the same ratings. Spark holds users and items in `blocks`, and each block draws the first vectors of
its rows: with another number of blocks the factors are others. With the same number they are the same up to
the order of sums, which is that in which shuffled parts arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ml.replicas import replica_generator

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class RatingFile:
    """One replica's training ratings, in a Parquet file that Spark's machines can read.

    path: of a file or folder with columns user, item (int32 in [0, n_users) and [0, n_items)) and rating;
    count: how many of its ratings are trained on, those of all but the users `without` (h,) int32; seed: the
    replica's, from which all its draws follow.
    """

    path: str
    count: int
    n_users: int
    n_items: int
    seed: int
    without: np.ndarray

    def __len__(self) -> int:
        return self.count

    def read(self, session: SparkSession) -> DataFrame:
        """The ratings that are trained on: user, item, rating."""
        ratings = session.read.parquet(self.path).select("user", "item", "rating")
        if not len(self.without):
            return ratings
        hidden = pa.table({"user": pa.array(self.without, pa.int32())})
        return ratings.join(session.createDataFrame(hidden), "user", "left_anti")


@dataclass
class SparkFactorization:
    """Of ratings. k: width of p and q; penalty: as in the objective at the head of this module; sweeps:
    solves of either side; blocks: into how many parts Spark divides users, and items.

    After `fit`: `user_factors_` (n_users, k), `item_factors_` (n_items, k), float32, 0 for a row without
    ratings; and `loss_`, the mean squared error of what the factorization explains.
    """

    k: int = 10
    penalty: float = 0.1
    sweeps: int = 10
    blocks: int = 10

    def __post_init__(self) -> None:
        for field in ("k", "sweeps", "blocks"):
            if getattr(self, field) < 1:
                raise ValueError(f"spark_als: {field} must be at least 1, not {getattr(self, field)}")
        if not 0 < self.penalty < float("inf"):
            raise ValueError(f"spark_als: penalty must be positive and finite, not {self.penalty}")

    def fit(self, session: SparkSession, file: RatingFile, purpose: str) -> Self:
        """Solve items and users in turn. Spark's seed is drawn from `replica_generator(file.seed, purpose)`.

        Raises ValueError for a file without ratings to train on.
        """
        from pyspark.ml.recommendation import ALS

        if len(file) == 0:
            raise ValueError(f"spark_als: {file.path} has no ratings to train on; look at its split")
        seed = torch.randint(1 << 31, (), generator=replica_generator(file.seed, purpose))
        ratings = self._counted(file.read(session))
        model = ALS(
            rank=self.k,
            maxIter=self.sweeps,
            regParam=self.penalty,
            numUserBlocks=self.blocks,
            numItemBlocks=self.blocks,
            userCol="user",
            itemCol="item",
            ratingCol="rating",
            seed=int(seed),
            **self._options(),
        ).fit(ratings)
        self.user_factors_ = factors_of(model.userFactors.toArrow(), file.n_users, self.k)
        self.item_factors_ = factors_of(model.itemFactors.toArrow(), file.n_items, self.k)
        self.loss_ = self._loss(model.transform(ratings), len(file))
        return self

    def _counted(self, ratings: DataFrame) -> DataFrame:
        return ratings

    def _options(self) -> dict[str, object]:
        return {}

    def _loss(self, predicted: DataFrame, count: int) -> float:
        return predicted.selectExpr("avg(power(rating - prediction, 2))").first()[0]


@dataclass
class SparkImplicitFactorization(SparkFactorization):
    """Of choices. confidence: what a choice weighs beside what was not chosen. The loss is over all pairs, by
    their weights."""

    k: int = 32
    confidence: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.confidence < float("inf"):
            raise ValueError(
                f"spark_als: confidence must be finite and above 1, what a non-choice has, "
                f"not {self.confidence}"
            )

    def _counted(self, ratings: DataFrame) -> DataFrame:
        return ratings.selectExpr("user", "item", "CAST(1 AS FLOAT) AS rating")

    def _options(self) -> dict[str, object]:
        # What a choice weighs more than 1.
        return {"implicitPrefs": True, "alpha": self.confidence - 1}

    def _loss(self, predicted: DataFrame, count: int) -> float:
        """Of all pairs as if none were chosen, and of the chosen ones what is different."""
        users, items = self.user_factors_.double(), self.item_factors_.double()
        nobody = ((users.T @ users) * (items.T @ items)).sum().item()
        more = f"sum({self.confidence} * power(1 - prediction, 2) - power(prediction, 2))"
        chosen = predicted.selectExpr(more).first()[0]
        return (nobody + chosen) / (len(users) * len(items) + (self.confidence - 1) * count)


def factors_of(found: pa.Table, n: int, k: int) -> Tensor:
    """(n, k) float32 of a table with the rows' numbers `id` and their lists `features`; 0 for other rows."""
    factors = np.zeros((n, k), dtype=np.float32)
    for batch in found.to_batches():
        factors[batch["id"].to_numpy()] = batch["features"].flatten().to_numpy().reshape(-1, k)
    return torch.from_numpy(factors)
