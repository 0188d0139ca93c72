"""New users as models take them: users of the source domain with their own ratings come out as they were."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ml.data import Ratings, ratings_of
from ml.distribution.discriminative import star_description
from ml.distribution.effects import fit_effects
from ml.distribution.fold_in import EffectsFoldIn
from ml.encoder import ItemStatistics, SourceEncoder
from ml.fold_in import FoldIn
from ml.models.statistics import source_statistics

USERS, ITEMS = 30, 20
LEVELS = torch.arange(1.0, 6, dtype=torch.float64)


@pytest.fixture(scope="module")
def source() -> Ratings:
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(USERS).repeat_interleave(6)
    items = torch.cat([torch.randperm(ITEMS, generator=generator)[:6] for _ in range(USERS)])
    return Ratings(users, items, torch.randint(1, 6, (len(users),), generator=generator).float())


def encoder(source: Ratings, *needs: str) -> SourceEncoder:
    generator = torch.Generator().manual_seed(1)
    users, items = torch.randn(USERS, 3, generator=generator), torch.randn(ITEMS, 3, generator=generator)
    effects = None
    if "effects" in needs:
        fitted = fit_effects(source, USERS, ITEMS, seed=0)
        effects = EffectsFoldIn(*(getattr(fitted, each.name) for each in dataclasses.fields(EffectsFoldIn)))
    return SourceEncoder(
        needs,
        ITEMS,
        (1.0, 5.0),
        3.0,
        factors=FoldIn.of(users, items, source) if "factors" in needs else None,
        statistics=ItemStatistics.of(source, ITEMS, LEVELS if "stars" in needs else None),
        effects=effects,
    )


def test_a_model_is_told_what_it_needs_and_no_more(source):
    users = encoder(source, "ratings")(source, USERS)
    assert users.factors is None
    assert users.description is None
    assert users.ratings is source
    assert (users.source_rows == -1).all()
    assert encoder(source, "factors")(source, USERS).ratings is None


def test_statistics_are_those_of_the_domain(source):
    users = encoder(source, "ratings")(source, USERS)
    torch.testing.assert_close(users.statistics, source_statistics(source, USERS, ITEMS, (1.0, 5.0)))


def test_star_descriptions_are_those_of_the_domain(source):
    users = encoder(source, "stars")(source, USERS)
    torch.testing.assert_close(users.description, star_description(source, USERS, ITEMS, LEVELS))


@pytest.mark.parametrize("need", ["ratings", "stars", "effects", "factors"])
def test_a_user_alone_is_what_the_user_is_among_others(source, need):
    """The tables are the domain's: who else is asked about changes nothing."""
    encode = encoder(source, need)
    together = encode(source, USERS).take(torch.tensor([7]))
    alone = encode(ratings_of(source, torch.tensor([7]), USERS), 1)
    for name in ("statistics", "description"):
        one, other = getattr(alone, name), getattr(together, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    if need == "factors":
        torch.testing.assert_close(alone.factors.factors, together.factors.factors)
        assert torch.equal(alone.factors.history.items, together.factors.history.items)


@pytest.mark.parametrize("needs", [("ratings",), ("stars",), ("effects",), ("factors", "ratings")])
def test_what_is_kept_encodes_the_same(source, needs):
    encode = encoder(source, *needs)
    held = json.loads(json.dumps(encode.settings()))
    restored = SourceEncoder.restore(held, encode.tensors())
    before, after = encode(source, USERS), restored(source, USERS)
    for name in ("statistics", "description"):
        assert (getattr(before, name) is None) == (getattr(after, name) is None)
        if getattr(before, name) is not None:
            assert torch.equal(getattr(before, name), getattr(after, name))
    if "factors" in needs:
        assert torch.equal(before.factors.factors, after.factors.factors)
    assert restored.needs == needs
    assert (restored.levels is None) == (encode.levels is None)


@pytest.mark.parametrize("need", ["stars", "effects"])
def test_a_rating_that_is_no_level_is_refused(source, need):
    half = Ratings(torch.zeros(1).long(), torch.tensor([1]), torch.tensor([4.5]))
    encode = encoder(source, need)
    assert encode.levels.tolist() == LEVELS.tolist()
    with pytest.raises(ValueError, match=r"rating 4\.5 is none of the levels"):
        encode(half, 1)


def test_rows_outside_the_tables_are_refused(source):
    stranger = Ratings(torch.zeros(1).long(), torch.tensor([ITEMS]), torch.tensor([4.0]))
    with pytest.raises(ValueError, match=r"ratings.items has row 20"):
        encoder(source, "ratings")(stranger, 1)
