"""User vectors of transfer models beside the true ones (paper section 4.4, Figure 4).

Two views of the same vectors: a joint t-SNE, which shows and proves nothing, and distances, which do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist

from ml.evaluation.distances import frechet_distance, mean_pair_distance, mmd_rbf
from ml.replicas import replica_generator

MAX_POINTS = 2000  # of a side, for the kernel distance, whose cost is quadratic


@dataclass(frozen=True)
class Comparison:
    """How far vectors are from the true ones; all None where `undefined` says why there is no answer."""

    frechet: float | None
    mmd: float | None
    euclidean: float | None
    cosine: float | None
    undefined: str | None


def sample(count: int, size: int, seed: int, purpose: str) -> np.ndarray:
    """`size` of the numbers 0..count-1 (all if fewer), ascending int64, drawn by `seed` and `purpose`."""
    order = torch.randperm(count, generator=replica_generator(seed, purpose))
    return order[:size].sort().values.numpy()


def typical_distance(vectors: ArrayLike, seed: int) -> float:
    """The median Euclidean distance of the rows (n, k), over at most MAX_POINTS rows; NaN below two rows.

    As the kernel's bandwidth it is taken from the true vectors alone, for a bandwidth that varied with the
    model, as the pooled median does, would measure each model by another yardstick.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    pairs = pdist(vectors[sample(len(vectors), MAX_POINTS, seed, "bandwidth")])
    return float(np.median(pairs)) if len(pairs) else float("nan")


def compare(vectors: ArrayLike, truth: ArrayLike, bandwidth: float, seed: int) -> Comparison:
    """Distances between `vectors` and `truth`, both (n, k), row i of both the same user.

    frechet and mmd are squared and compare the two clouds, mmd on at most MAX_POINTS users of each; euclidean
    and cosine are means over users. Raises ValueError where the shapes differ.
    """
    vectors, truth = np.asarray(vectors, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    undefined = _undefined(vectors, truth, bandwidth)
    if undefined:
        return Comparison(None, None, None, None, undefined)
    pairs = mean_pair_distance(vectors, truth)
    return Comparison(
        frechet=frechet_distance(vectors, truth),
        mmd=mmd_rbf(vectors, truth, bandwidth, MAX_POINTS, seed),
        euclidean=pairs.euclidean,
        cosine=pairs.cosine,
        undefined=None,
    )


def _undefined(vectors: np.ndarray, truth: np.ndarray, bandwidth: float) -> str | None:
    """Why these vectors have no distances, or None."""
    broken_truth, broken = (int((~np.isfinite(x)).any(1).sum()) for x in (truth, vectors))
    if broken_truth:
        return f"the ground truth diverged: {broken_truth} of {len(truth)} vectors are NaN or infinite"
    if broken:
        return f"diverged: {broken} of {len(vectors)} vectors are NaN or infinite"
    if len(truth) < 2:
        return f"distances need at least 2 users, there are {len(truth)}"
    return None if bandwidth > 0 else "most true vectors are equal, so that the kernel has no bandwidth"


def project(series: Mapping[str, ArrayLike], seed: int, iterations: int) -> dict[str, np.ndarray]:
    """One t-SNE of all `series` (n_s, k) together: coordinates (n_s, 2) float32 of each.

    scikit-learn's, started from the principal components, with perplexity 30, or a third of the points where
    they are few. A series with a value that is NaN or infinite is left out.
    """
    arrays = {name: np.asarray(vectors, dtype=np.float64) for name, vectors in series.items()}
    finite = {name: vectors for name, vectors in arrays.items() if np.isfinite(vectors).all()}
    if not finite:
        return {}
    coordinates = _tsne(np.concatenate(list(finite.values())), seed, iterations)
    ends = np.cumsum([len(vectors) for vectors in finite.values()])
    return dict(zip(finite, np.split(coordinates, ends[:-1]), strict=True))


def _tsne(points: np.ndarray, seed: int, iterations: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    spread = np.ptp(points, axis=0).max()
    if spread == 0:  # Equal points have no principal components, and scikit-learn crashes on the NaN.
        return np.zeros((len(points), 2), dtype=np.float32)
    tsne = TSNE(
        init="pca" if points.shape[1] > 1 else "random",
        random_state=seed,
        perplexity=min(30.0, (len(points) - 1) / 3),
        max_iter=iterations,
    )
    # t-SNE does not depend on the scale of its input, but its single-precision squares overflow.
    return tsne.fit_transform((points - points.min(0)) / spread)
