"""The first target ratings of cold-start users: what each of them takes off the error of the later ones.

Of every user with more than `most` ratings, the first n are observed and those after the first `most` are
predicted, the same ones for every n. In the order of the caller, who sorts by time where there is time.

    samples      Bayes' rule on the samples of the user's vector, w_k ∝ Π p(r | θ⁽ᵏ⁾): nothing is trained
    fine_tuned   gradient steps on one vector, from the samples' mean up the observed ratings' likelihood
    a UserShift  the simple rows: any prediction, and a Gaussian prior on how a user departs from it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ml.data import Ratings, check_rows, ratings_of
from ml.distribution.effects import level_index
from ml.distribution.model import StarDiffusion
from ml.evaluation.distribution import distribution_scores, mean

COUNTS = (0, 1, 2, 5, 10)
SAMPLES = 512  # weighted samples thin out: ten ratings leave the weight on few of the model's usual 64
STEPS = 10
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)  # of fine-tuning, the log-likelihood summed over the user's ratings
ENOUGH_USERS, FEWEST_USERS = 50, 10
ROUNDING = 1e-9  # a difference that is a smaller share of what it is taken of counts as 0


class Undetermined(ValueError):
    """Training ratings do not tell how users differ from noise: T or σ² of a `UserShift` cannot be learned.

    Nothing is wrong with the ratings as such: a caller may leave that method out.
    """


@dataclass(frozen=True)
class Newcomers:
    """Cold-start users and their target ratings, each user's in the order in which they came.

    description: (n, q), `Effects.description()` of their source rows; ratings: users in 0..n−1; history:
    their source ratings, users in 0..n−1, where the model reads them.
    """

    description: Tensor
    ratings: Ratings
    history: Ratings | None = None

    def __post_init__(self) -> None:
        check_rows("ratings.users", self.ratings.users, len(self.description))

    def beyond(self, most: int) -> tuple[Newcomers, Tensor]:
        """Users with more than `most` ratings, renumbered, and which ratings are theirs: (m,) bool."""
        mask = torch.bincount(self.ratings.users, minlength=1)[self.ratings.users] > most
        people, users = self.ratings.users[mask].unique(return_inverse=True)
        ratings = Ratings(users, self.ratings.items[mask], self.ratings.values[mask])
        history = None if self.history is None else ratings_of(self.history, people, len(self.description))
        return Newcomers(self.description[people], ratings, history), mask


@dataclass(frozen=True)
class UserShift:
    """r = r̂ + xᵀ b_u + e with b_u ~ N(0, T) and e ~ N(0, σ²): what any prediction r̂ makes of first ratings.

    predicted: (m,), r̂ of the newcomers' ratings in their order; columns: (m, p), x of each: 1 for the user's
    mean residual, beside it what a user may weigh differently, such as the item's part of r̂, centred;
    covariance: (p, p), T; noise_variance: σ².
    Raises ValueError where shapes disagree or σ² is not positive.
    """

    predicted: Tensor
    columns: Tensor
    covariance: Tensor
    noise_variance: float

    def __post_init__(self) -> None:
        _check_columns("predicted", self.predicted, self.columns)
        if self.covariance.shape != (self.columns.shape[1],) * 2:
            raise ValueError(
                f"covariance is {tuple(self.covariance.shape)} for {self.columns.shape[1]} columns; "
                "give one row and one column a column"
            )
        if not 0 < self.noise_variance < math.inf:
            raise ValueError(
                f"noise_variance is {self.noise_variance:g} and must be positive; take it from training "
                "ratings that r̂ misses, with more of them than columns"
            )

    def take(self, mask: Tensor) -> UserShift:
        """That of the ratings marked by `mask` (m,) bool."""
        return replace(self, predicted=self.predicted[mask], columns=self.columns[mask])

    @classmethod
    def learned(
        cls,
        predicted: Tensor,
        columns: Tensor,
        training: Ratings,
        training_predicted: Tensor,
        training_columns: Tensor,
    ) -> UserShift:
        """With T and σ² from the residuals of the t training ratings, by `residual_moments`.

        training_predicted: (t,); training_columns: (t, p). A prediction that has seen its own rating makes
        the residuals smaller than a newcomer's; item means do so by little.
        Raises ValueError where shapes disagree or numbers are not finite, and Undetermined as
        `residual_moments` does.
        """
        _check_columns("training_predicted", training_predicted, training_columns)
        if len(training_predicted) != len(training):
            raise ValueError(
                f"training_predicted has {len(training_predicted)} rows for {len(training)} ratings"
            )
        residual = training.values.double() - training_predicted.double()
        return cls(predicted, columns, *residual_moments(training.users, training_columns, residual))

    def posterior(self, users: Tensor, columns: Tensor, residual: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Mean (n, p) and covariance (n, p, p) of b_u, float64, after residuals y (m,) at `columns` X (m, p).

        The conjugate update, mean M⁻¹ T Xᵀy and covariance σ² M⁻¹ T with M = σ² I + T XᵀX, of each of the n
        users; users: (m,) int64 in 0..n−1. T may be singular.
        """
        x, prior = columns.double(), self.covariance.double()
        gram = x.new_zeros(n, *prior.shape).index_add_(0, users, x[:, :, None] * x[:, None])
        total = x.new_zeros(n, len(prior)).index_add_(0, users, x * residual.double()[:, None])
        system = self.noise_variance * torch.eye(len(prior), dtype=x.dtype) + prior @ gram
        gain = torch.linalg.solve(system, prior.expand_as(system))
        return (gain @ total[:, :, None])[:, :, 0], self.noise_variance * gain


@dataclass(frozen=True)
class Forecast:
    """Predictions of m ratings: the mean (m,) float64, for RMSE, and probabilities (m, L) of the levels."""

    mean: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, levels: Tensor) -> Forecast:
        return cls(mean(probabilities, levels), probabilities)

    def errors(self, levels: Tensor, values: Tensor) -> dict[str, float]:
        """`mae` of the median, `rmse` of the mean, `crps`; values (m,) must be levels."""
        scores = distribution_scores(self.probabilities, levels, values)
        rmse = (self.mean - values.double()).square().mean().sqrt().item()
        return {"mae": scores["mae"], "rmse": rmse, "crps": scores["crps"]}


def error_by_n(
    model: StarDiffusion,
    newcomers: Newcomers,
    validation: Newcomers | None = None,
    shifts: Mapping[str, UserShift] | None = None,
    counts: Sequence[int] = COUNTS,
    most: int | None = None,
) -> list[dict[str, str | int | float]]:
    """Errors of the newcomers' later ratings after n of their first, for each n of `counts` up to `most`.

    Rows: method, n, most, users, ratings (those predicted), and the errors of `Forecast.errors`. Methods:
    `samples` always; `fine_tuned` where `validation` has users enough to choose the learning rate on, the
    one of RATES with the lowest CRPS over all n > 0; and each of `shifts` by its name, whose mean is kept
    within the scale and whose distribution is a normal one cut into levels half-way between them.
    most: `choose_most` of the newcomers where not given, and no row where they are too few; give it to
    compare seeds, for another `most` means other users and ratings.
    Raises ValueError for rows outside the tables, ratings that are no levels or predictions of another
    number of ratings.
    """
    shifts = shifts or {}
    for name, shift in shifts.items():
        if len(shift.predicted) != len(newcomers.ratings):
            raise ValueError(
                f"shift {name!r} predicts {len(shift.predicted)} ratings of {len(newcomers.ratings)}; "
                "give one prediction a rating, in the order of newcomers.ratings"
            )
    most = choose_most(newcomers.ratings.users, counts) if most is None else most
    if most is None:
        return []
    newcomers, kept = newcomers.beyond(most)
    if len(newcomers.description) < FEWEST_USERS:
        return []
    shifts = {name: shift.take(kept) for name, shift in shifts.items()}
    rate = best_rate(model, validation, counts) if validation else None
    levels, start = model.levels, start_vectors(model, newcomers)
    rows = []
    for n in sorted({count for count in counts if count <= most}):
        first, after = _first(newcomers.ratings.users, n, most)
        observed, later = (_take(newcomers.ratings, mask) for mask in (first, after))
        samples = model.predict_pairs(
            newcomers.description, later.users, later.items, observed, SAMPLES, newcomers.history
        )
        forecasts = {"samples": Forecast.of(samples, levels)}
        if rate is not None:
            forecasts["fine_tuned"] = fine_tuned(model, newcomers, start, observed, later, rate)
        for name, shift in shifts.items():
            forecasts[name] = shifted(shift, newcomers.ratings, first, after, levels)
        size = {"n": n, "most": most, "users": len(newcomers.description), "ratings": len(later)}
        rows += [
            {"method": method, **size, **forecast.errors(levels, later.values)}
            for method, forecast in forecasts.items()
        ]
    return rows


def split_first(ratings: Ratings, n: int, most: int) -> tuple[Ratings, Ratings]:
    """The first n ratings of each user, and those after the user's first `most`, in the order given.

    Of users with more than `most` ratings alone, so that whoever is observed is predicted, and whoever is
    predicted has n observed. Raises ValueError unless 0 ≤ n ≤ most.
    """
    return tuple(_take(ratings, mask) for mask in _first(ratings.users, n, most))


def choose_most(users: Tensor, counts: Sequence[int] = COUNTS) -> int | None:
    """How many first ratings to set aside: the largest of `counts` that ENOUGH_USERS have more ratings than.

    Where not even the smallest positive one leaves so many, the largest that leaves as many as that does;
    None if these are fewer than FEWEST_USERS. users: (m,) int64.
    Raises ValueError for counts that are negative or all 0.
    """
    positive = sorted(count for count in counts if count > 0)
    if not positive or min(counts) < 0:
        raise ValueError(f"counts are {list(counts)}; give numbers of ratings, at least one of them positive")
    ratings = torch.bincount(users)
    left = {count: int((ratings > count).sum()) for count in positive}
    asked = min(ENOUGH_USERS, left[positive[0]])
    if asked < FEWEST_USERS:
        return None
    return max(count for count in positive if left[count] >= asked)


def start_vectors(model: StarDiffusion, users: Newcomers) -> Tensor:
    """Where fine-tuning starts: the mean (n, D) of each user's samples."""
    return model.sample(users.description, SAMPLES).mean(1)


def fine_tuned(
    model: StarDiffusion,
    users: Newcomers,
    start: Tensor,
    observed: Ratings,
    later: Ratings,
    rate: float,
) -> Forecast:
    """p(r | θ_u, i) after STEPS steps θ_u += rate · ∂/∂θ_u Σ log p(r | θ_u, i) from `start` (n, D).

    observed, later: ratings of `users`, whose own are not read. The few steps stand for the prior: more of
    them would end at the maximum of the likelihood.
    """
    levels, vectors = model.levels, start
    base, slopes = _affine_logits(model, users, observed)
    came = torch.nn.functional.one_hot(level_index(observed.values, levels), len(levels))
    for _ in range(STEPS):
        p = _probabilities(base, slopes, vectors[observed.users])
        gradient = (slopes @ (came - p)[:, :, None])[:, :, 0]
        vectors = vectors.index_add(0, observed.users, rate * gradient)
    base, slopes = _affine_logits(model, users, later)
    return Forecast.of(_probabilities(base, slopes, vectors[later.users]), levels)


def best_rate(model: StarDiffusion, validation: Newcomers, counts: Sequence[int] = COUNTS) -> float | None:
    """The rate of RATES with the lowest CRPS, summed over the n > 0 of `counts`; None with too few users."""
    most = choose_most(validation.ratings.users, counts)
    if most is None:
        return None
    users, _ = validation.beyond(most)
    levels, start = model.levels, start_vectors(model, users)
    splits = [split_first(users.ratings, n, most) for n in counts if 0 < n <= most]

    def error(rate: float) -> float:
        return sum(
            fine_tuned(model, users, start, *split, rate).errors(levels, split[1].values)["crps"]
            for split in splits
        )

    return min(RATES, key=error)


def shifted(shift: UserShift, ratings: Ratings, observed: Tensor, later: Tensor, levels: Tensor) -> Forecast:
    """N(r̂ + xᵀ E b_u, xᵀ (Cov b_u) x + σ²) of the `later` ratings, given the `observed`: masks (m,)."""
    residual = ratings.values.double() - shift.predicted.double()
    expected, covariance = shift.posterior(
        ratings.users[observed], shift.columns[observed], residual[observed], int(ratings.users.max()) + 1
    )
    users, x = ratings.users[later], shift.columns[later].double()
    centre = shift.predicted[later].double() + (expected[users] * x).sum(1)
    variance = torch.einsum("mp,mpq,mq->m", x, covariance[users], x) + shift.noise_variance
    return Forecast(centre.clamp(levels[0], levels[-1]), cut_normal(centre, variance, levels))


def residual_moments(users: Tensor, columns: Tensor, residual: Tensor) -> tuple[Tensor, float]:
    """T (p, p) float64 and σ² of residuals y = xᵀ b_u + e, (m,) at `columns` (m, p), by moments.

    Two residuals of a user have E y_a y_b = x_aᵀ T x_b: T is the least squares solution over all pairs a ≠ b,
    a user of k ratings weighing 1/k each, its negative eigenvalues set to 0; σ² = mean of y² − xᵀ T x.
    Raises Undetermined where the pairs do not determine T, for no user has two ratings or columns are
    dependent, and where σ² is not positive; ValueError for columns or residuals that are not finite.
    """
    for field, numbers in (("columns", columns), ("residual", residual)):
        if not numbers.isfinite().all():
            raise ValueError(f"{field} of a training rating is not finite; drop the rating or mend r̂")
    x, y, count = columns.double(), residual.double(), torch.bincount(users).double()
    n, p = len(count), x.shape[1]
    outer = x[:, :, None] * x[:, None]
    gram = x.new_zeros(n, p, p).index_add_(0, users, outer)
    total = x.new_zeros(n, p).index_add_(0, users, x * y[:, None])
    # Sums over pairs are those over all a, b less those of a = b; a row of the normal equations is T_ij.
    per_user, per_rating = 1 / count.clamp(min=1), 1 / count[users]
    everything = torch.einsum("u,uik,ujl->ijkl", per_user, gram, gram)
    products = everything - torch.einsum("m,mik,mjl->ijkl", per_rating, outer, outer)
    values = torch.einsum("u,ui,uj->ij", per_user, total, total)
    values = values - torch.einsum("m,mij->ij", per_rating * y.square(), outer)
    products, everything = (each.reshape(p * p, p * p) for each in (products, everything))
    # In units of the columns, or one of small numbers would pass for rounding.
    size = everything.diagonal().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    if torch.linalg.matrix_rank(products / size / size[:, None], atol=ROUNDING, rtol=0) < p * p:
        raise Undetermined(
            "the training ratings do not tell how users differ from noise: give users with two or more "
            "ratings, and columns that vary within a user and are not combinations of each other"
        )
    solution = torch.linalg.solve(products, values.flatten()).view(p, p)
    scale, axes = torch.linalg.eigh((solution + solution.T) / 2)
    covariance = (axes * scale.clamp(min=0)) @ axes.T
    noise = (y.square() - torch.einsum("mp,pq,mq->m", x, covariance, x)).mean().item()
    if noise <= ROUNDING * y.square().mean().item():
        raise Undetermined(
            f"the training residuals leave a noise variance of {noise:g}, which must be positive; take them "
            "from ratings that r̂ misses, with more of them than columns"
        )
    return covariance, noise


def cut_normal(mean: Tensor, variance: Tensor, levels: Tensor) -> Tensor:
    """Probabilities (m, L) of N(mean, variance), both (m,), in the cells around the levels (L,) that end
    half-way to the next; the outermost reach to infinity."""
    edges = (levels[1:] + levels[:-1]) / 2
    below = torch.special.ndtr((edges - mean[:, None]) / variance.sqrt()[:, None])
    return below.diff(prepend=below.new_zeros(len(mean), 1), append=below.new_ones(len(mean), 1))


def _check_columns(field: str, predicted: Tensor, columns: Tensor) -> None:
    if predicted.dim() != 1 or columns.dim() != 2 or len(columns) != len(predicted):
        raise ValueError(
            f"{field} is {tuple(predicted.shape)} and its columns {tuple(columns.shape)}; "
            "give one prediction (m,) and one row (m, p) a rating"
        )


def _first(users: Tensor, n: int, most: int) -> tuple[Tensor, Tensor]:
    """Masks (m,) of what `split_first` returns."""
    if not 0 <= n <= most:
        raise ValueError(
            f"n is {n} and most is {most}; 0 <= n <= most, or a rating would be seen and predicted"
        )
    order = users.argsort(stable=True)
    counts = torch.bincount(users)
    place = torch.empty_like(users)
    place[order] = torch.arange(len(users)) - (counts.cumsum(0) - counts)[users[order]]
    long = counts[users] > most
    return long & (place < n), long & (place >= most)


def _take(ratings: Ratings, mask: Tensor) -> Ratings:
    return Ratings(ratings.users[mask], ratings.items[mask], ratings.values[mask])


def _affine_logits(model: StarDiffusion, users: Newcomers, ratings: Ratings) -> tuple[Tensor, Tensor]:
    """a (m, L) and A (m, D, L) with p(· | θ, i) = softmax(a + Aᵀθ): equation (1) at 0 and at unit vectors."""
    width = model.state_["items"].shape[1]
    points = torch.cat([torch.zeros(1, width), torch.eye(width)]).expand(len(users.description), -1, -1)
    logp = model.log_probabilities(users.description, points, ratings, users.history)
    return logp[:, 0], logp[:, 1:] - logp[:, :1]


def _probabilities(base: Tensor, slopes: Tensor, vectors: Tensor) -> Tensor:
    """softmax(a + Aᵀθ): (m, L) from (m, L), (m, D, L) and (m, D)."""
    return (base + (vectors[:, None] @ slopes)[:, 0]).softmax(1)
