"""User and item vectors that shift a distribution over the rating levels: crossed random effects.

For a rating r of user u on item i, over L levels (five stars),

    p(r | u, i) = softmax(Q (b + θ_u + φ_i))_r                                                   (1)

Q (L, D) holds the orthonormal polynomials of degree 1..D in the level: the first column shifts the stars, the
second stretches them, the others bend the ends. θ_u and φ_i are vectors of the user and of the item, with

    θ_u ~ N(Aᵀ[1, c_u], S),    φ_i ~ N(Bᵀ[1, log count], T)                                      (2)

where c_u is what is known of the user beforehand: nothing in the source domain, the source vector in the
target domain. Users who rate harshly do not make their items look bad, since both sides are fitted together.

The fit is stochastic EM (Celeux and Diebolt, 1985): a sweep draws every user's vector from the Laplace
approximation of its posterior given the items' last draw, then the items' given the users', and updates
the priors by their closed forms. Means are taken over the sweeps after the burn-in; the draws themselves are
kept where asked, for they carry how uncertain the vector of a user with few ratings is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.replicas import replica_generator

WIDTH = 4
SWEEPS, BURN_IN = 25, 10
# Pseudo-users and their variance in the update of a prior's covariance: keeps it proper where few users are.
PRIOR_COUNT, PRIOR_VARIANCE = 2.0, 0.05
CHUNK = 1 << 13  # ratings whose logits are held at a time: fits a cache
RIDGE = 5.0  # on the standardized columns of c_u


@dataclass(frozen=True)
class Effects:
    """A fitted domain. n users, m items, L levels, D = width of the vectors; float64, but for the draws.

    levels: (L,) the rating values; basis: (L, D), Q; intercept: (D,), b; users: (n, D) and items: (m, D), the
    posterior modes of θ and φ; draws: (S, n, D) float32, posterior draws of θ, or None; prior_mean: (n, D)
    and prior_covariance: (D, D), of θ; item_prior_mean: (m, D) and item_prior_covariance: (D, D), of φ;
    counts: (n,) and item_counts: (m,), ratings of each.
    """

    levels: Tensor
    basis: Tensor
    intercept: Tensor
    users: Tensor
    items: Tensor
    draws: Tensor | None
    prior_map: Tensor
    prior_mean: Tensor
    prior_covariance: Tensor
    item_prior_mean: Tensor
    item_prior_covariance: Tensor
    counts: Tensor
    item_counts: Tensor

    def to(self, device: torch.device | str) -> Effects:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return Effects(**{name: None if value is None else value.to(device) for name, value in held.items()})

    def description(self) -> Tensor:
        """What a user's vector and number of ratings say: (n, D + 1) float64, the condition for transfer."""
        return torch.cat([self.users, self.counts.log1p()[:, None]], 1)

    def residual(self, ratings: Ratings) -> Tensor:
        """What equation (1) at the modes leaves of each rating, r − E r: (m,) float64."""
        parts = zip(*(x.split(CHUNK) for x in (ratings.users, ratings.items)), strict=True)
        expected = [
            ((self.intercept + self.users[u] + self.items[i]) @ self.basis.T).softmax(1) @ self.levels
            for u, i in parts
        ]
        return ratings.values.double() - torch.cat(expected)


def level_basis(levels: Tensor, width: int = WIDTH) -> Tensor:
    """Orthonormal polynomials of degree 1..width in the level, rising at the top: (L, width) float64.

    With fewer than width + 1 levels there are L − 1 of them, and any distribution over the levels is reached.
    """
    centred = (levels.double() - levels.double().mean()) / levels.double().std()
    degrees = torch.arange(min(width, len(levels) - 1) + 1, device=levels.device)
    basis = torch.linalg.qr(centred[:, None] ** degrees)[0][:, 1:]
    return basis * basis[-1].sign()


def rating_levels(values: Tensor) -> Tensor:
    """The distinct rating values in rising order: (L,) float64. Raises ValueError with fewer than 2, or more
    than 20, which is a continuous scale."""
    levels = values.double().unique()
    if not 2 <= len(levels) <= 20:
        raise ValueError(
            f"the ratings take {len(levels)} distinct values; a distribution over levels needs 2 to 20, "
            "round the ratings to the levels of their scale"
        )
    return levels


def level_index(values: Tensor, levels: Tensor) -> Tensor:
    """The number of each value's level: (m,) int64. Raises ValueError for a value that is no level."""
    index = torch.bucketize(values.double(), levels).clamp(max=len(levels) - 1)
    strange = values[levels[index] != values.double()]
    if len(strange):
        raise ValueError(f"rating {strange[0]:g} is none of the levels {levels.tolist()}; round it to one")
    return index


def slopes(logits: Tensor, index: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (m, D) and negative Hessian (m, D, D) of log softmax(logits + Q x)_index in x, at x = 0."""
    p = logits.softmax(1)
    mean = p @ basis
    outer = basis[:, :, None] * basis[:, None, :]
    curvature = (p @ outer.flatten(1)).view(len(p), *outer.shape[1:]) - mean[:, :, None] * mean[:, None, :]
    return basis[index] - mean, curvature


def posterior_modes(
    groups: Tensor,
    offset: Tensor,
    index: Tensor,
    basis: Tensor,
    prior_mean: Tensor,
    prior_covariance: Tensor,
    start: Tensor,
    iterations: int,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Newton's method for arg max_x Σ log softmax(offset + Q x_g)_index + log N(x_g; prior), of every group.

    groups: (m,) int64 in 0..n−1; offset: (m, L), or a shorter table whose row `rows` (m,) int64 is the
    rating's; index: (m,) int64; prior_mean, start: (n, D).
    Returns the modes (n, D) and the inverse negative Hessians there (n, D, D), the Laplace covariances. The
    objective is strictly concave; steps are cut at 2 in each direction against overshooting.
    """
    precision = torch.linalg.inv(prior_covariance)
    if rows is None:
        rows = torch.arange(len(groups), device=groups.device)
    ratings = groups, rows, index
    x = start
    for _ in range(iterations):
        gradient, curvature = _total_slopes(*ratings, offset, basis, x)
        gradient = gradient - (x - prior_mean) @ precision
        step = torch.linalg.solve(curvature + precision, gradient)
        x = x + step.clamp(-2, 2)
    curvature = _total_slopes(*ratings, offset, basis, x)[1]
    return x, torch.linalg.inv(curvature + precision)


def _total_slopes(
    groups: Tensor, rows: Tensor, index: Tensor, offset: Tensor, basis: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """The slopes at x (n, D) summed over each group's ratings: (n, D) and (n, D, D).

    What is linear in the probabilities is taken of their sums. Only of a chunk of ratings are there logits at
    a time: all of them are what takes memory. Arithmetic runs across the ratings, (L, c): along so few levels
    it takes twice as long. Of the squares, which are symmetric, one half is summed.
    """
    (n, width), count = x.shape, len(basis)
    own, known = basis @ x.T, offset.T.contiguous()
    pairs = torch.triu_indices(width, width, device=x.device)
    probability, squares = x.new_zeros(count, n), x.new_zeros(pairs.shape[1], n)
    for group, row in zip(groups.split(CHUNK), rows.split(CHUNK), strict=True):
        logits = known.gather(1, row.expand(count, -1)).add_(own.gather(1, group.expand(count, -1)))
        p = logits.softmax(0)
        mean = basis.T @ p
        probability.index_add_(1, group, p)
        squares.index_add_(1, group, torch.cat([mean[i:] * mean[i] for i in range(width)]))
    chosen = torch.bincount(groups * count + index, minlength=n * count).view(n, count)
    outer = (basis[:, :, None] * basis[:, None, :]).flatten(1)
    both = pairs.new_empty(width, width)
    both[pairs[0], pairs[1]] = both[pairs[1], pairs[0]] = torch.arange(pairs.shape[1], device=x.device)
    curvature = probability.T @ outer - squares.index_select(0, both.flatten()).T
    return (chosen - probability.T) @ basis, curvature.view(n, width, width)


class _Side:
    """The vectors of one side, users or items, during the fit, and their prior."""

    def __init__(self, groups: Tensor, description: Tensor, width: int) -> None:
        self.groups = groups
        self.design = torch.cat([description.new_ones(len(description), 1), description], 1)
        self.rated = torch.bincount(groups, minlength=len(description)) > 0
        self.modes = description.new_zeros(len(description), width)
        self.draw = self.modes
        self.map = description.new_zeros(self.design.shape[1], width)
        self.covariance = torch.eye(width, dtype=description.dtype, device=description.device)

    def sweep(
        self,
        offset: Tensor,
        rows: Tensor,
        index: Tensor,
        basis: Tensor,
        iterations: int,
        generator: torch.Generator,
    ) -> None:
        mean = self.design @ self.map
        self.modes, covariance = posterior_modes(
            self.groups, offset, index, basis, mean, self.covariance, self.modes, iterations, rows
        )
        self._update_prior(covariance[self.rated])
        noise = torch.randn(*self.modes.shape, 1, dtype=torch.float64, generator=generator)
        self.draw = self.modes + (torch.linalg.cholesky(covariance) @ noise.to(covariance))[..., 0]

    def _update_prior(self, covariance: Tensor) -> None:
        """A by ridge regression of the modes, S from its residuals and the posterior covariances."""
        design, modes = self.design[self.rated], self.modes[self.rated]
        ridge = RIDGE * torch.eye(design.shape[1], dtype=design.dtype, device=design.device)
        ridge[0, 0] = 0
        self.map = torch.linalg.solve(design.T @ design + ridge, design.T @ modes)
        residual = modes - design @ self.map
        unit = torch.eye(modes.shape[1], dtype=modes.dtype, device=modes.device)
        scatter = residual.T @ residual + covariance.sum(0) + PRIOR_COUNT * PRIOR_VARIANCE * unit
        self.covariance = scatter / (len(modes) + PRIOR_COUNT)

    def state(self) -> tuple[Tensor, ...]:
        return self.modes, self.map, self.covariance


def fit_effects(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    seed: int,
    description: Tensor | None = None,
    levels: Tensor | None = None,
    width: int = WIDTH,
    keep_draws: bool = False,
    device: torch.device | str = "cpu",
) -> Effects:
    """Fit equations (1) and (2) to `ratings`.

    description: (n_users, q) standardized columns, c_u; none means q = 0. levels: (L,) the rating values,
    those that occur where not given. keep_draws: give the users' draws too, 4 S n D bytes. Users and items
    without ratings get their prior mean. device: where it is computed and the effects lie; what is random is
    drawn on the CPU, so that it is the same everywhere.
    Raises ValueError for rows outside the tables or ratings that are no levels.
    """
    check_rows("ratings.users", ratings.users, n_users)
    check_rows("ratings.items", ratings.items, n_items)
    levels = (rating_levels(ratings.values) if levels is None else levels.double()).cpu()
    # Of so small a matrix on the CPU: its signs are the same everywhere.
    basis, levels = level_basis(levels, width).to(device), levels.to(device)
    ratings = ratings.to(device)
    index = level_index(ratings.values, levels)
    item_counts = torch.bincount(ratings.items, minlength=n_items).double()
    description = basis.new_zeros(n_users, 0) if description is None else description.double().to(device)
    width = basis.shape[1]
    users = _Side(ratings.users, description, width)
    items = _Side(ratings.items, standardized(item_counts.log1p())[:, None], width)
    generator = replica_generator(seed, "effects")

    # One pseudo-rating a level: a level that never occurs keeps a finite logit.
    frequency = torch.bincount(index, minlength=len(levels)).double() + 1
    intercept = (frequency / frequency.sum()).log() @ basis
    constant = basis @ intercept
    kept = SWEEPS - BURN_IN
    sums = [torch.zeros_like(value) for side in (users, items) for value in side.state()]
    draws = torch.empty(kept, n_users, width, device=device) if keep_draws else None
    for sweep in range(SWEEPS):
        iterations = 2 if sweep else 4
        for side, other in ((users, items), (items, users)):
            offset = constant + other.draw @ basis.T
            side.sweep(offset, other.groups, index, basis, iterations, generator)
        if sweep < BURN_IN:
            continue
        for total, value in zip(sums, (*users.state(), *items.state()), strict=True):
            total += value
        if keep_draws:
            draws[sweep - BURN_IN] = users.draw
    user_modes, user_map, user_covariance, item_modes, item_map, item_covariance = (s / kept for s in sums)
    offset = constant + user_modes @ basis.T
    item_mean = items.design @ item_map
    item_modes, _ = posterior_modes(
        items.groups, offset, index, basis, item_mean, item_covariance, item_modes, 6, users.groups
    )
    return Effects(
        levels=levels,
        basis=basis,
        intercept=intercept,
        users=user_modes,
        items=item_modes,
        draws=draws,
        prior_map=user_map,
        prior_mean=users.design @ user_map,
        prior_covariance=user_covariance,
        item_prior_mean=item_mean,
        item_prior_covariance=item_covariance,
        counts=torch.bincount(ratings.users, minlength=n_users).double(),
        item_counts=item_counts,
    )


def items_without_own_rating(effects: Effects, ratings: Ratings) -> Tensor:
    """φ_i as it would be had each rating not been given: (m, D) float64, to train on without leakage.

    `ratings` are those that `effects` was fitted to. One Newton step from the full mode with the rating's own
    gradient g and curvature h removed (approximate leave-one-out): φ − (H − h)⁻¹ g. Item vectors that contain
    the rating they are to predict would make a model trust them too much.
    """
    index, basis = level_index(ratings.values, effects.levels), effects.basis
    offset, own = (effects.intercept + effects.users) @ basis.T, effects.items @ basis.T
    columns = ratings.items, ratings.users, index
    total = _total_slopes(*columns, offset, basis, effects.items)[1]
    total = total + torch.linalg.inv(effects.item_prior_covariance)
    out = []
    for items, users, level in zip(*(column.split(CHUNK) for column in columns), strict=True):
        gradient, curvature = slopes(offset[users] + own[items], level, basis)
        step = torch.linalg.solve(total[items] - curvature, gradient)
        out.append(effects.items[items] - step)
    return torch.cat(out)


def standardized(column: Tensor) -> Tensor:
    """`column` (n,) or columns (n, q) with mean 0 and standard deviation 1; a constant becomes 0."""
    return (column - column.mean(0)) / column.std(0, correction=0).clamp(min=1e-9)
