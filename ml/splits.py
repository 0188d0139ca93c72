"""Roles of the overlapping users and the warm halves of the test users' ratings (paper section 4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

ROLES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)


def assign_roles(n_users: int, beta: float, seed: int, purpose: str, validation: float = 0.1) -> np.ndarray:
    """Role of each overlapping user: (n_users,) int8, an index into ROLES.

    One permutation serves every β of a seed, so the test users of a smaller β are test users of a larger one:
    round(β·n) users are test, then round(validation·rest) are validation, the others train.
    Raises ValueError where no training or no test user would be left.
    """
    n_test = round(beta * n_users)
    n_validation = round(validation * (n_users - n_test))
    n_train = n_users - n_test - n_validation
    if n_test < 1 or n_train < 1:
        raise ValueError(
            f"{n_users} overlapping users at beta {beta} give {n_test} test and {n_train} training users; "
            "both must be at least 1: choose another beta or add overlapping users"
        )
    # Raw 64-bit words are stable across machines and numpy versions, unlike shuffling methods.
    words = np.random.PCG64([seed, _digest(purpose)]).random_raw(n_users)
    order = np.argsort(words, kind="stable")
    roles = np.full(n_users, TRAIN, dtype=np.int8)
    roles[order[:n_test]] = TEST
    roles[order[n_test : n_test + n_validation]] = VALIDATION
    return roles


def warm_halves(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Whether each rating is in its user's later half, the one that warm start is tested on: (m,) bool.

    users, timestamps: (m,) int64, in the order that breaks ties of time. The first half (rounded up, so that
    a user with two or more ratings has both) is for fine-tuning.
    Raises ValueError on a missing timestamp, which numpy code marks as a negative minimum int64.
    """
    if len(timestamps) and timestamps.min() == np.iinfo(np.int64).min:
        raise ValueError("warm start splits a user's ratings by time, and some ratings have no timestamp")
    order = np.lexsort((np.arange(len(users)), timestamps, users))
    ordered = users[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    counts = np.searchsorted(ordered, ordered, side="right") - starts
    later = np.empty(len(users), dtype=bool)
    later[order] = np.arange(len(users)) - starts >= (counts + 1) // 2
    return later


def manifest_hash(user_ids: Sequence[str], roles: np.ndarray) -> str:
    """A digest of who has which role, equal on every machine."""
    lines = "\n".join(f"{user}\t{ROLES[role]}" for user, role in zip(user_ids, roles, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
