"""Models that predict a distribution over the rating levels: their data from the store, and their judgement.

They meet the data of a cell through `TransferRatings`, and users through a description of their source
ratings, where the transfer models have factors.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import domain_ratings, training_rows
from assets.settings.axes import CATALOG, Cell
from assets.settings.profile import Profile
from assets.state.store import Entry, Store

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Ratings
    from ml.distribution.model import TransferRatings

DIFFUSION = "star_diffusion"
# Named for what they are: controls on star histograms, the first of which knows nothing of the user.
BLIND = "item_stars"
DISCRIMINATIVE = (BLIND, "star_logit", "star_boosting")
DISTRIBUTIONS = (DIFFUSION, *DISCRIMINATIVE)


@dataclass(frozen=True)
class Predicted:
    """Predictions of m ratings: mean (m,), for squared errors; median (m,), for absolute ones; probabilities
    (m, L) of the levels (L,), where there are any."""

    mean: "Tensor"
    median: "Tensor"
    probabilities: "Tensor | None" = None
    levels: "Tensor | None" = None

    def metrics(self, ratings: "Ratings") -> dict[str, float]:
        """MAE of the median and RMSE of the mean, micro and macro, and the scores of the distribution."""
        from ml.evaluation.distribution import distribution_scores
        from ml.evaluation.ratings import rating_errors

        by_mean = rating_errors(self.mean, ratings.values, ratings.users)
        by_median = rating_errors(self.median, ratings.values, ratings.users)
        errors = {name: (by_median if "mae" in name else by_mean)[name] for name in by_mean}
        if self.probabilities is None:
            return errors
        return distribution_scores(self.probabilities, self.levels, ratings.values) | errors

    def crps(self, ratings: "Ratings") -> "Tensor":
        """CRPS (m,) float64 of each rating; of a point it is the absolute error."""
        from ml.evaluation.distribution import crps

        if self.probabilities is None:
            return (self.median - ratings.values).double().abs()
        return crps(self.probabilities, self.levels, ratings.values)


def needs_effects(profile: Profile) -> bool:
    """Whether a model of the profile starts from the effects of the source domain."""
    return any(profile.registered(name) == DIFFUSION for name in profile.trained)


def source_effects(store: Store, profile: Profile, cell: Cell) -> Entry:
    """The effects of the source domain, shared by all cells of a seed."""
    domain = CATALOG.tasks[cell.task].source
    return store.source_effects(profile.name, domain, cell.seed)


def describe(store: Store, profile: Profile, cell: Cell, registered: str) -> "Tensor":
    """What a model is told of each source user: (source users, q) float64."""
    if registered == DIFFUSION:
        return source_effects(store, profile, cell).tensors("effects.safetensors")["description"]
    return star_description_of(store, CATALOG.tasks[cell.task].source)


def star_description_of(store: Store, domain: str) -> "Tensor":
    from ml.distribution.discriminative import star_description

    ratings = domain_ratings(store, domain)
    return star_description(ratings.tensors(), ratings.n_users, ratings.n_items, levels_of(store, domain))


def overlap_codes(store: Store, task: str, side: str) -> np.ndarray:
    """Codes (n,) int64 of the overlapping users in the `source` or `target` domain."""
    return store.overlap(task).table("users.parquet")[f"{side}_user"].to_numpy(dtype=np.int64)


def target_levels(store: Store, cell: Cell) -> "Tensor":
    """The levels (L,) float64 of the target domain's scale. Raises ValueError where it has too many."""
    return levels_of(store, CATALOG.tasks[cell.task].target)


def levels_of(store: Store, domain: str) -> "Tensor":
    """The levels (L,) float64 of a domain's scale, whoever's ratings have them."""
    import torch

    from ml.distribution.effects import rating_levels

    try:
        return rating_levels(torch.from_numpy(domain_ratings(store, domain).values))
    except ValueError as error:
        raise ValueError(
            f"domain {domain}: {error}; or run without distributions, naming the models wanted with --model"
        ) from None


def transfer_ratings(store: Store, profile: Profile, cell: Cell, description: "Tensor") -> "TransferRatings":
    """What a cell's models may learn from; of target ratings, those of `training_rows`."""
    import torch

    from ml.distribution.model import TransferRatings

    target = domain_ratings(store, CATALOG.tasks[cell.task].target)
    rows = training_rows(store, profile, cell)
    source_user = np.full(target.n_users, -1, dtype=np.int64)
    source_user[overlap_codes(store, cell.task, "target")] = overlap_codes(store, cell.task, "source")
    return TransferRatings(
        target=target.tensors(rows),
        n_users=target.n_users,
        n_items=target.n_items,
        source_user=torch.from_numpy(source_user),
        description=description,
        seed=cell.seed,
        # The scale, not the ratings: a level that only held-out users gave is a level all the same.
        levels=levels_of(store, CATALOG.tasks[cell.task].target),
    )


def predict(model, description: "Tensor", ratings: "Ratings", levels: "Tensor") -> Predicted:
    """Predictions of held-out `ratings`, whose users are rows of `description` (n, q)."""
    from ml.evaluation.distribution import mean, median

    found = model.predict(description, ratings.users, ratings.items)
    if found.dim() == 1:
        return Predicted(found, found)
    return Predicted(mean(found, levels), median(found, levels), found, levels)


def calibration(predicted: Predicted, ratings: "Ratings") -> pd.DataFrame:
    """Sums to pool over seeds: kind (`level` or `pit`), level, bin, count, stated, observed.

    Of a level but the lowest: how many predictions said P(r ≥ level) within the bin, the sum of what they
    said, and how many ratings came so high. Of the PIT: the count of ratings spread over the bins.
    """
    from ml.evaluation.distribution import calibration_curve, pit_histogram

    curve = calibration_curve(predicted.probabilities, predicted.levels, ratings.values)
    rows = [
        {
            "kind": "level",
            "level": float(level),
            "bin": place,
            "count": curve["count"][row, place].item(),
            **{
                name: (curve[name].nan_to_num() * curve["count"])[row, place].item()
                for name in ("stated", "observed")
            },
        }
        for row, level in enumerate(predicted.levels[1:])
        for place in range(curve["count"].shape[1])
    ]
    shares = pit_histogram(predicted.probabilities, predicted.levels, ratings.values)
    rows += [
        {
            "kind": "pit",
            "level": np.nan,
            "bin": place,
            "count": share * len(ratings),
            "stated": 0.0,
            "observed": 0.0,
        }
        for place, share in enumerate(shares.tolist())
    ]
    return pd.DataFrame(rows)
