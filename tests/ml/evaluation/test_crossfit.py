"""What the choice of a trial and an epoch is worth on users that it was not made on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.data import Predicted, Ratings
from ml.evaluation.cold_start import list_metrics, rating_metrics
from ml.evaluation.crossfit import FOLDS, crossfitted, list_sums, rating_sums
from ml.evaluation.selection import RANKING, RATING


def rated(n_users: int = 23, n_items: int = 40, seed: int = 0) -> Ratings:
    """Some ratings of every user."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.cat([torch.arange(n_users) * n_items, torch.randint(n_users * n_items, (90,))]).unique()
    values = torch.randint(1, 6, (len(pairs),), generator=generator).float()
    return Ratings(pairs // n_items, pairs % n_items, values)


def of_errors(errors: list[float]) -> dict[str, torch.Tensor]:
    """Sums of RMSE with one squared error for each fold."""
    return {"rmse": torch.tensor([[error, 1] for error in errors], dtype=torch.float64)}


def test_without_a_choice_it_is_the_plain_value():
    ratings = rated()
    predicted = Predicted.points(torch.rand(len(ratings.values)) * 4 + 1)
    found = crossfitted([rating_sums(predicted, ratings, 23)], RATING)
    plain = rating_metrics(predicted, ratings)
    assert set(found) == {"mae", "rmse"}
    assert found == pytest.approx({name: plain[name] for name in found}, rel=1e-6)


def test_of_a_distribution_crps_counts_too():
    ratings = rated()
    probabilities, levels = (
        torch.rand(len(ratings.values), 5).double().softmax(1),
        torch.arange(1.0, 6.0).double(),
    )
    predicted = Predicted(
        probabilities @ levels, torch.full((len(probabilities),), 3.0), probabilities, levels
    )
    found = crossfitted([rating_sums(predicted, ratings, 23)], RATING)
    plain = rating_metrics(predicted, ratings)
    assert set(found) == {"mae", "rmse", "crps"}
    assert found == pytest.approx({name: plain[name] for name in found}, rel=1e-6)


def test_of_lists_it_is_the_mean_over_users_who_have_something_to_find():
    ratings = rated()
    lists = torch.stack([torch.randperm(40)[:20] for _ in range(25)])  # two users without a rating
    found = crossfitted([list_sums(lists, ratings, 40)], RANKING)
    plain = list_metrics(lists, ratings, 40)
    assert found == pytest.approx({name: plain[name] for name in found})
    assert "ndcg@20" in found


def test_each_fold_is_judged_by_what_is_best_on_the_others():
    # The first is the best of all but on the last fold, where it is bad; without that fold it is chosen.
    first, second = of_errors([1, 1, 1, 1, 7]), of_errors([2, 2, 2, 2, 2])
    # Folds 0 to 3: the others of the first sum to 10, of the second to 8. Fold 4: 4 and 8.
    expected = math.sqrt((2 + 2 + 2 + 2 + 7) / 5)
    assert crossfitted([first, second], RATING)["rmse"] == pytest.approx(expected)


def test_the_best_of_many_that_are_equally_good_is_not_thought_better():
    generator = torch.Generator().manual_seed(0)
    lucky, honest = [], []
    for _ in range(300):
        draws = torch.rand(24, FOLDS, generator=generator)
        lucky.append(draws.mean(1).min())
        honest.append(crossfitted([of_errors(row.tolist()) for row in draws], RATING)["rmse"] ** 2)
    # The mean of all is 1/2, its standard error here 0.008.
    assert sum(lucky) / 300 < 0.3
    assert sum(honest) / 300 == pytest.approx(0.5, abs=0.03)


@given(st.lists(st.lists(st.floats(0, 9), min_size=FOLDS, max_size=FOLDS), min_size=1, max_size=8))
def test_it_is_never_better_than_the_best_that_was_tried(tried):
    best = min(sum(errors) / FOLDS for errors in tried) ** 0.5
    assert crossfitted([of_errors(errors) for errors in tried], RATING)["rmse"] >= best - 1e-9


def test_what_diverged_on_a_fold_is_not_chosen_for_any():
    broken = of_errors([0, 0, 0, 0, math.nan])
    assert crossfitted([broken, of_errors([4] * 5)], RATING)["rmse"] == 2
    assert not math.isfinite(crossfitted([broken], RATING)["rmse"])


def test_users_of_one_fold_are_chosen_by_as_a_whole():
    alone = [{"rmse": torch.zeros(FOLDS, 2, dtype=torch.float64)} for _ in range(2)]
    for each, error in zip(alone, (9.0, 4.0), strict=True):
        each["rmse"][0] = torch.tensor([error, 1.0])
    assert crossfitted(alone, RATING)["rmse"] == 2


def test_nothing_tried_is_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        crossfitted([], RATING)
