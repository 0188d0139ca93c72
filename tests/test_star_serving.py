"""One star model behind `mlflow models serve`, for lists and stars: median and probabilities."""

import numpy as np
import pytest
import torch

from assets.serving.bundle import Bundle
from assets.serving.registry import save_pyfunc
from assets.state.tracking import _mlflow
from ml.data import Ratings, Users
from ml.distribution.contract import TransferRatings
from ml.distribution.diffusion import VectorDiffusion
from ml.distribution.effects import fit_effects
from ml.distribution.fold_in import EffectsFoldIn
from ml.distribution.model import StarDiffusion
from ml.encoder import SourceEncoder
from ml.evaluation.distribution import mean, median
from ml.recommender import Recommender, Served, UserRatings
from tests.test_serving import NOTE, Server, names

USERS, SOURCE_ITEMS, TARGET_ITEMS = 40, 15, 30
STARS = torch.arange(1.0, 6)


def rated(items: int, each: int, seed: int) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    users = torch.arange(USERS).repeat_interleave(each)
    columns = torch.cat([torch.randperm(items, generator=generator)[:each] for _ in range(USERS)])
    return Ratings(users, columns, STARS[torch.randint(5, (len(users),), generator=generator)])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Item t29 may not be listed, and nobody has rated anything in the target domain."""
    source, target = rated(SOURCE_ITEMS, 6, 0), rated(TARGET_ITEMS, 8, 1)
    effects = fit_effects(source, USERS, SOURCE_ITEMS, seed=0)
    description, every = effects.description(), torch.arange(USERS)
    data = TransferRatings(target, USERS, TARGET_ITEMS, every, description, seed=0)
    trained = StarDiffusion(epochs=1, diffusion=VectorDiffusion(steps=40)).trained(data)
    model = StarDiffusion().load_state_dict(trained.tensors())
    model.levels_ = [STARS.double()]
    names_of = ("items", "intercept", "levels", "basis", "prior_map", "prior_covariance")
    fold_in = EffectsFoldIn(*(getattr(effects, name) for name in names_of))
    encoder = SourceEncoder(("effects",), SOURCE_ITEMS, (1.0, 5.0), 3.0, effects=fold_in)
    users = Users(every, torch.full_like(every, -1), description=description)
    served = Served("diffcdr", "star_diffusion", model, encoder, users)
    nothing = Ratings(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0))
    recommender = Recommender(
        served,
        served,
        history=UserRatings.of(source, USERS),
        rated=UserRatings.of(nothing, USERS),
        popularity=torch.arange(TARGET_ITEMS),
        allowed=torch.arange(TARGET_ITEMS - 1),
        scale=(1.0, 5.0),
    )
    ids = names("u", USERS), names("s", SOURCE_ITEMS), names("t", TARGET_ITEMS)
    return Bundle("made up", "tiny|b20-s0", recommender, *ids, (1.0, 5.0))


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    _mlflow()
    served = Server(save_pyfunc(folder, bundle, "# Card"), folder / "log")
    try:
        served.wait()
        yield served
    finally:
        served.stop()


def probabilities(bundle: Bundle, description: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    model = bundle.recommender.lists.model.cell()
    return model.predict_pairs(description, torch.zeros_like(items), items)


def expected(bundle: Bundle, description: torch.Tensor, k: int) -> dict:
    p = probabilities(bundle, description, torch.arange(29))
    scores, items = mean(p, STARS).topk(k)
    each = zip(items.tolist(), scores.tolist(), median(p, STARS)[items].tolist(), strict=True)
    ranked = [
        {"item": f"t{item}", "rank": rank, "median": middle}
        | dict.fromkeys(("score", "rating"), pytest.approx(score, abs=1e-4))
        for rank, (item, score, middle) in enumerate(each, 1)
    ]
    return {"model": "diffcdr", "items": ranked}


def test_a_known_user_gets_the_items_of_the_highest_mean_rating(server, bundle):
    description = bundle.recommender.lists.users.description[[7]]
    assert server.predict({"user_id": "u7", "k": 3}) == [expected(bundle, description, 3)]


def test_a_new_user_is_folded_in_even_one_who_liked_nothing(server, bundle):
    history = [{"item": "s3", "rating": 2}, {"item": "s8", "rating": 1}]
    ratings = Ratings(torch.zeros(2).long(), torch.tensor([3, 8]), torch.tensor([2.0, 1.0]))
    description = bundle.recommender.new_users(ratings, 1).lists.description
    assert server.predict({"history": history, "k": 6}) == [expected(bundle, description, 6)]


def test_reasons_are_those_without_which_the_mean_falls(server):
    history = [{"item": "s3", "rating": 5}, {"item": "s8", "rating": 5}, {"item": "s2", "rating": 1}]
    [answer] = server.predict({"history": history, "k": 3, "because": True})
    for each in answer["items"]:
        assert set(each["because"]) <= {"s3", "s8", "s2"}
    assert any(each["because"] for each in answer["items"])


def test_who_rated_nothing_gets_popular_items(server):
    [answer] = server.predict({"history": [], "k": 2})
    assert (answer["model"], answer["note"]) == ("popularity", NOTE)
    assert [each["item"] for each in answer["items"]] == ["t28", "t27"]
    [stars] = server.predict({"history": [], "item_ids": ["t1"]})
    assert stars["note"] == "nothing is known of this user: what a mean user gives"


def test_ratings_come_with_median_and_probabilities(server, bundle):
    wanted = ["t4", "t29", "t4"]
    [answer] = server.predict({"user_id": "u7", "item_ids": wanted})
    description = bundle.recommender.lists.users.description[[7]]
    p = probabilities(bundle, description, torch.tensor([4, 29, 4]))
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
        {"user_id": "u3", "history": []},
        {"user_id": "u9", "item_ids": []},
    ]
    together = server.predict(*requests)
    assert [len(answer.get("items", answer.get("ratings", "?"))) for answer in together] == [2, 4, 1, 1, 0]
    for answer, request in zip(together, requests, strict=True):
        [alone] = server.predict(request)
        assert [e["item"] for e in answer.get("items", [])] == [e["item"] for e in alone.get("items", [])]


def test_a_rating_between_the_levels_is_named(server):
    [answer] = server.predict({"history": [{"item": "s1", "rating": 4.5}]})
    assert answer == {
        "error": "inputs[0].history[0].rating is 4.5, none of the levels 1, 2, 3, 4, 5; round it to one"
    }
