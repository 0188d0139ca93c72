import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from ml.evaluation.distances import mmd_rbf
from ml.evaluation.embedding import (
    MAX_POINTS,
    compare,
    project,
    sample,
    typical_distance,
)


def cloud(n=60, k=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_sample_has_distinct_ascending_numbers(count, size, seed):
    drawn = sample(count, size, seed, "users")
    assert len(drawn) == min(count, size)
    assert (np.diff(drawn) > 0).all()
    assert 0 <= drawn[0] <= drawn[-1] < count
    assert np.array_equal(drawn, sample(count, size, seed, "users"))


def test_a_sample_depends_on_seed_and_purpose():
    drawn = sample(1000, 20, 0, "train")
    assert not np.array_equal(drawn, sample(1000, 20, 1, "train"))
    assert not np.array_equal(drawn, sample(1000, 20, 0, "test"))


def test_typical_distance_is_the_median_over_pairs():
    assert typical_distance(cloud(), seed=0) == pytest.approx(np.median(pdist(cloud())))
    corners = np.eye(5) / np.sqrt(2)  # a regular simplex of edge 1
    assert typical_distance(corners, seed=0) == pytest.approx(1)
    assert np.isnan(typical_distance(cloud(1), seed=0))


def test_typical_distance_samples_large_tables():
    large = cloud(3 * MAX_POINTS, k=2)
    assert typical_distance(large, seed=0) == pytest.approx(np.median(pdist(large[::3])), rel=0.03)


def test_equal_vectors_have_no_distance():
    same = compare(cloud(), cloud(), bandwidth=1.0, seed=0)
    assert (same.frechet, same.euclidean, same.cosine) == pytest.approx((0, 0, 1), abs=1e-10)
    assert same.undefined is None


def test_a_shift_is_measured_in_closed_form():
    moved = compare(cloud() + 0.5, cloud(), bandwidth=1.0, seed=0)
    assert (moved.frechet, moved.euclidean) == pytest.approx((4 * 0.25, 1.0))
    assert moved.mmd == pytest.approx(mmd_rbf(cloud() + 0.5, cloud(), 1.0))


def test_shuffled_users_keep_the_cloud_but_lose_the_pairs():
    truth = cloud()
    shuffled = compare(truth[::-1], truth, bandwidth=1.0, seed=0)
    assert shuffled.frechet == pytest.approx(0, abs=1e-10)
    assert shuffled.euclidean > 1
    assert abs(shuffled.cosine) < 0.3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_has_a_reason_in_place_of_distances(bad):
    vectors = cloud()
    vectors[[3, 7], 1] = bad
    found = compare(vectors, cloud(), bandwidth=1.0, seed=0)
    assert found.undefined == "diverged: 2 of 60 vectors are NaN or infinite"
    assert (found.frechet, found.mmd, found.euclidean, found.cosine) == (None,) * 4
    assert compare(cloud(), vectors, 1.0, 0).undefined.startswith("the ground truth diverged: 2 of 60")


def test_too_little_to_compare_is_said():
    assert compare(cloud(1), cloud(1), 1.0, 0).undefined == "distances need at least 2 users, there are 1"
    flat = np.ones((9, 4))
    assert "no bandwidth" in compare(cloud(9), flat, typical_distance(flat, 0), 0).undefined


def test_other_users_or_another_space_are_refused():
    with pytest.raises(ValueError, match=r"\(59, 4\)"):
        compare(cloud(59), cloud(), bandwidth=1.0, seed=0)
    with pytest.raises(ValueError, match=r"\(60, 3\)"):
        compare(cloud(k=3), cloud(), bandwidth=1.0, seed=0)


def test_the_projection_is_joint():
    """Clouds far apart stay apart, and a vector that two series share lies at one place."""
    near, far = cloud(), cloud(seed=1) + 50
    points = project({"near": near, "copy": near, "far": far}, seed=0, iterations=300)
    assert {name: xy.shape for name, xy in points.items()} == {n: (60, 2) for n in ("near", "copy", "far")}
    middle = {name: xy.mean(0) for name, xy in points.items()}
    spread = points["near"].std(0).max()
    assert np.linalg.norm(middle["far"] - middle["near"]) > 3 * spread
    assert np.linalg.norm(points["copy"] - points["near"], axis=1).max() < spread / 2


def test_the_projection_follows_the_seed():
    line = cloud(k=1)  # without principal components to start from, so that chance decides
    first, again, other = (project({"a": line}, seed, iterations=250)["a"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_diverged_series_is_left_out_of_the_projection():
    broken = cloud(seed=1)
    broken[0, 0] = np.nan
    points = project({"good": cloud(), "broken": broken}, seed=0, iterations=250)
    assert list(points) == ["good"]
    assert np.array_equal(points["good"], project({"good": cloud()}, 0, 250)["good"])
    assert project({"broken": broken}, seed=0, iterations=250) == {}


@pytest.mark.parametrize(
    "points",
    [cloud(1), cloud(2), cloud(5), cloud(40, k=1), np.ones((20, 4)), np.full((20, 4), 0.1), cloud() * 1e30],
    ids=["one", "two", "five", "width 1", "equal", "equal and not exact", "huge"],
)
def test_any_finite_points_can_be_projected(points):
    placed = project({"a": points}, seed=0, iterations=250)["a"]
    assert placed.shape == (len(points), 2)
    assert np.isfinite(placed).all()


def test_the_scale_of_the_vectors_does_not_matter():
    small, large = (project({"a": cloud() * s}, seed=0, iterations=250)["a"] for s in (1, 2.0**100))
    assert np.array_equal(small, large)
