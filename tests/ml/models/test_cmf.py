"""Both CMFs are the factorizations of one table of both domains, and nothing else."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.factorization.biased import BiasedFactorization
from ml.models.cmf import CMF, BiasedCMF, collective_table
from tests.ml.cells import ITEMS, OVERLAP, SOURCE_ITEMS, SOURCE_USERS, USERS, cell

torch.set_num_threads(1)

ALONE = USERS - OVERLAP  # users of the target domain alone


def joined_by_hand(data) -> RatingTable:
    """One table: source users first, then those of the target alone; target items after the source's."""
    rows, free = [], SOURCE_USERS
    for row in data.source_user.tolist():
        rows.append(row if row >= 0 else free)
        free += row < 0
    source, target = data.source, data.target
    return RatingTable(
        torch.cat([source.users, torch.tensor(rows)[target.users]]),
        torch.cat([source.items, target.items + SOURCE_ITEMS]),
        torch.cat([source.values, target.values]),
        SOURCE_USERS + ALONE,
        SOURCE_ITEMS + ITEMS,
        data.seed,
    )


def test_users_of_both_domains_have_one_row():
    data = cell(0).data
    table, expected = collective_table(data), joined_by_hand(data)
    for name, value in vars(expected).items():
        found = getattr(table, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_it_is_the_papers_factorization_of_the_table():
    given = cell(0)
    model, settings = CMF(k=4, epochs=3, batch=64), {"k": 4, "epochs": 3, "batch": 64}
    losses = [epoch.losses["loss"] for epoch in model.fit([given.data])]
    trainer = MatrixFactorization(**settings)
    expected = list(trainer.train([joined_by_hand(given.data)], f"cmf/{given.data.purpose}"))
    assert losses == [epoch.losses["loss"] for epoch in expected]
    users = trainer.user_factors_[0][given.test.users.source_rows]
    assert torch.equal(model.vectors(given.test.users), users)
    assert torch.equal(model.items(), trainer.item_factors_[0][SOURCE_ITEMS:])


def test_the_biased_one_is_weighted_and_each_domain_has_its_own_mean():
    given = cell(0)
    settings = {"k": 2, "sweeps": 4, "penalty": 2.0, "bias_penalty": 1.0}
    model = BiasedCMF(**settings, source_weight=0.3)
    assert [epoch.number for epoch in model.fit([given.data])] == [1, 2, 3, 4]
    table, n = joined_by_hand(given.data), len(given.data.source)
    weight, offset = torch.ones(len(table)), torch.empty(len(table))
    weight[:n] = 0.3
    offset[:n], offset[n:] = given.data.source.values.mean(), given.data.target.values.mean()
    trainer = BiasedFactorization(**settings).fit(table, f"cmf/{given.data.purpose}", weight, offset)
    asked = given.test.ratings
    rows = given.test.users.source_rows[asked.users]
    product = (trainer.user_factors_[rows] * trainer.item_factors_[asked.items + SOURCE_ITEMS]).sum(1)
    expected = product + trainer.item_offset_[asked.items + SOURCE_ITEMS] + given.data.target.values.mean()
    assert_close(model.predict(given.test.users, asked).mean, expected)


def test_without_weight_the_source_is_as_if_it_were_not_there():
    given = cell(0)
    model = BiasedCMF(k=0, source_weight=0.0, sweeps=30)
    list(model.fit([given.data]))
    table = given.data.target_table
    mean = table.values.mean()
    alone = BiasedFactorization(k=0, sweeps=30).fit(table, "target", offset=mean.expand(len(table)))
    expected = alone.item_offset_ + mean  # of a user whose target ratings are not known
    assert_close(model.scores(given.test.users, torch.arange(ITEMS))[0], expected, atol=1e-4, rtol=0)


def test_rows_are_the_ratings_of_both_domains():
    data = cell(0).data
    assert CMF().rows(data) == BiasedCMF().rows(data) == len(data.source) + len(data.target)
