"""Who may be learned from, by hand and as a property; nothing of a held-out user's target ratings is left."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ml import cold_start
from ml.cold_start import ColdStart, DomainRatings, rows_of
from ml.splits import TEST, TRAIN, VALIDATION


def domain(users: list[int], n_users: int) -> DomainRatings:
    size = len(users)
    items = np.arange(size, dtype=np.int32)
    return DomainRatings(np.array(users, np.int32), items, np.ones(size, np.float32), n_users, size)


def case() -> ColdStart:
    """Target users 0, 2, 3 are source users 4, 1, 0; target user 1 is of the target alone."""
    roles = np.array([TRAIN, TEST, VALIDATION], np.int8)
    rows = np.array([4, 1, 0]), np.array([0, 2, 3])
    return ColdStart(domain([0, 1, 4], 5), domain([0, 0, 1, 2, 2, 3], 4), *rows, roles)


def test_ratings_of_held_out_users_alone_are_kept_back():
    assert case().training_rows().tolist() == [True, True, True, False, False, False]


def test_target_ratings_are_by_place_among_the_members():
    ratings = case().target_ratings(np.array([1, 2]))
    assert ratings.users.tolist() == [0, 0, 1]
    assert ratings.items.tolist() == [3, 4, 5]


def test_target_users_know_their_source_rows():
    assert case().source_user().tolist() == [4, -1, 1, 0]


def test_members_are_those_of_a_role():
    assert [case().members(role).tolist() for role in (TRAIN, VALIDATION, TEST)] == [[0], [2], [1]]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_rows_of_a_mask_are_where_it_is_true(kept, block):
    saved, cold_start.BLOCK = cold_start.BLOCK, block
    try:
        found = rows_of(np.array(kept, dtype=bool))
    finally:
        cold_start.BLOCK = saved
    assert found.dtype == np.int32
    assert found.tolist() == [row for row, each in enumerate(kept) if each]
