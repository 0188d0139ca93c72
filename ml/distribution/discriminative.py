"""Controls that go from star histograms straight to a rating: what a transfer model must beat.

`ItemStars` knows of the item alone. For user u and item i, over L rating levels, the two others see the same
numbers,

    x_ui = [h_i, log h_i, log(1 + n_i), d_u, δ_i log(1 + n_u), b_u log(1 + n_u)]                  (1)
    d_u = [b_u, s_u, log(1 + n_u), h_u, log h_u]                                                  (2)

h_i: shares of the levels among the n_i known target ratings of the item; δ_i: the mean of h_i less that of
all ratings. d_u is all that is known of a cold-start user, from n_u source ratings: bias against the item
means, standard deviation, and the shares h_u of the source levels. Shares are shrunk to those of their domain
by SHRINKAGE pseudo-ratings. In training, h_i and n_i are without the row's own rating, as in prediction.

The products were chosen on validation users: a source with many ratings may be believed more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.distribution.contract import Distribution, TransferRatings
from ml.distribution.effects import level_index, rating_levels
from ml.models.statistics import SHRINKAGE, source_statistics
from ml.replicas import replica_generator

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

# Columns of d_u that the products take, and those before the shares.
BIAS, LOG_COUNT, STATISTICS = 0, 2, 3
MAX_ITERATIONS = 1000


def star_description(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    levels: Tensor,
    means: Tensor | None = None,
    overall: Tensor | None = None,
) -> Tensor:
    """Equation (2) of the users of a source domain: (n_users, 3 + 2 L) float64.

    ratings: of the source domain, users in 0..n_users−1, items in 0..n_items−1; levels: (L,) their scale. A
    user without ratings has the domain's shares and zeros before them. means: (n_items,) and overall: (L,),
    the domain's item means and shares, by which new users are described; those of `ratings` where not given.
    Raises ValueError for rows outside the tables, values that are no levels, or no rating at all.
    """
    levels = levels.double()
    check_rows("ratings.users", ratings.users, n_users)
    check_rows("ratings.items", ratings.items, n_items)
    counts = level_counts(ratings.users, level_index(ratings.values, levels), n_users, len(levels))
    scale = levels[0].item(), levels[-1].item()
    bias, deviation, _, _, log_count = source_statistics(ratings, n_users, n_items, scale, means).T
    shares = shrunk_shares(counts, overall_shares(counts) if overall is None else overall)
    return torch.cat([torch.stack([bias, deviation, log_count], 1), shares, shares.log()], 1)


def level_counts(groups: Tensor, index: Tensor, n: int, levels: int) -> Tensor:
    """How often each of n groups has each level: (n, levels) float64 from (m,) int64 groups and levels."""
    return torch.bincount(groups.long() * levels + index, minlength=n * levels).view(n, levels).double()


def overall_shares(counts: Tensor) -> Tensor:
    """Shares (L,) of the levels over all groups; one pseudo-rating a level keeps their logs finite."""
    total = counts.sum(0) + 1
    return total / total.sum()


def shrunk_shares(counts: Tensor, overall: Tensor) -> Tensor:
    """Shares (n, L) of the levels from counts (n, L), shrunk to overall (L,)."""
    return (counts + SHRINKAGE * overall) / (counts.sum(1, keepdim=True) + SHRINKAGE)


def features(counts: Tensor, overall: Tensor, levels: Tensor, description: Tensor) -> Tensor:
    """Equation (1) of m pairs: (m, 3 + 2 L + f) float64.

    counts: (m, L), ratings of the item by level; overall: (L,), shares of all; description: (m, f), d_u.
    """
    shares = shrunk_shares(counts, overall)
    count = counts.sum(1, keepdim=True).log1p()
    deviation = ((shares - overall) @ levels)[:, None]
    bias, evidence = description[:, BIAS, None], description[:, LOG_COUNT, None]
    products = deviation * evidence, bias * evidence
    return torch.cat([shares, shares.log(), count, description, *products], 1)


def target_levels(data: TransferRatings) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (L,) float64 of the target domain, that of each rating (m,) int64, and each item's count of
    every level (n_items, L) float64. Raises ValueError for rows outside the tables or ratings that are no
    levels."""
    check_rows("target.users", data.target.users, data.n_users)
    check_rows("target.items", data.target.items, data.n_items)
    levels = (rating_levels(data.target.values) if data.levels is None else data.levels).double()
    index = level_index(data.target.values, levels)
    return levels, index, level_counts(data.target.items, index, data.n_items, len(levels))


def training_rows(data: TransferRatings) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What `StarLogit` and `StarBoosting` are fitted to: the target ratings of users with a source row.

    Returns what `pair_features` needs of the target domain, the standardized features (m, f) float64 and the
    level (m,) int64 of each rating. Raises ValueError for rows outside the tables, ratings that are no
    levels, or a description that `star_description` did not give.
    """
    levels, index, counts = target_levels(data)
    width = data.description.shape[1]
    if width < STATISTICS + 4 or (width - STATISTICS) % 2:
        raise ValueError(
            f"users are described by {width} numbers, not 3 and two a source level; "
            "give the rows of star_description of the source domain"
        )
    overall = overall_shares(counts)
    source = data.source_user[data.target.users]
    rows = source >= 0
    own = torch.nn.functional.one_hot(index[rows], len(levels))
    known = counts[data.target.items[rows]] - own
    x = features(known, overall, levels, data.description.double()[source[rows]])
    center, spread = x.mean(0), x.std(0, correction=0)
    # A feature that is constant in training says nothing, in prediction neither.
    spread = torch.where(spread > 1e-9, spread, torch.inf)
    domain = {"levels": levels, "counts": counts, "overall": overall, "center": center, "spread": spread}
    return domain, (x - center) / spread, index[rows]


def pair_features(domain: dict[str, Tensor], description: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """Standardized features (m, f) float64 of m pairs; users are rows of `description`.

    Raises RuntimeError where the model is not fitted, ValueError for rows outside the tables or descriptions
    of another width.
    """
    _check_fitted(domain)
    width = len(domain["center"]) - 2 * len(domain["levels"]) - 3
    if description.shape[1] != width:
        raise ValueError(
            f"users are described by {description.shape[1]} numbers, trained on {width}; "
            "give the rows of star_description of the source domain"
        )
    check_rows("users", users, len(description))
    check_rows("items", items, len(domain["counts"]))
    device = domain["counts"].device
    description, users, items = (given.to(device) for given in (description.double(), users, items))
    x = features(domain["counts"][items], domain["overall"], domain["levels"], description[users])
    return (x - domain["center"]) / domain["spread"]


def _check_fitted(state: dict[str, Tensor]) -> None:
    if not state:
        raise RuntimeError("the model has no parameters yet: fit it or load its state first")


@dataclass
class ItemStars(Distribution):
    """The blind control: p(r | i) = the item's shares of the levels, h_i of equation (1), for every user.

    It has no settings. What does not beat it has learned nothing about users.
    """

    name: ClassVar[str] = "item_stars"
    title: ClassVar[str] = "Item's stars"
    summary: ClassVar[str] = (
        "the item's star shares, shrunk to the domain's: a distribution that knows nothing of the user."
    )
    needs: ClassVar[tuple[str, ...]] = ("stars",)
    role: ClassVar[str] = "blind"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.state_: dict[str, Tensor] = {}

    def trained(self, data: TransferRatings, device: torch.device | str = "cpu") -> Self:
        """Take the shares of all known target ratings, also those of users without a source. Returns self.

        Raises ValueError for rows outside the tables or ratings that are no levels.
        """
        _, _, counts = target_levels(data.to(device))
        self.state_ = {"shares": shrunk_shares(counts, overall_shares(counts)).float()}
        return self

    def predict_pairs(self, description: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """p(r | i) of m pairs: (m, L) float32; an item without ratings has the domain's shares.

        description: (n, f) of any width, only its number of rows counts; users: (m,) int64 in 0..n−1; items:
        (m,) int64. Raises RuntimeError where the model is not fitted, ValueError for rows outside the tables.
        """
        _check_fitted(self.state_)
        check_rows("users", users, len(description))
        check_rows("items", items, len(self.state_["shares"]))
        return self.state_["shares"].cpu()[items]

    def tensors(self) -> dict[str, Tensor]:
        """All that prediction needs, as plain tensors on the CPU."""
        return {name: value.cpu().clone() for name, value in self.state_.items()}

    def restored(self, state: dict[str, Tensor]) -> Self:
        self.state_ = dict(state)
        return self

    def n_items(self) -> int:
        return len(self.state_["shares"])


@dataclass
class StarLogit(Distribution):
    """Multinomial logit: p(r | u, i) = softmax(W x_ui + b)_r.

    penalty: L2 weight on W, in ratings: the fit minimizes Σ −log p(r | u, i) + penalty/2 ‖W‖². A level that
    no training row has gets its share of all known target ratings, one pseudo-rating included, everywhere.
    """

    name: ClassVar[str] = "star_logit"
    title: ClassVar[str] = "Logit"
    summary: ClassVar[str] = "multinomial logit on the item's and the user's source star histograms."
    needs: ClassVar[tuple[str, ...]] = ("stars",)
    role: ClassVar[str] = "simple"
    penalty: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalty > 0:
            raise ValueError(f"penalty must be above 0, not {self.penalty:g}: it alone makes the fit unique")
        self.state_: dict[str, Tensor] = {}

    def trained(self, data: TransferRatings, device: torch.device | str = "cpu") -> Self:
        """Fit to the ratings of users with a source row; nothing is drawn. Returns self.

        Raises ValueError as `training_rows` does, and where all these ratings are equal.
        """
        from sklearn.linear_model import LogisticRegression

        domain, x, index = training_rows(data.to(device))
        seen = index.unique()
        if len(seen) < 2:
            raise ValueError(
                f"all ratings of users with source ratings are {domain['levels'][seen[0]]:g}; "
                "a logit needs two different ones"
            )
        logit = LogisticRegression(C=1 / self.penalty, max_iter=MAX_ITERATIONS)
        logit.fit(x.cpu().numpy(), index.cpu().numpy())
        weight, bias = (torch.from_numpy(fitted).to(device) for fitted in (logit.coef_, logit.intercept_))
        if len(seen) == 2:
            # Of two levels scikit-learn gives the upper one's logit against the lower one.
            weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
        levels = len(domain["levels"])
        self.state_ = domain | {
            "weight": weight.new_zeros(levels, x.shape[1]).index_copy(0, seen, weight),
            "bias": bias.new_full((levels,), -torch.inf).index_copy(0, seen, bias),
            "unseen": domain["overall"].index_fill(0, seen, 0),
        }
        return self

    def predict_pairs(self, description: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """p(r | u, i) of m pairs: (m, L) float32.

        description: (n, f), `star_description` of the users' source rows; users: (m,) int64 in 0..n−1; items:
        (m,) int64. Raises as `pair_features` does.
        """
        x, state = pair_features(self.state_, description, users, items), self.state_
        seen = torch.addmm(state["bias"], x, state["weight"].T).softmax(1)
        return (state["unseen"] + (1 - state["unseen"].sum()) * seen).float().cpu()

    def tensors(self) -> dict[str, Tensor]:
        """All that prediction needs, as plain tensors on the CPU."""
        return {
            name: value.cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.state_.items()
        }

    def restored(self, state: dict[str, Tensor]) -> Self:
        self.state_ = dict(state)
        return self

    def n_items(self) -> int:
        return len(self.state_["counts"])


@dataclass
class StarBoosting(Distribution):
    """Histogram gradient boosting of the median rating, by the absolute error.

    trees, lr: number of trees and what each adds; leaves: of a tree; leaf_ratings: fewest ratings in a leaf.

    The trees learn the number of the level plus uniform noise on (−½, ½), and the nearest level is predicted:
    the median of the sum, rounded, is the median level (Machado and Santos Silva, "Quantiles for Counts",
    JASA 2005). Without noise the residuals tie at zero where half the ratings are equal, and no leaf moves.
    """

    name: ClassVar[str] = "star_boosting"
    title: ClassVar[str] = "Boosting"
    summary: ClassVar[str] = "boosted trees on the same features, for the absolute error; its MAE counts."
    needs: ClassVar[tuple[str, ...]] = ("stars",)
    role: ClassVar[str] = "simple"
    trees: int = 100
    lr: float = 0.1
    leaves: int = 4
    leaf_ratings: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("trees", 1), ("leaves", 2), ("leaf_ratings", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, not {self.lr:g}")
        self.state_: dict[str, Tensor] = {}

    def trained(self, data: TransferRatings, device: torch.device | str = "cpu") -> Self:
        """Fit to the ratings of users with a source row; the noise follows from data.seed. Returns self.

        Raises ValueError as `training_rows` does.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor

        domain, x, index = training_rows(data.to(device))
        generator = replica_generator(data.seed, "star boosting")
        noise = torch.rand(len(index), dtype=torch.float64, generator=generator) - 0.5
        boosting = HistGradientBoostingRegressor(
            loss="absolute_error",
            learning_rate=self.lr,
            max_iter=self.trees,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=self.leaf_ratings,
            early_stopping=False,
            random_state=int(torch.randint(2**31, (1,), generator=generator)),
        )
        # Of trees so small a second thread waits for the first, and on busy cores without end.
        with threadpool_limits(torch.get_num_threads(), "openmp"):
            fitted = boosting.fit(x.cpu().numpy(), (index.cpu() + noise).numpy())
        self.state_ = domain | {name: value.to(x.device) for name, value in trees_of(fitted).items()}
        return self

    def predict_pairs(self, description: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """The median rating of m pairs, one of the levels: (m,) float32. Arguments and errors as of
        `StarLogit.predict_pairs`."""
        x, levels = pair_features(self.state_, description, users, items), self.state_["levels"]
        index = trees_sum(self.state_, x).round().clamp(0, len(levels) - 1)
        return levels[index.long()].float().cpu()

    def tensors(self) -> dict[str, Tensor]:
        """All that prediction needs, the trees included, as plain tensors on the CPU."""
        return {name: value.cpu().clone() for name, value in self.state_.items()}

    def restored(self, state: dict[str, Tensor]) -> Self:
        self.state_ = dict(state)
        return self

    def n_items(self) -> int:
        return len(self.state_["counts"])


def trees_of(fitted: HistGradientBoostingRegressor) -> dict[str, Tensor]:
    """The T trees as tensors (T, N), padded to the largest: a row goes to `left` where its `feature` is at
    most `threshold`, else to `right`; a leaf leads to itself and has a `value`. `start` () is added."""
    nodes = [tree.nodes for (tree,) in fitted._predictors]

    def column(name: str) -> Tensor:
        found = [torch.from_numpy(tree[name].copy()) for tree in nodes]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)

    def child(side: str) -> Tensor:
        below = column(side).long()
        return torch.where(column("is_leaf").bool(), torch.arange(below.shape[1]), below)

    return {
        "feature": column("feature_idx"),
        "threshold": column("num_threshold"),
        "left": child("left"),
        "right": child("right"),
        "value": column("value"),
        "start": torch.tensor(fitted._baseline_prediction.item(), dtype=torch.float64),
    }


def trees_sum(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the trees of `trees_of` say together of rows x (m, f): (m,) float64."""
    total = state["start"].expand(len(x)).clone()
    names = ("feature", "threshold", "left", "right", "value")
    for feature, threshold, left, right, value in zip(*(state[name] for name in names), strict=True):
        node = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        while True:
            below = x.gather(1, feature[node, None])[:, 0] <= threshold[node]
            further = torch.where(below, left[node], right[node])
            if torch.equal(further, node):
                break
            node = further
        total += value[node]
    return total
