from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from implicit.cpu.als import AlternatingLeastSquares
from safetensors.torch import load, save
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from ml.evaluation.lists import list_scores
from ml.models.statistics import Popularity
from ml.ranking import autoencoder
from ml.ranking.autoencoder import AutoEncoder
from ml.ranking.blend import (
    Blend,
    BlendAutoEncoder,
    Candidates,
    DeepBlend,
    choice_loss,
    shortlist,
    utility,
)
from ml.ranking.choices import ChoiceDiffusion
from ml.ranking.graph import GraphFilter
from ml.ranking.ials import CollectiveALS
from ml.ranking.neighbourhood import UserNeighbourhood
from ml.ranking.ranker import Choices, last, rare_rows, weighted
from ml.ranking.regression import ItemRegression
from tests.ml.ranking.cells import ITEMS, cell

QUICK = dict(diffusion_steps=60, steps=20, samples=16)
RANKERS = [
    UserNeighbourhood(neighbours=20),
    ItemRegression(),
    CollectiveALS(rank=8, penalty=1.0),
    GraphFilter(rank=8),
    AutoEncoder(hidden=16, epochs=8, batch=32),
    Blend(),
    BlendAutoEncoder(),
    DeepBlend(),
    ChoiceDiffusion(**QUICK),
]


def fitted(model, *data):
    for _ in model.fit(data):
        pass
    return model


@pytest.fixture(scope="module")
def data():
    return cell()


@pytest.mark.parametrize("model", RANKERS, ids=lambda model: model.name)
def test_rankers_beat_popularity_and_come_back_from_their_state(model, data):
    train, held_out = data
    fitted(model, train)
    lists, scores = model.top(held_out.users, 20)
    assert (lists >= 0).all()
    assert not (lists == ITEMS).any(), "an item without a training rating is no candidate"
    assert (scores.diff(dim=1) <= 0).all()
    ndcg = list_scores(lists, held_out.ratings, ITEMS + 1).means()["ndcg@20"]
    popular = fitted(Popularity(), train).top(held_out.users, 20)[0]
    base = list_scores(popular, held_out.ratings, ITEMS + 1).means()["ndcg@20"]
    assert ndcg > 1.3 * base
    again = type(model)(**vars_of(model)).load_state_dict(load(save(model.state_dict())))
    assert torch.equal(again.top(held_out.users, 20)[0], lists)


def vars_of(model):
    return {name: value for name, value in vars(model).items() if name != "states_"}


def test_the_auto_encoders_sum_over_all_items_may_be_taken_in_parts(data, monkeypatch):
    model = fitted(AutoEncoder(epochs=1), data[0])
    state, source = model.state(0), Choices.of(data[0]).source[:5]
    monkeypatch.setattr(autoencoder, "COLUMNS", 7)
    listed = np.array([3, 1, 8])
    expected = model.score(state, source)[:, listed]
    np.testing.assert_allclose(model.score_of(state, source, listed), expected, atol=1e-5)


@pytest.mark.parametrize("model", RANKERS, ids=lambda model: model.name)
def test_a_replica_does_not_depend_on_its_neighbours(model):
    first, second = (cell(seed, n=60, cold=8) for seed in (0, 1))
    fitted(model, first[0], second[0])
    together = model.top(second[1].users, 20, replica=1)[0]
    alone = fitted(type(model)(**vars_of(model)), second[0]).top(second[1].users, 20)[0]
    assert torch.equal(together, alone)


def test_neighbourhood_of_a_case_computed_by_hand():
    source = csr_matrix(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=np.float32))
    target = csr_matrix(np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32))
    nobody = csr_matrix((1, 3), dtype=np.float32), csr_matrix((0, 2), dtype=np.float32)
    choices = Choices(source, target, *nobody, seed=0)
    model = UserNeighbourhood(neighbours=2, popular=0.0)
    state = last(model.learn(choices))
    query = csr_matrix(np.array([[1, 0, 0]], dtype=np.float32))
    common, rare = np.log(4 / 2), np.log(4 / 1)
    alike = common / np.hypot(common, rare)
    np.testing.assert_allclose(model.score(state, query), [[1 / (1 + alike), alike / (1 + alike)]], rtol=1e-6)


def test_regression_equals_ridge_and_its_held_out_scores_a_fit_without_the_user(data):
    choices = Choices.of(data[0])
    model = ItemRegression(normalised=False, penalty=30.0)
    state = last(model.learn(choices))
    rows = weighted(choices.source, choices.rarity).toarray()
    ridge = Ridge(alpha=30.0, fit_intercept=False).fit(rows, choices.target.toarray())
    np.testing.assert_allclose(model.score(state, choices.source), ridge.predict(rows), atol=2e-4)
    held = model.held_out(choices, state)(np.arange(3))
    for user in range(3):
        others = np.delete(np.arange(len(choices)), user)
        without = Ridge(alpha=30.0, fit_intercept=False).fit(rows[others], choices.target.toarray()[others])
        np.testing.assert_allclose(held[user], without.predict(rows[user : user + 1])[0], atol=2e-4)


def test_als_vectors_equal_the_librarys_fold_in(data):
    choices = Choices.of(data[0])
    model = CollectiveALS(rank=8, confidence=7.0, penalty=2.0)
    state = last(model.learn(choices))
    library = AlternatingLeastSquares(factors=8, alpha=7.0, regularization=2.0, num_threads=1)
    library.item_factors = torch.cat([state["source_vectors"], state["target_vectors"]]).numpy()
    both = csr_matrix(
        (choices.source.data, choices.source.indices, choices.source.indptr),
        shape=(len(choices), len(library.item_factors)),
    )
    expected = library.recalculate_user(np.arange(5), both[:5])
    np.testing.assert_allclose(model.vectors(state, choices.source[:5]), expected, atol=2e-3)


def test_held_out_scores_do_not_depend_on_the_users_own_choices(data):
    choices = Choices.of(data[0])
    changed = choices.target.tolil()
    changed[5] = 0
    changed[5, 7] = 1
    other = Choices(choices.source, changed.tocsr(), choices.source_alone, choices.target_alone, choices.seed)
    for model in (UserNeighbourhood(popular=0.0), ItemRegression(), CollectiveALS(rank=4, penalty=1.0)):
        pair = [model.held_out(c, last(model.learn(c)))(np.array([5])) for c in (choices, other)]
        np.testing.assert_allclose(*pair, atol=1e-5)


def test_rows_of_users_without_a_history_are_zero():
    rows = rare_rows(csr_matrix(np.array([[0, 0], [1, 1]], dtype=np.float32)), np.array([1.0, 2.0]))
    np.testing.assert_allclose(rows.toarray(), [[0, 0], [1 / 5**0.5, 2 / 5**0.5]], rtol=1e-6)


def test_candidates_are_the_best_of_all_parts_and_those_asked_for():
    scores = torch.arange(300.0)[None]
    popularity = torch.ones(300)
    popularity[299] = 0
    items = shortlist([scores, -scores], popularity)
    assert items.tolist() == [[*range(50), *range(249, 299)]]
    also = csr_matrix((np.ones(1), ([0], [150])), shape=(1, 300))
    assert 150 in shortlist([scores, -scores], popularity, also)


def test_few_users_teach_a_blend_no_more_than_they_know():
    generator = torch.Generator().manual_seed(0)

    def users(n: int, strength: float) -> Candidates:
        """Who choose by the first of 20 features, as far as `strength` says."""
        features = torch.randn(n, 50, 20, generator=generator)
        picked = torch.multinomial((strength * features[..., 0]).softmax(1), 4, generator=generator)
        chosen = torch.zeros(n, 50).scatter(1, picked, 1.0)
        return Candidates(torch.arange(50).repeat(n, 1), features, chosen)

    def gain(n: int, strength: float) -> float:
        """In log-likelihood of others, over every item alike."""
        state = DeepBlend()._fit(users(n, strength), seed=0)
        layers = {name.removeprefix("logit."): value for name, value in state.items()}
        others = users(1000, strength)
        found, alike = utility(layers, others.features), torch.zeros(1000, 50)
        return (
            choice_loss(alike.log_softmax(1), others.chosen)
            - choice_loss(found.log_softmax(1), others.chosen)
        ).item()

    assert gain(100, 0.0) > -0.3
    assert gain(100, 1.0) > 0.5
    assert gain(2000, 1.0) > 0.75


def test_predicting_ratings_is_refused(data):
    model = fitted(ItemRegression(), data[0])
    with pytest.raises(TypeError, match="predicts no ratings"):
        model.predict(data[1].users, data[1].ratings)
    with pytest.raises(RuntimeError, match="learned nothing"):
        GraphFilter().top(data[1].users, 5)


@pytest.mark.parametrize("name", ["item_regression", "choice_diffusion"])
def test_reasons_are_what_the_score_loses(name, data):
    train, held_out = data
    model = fitted(next(m for m in RANKERS if m.name == name), train)
    users = held_out.users.take(torch.arange(3))
    items = model.top(users, 4)[0]
    reasons, losses = model.because(users, items, most=2)
    assert reasons.shape == losses.shape == (3, 4, 2)
    state = model.state(0)
    places = (reasons[..., 0] >= 0).nonzero().tolist()
    assert len(places) >= 4
    for user, place in places:
        reason = int(reasons[user, place, 0])
        mine = users.ratings.items[users.ratings.users == user]
        assert reason in mine
        kept = (users.ratings.users == user) & (users.ratings.items != reason)
        columns = [mine.numpy(), users.ratings.items[kept].numpy()]
        full, less = (
            csr_matrix((np.ones(len(c), np.float32), c, [0, len(c)]), shape=(1, ITEMS)) for c in columns
        )
        listed = items[user].numpy()
        fall = model.score_of(state, full, listed) - model.score_of(state, less, listed)
        assert losses[user, place, 0].item() == pytest.approx(float(fall[0, place]), abs=1e-4)


@pytest.mark.parametrize("model", RANKERS, ids=lambda model: model.name)
def test_a_few_items_are_scored_as_among_all(model, data):
    """But for what a softmax over all takes off them alike."""
    train, held_out = data
    state = fitted(model, train).state(0)
    listed = model.top(held_out.users.take(torch.arange(1)), 6)[0][0].numpy()
    source = Choices.of(train).source[:1]
    apart = model.score(state, source)[:, listed] - model.score_of(state, source, listed)
    normalised = model.name == "choice_diffusion"
    np.testing.assert_allclose(apart, apart.mean() if normalised else 0, atol=0.05 if normalised else 1e-4)


def test_what_models_of_a_cell_share_is_learned_once_and_left_as_it_is(data):
    train, _ = data
    choices = Choices.of(train)
    assert Choices.of(train) is choices
    first = fitted(DeepBlend(), train).state_dict()
    calls = []
    choices.once("new", lambda: calls.append(1))
    choices.once("new", lambda: calls.append(1))
    assert calls == [1]
    fitted(ChoiceDiffusion(**QUICK), train)
    choices.shared.clear()
    again = fitted(DeepBlend(), train).state_dict()
    assert first.keys() == again.keys()
    for name, value in first.items():
        torch.testing.assert_close(again[name], value)


def test_choices_of_other_cells_are_kept_while_they_are_few(data, monkeypatch):
    train, _ = data
    cells = [dataclasses.replace(train, seed=seed) for seed in range(3)]
    one = sum(len(ratings.users) for ratings in (train.source, train.target))
    monkeypatch.setattr("ml.ranking.ranker.RECENT", OrderedDict())
    monkeypatch.setattr("ml.ranking.ranker.KEPT", 2 * one)
    first, second, third = map(Choices.of, cells)
    assert first.nnz == one
    assert (Choices.of(cells[2]), Choices.of(cells[1])) == (third, second)
    assert Choices.of(cells[0]) is not first
    monkeypatch.setattr("ml.ranking.ranker.KEPT", 1)
    assert Choices.of(cells[1]) is second
    assert Choices.of(cells[1]) is second


def test_a_choice_takes_eight_bytes(data):
    choices = Choices.of(data[0])
    for matrix in choices.matrices:
        assert (matrix.data.dtype, matrix.indices.dtype) == (np.float32, np.int32)


def test_a_pair_given_twice_is_one_choice(data):
    train, _ = data
    twice = train.source.take(torch.cat([torch.arange(len(train.source)), torch.arange(9)]))
    choices = Choices.of(type(train)(**{**vars(train), "source": twice}))
    assert (choices.source != Choices.of(train).source).nnz == 0
