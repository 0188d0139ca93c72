"""What holds for everything of the registry: the contract, on one small cell that has all there is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ml.data import Predicted, Ratings, Users
from ml.models.contract import NEEDS, ORDERS, ROLES, Model
from ml.models.registry import MODELS, facts, find
from tests.ml.cells import ITEMS, Cell, cell, small

torch.set_num_threads(1)

ALL = torch.arange(ITEMS)
RATING = [name for name in MODELS if "rating" in facts(name).objectives]
# A random order is no property of the user, and who is mixed up depends on who is there.
BY_USER = [name for name in MODELS if name not in ("random", "permuted_source")]
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def cell_of(seed: int, needs: tuple[str, ...]) -> Cell:
    return cell(seed, needs)


def cells(name: str, seeds: Sequence[int] = (0, 1)) -> list[Cell]:
    return [cell_of(seed, facts(name).needs) for seed in seeds]


def trained(name: str, given: Sequence[Cell]) -> tuple[Model, list[int]]:
    """The model and the numbers of its epochs."""
    model = small(name)
    return model, [epoch.number for epoch in model.fit([each.data for each in given])]


@functools.cache
def of_two(name: str) -> Model:
    return trained(name, cells(name))[0]


def answers(model: Model, given: Cell, replica: int = 0) -> list[Tensor]:
    """All that is asked of a model about a cell's test users."""
    users, ratings = given.test.users, given.test.ratings
    found = [model.scores(users, ALL, replica), *model.top(users, 5, replica=replica)]
    if "rating" in model.objectives:
        predicted = model.predict(users, ratings, replica)
        found += [predicted.mean, predicted.median]
        found += [] if predicted.probabilities is None else [predicted.probabilities]
    return found


def shown(model: Model, scores: Tensor) -> Tensor:
    """What a list says of scores: who gives probabilities scores by their logarithm."""
    return scores.exp() if model.scored_by == "probability" else scores


@every_model
def test_its_facts_are_there(name):
    kind = find(name)
    assert kind.name == name
    assert kind.title
    assert kind.summary.endswith(".")
    assert kind.needs
    assert set(kind.needs) <= set(NEEDS)
    assert kind.objectives
    assert set(kind.objectives) <= {"rating", "ranking"}
    assert kind.role in ROLES
    assert kind.serves in ("anyone", "known", "")
    assert kind.scored_by in ("probability", "score")
    assert set(kind.orders) <= set(ORDERS)
    assert kind.settings_from in ("", "factors")
    assert kind.warms_by in ("", "samples", "choices")
    assert set(small(name).hyperparameters()) == set(facts(name).defaults)


@every_model
def test_it_computes_on_the_device_that_it_is_given_if_it_says_so(name):
    [given] = cells(name, [0])
    uses = pytest.raises(RuntimeError, match="nowhere") if find(name).on_device else contextlib.nullcontext()
    with uses:
        list(small(name).fit([given.data], "nowhere"))


@every_model
def test_fit_yields_as_often_as_was_said(name):
    model = small(name)
    training = model.fit([each.data for each in cells(name)])
    said = model.total_epochs  # the loop asks before the first epoch
    epochs = list(training)
    assert [epoch.number for epoch in epochs] == list(range(1, said + 1))
    for epoch in epochs:
        for values in epoch.losses.values():
            assert len(values) == 2
            assert torch.tensor(values).isfinite().all()
    assert model.total_epochs == said


@every_model
def test_it_may_be_asked_between_two_epochs(name):
    given, model = cells(name), small(name)
    for _ in model.fit([each.data for each in given]):
        for replica, each in enumerate(given):
            assert model.scores(each.test.users, ALL, replica).isfinite().all()
    assert model.items_of(0) == ITEMS


@pytest.mark.parametrize("name", RATING)
def test_predictions_are_finite_and_one_a_rating(name):
    for replica, each in enumerate(cells(name)):
        predicted = of_two(name).predict(each.test.users, each.test.ratings, replica)
        shape = (len(each.test.ratings),)
        assert predicted.mean.shape == predicted.median.shape == shape
        assert predicted.mean.isfinite().all()
        assert predicted.median.isfinite().all()
        if predicted.probabilities is not None:
            assert predicted.probabilities.shape == (*shape, len(predicted.levels))
            assert_close(predicted.probabilities.sum(1), torch.ones(shape))


@pytest.mark.parametrize("name", RATING)
def test_the_values_of_the_ratings_are_not_read(name):
    [given] = cells(name, [0])
    asked = given.test.ratings
    blank = Ratings(asked.users, asked.items, torch.zeros(len(asked)))
    one, other = (of_two(name).predict(given.test.users, rows) for rows in (asked, blank))
    assert torch.equal(one.mean, other.mean)


@every_model
def test_lists_are_the_best_scores_in_falling_order(name):
    model = of_two(name)
    for replica, each in enumerate(cells(name)):
        users = each.test.users
        scores = model.scores(users, ALL, replica)
        assert (scores.shape, scores.dtype) == ((len(users), ITEMS), torch.float32)
        items, found = model.top(users, 6, replica=replica)
        assert (items.shape, items.dtype, found.dtype) == ((len(users), 6), torch.int64, torch.float32)
        assert_close(found, shown(model, scores.topk(6).values))
        assert_close(found, shown(model, scores.gather(1, items)))
        assert all(len(set(row)) == 6 for row in items.tolist())


@every_model
def test_scores_are_of_the_items_that_are_asked_for(name):
    [given] = cells(name, [0])
    some = torch.tensor([7, 0, 12])
    whole = of_two(name).scores(given.test.users, ALL)
    assert_close(of_two(name).scores(given.test.users, some), whole[:, some])


@every_model
def test_lists_leave_out_what_is_excluded_and_name_only_what_is_allowed(name):
    [given] = cells(name, [0])
    model, users, among = of_two(name), given.test.users, torch.arange(1, ITEMS, 2)
    scores = shown(model, model.scores(users, ALL))
    barred = given.test.ratings
    items, found = model.top(users, len(among), barred, among=among)
    for user, (row, values) in enumerate(zip(items.tolist(), found, strict=True)):
        allowed = set(among.tolist()) - set(barred.items[barred.users == user].tolist())
        assert set(row) - {-1} == allowed
        assert_close(values[: len(allowed)], scores[user, row[: len(allowed)]])
        assert row[len(allowed) :] == [-1] * (len(among) - len(allowed))


@pytest.mark.parametrize("name", [name for name in MODELS if "coverage" in find(name).orders])
def test_lists_by_coverage_show_the_same_scores_of_what_may_be_listed(name):
    [given] = cells(name, [0])
    model, users, among = of_two(name), given.test.users, torch.arange(1, ITEMS, 2)
    scores = shown(model, model.scores(users, ALL))
    barred = given.test.ratings
    items, found = model.covering(users, 3, barred, among=among)
    assert items.shape == found.shape == (len(users), 3)
    for user, row in enumerate(items.tolist()):
        allowed = set(among.tolist()) - set(barred.items[barred.users == user].tolist())
        assert set(row) <= allowed
        assert len(set(row)) == 3
    assert_close(found, scores.gather(1, items))


@pytest.mark.parametrize("name", BY_USER)
def test_a_user_is_answered_for_alone_as_among_others(name):
    [given] = cells(name, [0])
    users = given.test.users
    together = of_two(name).scores(users, ALL)
    for user in (0, 3):
        alone = of_two(name).scores(users.take(torch.tensor([user])), ALL)
        assert_close(alone[0], together[user], rtol=1e-5, atol=1e-4)


@every_model
def test_what_is_restored_and_bound_answers_the_same(name):
    given, model = cells(name), of_two(name)
    restored = small(name).load_state_dict(*(model.state_dict(r) for r in range(2)))
    restored.bind([each.data for each in given])
    for replica, each in enumerate(given):
        assert all(
            torch.equal(one, other)
            for one, other in zip(
                answers(model, each, replica), answers(restored, each, replica), strict=True
            )
        )
    second = small(name).load_state_dict(model.state_dict(1)).bind([given[1].data])
    for one, other in zip(answers(model, given[1], 1), answers(second, given[1]), strict=True):
        assert torch.equal(one, other)


@every_model
def test_a_state_is_of_plain_tensors_that_training_on_does_not_change(name):
    model = small(name)
    kept: list[dict[str, Tensor]] = []
    copies: list[dict[str, Tensor]] = []
    for _ in model.fit([each.data for each in cells(name, [0])]):
        kept.append(model.state_dict())
        copies.append({key: value.clone() for key, value in kept[-1].items()})
        assert all(value.device.type == "cpu" and not value.requires_grad for value in kept[-1].values())
    for state, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(state[key], value) for key, value in copy.items())


@pytest.mark.parametrize("name", [name for name in MODELS if facts(name).serves])
def test_who_serves_needs_the_cell_no_more(name):
    given, model = cells(name), of_two(name)
    served = small(name).load_state_dict(model.state_dict(1)).load_bound(model.bound(1))
    for one, other in zip(answers(model, given[1], 1), answers(served, given[1]), strict=True):
        assert torch.equal(one, other)


@every_model
def test_two_replicas_together_are_each_trained_alone(name):
    given = cells(name)
    together = of_two(name)
    for replica, each in enumerate(given):
        alone, _ = trained(name, [each])
        scores = together.scores(each.test.users, ALL, replica)
        assert_close(scores, alone.scores(each.test.users, ALL), rtol=1e-4, atol=1e-4)
        if "rating" in together.objectives:
            found, expected = (
                model.predict(each.test.users, each.test.ratings, number)
                for model, number in ((together, replica), (alone, 0))
            )
            assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-4)


@every_model
def test_training_repeats(name):
    [given] = cells(name, [0])
    one, other = (trained(name, [given])[0].scores(given.test.users, ALL) for _ in range(2))
    assert torch.equal(one, other)


@every_model
def test_rows_of_an_epoch_are_counted(name):
    [given] = cells(name, [0])
    rows = small(name).rows(given.data)
    assert isinstance(rows, int)
    assert rows >= 0


class Constant(Model):
    """The least that meets the contract."""

    name = "constant"
    title = "Constant"
    summary = "the same for all."

    def fit(self, data, device="cpu"):
        yield None

    def predict(self, users: Users, ratings: Ratings, replica: int = 0) -> Predicted:
        return Predicted.points(torch.full((len(ratings),), 3.0))

    def scores(self, users: Users, items: Tensor, replica: int = 0) -> Tensor:
        return torch.zeros(len(users), len(items))

    def state_dict(self, replica: int = 0) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, *states: dict[str, Tensor]) -> Constant:
        return self

    def items_of(self, replica: int = 0) -> int:
        return ITEMS


def test_of_equal_scores_the_lower_item_comes_first():
    [given] = cells("item_mean", [0])
    items, _ = Constant().top(given.test.users, 4)
    assert (items == torch.arange(4)).all()


def test_lists_by_coverage_are_refused_by_who_makes_none():
    [given] = cells("item_mean", [0])
    with pytest.raises(LookupError, match="constant makes no lists by coverage"):
        Constant().covering(given.test.users, 4)
