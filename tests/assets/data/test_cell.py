"""What a cell may see: no held-out rating in training, the same negatives for all, halves by time."""

import dataclasses

import numpy as np
import pytest
import torch

from assets.data import cell as problems
from assets.data import splits
from assets.data.cell import Gate
from assets.data.domain import domain_ratings
from assets.data.warm import warm_halves
from assets.settings.profile import load_profiles
from assets.state.store import Store
from ml.evaluation.selection import RANKING, RATING
from ml.models.transfer import Stack
from ml.splits import TEST, TRAIN, VALIDATION
from tests.assets.axes import AXES, CATALOG, CELL
from tests.assets.tiny import prepare

PROFILES = load_profiles()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return prepare(Store(home=str(tmp_path_factory.mktemp("home"))))


def target_users(store, profile, role):
    roles = problems.roles(store, PROFILES[profile], CELL)
    return store.overlap("tiny").table("users.parquet")["target_user"].to_numpy()[roles == role]


@pytest.mark.parametrize(("profile", "hidden"), [("strict", [TEST, VALIDATION]), ("paper", [TEST])])
@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_training_has_every_rating_but_the_held_out_users(store, profile, hidden, objective):
    table = problems.target_table(store, PROFILES[profile], CELL, objective)
    kept_out = np.concatenate([target_users(store, profile, role) for role in hidden])
    assert not np.isin(table.flat().users.numpy(), kept_out).any()
    everything = domain_ratings(store, "tiny_music")
    expected = (~np.isin(everything.users, kept_out)).sum()
    assert len(table) == expected * (1 if objective == "rating" else 2)
    assert (table.flat().values == 0).sum() == (0 if objective == "rating" else expected)


def test_held_out_ratings_are_those_of_the_role_and_complete(store):
    members, ratings = problems.held_out_ratings(store, PROFILES["strict"], CELL, TEST)
    everything = domain_ratings(store, "tiny_music")
    assert len(ratings) == np.isin(everything.users, target_users(store, "strict", TEST)).sum()
    assert set(ratings.users.tolist()) == set(range(len(members)))


def test_a_paper_problem_trains_on_the_validation_users_too(store):
    paper, strict = (numbered_gate(store, name) for name in ("paper", "strict"))
    assert paper.held_out("validation") is None
    assert len(paper.data.problem.source) == len(strict.data.problem.source) + len(
        strict.held_out("validation")
    )
    assert torch.equal(paper.held_out("test").users.target_rows, strict.held_out("test").users.target_rows)


def test_rows_of_a_problem_belong_together(store):
    """Source factors, target factors and ratings of row i are the same person's."""
    gate = numbered_gate(store, "strict")
    problem, train = gate.data.problem, gate.data.train
    users = store.overlap("tiny").table("users.parquet")
    rows = users[gate.cold_start.roles == TRAIN].reset_index(drop=True)
    row = 17
    assert problem.source.factors[row, 0] == rows.loc[row, "source_user"] == train.source_rows[row]
    assert problem.target_factors[row, 0] == rows.loc[row, "target_user"] == train.target_rows[row]
    everything = domain_ratings(store, "tiny_music")
    mine = everything.items[everything.users == rows.loc[row, "target_user"]]
    assert sorted(problem.ratings.items[problem.ratings.users == row].tolist()) == sorted(mine.tolist())
    source = domain_ratings(store, "tiny_video")
    rated = source.items[source.users == rows.loc[row, "source_user"]]
    given = Gate(store, PROFILES["strict"], CELL, needs=("ratings",)).data.train.ratings
    assert sorted(given.items[given.users == row].tolist()) == sorted(rated.tolist())


def test_ranking_models_share_the_negatives_of_the_factors(store):
    problem = numbered_gate(store, "strict", "ranking").data.problem
    table = problems.target_table(store, PROFILES["strict"], CELL, "ranking")
    codes = problem.target_factors[:, 0].long()  # the target user's code, see numbered_gate()
    ours = {(int(codes[u]), int(i)) for u, i, v in zip(*columns(problem.ratings), strict=True) if v == 0}
    theirs = {(int(u), int(i)) for u, i, v in zip(*columns(table.flat()), strict=True) if v == 0}
    assert ours
    assert ours <= theirs


def held(*tensors: torch.Tensor) -> int:
    """Bytes in memory of tensors, what they share counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def test_a_seed_adds_its_rows_and_its_negatives_to_the_ratings_of_all(store):
    """12 bytes a rating for all; a seed 4 for each that it may learn from, and 4 for what is drawn beside."""
    cells = [dataclasses.replace(CELL, seed=seed) for seed in range(5)]
    for cell in cells:
        splits.draw_split(store, CATALOG, cell)
    for objective in ("rating", "ranking"):
        tables = [problems.target_table(store, PROFILES["strict"], cell, objective) for cell in cells]
        ratings = len(tables[0].users)
        columns = [(t.users, t.items, t.values, t.rows, t.negatives) for t in tables]
        bytes_held = held(*(column for table in columns for column in table if column is not None))
        own = sum(4 * len(t.rows) for t in tables) + (20 * ratings if objective == "ranking" else 0)
        assert bytes_held == 12 * ratings + own


def test_what_is_learned_from_is_read_where_it_is(store):
    """Ratings of the source are those that all cells read, and a model's training ratings are not copied."""
    gates = [Gate(store, PROFILES["strict"], CELL, needs=("ratings", "factors")) for _ in range(2)]
    source = domain_ratings(store, "tiny_video")
    for gate in gates:
        for name in ("users", "items", "values"):
            assert np.shares_memory(getattr(gate.data.source, name).numpy(), getattr(source, name))
        assert gate.data.target.users.dtype == torch.int32
    problem = numbered_gate(store, "strict", "ranking").data.problem
    stack = Stack([problem, problem])
    parts = [
        getattr(r, name) for r in (problem.ratings, *stack.ratings) for name in ("users", "items", "values")
    ]
    assert held(*parts) == 12 * len(problem.ratings)


def test_what_a_model_may_learn_from_has_no_rating_of_a_held_out_user(store):
    for profile, hidden in (("strict", [TEST, VALIDATION]), ("paper", [TEST])):
        data = Gate(store, PROFILES[profile], CELL, needs=("ratings", "stars")).data
        kept_out = np.concatenate([target_users(store, profile, role) for role in hidden])
        for users in (data.target.users, data.target_table.flat().users, data.train.target_rows):
            assert not np.isin(users.numpy(), kept_out).any()
        assert not hasattr(data, "held_out")


def test_a_model_is_refused_what_it_does_not_declare(store):
    data = Gate(store, PROFILES["strict"], CELL, needs=("stars",)).data
    assert len(data.target)
    for name in ("problem", "training", "target_table", "target_factors", "model"):
        with pytest.raises(LookupError, match="does not declare"):
            getattr(data, name)


def test_times_are_given_to_models_that_need_them_alone(store):
    with_times, without = (
        Gate(store, PROFILES["strict"], CELL, "ranking", needs)
        for needs in (("ratings", "times"), ("ratings",))
    )
    assert without.data.target.times is None
    assert without.data.train.ratings.times is None
    seen = with_times.data
    assert len(seen.target.times) == len(seen.target)
    table = store.ratings("tiny_video").table("ratings.parquet")
    days = dict(zip(zip(table["user"], table["item"], strict=True), table["timestamp"] / 86_400, strict=True))
    mine, rows = seen.train.ratings, seen.train.source_rows
    expected = [days[int(rows[u]), int(i)] for u, i in zip(mine.users, mine.items, strict=True)]
    torch.testing.assert_close(mine.times.double(), torch.tensor(expected).double(), atol=0.002, rtol=0)


@pytest.mark.parametrize("objective", [RATING, RANKING])
def test_warm_halves_split_each_user_by_time_and_tune_on_nothing_later(store, objective):
    halves = warm_halves(store, PROFILES["strict"], CELL, TEST, objective)
    _, ratings = problems.held_out_ratings(store, PROFILES["strict"], CELL, TEST)
    known, later = pairs(halves.known), pairs(halves.later)
    assert not known & later
    assert known | later == pairs(ratings)
    assert halves.left_out == 0  # a 5-core: everyone has two ratings
    negatives = pairs(halves.tuning) - known
    assert bool(negatives) == (objective is RANKING)
    assert not negatives & known


def test_a_catalogue_may_fix_the_split(store):
    fixed = CATALOG.model_copy(update={"split": CATALOG.split.model_copy(update={"seed": 7})})
    cells = [AXES.parse(f"tiny|b50-s{seed}") for seed in (0, 1)]
    hashes = {splits.draw_split(store, fixed, cell)["manifest_hash"] for cell in cells}
    assert len(hashes) == 1


def numbered_gate(store, profile, objective="rating"):
    """A gate whose factors have the row itself as their first number, so that a mix-up of rows shows."""

    def numbered(rows):
        return torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()

    gate = Gate(store, PROFILES[profile], CELL, objective, needs=("factors",))
    gate.factors = {
        side: {kind: numbered(store.ratings(domain).require()[kind]) for kind in ("users", "items")}
        for side, domain in (("source", "tiny_video"), ("target", "tiny_music"))
    }
    return gate


def columns(ratings):
    return ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist()


def pairs(ratings):
    return set(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True))
