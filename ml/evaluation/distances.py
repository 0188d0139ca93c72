"""How far transferred user vectors are from the true ones: as distributions, and user by user.

These say what a t-SNE picture (paper section 4.4, Figure 4) cannot: it preserves no distances. All functions
take tensors on the CPU or arrays alike, and compute in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist, pdist


@dataclass(frozen=True)
class PairDistance:
    """Means over paired vectors: Euclidean distance, and cosine similarity where both have a direction.

    cosine is None where every pair has a zero vector.
    """

    euclidean: float
    cosine: float | None


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The squared Fréchet distance of the Gaussians fitted to a (n, k) and b (m, k), in squared units.

    ‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) with unbiased covariances: the squared 2-Wasserstein
    distance of the Gaussians (Dowson and Landau 1982), which image generation calls FID. Singular
    covariances are legal. Raises ValueError for fewer than two rows, unequal widths, or values that are NaN
    or infinite.
    """
    a, b = _matrices(a, b, rows=2)
    shift = a.mean(0) - b.mean(0)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # With Σ = RᵀR, Tr (Σ_a Σ_b)^½ is the sum of the singular values of R_a R_bᵀ. Roots of the eigenvalues
    # of Σ_a Σ_b would turn a rounding error of 1e-16 in a singular one into 1e-8.
    overlap = np.linalg.norm(root_a @ root_b.T, "nuc")
    distance = shift @ shift + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    return max(0.0, float(distance))


def mmd_rbf(
    a: ArrayLike,
    b: ArrayLike,
    bandwidth: float | None = None,
    max_points: int = 2000,
    seed: int = 0,
) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of a (n, k) and b (m, k); may be negative.

    The kernel is exp(−d² / (2σ²)), d the Euclidean distance; σ = `bandwidth`, else the median distance over
    all pairs of the pooled sample (Gretton et al. 2012, Lemma 6). Of more than `max_points`
    rows, that many are drawn by `seed` from each side. Raises ValueError for fewer than two rows, unequal
    widths, values that are NaN or infinite, and a bandwidth that is not positive.
    """
    if max_points < 2:
        raise ValueError(f"max_points is {max_points}; an unbiased estimate needs at least 2")
    rng = np.random.default_rng(seed)
    a, b = (_sample(x, max_points, rng) for x in _matrices(a, b, rows=2))
    # Each pair once and no point with itself: the means of these are the unbiased estimates.
    squares = [pdist(a, "sqeuclidean"), pdist(b, "sqeuclidean"), cdist(a, b, "sqeuclidean").ravel()]
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(np.concatenate(squares))))
    if not bandwidth > 0:
        raise ValueError(
            f"the bandwidth is {bandwidth}; give a positive one (the default, the median distance, is 0 "
            "where most vectors are equal)"
        )
    within_a, within_b, across = (np.exp(-d / (2 * bandwidth**2)).mean() for d in squares)
    return float(within_a + within_b - 2 * across)


def mean_pair_distance(a: ArrayLike, b: ArrayLike) -> PairDistance:
    """Mean Euclidean distance and mean cosine similarity of the rows a[i] and b[i], both (n, k).

    A pair with a zero vector has no cosine and is left out of that mean. Raises ValueError where the shapes
    differ, without rows, and for values that are NaN or infinite.
    """
    a, b = _matrices(a, b, rows=1)
    if len(a) != len(b):
        raise ValueError(f"a {a.shape} and b {b.shape} differ in rows; give both for the same users")
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    directed = (lengths[0] > 0) & (lengths[1] > 0)
    unit_a, unit_b = (x[directed] / length[directed, None] for x, length in zip((a, b), lengths, strict=True))
    cosine = float((unit_a * unit_b).sum(1).mean()) if directed.any() else None
    return PairDistance(float(np.linalg.norm(a - b, axis=1).mean()), cosine)


def _matrices(a: ArrayLike, b: ArrayLike, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, refused unless they are finite, of one width and at least `rows` long."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"a {a.shape} and b {b.shape} must be (n, k) and (m, k); compare vectors of one space"
        )
    if min(len(a), len(b)) < rows:
        raise ValueError(f"a {a.shape} and b {b.shape} need at least {rows} rows each; give more users")
    for name, values in (("a", a), ("b", b)):
        finite = np.isfinite(values).all(1)
        if not finite.all():
            raise ValueError(
                f"{name} has NaN or infinity in row {int(np.argmin(finite))}; leave out a model that diverged"
            )
    return a, b


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """R (min(n, k), k) with RᵀR the unbiased covariance of x (n, k)."""
    return np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1)


def _sample(x: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return x if len(x) <= size else x[rng.choice(len(x), size, replace=False)]
