"""Controls against closed forms on small cases, scikit-learn, and what makes them controls."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch.testing import assert_close

from ml.data import History, Problem, Ratings, SourceUsers
from ml.evaluation.ratings import predict
from ml.models import controls
from ml.models.controls import Evidence, ItemMeans

SCALE = (1.0, 5.0)


def ratings(*rows):
    users, items, values = zip(*rows, strict=True)
    return Ratings(torch.tensor(users), torch.tensor(items), torch.tensor(values, dtype=torch.float32))


def evidence(known, training=None, validation=None, source=None, n_items=3):
    training = known if training is None else training
    source = torch.zeros(4, 5, dtype=torch.float64) if source is None else source
    return Evidence(known, n_items, training, validation, source, SCALE)


# Item 0 has 5 and 3, item 1 has 1, item 2 has none; their mean is 3.
KNOWN = ratings((0, 0, 5.0), (1, 0, 3.0), (1, 1, 1.0))


def predicted(factors, *pairs):
    users, items = factors
    return predict(users, items, ratings(*[(u, i, 0.0) for u, i in pairs])).tolist()


def test_global_mean_is_one_number():
    assert predicted(controls.global_mean(evidence(KNOWN)), (0, 0), (3, 2)) == [3.0, 3.0]


def test_item_means_are_shrunk_to_the_mean_of_all():
    means = predicted(controls.item_mean(evidence(KNOWN)), (0, 0), (0, 1), (3, 2))
    assert means == pytest.approx([(8 + 15) / 7, (1 + 15) / 6, 3.0])


def test_the_shrinkage_is_the_best_on_the_validation_users():
    liked = evidence(KNOWN, validation=ratings((2, 0, 4.0), (2, 1, 1.0)))
    alike = evidence(KNOWN, validation=ratings((2, 0, 3.0), (2, 1, 3.0)))
    assert liked.items.shrinkage == min(controls.CANDIDATES)
    assert alike.items.shrinkage == max(controls.CANDIDATES)
    assert evidence(KNOWN).items.shrinkage == controls.SHRINKAGE


def test_a_rating_is_left_out_of_its_own_items_mean():
    mean, count = ItemMeans.of(KNOWN, 3).without(KNOWN)
    assert mean.tolist() == pytest.approx([(3 + 15) / 6, (5 + 15) / 6, 3.0])
    assert count.tolist() == [1, 1, 0]


def test_popularity_orders_by_the_number_of_ratings():
    scores = predicted(controls.popularity(evidence(KNOWN)), (0, 0), (0, 1), (0, 2))
    assert scores == pytest.approx([np.log(3), np.log(2), 0.0])


def test_source_statistics_by_hand():
    # User 0: 5, 1, 2 on items of their own; user 2 has no rating. The mean of all is 3.
    source = ratings((0, 0, 5.0), (0, 1, 1.0), (0, 2, 2.0), (1, 3, 4.0))
    statistics = controls.source_statistics(source, 3, 4, SCALE)
    items = [(v + 15) / 6 for v in (5, 1, 2)]
    bias = sum(v - m for v, m in zip((5, 1, 2), items, strict=True)) / 8
    expected = [bias, np.std([5, 1, 2]), 1 / 3, 2 / 3, np.log(4)]
    assert statistics[0].tolist() == pytest.approx(expected)
    assert statistics[1].tolist() == pytest.approx([(4 - 19 / 6) / 6, 0, 0, 0, np.log(2)])
    assert statistics[2].tolist() == [0, 0, 0, 0, 0]


def random_evidence(seed=0, users=30, items=8, m=200):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(users * items, generator=generator)[:m]
    known = Ratings(pairs // items, pairs % items, torch.randint(1, 6, (m,), generator=generator).float())
    source = torch.randn(users, 5, generator=generator, dtype=torch.float64)
    return evidence(known, source=source, n_items=items)


def test_the_weight_of_the_source_bias_is_least_squares():
    given = random_evidence()
    users, items = controls.item_source_bias(given)
    residual = (given.training.values - given.items.without(given.training)[0]).numpy()
    bias = given.source[:, 0].numpy()
    reference = LinearRegression(fit_intercept=False).fit(bias[given.training.users][:, None], residual)
    assert_close(
        users @ items.mT, given.items.means.float() + float(reference.coef_[0]) * given.source[:, :1].float()
    )


def test_without_any_source_bias_the_item_mean_remains():
    given = evidence(KNOWN)
    users, items = controls.item_source_bias(given)
    assert_close(users @ items.mT, given.items.means.float().expand(4, 3))


def test_ridge_is_scikit_learns_on_standardised_features():
    given = random_evidence()
    mean, count = (x.numpy() for x in given.items.without(given.training))
    source = given.source.numpy()
    features = np.column_stack([mean, np.log1p(count), source[given.training.users]])
    centre, spread = features.mean(0), features.std(0)
    model = Ridge(alpha=controls.PENALTY).fit((features - centre) / spread, given.training.values.numpy())
    users, items = controls.ridge_source(given)
    for user, item in ((0, 0), (7, 3), (29, 7)):
        row = [given.items.means[item].item(), np.log1p(given.items.count[item].item()), *source[user]]
        expected = model.predict(((np.array(row) - centre) / spread)[None])[0]
        assert (users[user] @ items[item]).item() == pytest.approx(expected, rel=1e-5)


def test_a_feature_that_is_constant_in_training_has_no_weight():
    given = random_evidence()
    rows = given.known.users > 0
    training = Ratings(given.known.users[rows], given.known.items[rows], given.known.values[rows])
    predictions = []
    for unseen in (1.0, 100.0):
        given.source[:, 2] = 1.0
        given.source[0, 2] = unseen
        users, items = controls.ridge_source(evidence(given.known, training, None, given.source, 8))
        predictions.append(users[0] @ items.mT)
    assert_close(*predictions)
    assert predictions[0].isfinite().all()


def problem(seed=0, n=6, items=5, k=3):
    generator = torch.Generator().manual_seed(seed)
    history = History(torch.arange(n + 1), torch.arange(n) % 4)
    pairs = torch.randperm(n * items, generator=generator)[:20]
    values = torch.randint(1, 6, (20,), generator=generator).float()
    return Problem(
        SourceUsers(torch.randn(n, k, generator=generator), history, torch.randn(4, k, generator=generator)),
        torch.randn(n, k, generator=generator),
        torch.randn(items, k, generator=generator),
        Ratings(pairs // items, pairs % items, values),
        seed,
    )


def test_vectors_for_everybody():
    given = problem()
    assert_close(controls.mean_target_vector(given), given.target_factors.sum(0) / 6)
    rows = given.target_items[given.ratings.items].numpy()
    reference = Ridge(alpha=controls.PENALTY, fit_intercept=False).fit(rows, given.ratings.values.numpy())
    assert_close(controls.shared_vector(given), torch.tensor(reference.coef_), check_dtype=False)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_permuted_users_all_have_the_source_of_another(n):
    history = History(torch.arange(n + 1), torch.arange(n))
    own = torch.arange(n, dtype=torch.float32)[:, None]
    users = SourceUsers(own, history, torch.zeros(n, 1))
    mixed = controls.permuted(users, 0, "test")
    assert (mixed.factors != own).all()
    assert sorted(mixed.factors.flatten().tolist()) == list(range(n))
    # Histories go with the factors.
    assert mixed.history.items.tolist() == mixed.factors.flatten().long().tolist()
    again = controls.permuted(users, 0, "test")
    assert torch.equal(mixed.factors, again.factors)


def test_no_rating_to_learn_from_is_said():
    nothing = Ratings(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))
    with pytest.raises(ValueError, match="no rating to learn from"):
        controls.global_mean(evidence(nothing))


def test_clipping_keeps_predictions_within_the_scale():
    users, items = torch.tensor([[1.0]]), torch.tensor([[0.5], [3.0], [7.0]])
    three = ratings((0, 0, 1.0), (0, 1, 1.0), (0, 2, 1.0))
    assert predict(users, items, three, SCALE).tolist() == [1.0, 3.0, 5.0]
    assert predict(users, items, three).tolist() == [0.5, 3.0, 7.0]
