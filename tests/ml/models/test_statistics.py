"""Predictors from rating statistics against closed forms on small cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor
from torch.testing import assert_close

from ml.data import Data, HeldOut, Ratings, Users
from ml.models.statistics import (
    CANDIDATES,
    PENALTY,
    SHRINKAGE,
    GlobalMean,
    ItemMean,
    ItemMeans,
    ItemSourceBias,
    Popularity,
    RidgeSource,
    Statistic,
    shrunk_means,
    source_statistics,
)

SCALE = (1.0, 5.0)


def ratings(*rows: tuple[int, int, float]) -> Ratings:
    users, items, values = zip(*rows, strict=True)
    return Ratings(torch.tensor(users), torch.tensor(items), torch.tensor(values, dtype=torch.float32))


def users_of(statistics: Tensor) -> Users:
    rows = torch.arange(len(statistics))
    return Users(rows, rows, statistics=statistics)


def data(
    known: Ratings,
    training: Ratings | None = None,
    validation: Ratings | None = None,
    statistics: Tensor | None = None,
    n_items: int = 3,
) -> Data:
    """A cell of users with these source statistics, all of whom are in both domains; `known` are the target
    ratings, of which `training` (all, where not given) are those of training users."""
    statistics = torch.zeros(4, 5, dtype=torch.float64) if statistics is None else statistics
    users, training = users_of(statistics), known if training is None else training
    held = None if validation is None else HeldOut(users, validation)
    n = len(users)
    return Data(0, known, known, n, n_items, n, n_items, users, training, torch.arange(n), held, SCALE)


def fitted(model: Statistic, given: Data) -> Statistic:
    [epoch] = model.fit([given])
    assert epoch.number == model.total_epochs
    return model


def predicted(model: Statistic, given: Data, *pairs: tuple[int, int]) -> list[float]:
    rows = ratings(*[(user, item, 0.0) for user, item in pairs])
    return fitted(model, given).predict(given.train, rows).mean.tolist()


def table(model: Statistic, given: Data) -> Tensor:
    """Scores (n, items) of all users and items."""
    return fitted(model, given).scores(given.train, torch.arange(given.n_items))


# Item 0 has 5 and 3, item 1 has 1, item 2 has none; their mean is 3.
KNOWN = ratings((0, 0, 5.0), (1, 0, 3.0), (1, 1, 1.0))


def test_global_mean_is_one_number():
    assert predicted(GlobalMean(), data(KNOWN), (0, 0), (3, 2)) == [3.0, 3.0]


def test_item_means_are_shrunk_to_the_mean_of_all():
    means = predicted(ItemMean(), data(KNOWN), (0, 0), (0, 1), (3, 2))
    assert means == pytest.approx([(8 + 15) / 7, (1 + 15) / 6, 3.0])


def test_the_shrinkage_is_the_best_on_the_validation_users():
    liked = data(KNOWN, validation=ratings((2, 0, 4.0), (2, 1, 1.0)))
    alike = data(KNOWN, validation=ratings((2, 0, 3.0), (2, 1, 3.0)))
    assert shrunk_means(liked).shrinkage == min(CANDIDATES)
    assert shrunk_means(alike).shrinkage == max(CANDIDATES)
    assert shrunk_means(data(KNOWN)).shrinkage == SHRINKAGE
    # What is chosen is what predicts.
    assert predicted(ItemMean(), liked, (0, 1)) == pytest.approx([(1 + 3 * min(CANDIDATES)) / 1.5])


def test_a_rating_is_left_out_of_its_own_items_mean():
    mean, count = ItemMeans.of(KNOWN, 3).without(KNOWN)
    assert mean.tolist() == pytest.approx([(3 + 15) / 6, (5 + 15) / 6, 3.0])
    assert count.tolist() == [1, 1, 0]


def test_popularity_orders_by_the_number_of_ratings():
    scores = table(Popularity(), data(KNOWN))
    assert scores[0].tolist() == pytest.approx([np.log(3), np.log(2), 0.0])
    assert fitted(Popularity(), data(KNOWN)).top(users_of(torch.zeros(1, 5).double()), 3)[0].tolist() == [
        [0, 1, 2]
    ]


def test_source_statistics_by_hand():
    # User 0: 5, 1, 2 on items of their own; user 2 has no rating. The mean of all is 3.
    source = ratings((0, 0, 5.0), (0, 1, 1.0), (0, 2, 2.0), (1, 3, 4.0))
    statistics = source_statistics(source, 3, 4, SCALE)
    items = [(v + 15) / 6 for v in (5, 1, 2)]
    bias = sum(v - m for v, m in zip((5, 1, 2), items, strict=True)) / 8
    expected = [bias, np.std([5, 1, 2]), 1 / 3, 2 / 3, np.log(4)]
    assert statistics[0].tolist() == pytest.approx(expected)
    assert statistics[1].tolist() == pytest.approx([(4 - 19 / 6) / 6, 0, 0, 0, np.log(2)])
    assert statistics[2].tolist() == [0, 0, 0, 0, 0]


def test_new_users_are_described_by_the_item_means_of_their_domain():
    source = ratings((0, 0, 5.0), (0, 1, 1.0), (0, 2, 2.0), (1, 3, 4.0))
    whole, means = source_statistics(source, 2, 4, SCALE), ItemMeans.of(source, 4).means
    alone = ratings((0, 3, 4.0))
    assert_close(source_statistics(alone, 1, 4, SCALE, means)[0], whole[1])
    assert source_statistics(alone, 1, 4, SCALE)[0, 0] != whole[1, 0]


def random_data(seed: int = 0, users: int = 30, items: int = 8, m: int = 200) -> Data:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(users * items, generator=generator)[:m]
    known = Ratings(pairs // items, pairs % items, torch.randint(1, 6, (m,), generator=generator).float())
    statistics = torch.randn(users, 5, generator=generator, dtype=torch.float64)
    return data(known, statistics=statistics, n_items=items)


def test_the_weight_of_the_source_bias_is_least_squares():
    given = random_data()
    means = shrunk_means(given)
    residual = (given.training.values - means.without(given.training)[0]).numpy()
    bias = given.train.statistics[:, 0].numpy()
    reference = LinearRegression(fit_intercept=False).fit(bias[given.training.users][:, None], residual)
    expected = means.means.float() + float(reference.coef_[0]) * given.train.statistics[:, :1].float()
    assert_close(table(ItemSourceBias(), given), expected)


def test_without_any_source_bias_the_item_mean_remains():
    given = data(KNOWN)
    assert_close(table(ItemSourceBias(), given), shrunk_means(given).means.float().expand(4, 3))


def test_ridge_is_scikit_learns_on_standardised_features():
    given = random_data()
    means = shrunk_means(given)
    mean, count = (x.numpy() for x in means.without(given.training))
    source = given.train.statistics.numpy()
    features = np.column_stack([mean, np.log1p(count), source[given.training.users]])
    centre, spread = features.mean(0), features.std(0)
    model = Ridge(alpha=PENALTY).fit((features - centre) / spread, given.training.values.numpy())
    pairs = [(0, 0), (7, 3), (29, 7)]
    for (user, item), found in zip(pairs, predicted(RidgeSource(), given, *pairs), strict=True):
        row = [means.means[item].item(), np.log1p(means.count[item].item()), *source[user]]
        expected = model.predict(((np.array(row) - centre) / spread)[None])[0]
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_feature_that_is_constant_in_training_has_no_weight():
    whole = random_data()
    rows = whole.target.users > 0
    training = Ratings(whole.target.users[rows], whole.target.items[rows], whole.target.values[rows])
    found = []
    for unseen in (1.0, 100.0):
        statistics = whole.train.statistics.clone()
        statistics[:, 2] = 1.0
        statistics[0, 2] = unseen
        found.append(table(RidgeSource(), data(whole.target, training, None, statistics, 8))[0])
    assert_close(*found)
    assert found[0].isfinite().all()


@pytest.mark.parametrize("kind", [GlobalMean, ItemMean, ItemSourceBias, RidgeSource, Popularity])
def test_no_rating_to_learn_from_is_said(kind):
    nothing = Ratings(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0))
    with pytest.raises(ValueError, match="no rating to learn from"):
        fitted(kind(), data(nothing))


def test_clipping_keeps_predictions_within_the_scale():
    found = fitted(ItemMean(), data(ratings((0, 0, 0.5), (1, 1, 3.0), (1, 2, 7.0))))
    found.fitted_[0]["items"] = torch.tensor([0.5, 3.0, 7.0]).double()
    raw = found.predict(users_of(torch.zeros(1, 5).double()), ratings((0, 0, 1.0), (0, 1, 1.0), (0, 2, 1.0)))
    assert raw.clipped(SCALE).mean.tolist() == raw.clipped(SCALE).median.tolist() == [1.0, 3.0, 5.0]
    assert raw.clipped(None).mean.tolist() == [0.5, 3.0, 7.0]
