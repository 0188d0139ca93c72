import dataclasses
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from ml.factorization import biased as biased_factorization
from ml.factorization.adam import RatingTable
from ml.factorization.biased import BiasedFactorization, BiasedFactors, centre_and_scale, choose, standardize
from ml.replicas import replica_generator

PURPOSE = "test"


def table_of(
    values: Tensor, users: Tensor, items: Tensor, n_users: int, n_items: int, seed: int = 0
) -> RatingTable:
    return RatingTable(users, items, values, n_users, n_items, seed)


def random_table(ratings: int = 900, n_users: int = 60, n_items: int = 40, seed: int = 0) -> RatingTable:
    """1 to 5 stars at random, with skewed ids: some rows have many ratings, some one."""
    generator = torch.Generator().manual_seed(seed)
    users, items = ((torch.rand(ratings, generator=generator) ** 2 * n).long() for n in (n_users, n_items))
    return table_of(
        torch.randint(1, 6, (ratings,), generator=generator).float(), users, items, n_users, n_items, seed
    )


def planted_table(noise: float, seed: int = 0) -> tuple[RatingTable, Tensor]:
    """60 % of a matrix (120, 90) of 3.5 + biases + rank 2, with noise; and the matrix without it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    truth = 3.5 + 0.4 * normal(120, 1) + 0.6 * normal(1, 90) + 0.7 * normal(120, 2) @ normal(2, 90)
    users, items = (torch.rand(120, 90, generator=generator) < 0.6).nonzero(as_tuple=True)
    values = truth[users, items] + noise * normal(len(users))
    return table_of(values, users, items, 120, 90), truth


def whole_table(matrix: Tensor) -> RatingTable:
    users, items = torch.ones_like(matrix).nonzero(as_tuple=True)
    return table_of(matrix[users, items], users, items, *matrix.shape)


def every_prediction(factors: BiasedFactors) -> Tensor:
    return (factors.users @ factors.items.T + factors.offset).double()


def objective(
    model: BiasedFactorization, table: RatingTable, weight: Tensor, offset: Tensor, mean: float
) -> float:
    users, items = model.user_factors_.double(), model.item_factors_.double()
    bias = model.item_offset_.double() - mean
    error = (
        table.values - offset - mean - bias[table.items] - (users[table.users] * items[table.items]).sum(1)
    )
    factors = users[:, :-1].square().sum() + items[:, :-1].square().sum()
    biases = users[:, -1].square().sum() + bias.square().sum()
    return float(weight @ error.square() + model.penalty * factors + model.bias_penalty * biases)


def weights_and_offsets(table: RatingTable) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(len(table), generator=generator, dtype=torch.float64)
    return weight, torch.randn(len(table), generator=generator, dtype=torch.float64)


def ridge_row(design: np.ndarray, target: np.ndarray, weight: np.ndarray, model: BiasedFactorization):
    """[factor, bias] by scikit-learn, which has one penalty: the bias column is rescaled to have its own."""
    stretch = (model.penalty / model.bias_penalty) ** 0.5
    design = np.concatenate([design, np.full((len(design), 1), stretch)], 1)
    fitted = Ridge(alpha=model.penalty, fit_intercept=False).fit(design, target, sample_weight=weight)
    return fitted.coef_ * np.append(np.ones(model.k), stretch)


@pytest.mark.parametrize("weighted", [False, True])
def test_users_are_scikit_learns_ridge_on_the_published_items(weighted):
    table = random_table()
    weight, offset = (
        weights_and_offsets(table) if weighted else (torch.ones(len(table)), torch.zeros(len(table)))
    )
    model = BiasedFactorization(k=3, penalty=2.5, bias_penalty=0.7, sweeps=2)
    model.fit(table, PURPOSE, weight, offset)
    target = table.values - offset - model.item_offset_[table.items]
    for user in table.users.unique().tolist():
        mine = table.users == user
        design = model.item_factors_[table.items[mine], :-1]
        expected = ridge_row(design.numpy(), target[mine].numpy(), weight[mine].numpy(), model)
        np.testing.assert_allclose(model.user_factors_[user], expected, atol=1e-5)


def test_items_of_the_first_sweep_are_scikit_learns_ridge_on_the_drawn_users():
    table, model = random_table(), BiasedFactorization(k=3, penalty=2.5, bias_penalty=0.7, sweeps=1)
    model.fit(table, PURPOSE)
    drawn = 0.1 * torch.randn(
        table.n_users, 3, generator=replica_generator(table.seed, PURPOSE), dtype=torch.float64
    )
    mean = table.values.mean().item()
    for item in table.items.unique().tolist():
        mine = table.items == item
        target = (table.values[mine] - mean).numpy()
        expected = ridge_row(drawn[table.users[mine]].numpy(), target, np.ones(len(target)), model)
        np.testing.assert_allclose(model.item_factors_[item], np.append(expected[:-1], 1), atol=1e-5)
        assert model.item_offset_[item].item() == pytest.approx(mean + expected[-1], abs=1e-5)


@pytest.mark.parametrize("k", [0, 1, 6])
def test_no_sweep_raises_the_objective(k):
    table = random_table()
    weight, offset = weights_and_offsets(table)
    mean = float(weight @ (table.values - offset) / weight.sum())
    model = BiasedFactorization(k=k, penalty=1.5, bias_penalty=0.5, sweeps=15)
    values = [
        objective(model, table, weight, offset, mean) for _ in model.train(table, PURPOSE, weight, offset)
    ]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(values))
    assert values[-1] < values[0]


def test_a_whole_matrix_has_its_singular_values_reduced_by_the_penalty():
    """The closed form of the penalised problem where nothing is missing: soft-thresholded singular values."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, 4, generator=generator, dtype=torch.float64))[0] for n in (30, 20)
    )
    matrix = left @ torch.tensor([9.0, 6.0, 4.0, 1.0], dtype=torch.float64).diag() @ right.T
    matrix = matrix - matrix.mean()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    expected = u @ (s - 2.5).clamp(min=0).diag() @ vt
    model = BiasedFactorization(k=5, penalty=2.5, bias_penalty=1e9, sweeps=150)
    factors = model.fit(whole_table(matrix), PURPOSE).factors
    torch.testing.assert_close(every_prediction(factors), expected, atol=1e-4, rtol=0)


def test_biases_alone_are_one_joint_ridge():
    table = random_table()
    model = BiasedFactorization(k=0, bias_penalty=3.0, sweeps=200).fit(table, PURPOSE)
    design = np.zeros((len(table), table.n_users + table.n_items))
    design[np.arange(len(table)), table.users] = 1
    design[np.arange(len(table)), table.n_users + table.items.numpy()] = 1
    mean = table.values.mean().item()
    expected = Ridge(alpha=3.0, fit_intercept=False).fit(design, table.values.numpy() - mean).coef_
    assert model.user_factors_.shape == (table.n_users, 1)
    np.testing.assert_allclose(model.user_factors_[:, 0], expected[: table.n_users], atol=1e-5)
    np.testing.assert_allclose(model.item_offset_, mean + expected[table.n_users :], atol=1e-5)
    assert torch.equal(model.item_factors_, torch.ones(table.n_items, 1))


def test_a_planted_model_is_recovered_where_it_was_not_seen():
    table, truth = planted_table(noise=0.05)
    model = BiasedFactorization(k=2, penalty=0.01, bias_penalty=0.01, sweeps=30).fit(table, PURPOSE)
    unseen = torch.ones_like(truth, dtype=torch.bool)
    unseen[table.users, table.items] = False
    error = (every_prediction(model.factors) - truth)[unseen].square().mean().sqrt().item()
    assert error < 0.04 * truth.std().item()


def test_the_loss_is_the_weighted_mean_squared_error_of_what_is_published():
    table = random_table()
    weight, offset = weights_and_offsets(table)
    model = BiasedFactorization(k=4, sweeps=3)
    for number, epoch in enumerate(model.train(table, PURPOSE, weight, offset), 1):
        error = model.factors.predict(table.users, table.items) + offset - table.values
        assert epoch.number == number
        assert epoch.losses["loss"] == pytest.approx(
            [float(weight @ error.square() / weight.sum())], rel=1e-5
        )
    assert number == 3


def test_what_was_published_is_not_overwritten_by_the_next_sweep():
    training = (model := BiasedFactorization(k=2, penalty=0.1)).train(random_table(), PURPOSE)
    next(training)
    held = model.factors
    copies = held.users.clone(), held.items.clone(), held.offset.clone()
    next(training)
    assert all(map(torch.equal, (held.users, held.items, held.offset), copies))
    assert not torch.equal(model.user_factors_, held.users)


def test_ids_without_ratings_predict_the_mean_and_the_other_sides_bias():
    table = random_table(n_users=30, n_items=20)
    wide = dataclasses.replace(table, n_users=33, n_items=22)
    model = BiasedFactorization(k=3, penalty=0.5).fit(wide, PURPOSE)
    assert torch.equal(model.user_factors_[30:], torch.zeros(3, 4))
    assert torch.equal(model.item_factors_[20:], torch.tensor([[0.0, 0, 0, 1]]).expand(2, 4))
    torch.testing.assert_close(model.item_offset_[20:], wide.values.mean().expand(2))
    predicted = model.factors.predict(torch.tensor([30, 4, 30]), torch.tensor([5, 21, 21]))
    mean, bias = wide.values.mean(), model.user_factors_[4, -1]
    torch.testing.assert_close(predicted, torch.stack([model.item_offset_[5], mean + bias, mean]))


def test_a_weight_is_a_number_of_repetitions():
    table = random_table(200)
    weight = torch.randint(0, 4, (len(table),), generator=torch.Generator().manual_seed(2))
    repeated = dataclasses.replace(
        table,
        **{name: getattr(table, name).repeat_interleave(weight) for name in ("users", "items", "values")},
    )
    model, other = BiasedFactorization(k=3, penalty=1.0), BiasedFactorization(k=3, penalty=1.0)
    model.fit(table, PURPOSE, weight.float())
    other.fit(repeated, PURPOSE)
    torch.testing.assert_close(model.user_factors_, other.user_factors_)
    torch.testing.assert_close(model.item_factors_, other.item_factors_)
    torch.testing.assert_close(model.item_offset_, other.item_offset_)


def test_an_offset_is_what_is_taken_off_the_ratings():
    table = random_table()
    _, offset = weights_and_offsets(table)
    moved = dataclasses.replace(table, values=table.values.double() + offset)
    plain = BiasedFactorization(k=3).fit(table, PURPOSE)
    model = BiasedFactorization(k=3).fit(moved, PURPOSE, offset=offset)
    torch.testing.assert_close(model.user_factors_, plain.user_factors_)
    torch.testing.assert_close(model.item_offset_, plain.item_offset_)


def test_chunks_have_no_effect(monkeypatch):
    table = random_table()
    whole = BiasedFactorization(k=3).fit(table, PURPOSE).factors
    monkeypatch.setattr(biased_factorization, "CHUNK", 7)
    parts = BiasedFactorization(k=3).fit(table, PURPOSE).factors
    torch.testing.assert_close(every_prediction(parts), every_prediction(whole), atol=1e-6, rtol=1e-6)


def test_draws_follow_seed_and_purpose():
    table = random_table()

    def users(table: RatingTable, purpose: str) -> Tensor:
        return BiasedFactorization(k=3, penalty=1.0, sweeps=2).fit(table, purpose).user_factors_

    assert torch.equal(users(table, "a"), users(table, "a"))
    assert not torch.equal(users(table, "a"), users(table, "b"))
    assert not torch.equal(users(table, "a"), users(dataclasses.replace(table, seed=1), "a"))


GRID = [{"k": 4, "penalty": penalty, "bias_penalty": 3.0} for penalty in (0.1, 2.0, 40.0)]


def test_choose_takes_a_strong_penalty_on_noise_and_a_weak_one_on_structure():
    best, tried = choose(random_table(), PURPOSE, GRID)
    assert best == GRID[2]
    assert [{k: v for k, v in one.items() if k != "rmse"} for one in tried] == GRID
    assert min(tried, key=lambda one: one["rmse"])["penalty"] == 40.0
    assert choose(planted_table(noise=0.05)[0], PURPOSE, GRID)[0] == GRID[0]


def test_choose_scores_by_a_fit_to_the_other_ratings():
    """Of two ratings one is held out: its error by a fit to the other is the RMSE."""
    table = random_table(2)
    tried = choose(table, PURPOSE, GRID[:1], 0.5)[1]
    errors = []
    for row in (0, 1):
        kept = torch.arange(2) != row
        other = dataclasses.replace(
            table, users=table.users[kept], items=table.items[kept], values=table.values[kept]
        )
        predicted = (
            BiasedFactorization(**GRID[0])
            .fit(other, PURPOSE)
            .factors.predict(table.users[row : row + 1], table.items[row : row + 1])
        )
        errors.append(abs(float(predicted - table.values[row])))
    assert tried[0]["rmse"] in [pytest.approx(error, rel=1e-4) for error in errors]


@given(
    users=st.integers(1, 12),
    items=st.integers(1, 9),
    k=st.integers(0, 4),
    spread=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 30.0]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_standardising_leaves_predictions_as_they_are(users, items, k, spread, seed, data):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    factors = BiasedFactors(
        spread * normal(users, k + 1) + 3 * normal(k + 1), normal(items, k + 1), normal(items)
    )
    rows = torch.tensor(data.draw(st.lists(st.integers(0, users - 1), min_size=1)))
    moved = standardize(factors, rows)
    # Far from the rows it is standardised over, a user's terms are large and cancel.
    size = moved.users.abs() @ moved.items.abs().T + moved.offset.abs() + 10
    error = every_prediction(moved) - every_prediction(factors)
    assert (error.abs() <= 1e-6 * (k + 2) * size).all()
    chosen = moved.users[rows].double()
    varies = (factors.users[rows] != factors.users[rows[0]]).any(0)
    if spread >= 1:
        torch.testing.assert_close(chosen.mean(0), torch.zeros(k + 1, dtype=torch.float64), atol=1e-3, rtol=0)
    assert (chosen[:, ~varies].abs() <= 1e-6).all()
    assert torch.equal(moved.items[:, ~varies], factors.items[:, ~varies])


def test_standardised_users_have_mean_zero_and_deviation_one_over_the_rows():
    model = BiasedFactorization(k=3, penalty=1.0).fit(random_table(), PURPOSE)
    rows = torch.arange(5, 40)
    moved = standardize(model.factors, rows).users[rows].double()
    torch.testing.assert_close(moved.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        moved.std(0, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_a_factor_without_effect_is_not_blown_up():
    """By effect on predictions: narrow users with wide items count, wide users with tiny items do not."""
    users = torch.tensor([[1e-5, 1e-3, 2.0, 0.1], [3e-5, 3e-3, 6.0, 0.1]])
    items = torch.tensor([[1e-5, 1e3, 1e-9, 1.0]])
    centre, scale = centre_and_scale(BiasedFactors(users, items, torch.zeros(1)), torch.tensor([0, 1]))
    torch.testing.assert_close(centre, users.double().mean(0))
    torch.testing.assert_close(scale, torch.tensor([1, 1e-3, 1, 1], dtype=torch.float64))


def test_joined_factors_predict_by_a_plain_dot_product():
    model = BiasedFactorization(k=3, penalty=1.0).fit(random_table(), PURPOSE)
    users, items = model.factors.joined()
    assert users.shape == (60, 5)
    assert torch.equal(users[:, -1], torch.ones(60))
    torch.testing.assert_close((users @ items.T).double(), every_prediction(model.factors))


def with_value(column: Tensor, row: int, value: float) -> Tensor:
    changed = column.clone()
    changed[row] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": -1}, "k must be at least 0"),
        ({"sweeps": 0}, "sweeps must be at least 1"),
        ({"penalty": 0.0}, "penalty must be positive"),
        ({"bias_penalty": -1.0}, "bias_penalty must be positive"),
        ({"init_std": float("nan")}, "init_std must be positive and finite"),
    ],
)
def test_hyper_parameters_that_do_not_work_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        BiasedFactorization(**change)


TABLE = random_table(20)


@pytest.mark.parametrize(
    ("table", "weight", "offset", "message"),
    [
        (table_of(torch.zeros(0), *torch.zeros(2, 0).long(), 1, 1), None, None, "no ratings"),
        (dataclasses.replace(TABLE, users=with_value(TABLE.users, 4, 60)), None, None, r"users has row 60"),
        (dataclasses.replace(TABLE, items=with_value(TABLE.items, 4, -1)), None, None, r"items has row -1"),
        (dataclasses.replace(TABLE, items=TABLE.items[1:]), None, None, r"items has shape \(19,\)"),
        (
            dataclasses.replace(TABLE, values=with_value(TABLE.values, 7, float("nan"))),
            None,
            None,
            "values of row 7",
        ),
        (TABLE, torch.ones(3), None, r"weight has shape \(3,\)"),
        (TABLE, with_value(torch.ones(20), 2, -1), None, "weight of row 2 is negative"),
        (TABLE, torch.zeros(20), None, "weight is 0 for every rating"),
        (TABLE, None, with_value(torch.zeros(20), 9, float("inf")), "offset of row 9"),
    ],
)
def test_ratings_that_do_not_work_are_named(table, weight, offset, message):
    with pytest.raises(ValueError, match=message):
        BiasedFactorization().fit(table, PURPOSE, weight, offset)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ([], {}, "settings is empty"),
        ([{"rank": 3}], {}, r"unknown \['rank'\]; known: .*'k'"),
        ([{}], {"share": 0.0}, "holds out 0 of 20"),
        ([{}], {"share": 1.0}, "holds out 20 of 20"),
    ],
)
def test_choices_that_do_not_work_are_named(settings, more, message):
    with pytest.raises(ValueError, match=message):
        choose(TABLE, PURPOSE, settings, **more)


def test_factors_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"users \(3, 2\), items \(4, 5\)"):
        BiasedFactors(torch.zeros(3, 2), torch.zeros(4, 5), torch.zeros(4))
    fits = BiasedFactors(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="rows is empty"):
        standardize(fits, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows has row 3"):
        standardize(fits, torch.tensor([3]))


def test_a_rating_is_held_in_eight_bytes_a_side():
    """An id of the other side and a value, by 32 bits each: nothing that is the same for all ratings."""
    table = random_table()
    narrow = replace(table, users=table.users.int(), items=table.items.int())
    columns = biased_factorization._Columns(narrow.values, None, None)
    chunks = biased_factorization._chunks(narrow.users, narrow.items, columns, table.n_users, 4)
    slots = sum(chunk.other.numel() for chunk in chunks)
    assert slots >= len(table)
    parts = [x for chunk in chunks for x in (chunk.other, *vars(chunk.columns).values()) if x is not None]
    assert sum(x.nbytes for x in parts) == 8 * slots


@pytest.mark.parametrize("k", [0, 3])
def test_the_width_of_ids_and_rows_of_a_shared_table_change_nothing(k):
    table = random_table()
    kept = torch.arange(0, len(table), 2)
    narrow = replace(table, users=table.users.int(), items=table.items.int(), rows=kept.int())
    copied = replace(table, users=table.users[kept], items=table.items[kept], values=table.values[kept])
    found, expected = (BiasedFactorization(k=k, sweeps=3).fit(t, PURPOSE) for t in (narrow, copied))
    for name in ("user_factors_", "item_factors_", "item_offset_"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    tried = [{"k": k, "penalty": 2.0}, {"k": k, "penalty": 9.0}]
    assert choose(narrow, PURPOSE, tried) == choose(copied, PURPOSE, tried)


def test_weights_of_one_and_offsets_of_zero_are_as_none():
    table = random_table()
    given = torch.ones(len(table)), torch.zeros(len(table))
    found, expected = (BiasedFactorization(k=2, sweeps=3).fit(table, PURPOSE, *g) for g in (given, ()))
    assert torch.equal(found.user_factors_, expected.user_factors_)
