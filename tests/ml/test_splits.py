"""Roles partition the users by β, are nested over β, and are the same everywhere; halves follow time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.splits import ROLES, TEST, TRAIN, VALIDATION, assign_roles, manifest_hash, warm_halves


@given(st.integers(10, 500), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 50), st.floats(0, 0.5))
def test_roles_have_the_asked_shares(n, beta, seed, validation):
    roles = assign_roles(n, beta, seed, "task", validation)
    counts = np.bincount(roles, minlength=len(ROLES))
    assert counts.sum() == n
    assert counts[TEST] == round(beta * n)
    assert counts[VALIDATION] == round(validation * (n - counts[TEST]))
    assert counts[TRAIN] >= 1


def test_a_smaller_beta_tests_a_subset_of_a_larger_ones_users():
    small, large = (assign_roles(200, beta, 3, "task") == TEST for beta in (0.2, 0.5))
    assert small.sum() == 40
    assert not (small & ~large).any()


def test_seeds_and_tasks_draw_different_roles():
    base = assign_roles(200, 0.5, 0, "task")
    assert (base != assign_roles(200, 0.5, 1, "task")).any()
    assert (base != assign_roles(200, 0.5, 0, "other")).any()


def test_the_manifest_hash_is_the_same_on_every_machine():
    users = [f"user{i:03d}" for i in range(100)]
    roles = assign_roles(100, 0.2, 0, "task")
    assert manifest_hash(users, roles) == GOLDEN


# Written down once: another machine, numpy or Python must arrive at the same digest.
GOLDEN = "a5f286b5b369947c7ef7b7ae5d87a7aa290866b1d6ae52f422311fbd18b22383"


def test_no_training_or_test_user_left_is_an_error():
    with pytest.raises(ValueError, match=r"2 overlapping users at beta 0\.2 give 0 test"):
        assign_roles(2, 0.2, 0, "task")


def test_warm_halves_by_hand():
    users = np.array([7, 7, 7, 9, 9, 4])
    times = np.array([30, 10, 20, 5, 5, 1])
    # User 7: times 10 and 20 tune, 30 tests. User 9: a tie, broken by position. User 4 has one: it tunes.
    assert warm_halves(users, times).tolist() == [True, False, False, False, True, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60))
def test_no_user_is_tested_on_a_rating_before_a_tuning_one(rows):
    users, times = (np.array(column) for column in zip(*rows, strict=True))
    later = warm_halves(users, times)
    for user in set(users.tolist()):
        mine = users == user
        assert later[mine].sum() == mine.sum() // 2
        if later[mine].any():
            assert times[mine & later].min() >= times[mine & ~later].max()


def test_a_missing_time_is_refused():
    with pytest.raises(ValueError, match="no timestamp"):
        warm_halves(np.array([1, 1]), np.array([np.iinfo(np.int64).min, 3]))
