"""How good lists are: for each user, beyond accuracy, by kind of item and of user, and sampled.

A list is a row of `lists` (n, k) int64, best first, −1 where a place is empty, as `top_k` gives it. Relevant
is what `relevant` names; users without a relevant item are left out of every mean, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data import Ratings, check_rows
from ml.evaluation.ranking import BLOCK

CUTS = (10, 20)
METRICS = ("ndcg", "recall", "hr", "mrr")
NEGATIVES = 999
GROUP = 16  # users who share one draw of negatives, each leaving out their own relevant items
# Sizes of a source history at which a group of users begins.
LENGTHS = (0, 1, 5, 10, 20, 50)


@dataclass(frozen=True)
class ListScores:
    """users: (m,) int64, those with a relevant item; values: "ndcg@10" and so on, each (m,) float64, one a
    user, for paired tests; left_out: users without a relevant item."""

    users: Tensor
    values: dict[str, Tensor]
    left_out: int

    def means(self) -> dict[str, float]:
        """The mean over users of each metric, `users` and `users_left_out`."""
        means = {name: value.mean().item() for name, value in self.values.items()}
        return {**means, "users": float(len(self.users)), "users_left_out": float(self.left_out)}


def list_scores(
    lists: Tensor, relevant: Ratings, n_items: int, cuts: Sequence[int] = CUTS, above: float | None = None
) -> ListScores:
    """Each user's metrics over the first k places, for k in `cuts`.

    relevant: held-out ratings, users in 0..n−1; with `above` those rated higher alone. `ndcg@k`: the i-th
    place counts 1 / log2(i + 1), over what min(k, relevant) hits in the first places give; `recall@k`: hits /
    relevant; `hr@k`: 1 with any hit; `mrr@k`: 1 / place of the first hit, 0 without one.
    Raises ValueError for lists shorter than a cut or with an item twice, rows outside the tables, and where
    no user has a relevant item.
    """
    _check_lists(lists, n_items, max(cuts))
    hits, users, counts = _hits(lists, relevant, n_items, above)
    discount = 1 / torch.arange(2, lists.shape[1] + 2, dtype=torch.float64).log2()
    ideal = discount.cumsum(0)
    places = torch.arange(1, lists.shape[1] + 1, dtype=torch.float64)
    values = {}
    for k in cuts:
        found = hits[:, :k].double()
        best = ideal[counts.clamp(max=k) - 1]
        values[f"ndcg@{k}"] = found @ discount[:k] / best
        values[f"recall@{k}"] = found.sum(1) / counts
        values[f"hr@{k}"] = (found > 0).any(1).double()
        values[f"mrr@{k}"] = (found / places[:k]).amax(1)
    return ListScores(users, values, len(lists) - len(users))


def _hits(
    lists: Tensor, relevant: Ratings, n_items: int, above: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Hits (m, k) bool, users (m,) and their numbers of relevant items (m,), of the users who have any."""
    wanted = _wanted(relevant, len(lists), n_items, above)
    users, counts = (wanted // n_items).unique_consecutive(return_counts=True)
    if len(users) == 0:
        raise ValueError(
            f"no user has a relevant item among {len(relevant)} held-out ratings; "
            "look at the split, or lower `above`"
        )
    rows = lists[users]
    return (rows >= 0) & torch.isin(users[:, None] * n_items + rows, wanted), users, counts


def _wanted(relevant: Ratings, n: int, n_items: int, above: float | None) -> Tensor:
    """Keys user · n_items + item of the relevant pairs, rising, each once."""
    check_rows("relevant.users", relevant.users, n)
    check_rows("relevant.items", relevant.items, n_items)
    keys = relevant.users * n_items + relevant.items
    return (keys if above is None else keys[relevant.values > above]).unique()


def _check_lists(lists: Tensor, n_items: int, k: int) -> None:
    if lists.dim() != 2 or lists.shape[1] < k:
        raise ValueError(f"lists are {tuple(lists.shape)}; give one row a user and at least {k} places")
    check_rows("lists", lists.flatten().clamp(min=0), n_items)
    ordered = lists.sort(1).values
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1).nonzero()
    if len(twice):
        raise ValueError(f"lists, row {int(twice[0])}: an item is listed twice")


def beyond_accuracy(lists: Tensor, popularity: Tensor, n_users: int) -> dict[str, float]:
    """What lists show to all users together, without what is relevant.

    popularity: (items,) users who have each item in training, of n_users; only items with any are candidates.
    `coverage`: share of the candidates that are in any list; `overlap`: share of places that the lists of two
    different users have in common, the mean over all pairs, 0 with one user; `self_information`: mean of
    −log2(popularity / n_users) over the listed, in bits.
    """
    _check_lists(lists, len(popularity), 1)
    shown = lists[lists >= 0]
    times = torch.bincount(shown, minlength=len(popularity)).double()
    n, k = lists.shape
    # A pair of lists shares an item once for each pair of users who are shown it.
    shared = (times * (times - 1)).sum().item()
    bits = -(popularity.double().clamp(min=1) / n_users).log2()
    return {
        "coverage": (times > 0).sum().item() / max(1, int((popularity > 0).sum())),
        "overlap": shared / (n * (n - 1) * k) if n > 1 else 0.0,
        "self_information": (times @ bits).item() / max(1, len(shown)),
        "items_listed": float((times > 0).sum()),
    }


def by_popularity(
    lists: Tensor, relevant: Ratings, popularity: Tensor, above: float | None = None
) -> list[dict[str, str | float]]:
    """Rows for `head`, `middle` and `tail`, each with a third of the training ratings: items by falling
    number of ratings, cut where a third and two thirds of all ratings are reached.

    `items`, `listed` (share of all places), `relevant` (share of the relevant items), and `recall`, the mean
    over the users who have a relevant item in the third.
    """
    _check_lists(lists, len(popularity), 1)
    order = popularity.sort(descending=True, stable=True).indices
    before = popularity[order].double().cumsum(0) - popularity[order]
    third = torch.empty_like(order)
    third[order] = (3 * before / popularity.sum().clamp(min=1)).long().clamp(max=2)
    third[popularity == 0] = 2
    n_items = len(popularity)
    wanted = _wanted(relevant, len(lists), n_items, above)
    hit = torch.isin(wanted, _keys(lists, n_items))
    shown = third[lists[lists >= 0]]
    rows = []
    for number, name in enumerate(("head", "middle", "tail")):
        mine = third[wanted % n_items] == number
        users = wanted[mine] // n_items
        counts = torch.bincount(users, minlength=len(lists)).double()
        found = torch.bincount(users[hit[mine]], minlength=len(lists)).double()
        some = counts > 0
        rows.append(
            {
                "third": name,
                "items": float((third == number).sum()),
                "listed": (shown == number).double().mean().item(),
                "relevant": mine.double().mean().item(),
                "users": float(some.sum()),
                "recall": (found[some] / counts[some]).mean().item() if some.any() else float("nan"),
            }
        )
    return rows


def _keys(lists: Tensor, n_items: int) -> Tensor:
    users = torch.arange(len(lists))[:, None].expand_as(lists)
    shown = lists >= 0
    return users[shown] * n_items + lists[shown]


def by_length(
    scores: ListScores, lengths: Tensor, edges: Sequence[int] = LENGTHS
) -> list[dict[str, float | None]]:
    """Mean metrics of users grouped by the length (n,) of their source history, from `edges[j]` up to the
    next edge. Groups without users are left out; the last one's `to` is None."""
    mine = lengths[scores.users]
    group = torch.bucketize(mine, torch.tensor(edges), right=True) - 1
    rows = []
    for number, start in enumerate(edges):
        chosen = group == number
        if chosen.any():
            end = edges[number + 1] - 1 if number + 1 < len(edges) else None
            means = {name: value[chosen].mean().item() for name, value in scores.values.items()}
            rows.append({"from": start, "to": end, "users": int(chosen.sum()), **means})
    return rows


@torch.no_grad()
def sampled_metrics(
    scores: Callable[[Tensor], Tensor],
    relevant: Ratings,
    popularity: Tensor,
    n_users: int,
    seed: int,
    k: int = 10,
    negatives: int = NEGATIVES,
) -> dict[str, float]:
    """Hit rate and nDCG of one relevant item among sampled others, to compare with papers that sample.

    Both depend on the sampling and may order models otherwise than the whole catalogue does (Krichene and
    Rendle, KDD 2020), hence their names. scores: as for `top_by_scores`; popularity: (items,). Each user has
    one sample without replacement of `negatives` candidates that are not relevant, or of all there are,
    uniform or by popularity, for all of their relevant items. Means over relevant items within a user, then
    over users. Of equal scores the lower item is ahead.
    """
    n_items = len(popularity)
    wanted = _wanted(relevant, n_users, n_items, None)
    people, counts = (wanted // n_items).unique_consecutive(return_counts=True)
    if len(people) == 0:
        raise ValueError(f"no user has a relevant item among {len(relevant)} held-out ratings")
    candidate = (popularity > 0).double()
    generator = torch.Generator().manual_seed(seed)
    ends = counts.cumsum(0)
    totals = {f"{name}@{k}_sampled_{how}": 0.0 for how in ("uniform", "popular") for name in ("hr", "ndcg")}
    chunk = max(1, BLOCK // n_items)
    for begin in range(0, len(people), chunk):
        users = people[begin : begin + chunk]
        first = int(ends[begin] - counts[begin])
        pairs = wanted[first : int(ends[begin + len(users) - 1])]
        row = torch.repeat_interleave(torch.arange(len(users)), counts[begin : begin + len(users)])
        item = pairs % n_items
        block = scores(users)
        for how, weight in (("uniform", candidate), ("popular", popularity.double())):
            drawn = _negatives(weight, row, item, len(users), negatives, generator)
            ahead = _ahead(block, row, item, drawn)
            each = 1 / counts[begin : begin + len(users)][row].double()
            hit = (ahead < k).double()
            totals[f"hr@{k}_sampled_{how}"] += (hit * each).sum().item()
            totals[f"ndcg@{k}_sampled_{how}"] += (hit * each / (ahead + 2.0).log2()).sum().item()
    return {name: total / len(people) for name, total in totals.items()}


def _negatives(
    weight: Tensor, row: Tensor, item: Tensor, users: int, count: int, generator: torch.Generator
) -> Tensor:
    """Items (users, c) drawn without replacement by `weight` (items,), −1 where too few are left.

    Items by falling log w + Gumbel noise are drawn one after the other without replacement (Efraimidis and
    Spirakis, 2006); a user takes the first `count` that are not relevant.
    """
    most = int(torch.bincount(row).max())
    size = min(count + most, int((weight > 0).sum()))
    noise = torch.empty(-(-users // GROUP), len(weight)).exponential_(generator=generator)
    drawn = (weight.log().float() - noise.log()).topk(size, dim=1).indices
    drawn = drawn.repeat_interleave(GROUP, 0)[:users]
    own = torch.zeros(users, len(weight), dtype=torch.bool)
    own[row, item] = True
    others = ~own.gather(1, drawn)
    return torch.where(others & (others.cumsum(1) <= count), drawn, -1)


def _ahead(scores: Tensor, row: Tensor, item: Tensor, drawn: Tensor) -> Tensor:
    """How many of the user's drawn items are ahead of each relevant one: (pairs,) int64."""
    theirs = scores.gather(1, drawn.clamp(min=0))[row]
    others, own = drawn[row], scores[row, item][:, None]
    ahead = (theirs > own) | ((theirs == own) & (others < item[:, None]))
    return (ahead & (others >= 0)).sum(1)
