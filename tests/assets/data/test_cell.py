"""What a cell may see: no held-out rating in training, the same negatives for all, halves by time."""

import dagster as dg
import numpy as np
import pytest
import torch

from assets.data import cell as problems
from assets.settings.axes import CATALOG, Cell
from assets.settings.profile import load_profiles
from assets.state.store import Store
from ml.evaluation.selection import RANKING, RATING
from ml.splits import TEST, TRAIN, VALIDATION
from pipeline.chain import Chain

CELL = Cell.parse("tiny|b20-s0")
PROFILES = load_profiles()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setenv("DIFFCDR_HOME", home)
        chain = Chain(instance, ["tiny"], [0.2], [0], ["strict"], ["emcdr"])
        for _, step in list(chain.steps())[:4]:
            step()
    return Store(home=home)


def target_users(store, profile, role):
    roles = problems.roles(store, PROFILES[profile], CELL)
    return store.overlap("tiny").table("users.parquet")["target_user"].to_numpy()[roles == role]


@pytest.mark.parametrize(("profile", "hidden"), [("strict", [TEST, VALIDATION]), ("paper", [TEST])])
@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_training_has_every_rating_but_the_held_out_users(store, profile, hidden, objective):
    table = problems.target_table(store, PROFILES[profile], CELL, objective)
    kept_out = np.concatenate([target_users(store, profile, role) for role in hidden])
    assert not np.isin(table.users.numpy(), kept_out).any()
    everything = problems.domain_ratings(store, "tiny_music")
    expected = (~np.isin(everything.users, kept_out)).sum()
    assert len(table.users) == expected * (1 if objective == "rating" else 2)
    assert (table.values == 0).sum() == (0 if objective == "rating" else expected)


def test_held_out_ratings_are_those_of_the_role_and_complete(store):
    members, ratings = problems.held_out_ratings(store, PROFILES["strict"], CELL, TEST)
    everything = problems.domain_ratings(store, "tiny_music")
    assert len(ratings) == np.isin(everything.users, target_users(store, "strict", TEST)).sum()
    assert set(ratings.users.tolist()) == set(range(len(members)))


def test_a_paper_problem_trains_on_the_validation_users_too(store):
    source, target = factors(store)
    paper = problems.cell_data(store, PROFILES["paper"], CELL, source, target)
    strict = problems.cell_data(store, PROFILES["strict"], CELL, source, target)
    assert paper.validation is None
    assert len(paper.problem.source) == len(strict.problem.source) + len(strict.validation.users)
    assert torch.equal(paper.test.users.factors, strict.test.users.factors)


def test_rows_of_a_problem_belong_together(store):
    """Source factors, target factors and ratings of row i are the same person's."""
    source, target = factors(store)
    data = problems.cell_data(store, PROFILES["strict"], CELL, source, target)
    users = store.overlap("tiny").table("users.parquet")
    train = users[problems.roles(store, PROFILES["strict"], CELL) == TRAIN].reset_index(drop=True)
    row = 17
    assert data.problem.source.factors[row, 0] == train.loc[row, "source_user"]
    assert data.problem.target_factors[row, 0] == train.loc[row, "target_user"]
    everything = problems.domain_ratings(store, "tiny_music")
    mine = everything.items[everything.users == train.loc[row, "target_user"]]
    assert sorted(data.problem.ratings.items[data.problem.ratings.users == row].tolist()) == sorted(
        mine.tolist()
    )


def test_ranking_models_share_the_negatives_of_the_factors(store):
    source, target = factors(store)
    data = problems.cell_data(store, PROFILES["strict"], CELL, source, target, "ranking")
    table = problems.target_table(store, PROFILES["strict"], CELL, "ranking")
    codes = data.problem.target_factors[:, 0].long()  # the target user's code, see factors()
    ours = {(int(codes[u]), int(i)) for u, i, v in zip(*columns(data.problem.ratings), strict=True) if v == 0}
    theirs = {(int(u), int(i)) for u, i, v in zip(*columns(table), strict=True) if v == 0}
    assert ours
    assert ours <= theirs


@pytest.mark.parametrize("objective", [RATING, RANKING])
def test_warm_halves_split_each_user_by_time_and_tune_on_nothing_later(store, objective):
    halves = problems.warm_halves(store, PROFILES["strict"], CELL, TEST, objective)
    _, ratings = problems.held_out_ratings(store, PROFILES["strict"], CELL, TEST)
    known, later = pairs(halves.known), pairs(halves.later)
    assert not known & later
    assert known | later == pairs(ratings)
    assert halves.left_out == 0  # a 5-core: everyone has two ratings
    negatives = pairs(halves.tuning) - known
    assert bool(negatives) == (objective is RANKING)
    assert not negatives & known


def test_a_catalogue_may_fix_the_split(store, monkeypatch):
    from assets.data import splits

    fixed = CATALOG.model_copy(update={"split": CATALOG.split.model_copy(update={"seed": 7})})
    monkeypatch.setattr(splits, "CATALOG", fixed)
    hashes = {splits.draw_split(store, Cell.parse(f"tiny|b50-s{s}"))["manifest_hash"] for s in (0, 1)}
    assert len(hashes) == 1


def factors(store):
    """Factors whose first number is the row itself, so that a mix-up of rows shows."""

    def numbered(rows):
        return torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()

    return tuple(
        {side: numbered(store.ratings(domain).require()[side]) for side in ("users", "items")}
        for domain in ("tiny_video", "tiny_music")
    )


def columns(ratings):
    return ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist()


def pairs(ratings):
    return set(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True))
