"""A small cell in which source choices say which target items are chosen."""

from __future__ import annotations

import torch

from ml.data import Data, HeldOut, Ratings, Users, ratings_of

ITEMS, GROUPS = 40, 4


def cell(seed: int = 0, n: int = 160, cold: int = 40) -> tuple[Data, HeldOut]:
    """n training users of GROUPS groups, each with its own quarter of either catalogue, and `cold` held-out
    ones. Two source users and one target user are of one domain alone."""
    generator = torch.Generator().manual_seed(seed)
    total = n + cold
    group = torch.arange(total) % GROUPS

    def draw(count: int) -> Ratings:
        users = torch.arange(total).repeat_interleave(count)
        own = group[users] * (ITEMS // GROUPS) + torch.randint(
            ITEMS // GROUPS, (len(users),), generator=generator
        )
        other = torch.randint(ITEMS, (len(users),), generator=generator)
        items = torch.where(torch.rand(len(users), generator=generator) < 0.85, own, other)
        pairs = torch.stack([users, items], 1).unique(dim=0)
        values = torch.randint(1, 6, (len(pairs),), generator=generator).float()
        return Ratings(pairs[:, 0], pairs[:, 1], values)

    source, target = draw(6), draw(4)
    alone = torch.tensor([total, total + 1])
    everyone = Ratings(
        torch.cat([source.users, alone]),
        torch.cat([source.items, alone % ITEMS]),
        torch.cat([source.values, torch.ones(2)]),
    )
    known = target.users < n
    rows = torch.arange(total)

    def users(chosen: torch.Tensor) -> Users:
        statistics = torch.zeros(len(chosen), 5, dtype=torch.float64)
        return Users(chosen, chosen, ratings=ratings_of(source, chosen, total), statistics=statistics)

    data = Data(
        seed=seed,
        source=everyone,
        target=Ratings(
            torch.cat([target.users[known], torch.tensor([total])]),
            torch.cat([target.items[known], torch.tensor([0])]),
            torch.cat([target.values[known], torch.ones(1)]),
        ),
        n_source_users=total + 2,
        n_source_items=ITEMS,
        n_users=total + 1,
        n_items=ITEMS + 1,  # the last item has no training rating
        train=users(rows[:n]),
        training=ratings_of(target, rows[:n], total),
        source_user=torch.cat([rows, torch.tensor([-1])]),
    )
    return data, HeldOut(users(rows[n:]), ratings_of(target, rows[n:], total))
