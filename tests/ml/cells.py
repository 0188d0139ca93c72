"""One small cell that has everything any model of the registry may need, made anew for each seed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data import Data, HeldOut, Problem, Ratings, SourceUsers, Users, ratings_of
from ml.distribution.discriminative import star_description
from ml.distribution.effects import fit_effects
from ml.encoder import liked
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.models.contract import Model
from ml.models.registry import build, facts
from ml.models.statistics import source_statistics

SOURCE_USERS, SOURCE_ITEMS, USERS, ITEMS, OVERLAP, HELD_OUT = 60, 20, 50, 15, 40, 5
SCALE, LEVELS = (1.0, 5.0), torch.arange(1.0, 6, dtype=torch.float64)


@dataclass(frozen=True)
class Cell:
    """What a model may learn from, and users of whom it was not told a target rating."""

    data: Data
    test: HeldOut


def domain(n_users: int, n_items: int, each: int, generator: torch.Generator) -> Ratings:
    """Every user rates `each` items from 1 to 5."""
    users = torch.arange(n_users).repeat_interleave(each)
    items = torch.cat([torch.randperm(n_items, generator=generator)[:each] for _ in range(n_users)])
    return Ratings(users, items, torch.randint(1, 6, (len(users),), generator=generator).float())


def cell(seed: int, needs: Collection[str] = ("ratings", "factors", "target_factors")) -> Cell:
    """A cell of which some users are in both domains, others in either; `needs` as of a model, whose
    `description` is by effects or stars."""
    generator = torch.Generator().manual_seed(seed)
    source, target = domain(SOURCE_USERS, SOURCE_ITEMS, 8, generator), domain(USERS, ITEMS, 6, generator)
    rows = torch.randperm(SOURCE_USERS, generator=generator)[:OVERLAP]
    target_rows = torch.randperm(USERS, generator=generator)[:OVERLAP]
    # Cells of a task differ in how many users they train on.
    test, validation, train = torch.arange(OVERLAP - seed).split([HELD_OUT, HELD_OUT, 30 - seed])
    hidden = torch.isin(target.users, target_rows[torch.cat([test, validation])])
    visible = Ratings(target.users[~hidden], target.items[~hidden], target.values[~hidden])
    source_table = RatingTable(source.users, source.items, source.values, SOURCE_USERS, SOURCE_ITEMS, seed)
    target_table = RatingTable(visible.users, visible.items, visible.values, USERS, ITEMS, seed)
    user_factors, item_factors = factors(source_table, "source")
    target_users, target_items = factors(target_table, "target")
    history = liked(source, SOURCE_USERS, above=3)
    statistics = source_statistics(source, SOURCE_USERS, SOURCE_ITEMS, SCALE)
    description = described(source, needs)

    def known(members: Tensor, purpose: str) -> Users:
        mine = rows[members]
        return Users(
            mine,
            target_rows[members],
            SourceUsers(user_factors[mine], history.take(mine), item_factors),
            ratings_of(source, mine, SOURCE_USERS),
            statistics[mine],
            description[mine],
            purpose,
        )

    def rated(members: Tensor) -> Ratings:
        return ratings_of(target, target_rows[members], USERS)

    source_user = torch.full((USERS,), -1)
    source_user[target_rows] = rows
    users = known(train, "train")
    problem = Problem(users.factors, target_users[target_rows[train]], target_items, rated(train), seed)
    data = Data(
        seed,
        source,
        visible,
        SOURCE_USERS,
        SOURCE_ITEMS,
        USERS,
        ITEMS,
        users,
        rated(train),
        source_user,
        HeldOut(known(validation, "validation"), rated(validation)),
        SCALE,
        SCALE,
        "task",
        source_table,
        target_table,
        problem,
        target_factors=(target_users, target_items),
        curve=[{"epoch": n, "loss": 2.0 / n, "test_rmse": 1.0 + 1 / n} for n in (1, 2, 3)],
        description=description,
        levels=LEVELS,
        model=trained_on(problem) if "model" in needs else None,
    )
    return Cell(data, HeldOut(known(test, "test"), rated(test)))


def factors(table: RatingTable, purpose: str) -> tuple[Tensor, Tensor]:
    made = MatrixFactorization(k=4, epochs=2, batch=64).fit([table], purpose)
    return made.user_factors_[0], made.item_factors_[0]


def described(source: Ratings, needs: Collection[str]) -> Tensor:
    if "effects" in needs:
        return fit_effects(source, SOURCE_USERS, SOURCE_ITEMS, seed=0, levels=LEVELS).description()
    return star_description(source, SOURCE_USERS, SOURCE_ITEMS, LEVELS)


def trained_on(problem: Problem) -> Model:
    """A trained model, for one that needs another."""
    model = build("emcdr", epochs=1).trained([problem])
    model.items_ = [problem.target_items]
    return model


def small(name: str, **settings: object) -> Model:
    """A model of the registry that trains quickly."""
    few = {"epochs": 2, "sweeps": 2, "trees": 5, "samples": 16, "diffusion.steps": 20, "k": 4}
    few |= {"steps": 20, "diffusion_steps": 20, "train_samples": 4}
    defaults = facts(name).defaults
    fewer = {key: value for key, value in few.items() if defaults.get(key, 0) > value}
    return build(name, **fewer | settings)
