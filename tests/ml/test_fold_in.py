"""Fold-in against numpy's normal equations, an optimizer, and the users it should find again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import fold_in
from ml.data import Problem, Ratings, SourceUsers
from ml.encoder import history_of, liked
from ml.evaluation.ranking import top_k
from ml.factorization.adam import MatrixFactorization, RatingTable
from ml.factorization.biased import BiasedFactorization, BiasedFactors, standardize
from ml.factorization.implicit import ImplicitFactorization
from ml.fold_in import FoldIn
from ml.models.registry import build


def draw(seed: int, users: int = 30, items: int = 12, k: int = 3, ratings: int = 200):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(users, (ratings,), generator=generator)
    columns = torch.randint(items, (ratings,), generator=generator)
    values = torch.randint(1, 6, (ratings,), generator=generator).float()
    factors = torch.randn(users, k, generator=generator) + 1, torch.randn(items, k, generator=generator)
    return *factors, Ratings(rows, columns, values)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), m=st.integers(0, 40), block=st.integers(1, 50))
def test_it_solves_the_normal_equations_of_each_user(seed, n, m, block):
    users, items, trained = draw(seed)
    fold = FoldIn.of(users, items, trained)
    _, _, ratings = draw(seed + 1, users=n, ratings=m)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_in, "BLOCK", block)
        folded = fold(ratings, n)
    table, mean = items.double().numpy(), users.double().numpy().mean(0)
    precision = np.linalg.inv(np.cov(users.double().numpy().T, bias=True) + 1e-6 * np.eye(3))
    error = (users[trained.users] * items[trained.items]).sum(1) - trained.values
    noise = error.double().square().mean().item()
    for user in range(n):
        mine = (ratings.users == user).numpy()
        v, r = table[ratings.items.numpy()[mine]], ratings.values.double().numpy()[mine]
        expected = np.linalg.solve(v.T @ v / noise + precision, v.T @ r / noise + precision @ mean)
        np.testing.assert_allclose(folded[user].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_minimum_of_the_stated_objective():
    users, items, trained = draw(3)
    fold = FoldIn.of(users, items, trained)
    mine = Ratings(
        torch.zeros(4, dtype=torch.int64), torch.tensor([0, 3, 5, 7]), torch.tensor([5.0, 1, 4, 2])
    )
    u = fold(mine, 1)[0].double().requires_grad_()
    distance = u - fold.mean
    squared = (mine.values - items.double()[mine.items] @ u).square().sum() / fold.noise
    loss = squared + distance @ fold.precision @ distance
    [gradient] = torch.autograd.grad(loss, u)
    assert gradient.abs().max() < 1e-4


def test_without_ratings_a_user_is_the_mean_user():
    users, items, trained = draw(1)
    nothing = Ratings(trained.users[:0], trained.items[:0], trained.values[:0])
    folded = FoldIn.of(users, items, trained)(nothing, 2)
    np.testing.assert_allclose(folded, users.mean(0).expand(2, -1), rtol=1e-5)


def test_many_exact_ratings_outweigh_the_prior():
    users, items, trained = draw(2, items=400)
    fold = FoldIn.of(users, items, trained)
    true = torch.tensor([0.5, -2.0, 1.0])
    rows = torch.arange(400)
    folded = fold(Ratings(torch.zeros_like(rows), rows, items @ true), 1)[0]
    assert (folded - true).norm() < 0.2 < (users.mean(0) - true).norm()


def test_one_trained_user_and_a_perfect_fit_still_have_a_solution():
    items = torch.eye(3)
    one = Ratings(torch.zeros(3, dtype=torch.int64), torch.arange(3), torch.tensor([1.0, 2.0, 3.0]))
    fold = FoldIn.of(torch.tensor([[1.0, 2.0, 3.0]]), items, one)
    np.testing.assert_allclose(fold(one, 1), [[1, 2, 3]], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": torch.tensor([12])}, r"ratings.items has row 12, its table has rows 0..11"),
        ({"users": torch.tensor([1])}, r"ratings.users has row 1, its table has rows 0..0"),
    ],
)
def test_a_row_that_is_not_there_is_refused(change, message):
    users, items, trained = draw(1)
    bad = {"users": torch.tensor([0]), "items": torch.tensor([0]), "values": torch.tensor([3.0])} | change
    with pytest.raises(ValueError, match=message):
        FoldIn.of(users, items, trained)(Ratings(**bad), 1)


def test_a_table_without_ratings_or_of_another_width_is_refused():
    users, items, trained = draw(1)
    nothing = Ratings(trained.users[:0], trained.items[:0], trained.values[:0])
    with pytest.raises(ValueError, match="no training ratings"):
        FoldIn.of(users, items, nothing)
    with pytest.raises(ValueError, match="width 2, item factors 3"):
        FoldIn.of(users[:, :2], items, trained)


@pytest.fixture(scope="module")
def trained():
    """A factorization of structured ratings, 40 a user, and an EMCDR into a random target domain."""
    generator = torch.Generator().manual_seed(0)
    n, items, each, k = 300, 200, 40, 6
    taste, trait = torch.randn(n, k, generator=generator), torch.randn(items, k, generator=generator)
    rows = torch.arange(n).repeat_interleave(each)
    columns = torch.rand(n, items, generator=generator).argsort(1)[:, :each].flatten()
    noise = 0.5 * torch.randn(n * each, generator=generator)
    values = (3.5 + 0.7 * (taste[rows] * trait[columns]).sum(1) + noise).round().clamp(1, 5)
    table = RatingTable(rows, columns, values, n, items, seed=0)
    source = MatrixFactorization(k=k, epochs=30, batch=256, lr=0.01).fit([table], "source")
    ratings = Ratings(rows, columns, values)
    fold = FoldIn.of(source.user_factors_[0], source.item_factors_[0], ratings)
    target = torch.randn(500, k, generator=generator)
    users = SourceUsers(fold(ratings, n), liked(ratings, n, 3), fold.standardized_items)
    problem = Problem(
        source=SourceUsers(source.user_factors_[0], users.history, users.item_factors),
        target_factors=source.user_factors_[0] @ torch.randn(k, k, generator=generator),
        target_items=target,
        ratings=Ratings(rows[:1], columns[:1], values[:1]),
        seed=0,
    )
    return problem, users, build("emcdr", epochs=30).trained([problem]), target


def test_a_user_who_was_trained_gets_nearly_the_same_recommendations(trained):
    problem, users, model, target = trained

    def overlap(factors: torch.Tensor) -> float:
        moved = model.transfer([SourceUsers(factors, users.history, users.item_factors)])[0]
        best, _ = top_k(moved, target, 20)
        wanted, _ = top_k(model.transfer([problem.source])[0], target, 20)
        return (best[:, :, None] == wanted[:, None, :]).any(2).float().mean().item()

    assert overlap(problem.source.factors) == 1
    mean = problem.source.factors.mean(0).expand(len(users), -1)
    assert overlap(users.factors) > 0.8
    assert overlap(mean) < 0.7


@pytest.mark.parametrize("k", [0, 3])
def test_biased_users_get_the_very_vectors_that_were_trained(k):
    """The last half-sweep solves users on the final items: the same ratings give the same solution."""
    _, _, ratings = draw(4, users=40, items=25, ratings=600)
    values, rows = ratings.values, torch.arange(0, 40, 2)
    table = RatingTable(ratings.users, ratings.items, values, 40, 25, seed=0)
    factors = BiasedFactorization(k=k, penalty=2.0, bias_penalty=1.5, sweeps=5).fit(table, "source").factors
    fold, held = FoldIn.of_biased(factors, 2.0, 1.5, rows), standardize(factors, rows)
    torch.testing.assert_close(fold(ratings, 40), held.users, atol=2e-5, rtol=1e-5)
    assert torch.equal(fold.standardized_items, held.items)
    stranger = fold(Ratings(ratings.users[:0], ratings.items[:0], values[:0]), 1)
    torch.testing.assert_close(stranger[0], (-fold.centre / fold.scale).float())


def test_what_was_liked_keeps_its_order():
    ratings = Ratings(torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 0, 1]), torch.tensor([4.0, 3, 5, 5]))
    history = liked(ratings, 3, above=3)
    assert history.offsets.tolist() == [0, 0, 3, 3]
    assert history.items.tolist() == [1, 0, 1]


def test_histories_of_sorted_rows():
    history = history_of(torch.tensor([0, 0, 2]), torch.tensor([5, 6, 7]), 4)
    assert history.offsets.tolist() == [0, 2, 2, 3, 3]
    assert history.items.tolist() == [5, 6, 7]


def test_a_user_of_a_factorization_of_choices_gets_the_vector_that_was_trained():
    """Whatever the values of the ratings are."""
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.rand(60, 25, generator=generator) < 0.3).nonzero(as_tuple=True)
    values = torch.randint(1, 6, (len(users),), generator=generator).float()
    model = ImplicitFactorization(k=4, penalty=2.0, confidence=6.0, sweeps=3)
    model.fit(RatingTable(users, items, values, 60, 25, seed=0), "source")
    factors = BiasedFactors(model.user_factors_, model.item_factors_, torch.zeros(25))
    rows = torch.arange(0, 60, 2)
    fold = FoldIn.of_choices(factors, model.penalty, model.confidence, rows)
    expected = standardize(factors, rows)
    torch.testing.assert_close(fold(Ratings(users, items, values), 60), expected.users, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fold.standardized_items, expected.items)
