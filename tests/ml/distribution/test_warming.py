"""What first ratings are worth: the split, Bayes' rule twice over, fine-tuning; errors fall with n."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from ml.data import Ratings
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import level_basis
from ml.distribution.model import StarDiffusion
from ml.distribution.warming import (
    RATES,
    SAMPLES,
    STEPS,
    Newcomers,
    Undetermined,
    UserShift,
    best_rate,
    choose_most,
    cut_normal,
    error_by_n,
    fine_tuned,
    residual_moments,
    shifted,
    split_first,
    start_vectors,
)
from ml.evaluation.distribution import distribution_scores

STARS = torch.arange(1.0, 6, dtype=torch.float64)
ITEMS, EACH = 60, 20


def ratings(rows: list[tuple[int, int, float]]) -> Ratings:
    users, items, values = zip(*rows, strict=True) if rows else ((), (), ())
    return Ratings(
        torch.tensor(users, dtype=torch.int64), torch.tensor(items, dtype=torch.int64), torch.tensor(values)
    )


def take(rows: Ratings, mask: torch.Tensor, first: int = 0) -> Ratings:
    return Ratings(rows.users[mask] - first, rows.items[mask], rows.values[mask])


@pytest.fixture(scope="module")
def planted():
    """Users with vectors that the source says nothing of: 300 to learn from, 40 to choose on, 100 newcomers.

    Returns the model, the newcomers, those to choose on and a shift around the items' means.
    """
    generator = torch.Generator().manual_seed(0)
    theta, phi = (scale * torch.randn(n, 4, generator=generator) for scale, n in ((0.8, 440), (0.4, ITEMS)))
    users = torch.arange(440).repeat_interleave(EACH)
    items = torch.cat([torch.randperm(ITEMS, generator=generator)[:EACH] for _ in range(440)])
    p = ((theta[users] + phi[items]) @ level_basis(STARS).float().T).softmax(1)
    rows = Ratings(users, items, STARS.float()[torch.multinomial(p, 1, generator=generator)[:, 0]])
    description = torch.randn(440, 5, generator=generator, dtype=torch.float64)
    training = take(rows, users < 300)
    data = TransferRatings(training, 440, ITEMS, torch.arange(440), description, seed=0)
    model = StarDiffusion(epochs=3, diffusion=VectorDiffusion(steps=150)).trained(data)
    chosen_on = Newcomers(description[300:340], take(rows, (users >= 300) & (users < 340), first=300))
    newcomers = Newcomers(description[340:], take(rows, users >= 340, first=340))
    totals = torch.bincount(training.items, training.values, ITEMS)
    means = totals / torch.bincount(training.items, minlength=ITEMS)
    ones = torch.ones(len(rows), 1)
    shift = UserShift.learned(
        means[newcomers.ratings.items],
        ones[: len(newcomers.ratings)],
        training,
        means[training.items],
        ones[: len(training)],
    )
    return model, newcomers, chosen_on, shift


@pytest.fixture(scope="module")
def coin() -> StarDiffusion:
    """Two levels, one number a user: θ ~ N(0, 1) and p(2 | θ) = sigmoid(2 θ), of every item."""
    model = StarDiffusion(vectors="gaussian")
    return model.restored(
        {
            "seed": torch.tensor(0),
            "levels": torch.tensor([1.0, 2.0], dtype=torch.float64),
            "condition.center": torch.zeros(1),
            "condition.scale": torch.ones(1),
            "prior.map": torch.zeros(2, 1),
            "prior.factor": torch.ones(1, 1),
            "items": torch.zeros(30, 1),
            "item_counts": torch.zeros(30),
            "alignment.bias": torch.zeros(2),
            "alignment.weight": torch.zeros(2, 4),
            "alignment.user": torch.tensor([[-1.0, 1.0]]),
            "alignment.interaction": torch.zeros(1, 2),
        }
    )


# The split.

SEQUENCES = st.lists(st.integers(0, 4), max_size=40)


@given(SEQUENCES, st.integers(0, 6), st.integers(0, 6))
def test_nothing_is_both_observed_and_later_and_the_order_is_kept(users, n, more):
    most = n + more
    # The value is the place in the whole list: it tells the rows apart and their order.
    observed, later = split_first(ratings([(u, 0, float(i)) for i, u in enumerate(users)]), n, most)
    for user in set(users):
        places = [float(i) for i, u in enumerate(users) if u == user]
        long = len(places) > most
        assert observed.values[observed.users == user].tolist() == (places[:n] if long else [])
        assert later.values[later.users == user].tolist() == (places[most:] if long else [])
    for part in (observed, later):
        assert part.values.tolist() == sorted(part.values.tolist())


@given(SEQUENCES, st.integers(1, 6))
def test_the_later_ratings_are_the_same_for_every_n(users, most):
    rows = ratings([(u, 0, float(i)) for i, u in enumerate(users)])
    later = [split_first(rows, n, most)[1].values.tolist() for n in range(most + 1)]
    assert all(values == later[0] for values in later)


@pytest.mark.parametrize(
    ("users_with", "expected"),
    [
        ({11: 50}, 10),
        ({11: 49, 6: 1}, 5),
        ({11: 49, 3: 50}, 2),
        ({11: 49}, 10),  # fewer than 50, whatever is set aside
        ({11: 20, 3: 1}, 2),
        ({2: 10}, 1),
        ({2: 9}, None),
        ({1: 100}, None),
        ({}, None),
    ],
)
def test_how_many_first_ratings_are_set_aside(users_with, expected):
    counts = [count for count, users in users_with.items() for _ in range(users)]
    users = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    assert choose_most(users) == expected


# Bayes' rule on samples.


def evidence(theta: float, high: int, low: int) -> float:
    p = 1 / (1 + math.exp(-2 * theta))
    return norm.pdf(theta) * p**high * (1 - p) ** low


@pytest.mark.parametrize(("high", "low"), [(0, 0), (1, 0), (0, 3), (4, 2)])
def test_weighted_samples_are_bayes_rule(coin, high, low):
    """The integral over θ in closed form of a user with `high` twos and `low` ones."""
    observed = ratings([(1, i, 2.0 if i < high else 1.0) for i in range(high + low)])
    later = ratings([(1, 29, 2.0)])
    found = coin.predict_pairs(torch.zeros(3, 1), later.users, later.items, observed, SAMPLES)
    expected = quad(evidence, -9, 9, args=(high + 1, low))[0] / quad(evidence, -9, 9, args=(high, low))[0]
    assert found[0, 1].item() == pytest.approx(expected, abs=2e-3)


def test_nothing_observed_is_the_cold_prediction(planted):
    model, newcomers, chosen_on, _ = planted
    rows = error_by_n(model, newcomers, chosen_on, counts=(0, 5))
    later = split_first(newcomers.ratings, 0, 5)[1]
    cold = model.predict_pairs(newcomers.description, later.users, later.items, samples=SAMPLES)
    expected = distribution_scores(cold, STARS, later.values)
    assert (rows[0]["method"], rows[0]["n"]) == ("samples", 0)
    for name in ("mae", "rmse", "crps"):
        assert rows[0][name] == pytest.approx(expected[name], abs=1e-6)


# Fine-tuning.


def test_fine_tuning_is_gradient_ascent(coin):
    """d/dθ log p(2) = 2 (1 − p), d/dθ log p(1) = −2 p: three twos and a one, step by step."""
    observed = ratings([(0, 0, 2.0), (0, 1, 2.0), (0, 2, 1.0), (0, 3, 2.0)])
    later = ratings([(0, 4, 2.0), (1, 4, 2.0)])
    start = torch.tensor([[0.3], [-0.4]])
    found = fine_tuned(
        coin, Newcomers(torch.zeros(2, 1), observed), start, observed, later, rate=0.1
    ).probabilities[:, 1]
    theta = 0.3
    for _ in range(STEPS):
        p = 1 / (1 + math.exp(-2 * theta))
        theta += 0.1 * (3 * 2 * (1 - p) - 2 * p)
    expected = [1 / (1 + math.exp(-2 * x)) for x in (theta, -0.4)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("alike", "expected"), [(True, RATES[-1]), (False, RATES[0])])
def test_the_rate_follows_how_much_users_differ(coin, alike, expected):
    """Users who give one rating always deserve long steps, coins short ones."""
    levels = torch.arange(40)[:, None].expand(40, 20) % 2
    if not alike:
        levels = torch.randint(2, (40, 20), generator=torch.Generator().manual_seed(0))
    rows = [(u, i, 1.0 + levels[u, i].item()) for u in range(40) for i in range(20)]
    assert best_rate(coin, Newcomers(torch.zeros(40, 1), ratings(rows))) == expected


def test_fine_tuning_is_left_out_where_no_rate_can_be_chosen(planted):
    model, newcomers, chosen_on, _ = planted
    few = Newcomers(chosen_on.description, take(chosen_on.ratings, chosen_on.ratings.users < 9))
    for validation in (None, few):
        methods = {row["method"] for row in error_by_n(model, newcomers, validation, counts=(5,))}
        assert methods == {"samples"}


# The simple rows.


@pytest.mark.parametrize(
    "covariance", [[[0.3, -0.1], [-0.1, 0.2]], [[0.5, 0.0], [0.0, 0.0]], [[0.0] * 2] * 2]
)
def test_the_conjugate_update_is_conditioning(covariance):
    """Against the joint normal of b and y of one user, conditioned on y; the other user has no ratings."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 2), (5,)))
    prior = torch.tensor(covariance, dtype=torch.float64)
    shift = UserShift(torch.zeros(5), x, prior, 0.7)
    mean, spread = shift.posterior(torch.zeros(5, dtype=torch.int64), x, y, 2)
    cross = prior @ x.T
    gain = cross @ torch.linalg.inv(x @ prior @ x.T + 0.7 * torch.eye(5))
    torch.testing.assert_close(mean[0], gain @ y)
    torch.testing.assert_close(spread[0], prior - gain @ cross.T)
    torch.testing.assert_close(mean[1], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(spread[1], prior)


def test_a_users_mean_is_shrunk_as_the_textbook_says():
    """τ² s / (σ² + k τ²) and τ² σ² / (σ² + k τ²), in the prediction of one later rating."""
    rows = ratings([(0, 0, 5.0), (0, 1, 4.0), (0, 2, 3.0)])
    shift = UserShift(torch.full((3,), 3.5), torch.ones(3, 1), torch.tensor([[0.4]]), 0.6)
    observed = torch.tensor([True, True, False])
    found = shifted(shift, rows, observed, ~observed, STARS)
    centre, variance = 3.5 + 0.4 * 2 / 1.4, 0.4 * 0.6 / 1.4 + 0.6
    assert found.mean.item() == pytest.approx(centre)
    edges = np.array([-np.inf, 1.5, 2.5, 3.5, 4.5, np.inf])
    expected = np.diff(norm.cdf(edges, centre, math.sqrt(variance)))
    np.testing.assert_allclose(found.probabilities[0], expected, atol=1e-12)


def test_the_mean_stays_within_the_scale_and_uneven_levels_are_cut_half_way():
    rows = ratings([(0, 0, 5.0), (0, 1, 5.0)])
    shift = UserShift(torch.tensor([5.0, 6.0]), torch.ones(2, 1), torch.zeros(1, 1), 1.0)
    found = shifted(shift, rows, torch.tensor([True, False]), torch.tensor([False, True]), STARS)
    assert found.mean.tolist() == [5.0]
    one, two = torch.ones(1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)
    p = cut_normal(two, one, torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64))
    np.testing.assert_allclose(p[0], np.diff(norm.cdf([-np.inf, 0.5, 3.0, np.inf], 2, 1)), atol=1e-12)


def test_moments_are_the_least_squares_over_pairs():
    generator = torch.Generator().manual_seed(1)
    users = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 4, 4, 4])
    x = torch.stack([torch.ones(11), torch.randn(11, generator=generator)], 1).double()
    b = 2 * torch.randn(5, 2, generator=generator).double()
    y = (b[users] * x).sum(1) + 2 * torch.randn(11, generator=generator)
    design, product = [], []
    for a in range(11):
        for c in range(11):
            if a != c and users[a] == users[c]:
                weight = 1 / math.sqrt((users == users[a]).sum())
                design.append(weight * torch.outer(x[a], x[c]).flatten())
                product.append(weight * y[a] * y[c])
    solution = np.linalg.lstsq(torch.stack(design).numpy(), torch.stack(product).numpy())[0].reshape(2, 2)
    scale, axes = np.linalg.eigh(solution)
    expected = axes @ np.diag(scale.clip(0)) @ axes.T
    covariance, noise = residual_moments(users, x, y)
    np.testing.assert_allclose(covariance, expected, atol=1e-9)
    assert noise == pytest.approx((y.square() - ((x @ covariance) * x).sum(1)).mean().item())


def test_moments_find_the_planted_variances():
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(4000).repeat_interleave(5)
    x = torch.stack([torch.ones(20000), torch.randn(20000, generator=generator)], 1)
    factor = torch.tensor([[0.6, 0.0], [-0.2, 0.4]])
    b = torch.randn(4000, 2, generator=generator) @ factor.T
    y = (b[users] * x).sum(1) + 0.7 * torch.randn(20000, generator=generator)
    covariance, noise = residual_moments(users, x, y)
    torch.testing.assert_close(covariance.float(), factor @ factor.T, atol=0.02, rtol=0)
    assert noise == pytest.approx(0.49, abs=0.02)


def test_users_who_do_not_differ_have_no_variance():
    """Every user's two residuals are opposite: the product's mean is negative, the variance 0."""
    covariance, noise = residual_moments(
        torch.tensor([0, 0, 1, 1]), torch.ones(4, 1), torch.tensor([1.0, -1.0, -2.0, 2.0])
    )
    assert covariance.tolist() == [[0.0]]
    assert noise == pytest.approx(2.5)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_what_pairs_do_not_determine_is_said_so(size):
    """Whatever the order of the rows and the unit of a column: rounding must not pass for information."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(3000, generator=generator)

    one, other, y = torch.ones(3000), size * normal(), normal()
    alone, fives = torch.randperm(3000, generator=generator), torch.randperm(3000, generator=generator) % 600
    for users, columns in (
        (alone, [other]),  # one rating each
        (alone, [one, other]),
        (fives, [one, other[fives]]),  # the same for all of a user's ratings
        (fives, [other, 3 * other]),  # dependent
        (fives, [one, 0 * one]),
    ):
        with pytest.raises(Undetermined, match="do not tell how users differ from noise"):
            residual_moments(users, torch.stack(columns, 1), y)
    covariance, _ = residual_moments(fives, torch.stack([one, other], 1), y + one[fives] + other)
    assert covariance.isfinite().all()


def test_no_noise_is_undetermined_too():
    """Residuals that are each user's own number, or none, leave nothing to σ²."""
    users = torch.arange(3000) // 5
    own = torch.randn(600, generator=torch.Generator().manual_seed(0))[users]
    for residual in (own, 0 * own):
        with pytest.raises(Undetermined, match=r"leave a noise variance of .*, which must be positive"):
            residual_moments(users, torch.ones(3000, 1), residual)


# All together.


def test_errors_fall_with_n(planted):
    model, newcomers, chosen_on, shift = planted
    rows = error_by_n(model, newcomers, chosen_on, {"shrunk": shift})
    assert {(row["users"], row["ratings"]) for row in rows} == {(100, 1000)}
    for method in ("samples", "fine_tuned", "shrunk"):
        mine = [row for row in rows if row["method"] == method]
        assert [row["n"] for row in mine] == [0, 1, 2, 5, 10]
        for name in ("rmse", "crps"):
            errors = [row[name] for row in mine]
            # One more rating may do little: the next but one must have helped.
            assert all(later < earlier for earlier, later in zip(errors, errors[2:], strict=False)), name
            assert errors[-1] < 0.98 * errors[0], name


def test_the_rows_are_fine_tuned_at_the_rate_of_the_validation_users(planted):
    model, newcomers, chosen_on, _ = planted
    row = error_by_n(model, newcomers, chosen_on, counts=(5,))[1]
    observed, later = split_first(newcomers.ratings, 5, 5)
    rate = best_rate(model, chosen_on, (5,))
    found = fine_tuned(model, newcomers, start_vectors(model, newcomers), observed, later, rate)
    assert row["method"] == "fine_tuned"
    assert row["crps"] == pytest.approx(found.errors(STARS, later.values)["crps"], abs=1e-6)


def test_users_with_few_ratings_change_nothing(planted):
    """They are neither observed nor predicted, wherever they stand in the table: the even ones keep five."""
    model, newcomers, _, shift = planted
    rows = newcomers.ratings
    odd = rows.users % 2 == 1
    kept = odd | (torch.arange(len(rows)) % EACH < 5)
    alone = dataclasses.replace(take(rows, odd), users=rows.users[odd] // 2)
    found, expected = (
        error_by_n(model, users, shifts={"shrunk": shift.take(mask)}, counts=(0, 5))
        for users, mask in (
            (Newcomers(newcomers.description, take(rows, kept)), kept),
            (Newcomers(newcomers.description[1::2], alone), odd),
        )
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_too_few_newcomers_give_no_rows(planted):
    model, newcomers, chosen_on, _ = planted
    few = Newcomers(newcomers.description, take(newcomers.ratings, newcomers.ratings.users < 9))
    assert error_by_n(model, few, chosen_on) == []
    assert error_by_n(model, newcomers, most=EACH) == []


def test_the_caller_may_say_how_many_are_set_aside(planted):
    model, newcomers, _, _ = planted
    rows = error_by_n(model, newcomers, counts=(0, 1, 2), most=2)
    own = error_by_n(model, newcomers, counts=(0, 1, 2))
    assert rows == own  # all have more than two: the largest count is chosen
    (row,) = error_by_n(model, newcomers, counts=(2, 5), most=4)
    assert (row["n"], row["most"], row["ratings"]) == (2, 4, 100 * (EACH - 4))


def test_bad_input(planted):
    model, newcomers, chosen_on, shift = planted
    with pytest.raises(ValueError, match="n is 3 and most is 2"):
        split_first(newcomers.ratings, 3, 2)
    with pytest.raises(ValueError, match=r"ratings\.users has row 3, its table has rows 0\.\.2"):
        Newcomers(newcomers.description[:3], newcomers.ratings)
    for counts in ((0,), (), (1, -1)):
        with pytest.raises(ValueError, match="counts are"):
            error_by_n(model, newcomers, counts=counts)
    short = dataclasses.replace(shift, predicted=shift.predicted[:4], columns=shift.columns[:4])
    with pytest.raises(ValueError, match="shift 'shrunk' predicts 4 ratings of 2000"):
        error_by_n(model, newcomers, shifts={"shrunk": short})
    with pytest.raises(ValueError, match=r"predicted is \(2000,\) and its columns \(4, 1\)"):
        dataclasses.replace(shift, columns=shift.columns[:4])
    with pytest.raises(ValueError, match=r"covariance is \(2, 2\) for 1 columns"):
        dataclasses.replace(shift, covariance=torch.eye(2))
    for noise in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"noise_variance is .* must be positive"):
            dataclasses.replace(shift, noise_variance=noise)
    singles = ratings([(0, 0, 1.0), (1, 0, 2.0)])
    ones, nothing = torch.ones(2, 1), torch.ones(0, 1)
    with pytest.raises(Undetermined, match="do not tell how users differ"):
        UserShift.learned(ones[:, 0], ones, singles, ones[:, 0], ones)
    with pytest.raises(Undetermined, match="do not tell how users differ"):
        UserShift.learned(ones[:, 0], ones, ratings([]), nothing[:, 0], nothing)
    for predicted, columns, field in (
        (ones[:, 0] * math.nan, ones, "residual"),
        (ones[:, 0], ones * math.inf, "columns"),
    ):
        with pytest.raises(ValueError, match=f"{field} of a training rating is not finite") as found:
            UserShift.learned(ones[:, 0], ones, singles, predicted, columns)
        assert not isinstance(found.value, Undetermined)  # bad input must not be left out in silence
    with pytest.raises(ValueError, match="training_predicted has 3 rows for 2 ratings"):
        UserShift.learned(ones[:, 0], ones, singles, torch.ones(3), torch.ones(3, 1))
    halves = dataclasses.replace(newcomers.ratings, values=newcomers.ratings.values - 0.5)
    with pytest.raises(ValueError, match="none of the levels"):
        error_by_n(model, Newcomers(newcomers.description, halves), chosen_on)
