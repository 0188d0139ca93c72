from __future__ import annotations

import itertools

import pytest
import torch

from ml.data import HeldOut, Ratings
from ml.models.statistics import Popularity
from ml.ranking.choices import ChoiceDiffusion, fit_taste, greedy_cover, slopes
from ml.ranking.first_choices import scores_by_n
from ml.ranking.ials import CollectiveALS
from ml.ranking.neighbourhood import UserNeighbourhood
from tests.ml.ranking.cells import ITEMS, cell
from tests.ml.ranking.test_rankers import QUICK, fitted


@pytest.fixture(scope="module")
def data():
    return cell()


@pytest.fixture(scope="module")
def model(data):
    return fitted(ChoiceDiffusion(**QUICK), data[0])


def test_probabilities_are_the_mean_over_samples_and_fall_along_the_list(model, data):
    items, p = model.lists(data[1].users, 15)
    assert (p.diff(dim=1) <= 0).all()
    everything = model.lists(data[1].users, ITEMS)[1]
    assert everything.sum(1).tolist() == pytest.approx([1] * len(everything), abs=1e-4)
    assert torch.equal(items, model.top(data[1].users, 15)[0])


def test_greedy_cover_is_the_best_next_item_at_each_place():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(3, 6, 8, generator=generator)
    weights = torch.rand(3, 6, generator=generator).softmax(1)
    free = torch.ones(3, 8, dtype=torch.bool)
    free[0, 2] = False
    found = greedy_cover(wanted, weights, free, 4)

    def share(user, places):
        return (weights[user] * (1 - (1 - wanted[user][:, places]).prod(1))).sum().item()

    for user in range(3):
        listed = found[user].tolist()
        assert len(set(listed)) == 4
        assert user or 2 not in listed
        for place in range(4):
            others = [i for i in range(8) if free[user, i] and i not in listed[:place]]
            best = max(share(user, [*listed[:place], i]) for i in others)
            assert share(user, listed[: place + 1]) == pytest.approx(best, rel=1e-5)
        best = max(
            share(user, list(c)) for c in itertools.combinations(range(8), 4) if free[user][[*c]].all()
        )
        assert share(user, listed) >= (1 - 1 / 2.7183) * best


def test_coverage_shows_two_tastes_where_the_order_shows_one():
    # Two of three samples want items 0 and 1, one wants item 2.
    wanted = torch.tensor([[[0.9, 0.8, 0.0], [0.9, 0.8, 0.0], [0.0, 0.0, 0.9]]])
    weights, free = torch.full((1, 3), 1 / 3), torch.ones(1, 3, dtype=torch.bool)
    assert greedy_cover(wanted, weights, free, 2).tolist() == [[0, 2]]
    assert (weights[:, None] @ wanted)[0, 0].topk(2).indices.tolist() == [0, 1]


def test_observed_and_excluded_items_are_not_listed_and_observed_ones_move_the_rest(model, data):
    users = data[1].users
    before, _ = model.lists(users, 10)
    observed = Ratings(torch.arange(len(users)), before[:, 3], torch.ones(len(users)))
    after, p = model.lists(users, 10, observed=observed)
    assert not (after == before[:, 3:4]).any()
    assert (p > 0).all()
    excluded, _ = model.lists(users, 10, "coverage", exclude=observed)
    assert not (excluded == before[:, 3:4]).any()
    kept = torch.stack([row[row != item] for row, item in zip(before, before[:, 3], strict=True)])
    assert not torch.equal(after[:, :9], kept)


def test_slopes_equal_autograd():
    generator = torch.Generator().manual_seed(1)
    offset, items = torch.randn(2, 5, generator=generator), torch.randn(2, 5, 3, generator=generator)
    chosen = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1.0, 0, 0, 0]])
    x = torch.randn(2, 3, generator=generator)

    def likelihood(user, point):
        return (chosen[user] * (offset[user] + items[user] @ point).log_softmax(0)).sum()

    gradient, curvature = slopes(offset, items, chosen, x)
    for user in range(2):
        f = lambda point, user=user: likelihood(user, point)  # noqa: E731
        torch.testing.assert_close(gradient[user], torch.autograd.functional.jacobian(f, x[user]))
        torch.testing.assert_close(curvature[user], -torch.autograd.functional.hessian(f, x[user]))


def test_taste_is_recovered_from_many_choices():
    generator = torch.Generator().manual_seed(2)
    n, c, spread = 400, 30, 1.0
    condition = torch.randn(n, 1, generator=generator)
    theta = torch.cat([0.8 * condition, torch.zeros(n, 1)], 1) + 0.5 * torch.randn(n, 2, generator=generator)
    items = torch.randn(n, c, 2, generator=generator)
    p = (items @ theta[:, :, None])[:, :, 0].softmax(1)
    drawn = torch.multinomial(p, 60, replacement=True, generator=generator)
    chosen = torch.zeros(n, c).scatter_add_(1, drawn, torch.ones(n, 60))
    offset = spread**2 / 2 * items.square().sum(2)  # what the fit takes off again
    state, white = fit_taste(offset, items, chosen, condition, spread, seed=0)
    assert state["prior.map"][1].tolist() == pytest.approx([0.8, 0.0], abs=0.1)
    assert (state["prior.factor"] @ state["prior.factor"].T).diagonal().tolist() == pytest.approx(
        [0.25, 0.25], abs=0.08
    )
    assert white.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("options", [{"vectors": "gaussian"}, {"vectors": "mean"}, {"offset": "popularity"}])
def test_ablations_run_and_differ(options, model, data):
    other = fitted(ChoiceDiffusion(**QUICK, **options), data[0])
    assert not torch.equal(
        other.scores(data[1].users, torch.arange(5)), model.scores(data[1].users, torch.arange(5))
    )


def test_settings_that_do_not_exist_are_refused(model, data):
    with pytest.raises(ValueError, match="vectors must be one of"):
        ChoiceDiffusion(vectors="normal")
    with pytest.raises(ValueError, match="kind must be one of"):
        model.lists(data[1].users, 3, "hits")


def test_lists_after_first_choices_are_judged_on_the_same_later_choices(model, data):
    train, held_out = data
    rankers = {
        "choices": model,
        "neighbourhood": fitted(UserNeighbourhood(neighbours=20), train),
        "als": fitted(CollectiveALS(rank=8, penalty=1.0), train),
        "popularity": fitted(Popularity(), train),
    }
    rows = scores_by_n(rankers, held_out, counts=(0, 2))
    assert {(row["model"], row["n"]) for row in rows} == set(itertools.product(rankers, (0, 2)))
    assert len({row["users"] for row in rows}) == 1
    for row in rows:
        assert 0 < row["ndcg@20"] <= 1
    assert scores_by_n(rankers, HeldOut(held_out.users, held_out.ratings), counts=(0, 30)) == []
