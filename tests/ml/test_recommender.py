"""Lists, stars and reasons of two models, on a small catalogue where each answer can be worked out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar
from unittest.mock import patch

import pytest
import torch

from ml import recommender as module
from ml.data import Data, Predicted, Ratings, Users
from ml.encoder import ItemStatistics, SourceEncoder
from ml.models.contract import Model
from ml.models.registry import build
from ml.recommender import Recommender, Served, UserRatings, without_each
from ml.replicas import Epoch

SOURCE_ITEMS, TARGET_ITEMS, SOURCE_USERS = 6, 8, 5


@dataclass
class Linear(Model):
    """The score of an item is the sum of a row of a table over the user's source ratings: the loss without a
    rating is its row, exactly."""

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "Linear"
    summary: ClassVar[str] = "a sum."
    scored_by: ClassVar[str] = "probability"
    orders: ClassVar[tuple[str, ...]] = ("probability", "coverage")
    exact: bool = False

    def __post_init__(self) -> None:
        self.table = torch.randn(SOURCE_ITEMS, TARGET_ITEMS, generator=torch.Generator().manual_seed(0))
        self.asked = 0

    def fit(self, data: Sequence[Data], device: torch.device | str = "cpu") -> Iterator[Epoch]:
        yield Epoch(1, {})

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        scores = self.scores(users, torch.arange(TARGET_ITEMS))
        return Predicted(scores[ratings.users, ratings.items], torch.full((len(ratings),), 3.0))

    def scores(self, users: Users, items: torch.Tensor, replica: int = 0) -> torch.Tensor:
        self.asked += len(users)
        rows = self.table[users.ratings.items] * users.ratings.values[:, None]
        return torch.zeros(len(users), TARGET_ITEMS).index_add_(0, users.ratings.users, rows)[:, items]

    def covering(self, users, k, exclude=None, replica=0, among=None):
        items, scores = self.top(users, k, exclude, replica, among)
        return items.flip(1), scores.flip(1)

    def because(self, users: Users, items: torch.Tensor, most: int = 3, replica: int = 0):
        if not self.exact:
            return None
        rows = self.table[users.ratings.items] * users.ratings.values[:, None]
        loss, order = rows[:, items[0]].T.sort(dim=1, descending=True)
        found = torch.where(loss > 0, users.ratings.items[order], -1)
        return found[None, :, :most], loss[None, :, :most]

    def items_of(self, replica: int = 0) -> int:
        return TARGET_ITEMS

    def state_dict(self, replica: int = 0) -> dict[str, torch.Tensor]:
        return {"table": self.table}

    def load_state_dict(self, *states: dict[str, torch.Tensor]) -> Linear:
        self.table = states[0]["table"]
        return self


class ByStatistics(Linear):
    """The stars of a user are a function of the source statistics alone."""

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        stars = (1 + 4 * users.statistics.sum(1).sigmoid()).float()
        return Predicted(stars[ratings.users], stars[ratings.users])


HISTORY = Ratings(
    torch.tensor([0, 0, 0, 1, 2, 2, 4]),
    torch.tensor([3, 0, 5, 2, 1, 4, 0]),
    torch.tensor([5.0, 2, 4, 1, 3, 5, 2]),
)
RATED = Ratings(torch.tensor([0, 0, 2]), torch.tensor([1, 6, 3]), torch.tensor([4.0, 2, 5]))


def served(model: Model | None = None) -> Served:
    statistics = ItemStatistics.of(HISTORY, SOURCE_ITEMS)
    encoder = SourceEncoder(("ratings",), SOURCE_ITEMS, (1.0, 5.0), 3.0, statistics=statistics)
    rows = torch.arange(SOURCE_USERS)
    users = Users(rows, torch.full_like(rows, -1), statistics=encoder(HISTORY, SOURCE_USERS).statistics)
    return Served("ours", f"{__name__}:Linear", model or Linear(), encoder, users)


def recommender(**changes) -> Recommender:
    one = served()
    parts = {
        "lists": one,
        "stars": one,
        "history": UserRatings.of(HISTORY, SOURCE_USERS),
        "rated": UserRatings.of(RATED, SOURCE_USERS),
        "popularity": torch.tensor([5, 9, 9, 2, 0, 1, 1, 3]),
        "allowed": torch.tensor([0, 1, 2, 3, 5, 6]),
        "scale": (1.0, 5.0),
    }
    return Recommender(**parts | changes)


def brute(user: int, held: Recommender, include_rated: bool = False) -> list[int]:
    """Allowed items of a user by falling score, those that were rated left out."""
    mine = HISTORY.users == user
    scores = (held.lists.model.table[HISTORY.items[mine]] * HISTORY.values[mine][:, None]).sum(0)
    barred = set() if include_rated else set(RATED.items[RATED.users == user].tolist())
    return sorted(set(held.allowed.tolist()) - barred, key=lambda item: -scores[item].item())


def test_the_best_allowed_items_come_first_without_those_rated():
    held = recommender()
    listed = held.recommend(held.known_users(torch.tensor([0, 2, 1])), 3)
    assert listed.items.tolist() == [brute(user, held)[:3] for user in (0, 2, 1)]
    assert listed.known.all()
    again = held.recommend(held.known_users(torch.tensor([0])), 3, include_rated=True)
    assert again.items.tolist() == [brute(0, held, include_rated=True)[:3]]


def test_a_list_may_be_shorter_than_was_asked_for():
    held = recommender()
    listed = held.recommend(held.known_users(torch.tensor([0, 1])), 9)
    assert listed.items[0].tolist() == [*brute(0, held), *[-1] * 5]
    assert listed.items[1].tolist() == [*brute(1, held), *[-1] * 3]
    assert listed.mean[0, 4:].isnan().all()
    assert listed.scores[0, 4:].isneginf().all()


def test_of_whom_nothing_is_known_gets_the_most_popular_items():
    held = recommender()
    listed = held.recommend(held.known_users(torch.tensor([3, 0, -1])), 3)
    assert listed.known.tolist() == [False, True, False]
    assert listed.items[[0, 2]].tolist() == [[1, 2, 0]] * 2
    assert listed.scores[0].tolist() == [9, 9, 5]
    nobody = held.new_users(HISTORY.take(torch.arange(0)), 1)
    assert held.recommend(nobody, 2).items.tolist() == [[1, 2]]


def test_of_whom_nothing_is_known_is_expected_to_give_what_nobody_gives():
    held = recommender(stars=served(ByStatistics()))
    nobody = held.new_users(HISTORY.take(torch.arange(0)), 1)
    expected = held.rate(nobody, torch.zeros(1).long(), torch.ones(1).long()).mean.item()
    listed = held.recommend(held.known_users(torch.tensor([-1, 0, 3])), 8)
    for values in (listed.mean, listed.median):
        assert values[[0, 2], :6].flatten().tolist() == pytest.approx([expected] * 12)
        assert values[[0, 2], 6:].isnan().all()
        assert values[1, 0].item() != pytest.approx(expected)


def test_a_new_user_is_known_by_ratings_alone():
    held = recommender()
    mine = HISTORY.users == 2
    ratings = Ratings(torch.zeros(2).long(), HISTORY.items[mine], HISTORY.values[mine])
    listed = held.recommend(held.new_users(ratings, 1), 4)
    assert listed.items.tolist() == [brute(2, held, include_rated=True)[:4]]


def test_stars_are_within_the_scale_beside_every_item():
    held = recommender()
    asked = held.known_users(torch.tensor([0, 2]))
    listed = held.recommend(asked, 4)
    raw = held.lists.model.scores(asked.stars, torch.arange(TARGET_ITEMS))
    torch.testing.assert_close(listed.mean, raw.gather(1, listed.items).clamp(1, 5))
    assert (listed.median == 3).all()
    assert (raw.gather(1, listed.items) > 5).any()


def test_without_a_model_for_stars_there_are_none():
    held = recommender(stars=None)
    asked = held.known_users(torch.tensor([0]))
    assert held.recommend(asked, 3).mean.isnan().all()
    with pytest.raises(ValueError, match="trained for ratings"):
        held.rate(asked, torch.zeros(1).long(), torch.zeros(1).long())


def test_blocks_change_nothing():
    held = recommender()
    asked = held.known_users(torch.tensor([2, 3, 0, 4, 1]))
    whole = held.recommend(asked, 4)
    with patch.object(module, "BLOCK", 2), patch.object(module, "PAIRS", 3):
        blocks = held.recommend(asked, 4)
    assert torch.equal(whole.items, blocks.items)
    torch.testing.assert_close(whole.mean, blocks.mean, equal_nan=True)


def test_a_list_as_a_set_is_the_models_own():
    held = recommender()
    asked = held.known_users(torch.tensor([1, 2]))
    plain, covering = held.recommend(asked, 4), held.recommend(asked, 4, order="coverage")
    assert torch.equal(covering.items, plain.items.flip(1))
    other = served(build("item_source_bias"))
    with pytest.raises(ValueError, match=r"list 'coverage' is none that ours makes; it makes probability"):
        recommender(lists=other).recommend(asked, 4, order="coverage")


@pytest.mark.parametrize("exact", [True, False])
def test_reasons_are_what_the_score_loses_without_them(exact):
    held = recommender(lists=served(Linear(exact=exact)))
    asked = held.known_users(torch.tensor([1, 0]))
    items = torch.tensor([0, 3, 5])
    reasons = held.because(asked, 1, items)
    table = held.lists.model.table
    for item, found in zip(items.tolist(), reasons, strict=True):
        loss = {3: 5 * table[3, item].item(), 0: 2 * table[0, item].item(), 5: 4 * table[5, item].item()}
        expected = sorted((row for row in loss if loss[row] > 0), key=lambda row: -loss[row])
        assert found == expected
    assert held.lists.model.asked == (0 if exact else 4)


def test_of_a_long_history_the_latest_ratings_are_asked_about():
    held = recommender()
    asked = held.known_users(torch.tensor([0]))
    with patch.object(module, "LEFT_OUT", 1):
        [found] = held.because(asked, 0, torch.tensor([0]))
    assert set(found) <= {5}
    assert held.because(held.known_users(torch.tensor([3])), 0, torch.tensor([0, 1])) == [[], []]


def test_each_rating_is_left_out_once():
    mine = Ratings(torch.zeros(3).long(), torch.tensor([4, 5, 6]), torch.tensor([1.0, 2, 3]))
    out = without_each(mine)
    assert [out.items[out.users == user].tolist() for user in range(4)] == [[4, 5, 6], [5, 6], [4, 6], [4, 5]]
    latest = without_each(mine, kept=1)
    assert [latest.items[latest.users == u].tolist() for u in range(3)] == [[4, 5, 6], [4, 6], [4, 5]]


def test_what_is_kept_answers_the_same():
    held = recommender(stars=served(Linear()))
    settings, tensors = json.loads(json.dumps(held.settings())), held.tensors()
    restored = Recommender.restore(settings, tensors)
    assert restored.stars is not restored.lists
    rows = torch.arange(SOURCE_USERS)
    before, after = (each.recommend(each.known_users(rows), 4) for each in (held, restored))
    for name, value in vars(before).items():
        torch.testing.assert_close(getattr(after, name), value, equal_nan=True)
    shared = recommender()
    again = Recommender.restore(json.loads(json.dumps(shared.settings())), shared.tensors())
    assert again.stars is again.lists


def test_no_item_left_is_refused():
    with pytest.raises(ValueError, match="lower min_ratings"):
        recommender(allowed=torch.tensor([], dtype=torch.int64))


def test_times_are_kept_with_a_history_and_left_out_where_there_are_none():
    ratings = Ratings(
        torch.tensor([1, 0, 1]), torch.tensor([3, 4, 5]), torch.ones(3), torch.tensor([7.0, 8, 9])
    )
    held = UserRatings.of(ratings, 2)
    assert held.take(torch.tensor([1])).times.tolist() == [7, 9]
    assert without_each(held.take(torch.tensor([1]))).times.tolist() == [7, 9, 9, 7]
    timeless = UserRatings.of(dataclasses.replace(ratings, times=None), 2)
    assert timeless.take(torch.tensor([1])).times is None
