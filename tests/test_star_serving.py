"""A distribution over ratings behind `mlflow models serve`: answers with median and probabilities."""

import dataclasses

import numpy as np
import pytest
import torch

from assets.serving.recommendations import Bundle
from assets.serving.registry import save_pyfunc
from assets.settings.axes import Cell
from assets.state.tracking import _mlflow
from ml.data import Ratings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects
from ml.distribution.model import StarDiffusion, TransferRatings
from ml.distribution.recommender import DescribedUsers, EffectsFoldIn, StarRecommender
from ml.evaluation.distribution import mean, median
from tests.test_serving import Server, names

USERS, SOURCE_ITEMS, TARGET_ITEMS = 40, 15, 30
STARS = torch.arange(1.0, 6)


def rated(items: int, each: int, seed: int) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    users = torch.arange(USERS).repeat_interleave(each)
    columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(USERS)])
    return Ratings(users, columns, STARS[torch.randint(5, (len(users),), generator=generator)])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Item t29 may not be recommended."""
    source, target = rated(SOURCE_ITEMS, 6, 0), rated(TARGET_ITEMS, 8, 1)
    effects = fit_effects(source, USERS, SOURCE_ITEMS, seed=0)
    description = effects.description()
    model = StarDiffusion(epochs=1, diffusion=VectorDiffusion(steps=40))
    model.fit(TransferRatings(target, USERS, TARGET_ITEMS, torch.arange(USERS), description, seed=0))
    fold_in = EffectsFoldIn(*(getattr(effects, each.name) for each in dataclasses.fields(EffectsFoldIn)))
    recommender = StarRecommender(model, fold_in, torch.arange(TARGET_ITEMS), torch.arange(TARGET_ITEMS - 1))
    return Bundle(
        name="diffcdr",
        recommender=recommender,
        users=DescribedUsers(description),
        known=np.ones(USERS, dtype=bool),
        user_ids=names("u", USERS),
        source_ids=names("s", SOURCE_ITEMS),
        target_ids=names("t", TARGET_ITEMS),
        scale=(1.0, 5.0),
    )


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    _mlflow()
    served = Server(save_pyfunc(folder, bundle, Cell.parse("tiny|b20-s0"), "# Card"), folder / "log")
    try:
        served.wait()
        yield served
    finally:
        served.stop()


def expected(bundle: Bundle, rows: torch.Tensor, k: int) -> dict:
    p = bundle.recommender.model.predict(rows, torch.zeros(29).long(), torch.arange(29))
    scores, items = mean(p, STARS).topk(k)
    pairs = zip(items.tolist(), scores.tolist(), strict=True)
    ranked = [{"item": f"t{item}", "score": pytest.approx(score, abs=1e-4)} for item, score in pairs]
    return {"model": "diffcdr", "items": ranked}


def test_a_known_user_gets_the_items_of_the_highest_mean_rating(server, bundle):
    rows = bundle.users.description[[7]]
    assert server.predict({"user_id": "u7", "k": 3}) == [expected(bundle, rows, 3)]


def test_a_new_user_is_folded_in_even_one_who_liked_nothing(server, bundle):
    history = [{"item": "s3", "rating": 2}, {"item": "s8", "rating": 1}]
    ratings = Ratings(torch.zeros(2).long(), torch.tensor([3, 8]), torch.tensor([2.0, 1.0]))
    rows = bundle.recommender.fold(ratings, 1).description
    assert server.predict({"history": history, "k": 6}) == [expected(bundle, rows, 6)]
    twice = [{"item": "s3", "rating": 5}, *history]
    assert server.predict({"history": twice, "k": 6}) == server.predict({"history": history, "k": 6})


def test_who_rated_nothing_gets_popular_items(server):
    popular = [{"item": f"t{n}", "score": float(n)} for n in (28, 27)]
    assert server.predict({"history": [], "k": 2}) == [{"model": "popularity", "items": popular}]


def test_ratings_come_with_median_and_probabilities(server, bundle):
    wanted = ["t4", "t29", "t4"]
    [answer] = server.predict({"user_id": "u7", "item_ids": wanted})
    p = bundle.recommender.model.predict(
        bundle.users.description[[7]], torch.zeros(3).long(), torch.tensor([4, 29, 4])
    )
    assert [each["item"] for each in answer["ratings"]] == wanted
    np.testing.assert_allclose([each["rating"] for each in answer["ratings"]], mean(p, STARS), atol=1e-5)
    assert [each["median"] for each in answer["ratings"]] == median(p, STARS).tolist()
    assert list(answer["ratings"][0]["probabilities"]) == ["1", "2", "3", "4", "5"]
    for each, row in zip(answer["ratings"], p, strict=True):
        np.testing.assert_allclose(list(each["probabilities"].values()), row, atol=1e-5)


def test_one_call_answers_many_in_order(server):
    requests = [
        {"user_id": "u3", "k": 2},
        {"history": [{"item": "s0", "rating": 5}], "k": 4},
        {"user_id": "u3", "item_ids": ["t1"]},
        {"user_id": "u9", "item_ids": []},
    ]
    together = server.predict(*requests)
    assert [len(answer.get("items", answer.get("ratings"))) for answer in together] == [2, 4, 1, 0]
    assert server.predict() == []
    for answer, request in zip(together, requests, strict=True):
        [alone] = server.predict(request)
        assert [e["item"] for e in answer.get("items", [])] == [e["item"] for e in alone.get("items", [])]


BAD = [
    (
        {"history": [{"item": "s1", "rating": 4.5}]},
        "inputs[0].history[0].rating is 4.5, none of the levels 1, 2, 3, 4, 5; round it to one",
    ),
    ({"history": [{"item": "s1", "rating": 9}]}, "inputs[0].history[0].rating is 9, give 1 to 5"),
    (
        {"history": [{"item": "s1", "rating": float("nan")}]},
        "inputs[0].history[0].rating is nan, give 1 to 5",
    ),
    ({"user_id": "u1", "item_ids": ["x"]}, "inputs[0].item_ids[0]: unknown target item 'x'"),
    ({"user_id": "nobody"}, "inputs[0].user_id: unknown user 'nobody'"),
]


@pytest.mark.parametrize(("request_", "sentence"), BAD)
def test_a_bad_request_is_refused_in_one_sentence(server, request_, sentence):
    assert server.ask(request_) == (400, {"message": sentence})
    assert len(server.predict({"user_id": "u1", "k": 1})) == 1
