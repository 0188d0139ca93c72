import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from ml.evaluation.distances import PairDistance, frechet_distance, mean_pair_distance, mmd_rbf

DISTANCES = [frechet_distance, mmd_rbf, mean_pair_distance]


def vectors(n=200, k=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)) @ rng.normal(size=(k, k)) + rng.normal(size=k)


def whitened(n, k, seed=0):
    """Rows with mean exactly 0 and unbiased covariance exactly I, up to rounding."""
    x = np.random.default_rng(seed).normal(size=(n, k))
    return np.linalg.qr(x - x.mean(0))[0] * math.sqrt(n - 1)


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_frechet_of_a_shift_is_its_squared_length(shift):
    x = vectors()
    assert frechet_distance(x, x + shift) == pytest.approx(4 * shift**2, abs=1e-10)


def test_frechet_of_diagonal_covariances_in_closed_form():
    a, b = np.array([1.0, 2.0, 3.0, 0.5]), np.array([2.0, 1.0, 3.0, 4.0])
    distance = frechet_distance(whitened(50, 4) * a, whitened(80, 4, seed=1) * b + 1)
    assert distance == pytest.approx(4 + np.square(a - b).sum(), rel=1e-12)


def test_frechet_equals_its_formula_with_sqrtm():
    a, b = vectors(seed=0), vectors(300, seed=1)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    shift = a.mean(0) - b.mean(0)
    formula = shift @ shift + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(formula, rel=1e-9)


def test_frechet_of_singular_covariances_is_precise():
    flat = vectors()
    flat[:, 2:] = flat[:, :2]
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(flat, flat + 0.1) == pytest.approx(4 * 0.01, abs=1e-12)
    point = np.tile(flat.mean(0), (7, 1))
    assert frechet_distance(point, flat) == pytest.approx(np.trace(np.cov(flat.T)), rel=1e-12)


def test_frechet_takes_fewer_rows_than_columns():
    # Two points 2 apart have variance 2 along their line; a lone line of variance 8 lies (√8 − √2)² away.
    a = np.array([[1.0, 0, 0], [-1, 0, 0]])
    assert frechet_distance(a, 2 * a) == pytest.approx((math.sqrt(8) - math.sqrt(2)) ** 2)
    assert frechet_distance(a, a[:, ::-1]) == pytest.approx(4)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_frechet_is_symmetric_scales_squared_and_ignores_rotation(seed):
    a, b = vectors(20, 3, seed), vectors(30, 3, seed + 1)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    distance = frechet_distance(a, b)
    assert distance > 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9, abs=1e-12)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-9, abs=1e-12)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, rel=1e-9, abs=1e-12)


def test_mmd_of_two_and_two_points_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    # Squared distances: 1 within a, 4 within b, and 4, 16, 1, 9 across.
    within, across = math.exp(-1 / 2) + math.exp(-4 / 2), [math.exp(-d / 2) for d in (4, 16, 1, 9)]
    assert mmd_rbf(a, b, bandwidth=1) == pytest.approx(within - 2 * np.mean(across))
    # The six pooled distances are 1, 2, 2, 4, 1, 3, their median is 2.
    assert mmd_rbf(a, b) == pytest.approx(mmd_rbf(a, b, bandwidth=2), rel=1e-12)


def test_mmd_equals_the_sums_over_unequal_indices():
    a, b = vectors(30, seed=0), vectors(20, seed=1)

    def kernel(x, y):
        return np.exp(-np.square(x[:, None] - y[None]).sum(2) / (2 * 1.5**2))

    def mean_off_diagonal(x):
        return (kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1))

    expected = mean_off_diagonal(a) + mean_off_diagonal(b) - 2 * kernel(a, b).mean()
    assert mmd_rbf(a, b, bandwidth=1.5) == pytest.approx(expected, rel=1e-10)


def test_mmd_is_unbiased():
    rng = np.random.default_rng(0)
    estimates = [mmd_rbf(*rng.normal(size=(2, 20, 2)), bandwidth=1) for _ in range(400)]
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates)) < 3 * error
    assert error < 0.002
    assert min(estimates) < 0


def test_mmd_tells_distributions_apart_that_frechet_cannot():
    rng = np.random.default_rng(0)
    normal, two_points = whitened(1000, 1), rng.permutation(np.repeat([[-1.0], [1.0]], 500, 0))
    assert frechet_distance(normal, two_points) < 0.01
    assert mmd_rbf(normal, two_points) > 0.03
    assert abs(mmd_rbf(*rng.normal(size=(2, 1000, 1)))) < 0.005


@settings(deadline=None)
@given(st.integers(0, 1000), st.randoms())
def test_order_of_rows_does_not_matter(seed, random):
    a, b = vectors(12, 3, seed), vectors(12, 3, seed + 1)
    order = random.sample(range(12), 12)
    for distance in (frechet_distance, mmd_rbf):
        assert distance(a[order], b) == pytest.approx(distance(a, b), rel=1e-9, abs=1e-12)
    together, apart = mean_pair_distance(a[order], b[order]), mean_pair_distance(a, b)
    assert together.euclidean == pytest.approx(apart.euclidean)
    assert together.cosine == pytest.approx(apart.cosine)


def test_mmd_samples_large_inputs_by_seed():
    a, b = vectors(500), vectors(500, seed=1)
    first = mmd_rbf(a, b, max_points=100)
    assert first == mmd_rbf(a, b, max_points=100)
    assert first != mmd_rbf(a, b, max_points=100, seed=1)
    assert first == pytest.approx(mmd_rbf(a, b), abs=0.1)
    assert mmd_rbf(a, b, max_points=500, seed=1) == mmd_rbf(a, b)


def test_mmd_of_one_shared_vector_for_all_is_defined():
    a = vectors(50)
    assert mmd_rbf(np.tile(a.mean(0), (50, 1)), a) > 0.1


@pytest.mark.parametrize("bandwidth", [None, 0, -1, math.nan])
def test_mmd_without_a_scale_is_refused(bandwidth):
    with pytest.raises(ValueError, match=r"bandwidth is .*give a positive one"):
        mmd_rbf(np.ones((5, 2)), np.ones((5, 2)), bandwidth=bandwidth)


def test_mmd_refuses_a_sample_of_one():
    with pytest.raises(ValueError, match="max_points is 1"):
        mmd_rbf(vectors(), vectors(), max_points=1)


def test_pair_distance_by_hand():
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])
    assert mean_pair_distance(a, b) == PairDistance(3.0, pytest.approx(1 / math.sqrt(2)))
    assert mean_pair_distance(a[:1], -a[:1]) == PairDistance(10.0, pytest.approx(-1))
    assert mean_pair_distance(a, np.zeros((2, 2))) == PairDistance(3.0, None)


def test_pair_distance_equals_torch():
    a, b = torch.from_numpy(vectors()), torch.from_numpy(vectors(seed=1))
    distance = mean_pair_distance(a, b)
    assert distance.euclidean == pytest.approx((a - b).norm(dim=1).mean().item())
    assert distance.cosine == pytest.approx(torch.cosine_similarity(a, b).mean().item())


@pytest.mark.parametrize("distance", DISTANCES)
def test_float32_tensors_are_computed_in_float64(distance):
    a, b = (torch.from_numpy(vectors(seed=s)).float() for s in (0, 1))
    assert distance(a, b) == distance(a.double().numpy(), b.double().numpy())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((5, 3), (5, 4), r"a \(5, 3\) and b \(5, 4\) must be"),
        ((5,), (5,), r"a \(5,\) and b \(5,\) must be"),
        ((0, 3), (0, 3), r"a \(0, 3\) and b \(0, 3\) need at least"),
    ],
)
def test_bad_shapes_are_named(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(np.ones(a), np.ones(b))


@pytest.mark.parametrize("distance", [frechet_distance, mmd_rbf])
def test_one_row_is_no_distribution(distance):
    with pytest.raises(ValueError, match=r"a \(5, 3\) and b \(1, 3\) need at least 2 rows"):
        distance(np.ones((5, 3)), np.ones((1, 3)))


def test_unpaired_rows_are_named():
    with pytest.raises(ValueError, match=r"a \(5, 3\) and b \(4, 3\) differ in rows"):
        mean_pair_distance(np.ones((5, 3)), np.ones((4, 3)))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_is_named(distance, bad):
    a, b = vectors(), vectors()
    b[17, 2] = bad
    with pytest.raises(ValueError, match="b has NaN or infinity in row 17"):
        distance(a, b)
