"""Fine-tuning equals torch's Adam on the user table alone, replica by replica."""

import torch

from ml.data import Ratings
from ml.replicas import EpochPlan, replica_generator
from ml.warm_start import fine_tune


def problem(seed, n=7, items=5, k=3, m=40):
    g = torch.Generator().manual_seed(seed)
    ratings = Ratings(
        torch.randint(n, (m,), generator=g),
        torch.randint(items, (m,), generator=g),
        torch.randint(1, 6, (m,), generator=g).float(),
    )
    return torch.randn(n, k, generator=g), torch.randn(items, k, generator=g), ratings


def reference(users, items, ratings, seed, epochs, batch, lr):
    """The textbook loop: a parameter, autograd and torch.optim.Adam."""
    table = users.clone().requires_grad_()
    adam = torch.optim.Adam([table], lr=lr)
    generator = replica_generator(seed, "warm_start")
    for _ in range(epochs):
        order = EpochPlan.draw([len(ratings)], batch, [generator]).orders[0]
        for rows in order.split(batch):
            predicted = (table[ratings.users[rows]] * items[ratings.items[rows]]).sum(1)
            adam.zero_grad()
            ((predicted - ratings.values[rows]) ** 2).mean().backward()
            adam.step()
    return table.detach()


def test_replicas_of_different_sizes_equal_the_textbook_loop():
    one, two = problem(1, m=40), problem(2, n=4, m=9)
    settings = {"epochs": 3, "batch": 8, "lr": 0.05}
    *_, tuned = fine_tune(*(list(pair) for pair in zip(one, two, strict=True)), [3, 4], **settings)
    for got, (users, items, ratings), seed in zip(tuned, (one, two), (3, 4), strict=True):
        torch.testing.assert_close(
            got, reference(users, items, ratings, seed, **settings), rtol=1e-4, atol=1e-5
        )


def test_a_user_without_a_rating_stays_and_the_start_is_not_changed():
    users, items, ratings = problem(5)
    ratings = Ratings(ratings.users.clamp(max=5), ratings.items, ratings.values)
    before = users.clone()
    *_, (tuned,) = fine_tune([users], [items], [ratings], [0], epochs=2)
    assert torch.equal(users, before)
    assert torch.equal(tuned[6], before[6])
    assert not torch.equal(tuned[:6], before[:6])


def test_enough_epochs_reach_each_users_least_squares():
    users, items, ratings = problem(8, n=2, items=12, k=2, m=24)
    *_, (tuned,) = fine_tune([users], [items], [ratings], [0], epochs=600, batch=24, lr=0.05)
    for user in range(2):
        mine = ratings.users == user
        solution = torch.linalg.lstsq(items[ratings.items[mine]], ratings.values[mine, None]).solution[:, 0]
        torch.testing.assert_close(tuned[user], solution, rtol=1e-3, atol=1e-3)
