"""TGT is the target factorization itself: its vectors, and its errors as they were measured in training."""

from __future__ import annotations

import dataclasses

import torch

from ml.models.tgt import TGT
from tests.ml.cells import cell


def test_a_user_is_their_row_of_the_target_factors():
    given = cell(0)
    model = TGT().bind([given.data])
    users, items = given.data.target_factors
    predicted = model.predict(given.test.users, given.test.ratings).mean
    for found, user, item in zip(predicted, given.test.ratings.users, given.test.ratings.items, strict=True):
        row = given.test.users.target_rows[user]
        torch.testing.assert_close(found, users[row] @ items[item])


def test_its_epochs_are_those_of_the_factorization():
    one = dataclasses.replace(cell(0).data, curve=[{"epoch": n, "loss": 1.0, "test_mae": n} for n in (1, 2)])
    two = dataclasses.replace(one, curve=[{"epoch": n, "loss": 2.0, "test_mae": -n} for n in (1, 2)])
    epochs = list(TGT().fit([one, two]))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert [epoch.losses for epoch in epochs] == [{"loss": [1.0, 2.0]}] * 2
    assert epochs[1].measured == [{"test_mae": 2}, {"test_mae": -2}]
    assert TGT().rows(one) == 0
