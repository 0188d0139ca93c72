"""Ranking over the full catalogue: the k items of highest u·v, their metrics, and what chance would score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import hypergeom
from torch import Tensor

from ml.data import Ratings, check_rows

# Scores held at a time (16 MiB of float32): with more, they would leave the cache before they are searched.
SCORES = 1 << 22
# Scores asked of a model at a time (64 MiB): more users at once, since a call has a cost of its own.
BLOCK = 1 << 24

INDEX_BITS = 32
LAST_INDEX = (1 << INDEX_BITS) - 1


class Diverged(ValueError):
    """A model's numbers are no numbers; nothing can be ranked by them."""


@torch.no_grad()
def top_k(
    user_factors: Tensor, item_factors: Tensor, k: int = 20, exclude: Ratings | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each user by u·v: items (n, k) int64 and scores (n, k) float32, best first.

    user_factors (n, width) and item_factors (items, width) are read as float32. Items that `exclude` names
    for a user (users in 0..n-1) are not recommended to them. A user with fewer than k items left has item -1
    with score -inf in the last places. Of equal scores the lower item row comes first, on every device.
    Raises ValueError where widths differ, k < 1, a factor is not finite or `exclude` names a missing row.
    """
    _check(user_factors, item_factors, k)
    for side, factors in (("user", user_factors), ("item", item_factors)):
        bad = (~factors.isfinite().all(1)).nonzero()
        if len(bad):
            raise Diverged(f"{side} factors of row {int(bad[0])} are not finite; the model has diverged")
    users, catalogue = user_factors.float(), item_factors.float().mT.contiguous()

    def product(rows: slice, out: Tensor) -> None:
        torch.mm(users[rows], catalogue, out=out)

    return _top(product, len(users), len(item_factors), k, exclude, user_factors.device, SCORES)


@torch.no_grad()
def top_by_scores(
    scores: Callable[[Tensor], Tensor],
    n_users: int,
    n_items: int,
    k: int = 20,
    exclude: Ratings | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The k best items of each user by any model's scores, as `top_k` gives them.

    scores: of a block of users (m,) int64, rows in 0..n_users-1, the scores (m, n_items) of all items. It is
    asked for BLOCK scores at a time, so that neither the model nor this holds the table of all users.
    Raises ValueError where k < 1, a score is NaN or `exclude` names a missing row.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")

    def ask(rows: slice, out: Tensor) -> None:
        found = scores(torch.arange(rows.start, min(rows.stop, n_users)))
        if found.isnan().any():
            row = rows.start + int(found.isnan().any(1).nonzero()[0])
            raise Diverged(f"the scores of user {row} are not numbers; the model has diverged")
        out.copy_(found)

    return _top(ask, n_users, n_items, k, exclude, device, BLOCK)


def placed(exclude: Ratings | None, among: Tensor | None, n_items: int) -> Ratings | None:
    """`exclude` with items as places in `among` (a,) int64; those that are not in it are left out."""
    if exclude is None or among is None:
        return exclude
    place = torch.full((n_items,), -1)
    place[among] = torch.arange(len(among))
    places = place[exclude.items]
    kept = places >= 0
    return Ratings(exclude.users[kept], places[kept], exclude.values[kept])


def named(places: Tensor, among: Tensor | None) -> Tensor:
    """The items at `places` of `among`; −1 stays."""
    return places if among is None else torch.where(places >= 0, among[places.clamp(min=0)], -1)


def _top(
    fill: Callable[[slice, Tensor], None],
    n: int,
    n_items: int,
    k: int,
    exclude: Ratings | None,
    device: torch.device | str,
    size: int,
) -> tuple[Tensor, Tensor]:
    """The k best of the scores that `fill` writes, of `size` at a time, for a slice of users."""
    # k·width candidates and columns/width blocks are to be searched: equally many at this width.
    width = max(16, math.ceil(math.sqrt(n_items / k) / 16) * 16)
    blocks = -(-max(n_items, k) // width)
    chunk = max(1, size // (blocks * width))
    scores = torch.full((min(n, chunk), blocks * width), -torch.inf, device=device)
    excluded = _by_chunk(exclude, n, n_items, chunk)
    best = torch.empty(n, k, dtype=torch.int64, device=device)
    for begin, (rows, items) in zip(range(0, n, chunk), excluded, strict=True):
        block = scores[: min(chunk, n - begin)]
        fill(slice(begin, begin + chunk), block[:, :n_items])
        block[rows.to(device), items.to(device)] = -torch.inf
        best[begin : begin + chunk] = _best_keys(block.view(len(block), blocks, width), k)
    values = _scores(best)
    return torch.where(values > -torch.inf, LAST_INDEX - (best & LAST_INDEX), -1), values


def _best_keys(scores: Tensor, k: int) -> Tensor:
    """Keys (n, k) of the k best columns of `scores` (n, blocks, width), best first.

    Exact: a column of the k best lies in one of the k blocks with the best maxima, since each block that is
    ahead of its own holds a better column. With equal scores it still does, as blocks are runs of columns.
    """
    blocks, width = scores.shape[1:]
    maxima = _keys(scores.amax(2), torch.arange(blocks, device=scores.device))
    chosen = torch.topk(maxima, min(k, blocks), sorted=False).indices[:, :, None]
    columns = chosen * width + torch.arange(width, device=scores.device)
    candidates = scores.gather(1, chosen.expand(-1, -1, width))
    return torch.topk(_keys(candidates, columns).flatten(1), k).values


def _keys(scores: Tensor, index: Tensor) -> Tensor:
    """int64 keys that sort by score, then by lower index. Adding 0 makes -0.0 equal to 0.0."""
    return (_ordered((scores + 0.0).view(torch.int32)).long() << INDEX_BITS) | (LAST_INDEX - index)


def _scores(keys: Tensor) -> Tensor:
    return _ordered((keys >> INDEX_BITS).int()).view(torch.float32)


def _ordered(bits: Tensor) -> Tensor:
    """Bits of float32 as integers of the same order, and back: negative floats sort by inverted magnitude."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _by_chunk(ratings: Ratings | None, n: int, n_items: int, chunk: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and items of the ratings of each run of `chunk` users, the rows counted from the run's first."""
    if ratings is None:
        nothing = torch.empty(0, dtype=torch.int64)
        return [(nothing, nothing)] * -(-n // chunk)
    check_rows("exclude.users", ratings.users, n)
    check_rows("exclude.items", ratings.items, n_items)
    users, order = ratings.users.sort()
    counts = torch.bincount(users // chunk, minlength=-(-n // chunk)).tolist()
    return list(zip((users % chunk).split(counts), ratings.items[order].split(counts), strict=True))


@torch.no_grad()
def rank_metrics(
    user_factors: Tensor,
    item_factors: Tensor,
    relevant: Ratings,
    k: int = 20,
    exclude: Ratings | None = None,
    above: float | None = None,
) -> dict[str, float]:
    """Metrics of ranking all items of the target domain by u·v, as means over users (paper section 5.1).

    user_factors: (n, width); item_factors: (items, width); `relevant`, with users in 0..n-1, holds the
    held-out ratings: each rated item is relevant with gain 1, or only those rated higher than `above`.
    Items in `exclude`, such as those a user was fine-tuned on, are not ranked. The i-th place counts
    1 / log2(i + 1).

    `ndcg@k`: DCG over the DCG of min(k, relevant) hits in the first places; `dcg@k`: the DCG itself;
    `ndcg_retrieved@k`: DCG over the DCG of the same hits in the first places, 0 without a hit;
    `recall@k`: mean over users of hits / relevant; `recall_micro@k`: all hits / all relevant;
    `hr@k`: share of users with any hit; `precision@k`: hits / k;
    `users`: users with a relevant item, the only ones in the metrics; `users_left_out`: the others.

    The paper's N@20 and H@20 are most likely `dcg@20` and `recall@20`: a random ranker's values of the
    metrics by those names do not fit its table. A factor that is not finite makes every metric NaN.
    Raises ValueError where shapes or rows do not fit, no user has a relevant item, or an item is both
    relevant and excluded.
    """
    _check(user_factors, item_factors, k)
    check_rows("relevant.users", relevant.users, len(user_factors))
    check_rows("relevant.items", relevant.items, len(item_factors))
    n_items, device = len(item_factors), user_factors.device
    wanted = _pairs(relevant, n_items)
    if above is not None:
        wanted = wanted[relevant.values > above]
    wanted = wanted.unique().to(device)
    users, counts = (wanted // n_items).unique_consecutive(return_counts=True)
    if len(users) == 0:
        raise ValueError(
            f"no user has a relevant item among {len(relevant)} held-out ratings; "
            "look at the split, or lower `above`"
        )
    exclude = _of_users(exclude, users, len(user_factors), wanted, n_items)
    chosen = user_factors[users]
    if chosen.isfinite().all() and item_factors.isfinite().all():
        items, _ = top_k(chosen, item_factors, k, exclude)
        hits = (items >= 0) & torch.isin(users[:, None] * n_items + items, wanted)
        metrics = _metrics(hits, counts)
    else:
        metrics = dict.fromkeys(_metrics(torch.zeros(1, k, device=device), counts[:1]), math.nan)
    return {**metrics, "users": float(len(users)), "users_left_out": float(len(user_factors) - len(users))}


def metrics_of_lists(lists: Tensor, relevant: Ratings, n_items: int) -> dict[str, float]:
    """The metrics of `rank_metrics` at k of lists (n, k) int64, −1 where a place is empty."""
    wanted = _pairs(relevant, n_items).unique().to(lists.device)
    users, counts = (wanted // n_items).unique_consecutive(return_counts=True)
    hits = (lists[users] >= 0) & torch.isin(users[:, None] * n_items + lists[users], wanted)
    return _metrics(hits, counts)


def _metrics(hits: Tensor, counts: Tensor) -> dict[str, float]:
    """Metrics of users whose i-th ranked item is relevant where `hits` (n, k), of `counts` (n,) relevant."""
    k = hits.shape[1]
    discount, ideal = (torch.from_numpy(x).to(hits.device) for x in _discounts(k))
    found = hits.sum(1)
    dcg = hits.double() @ discount
    means = {
        "ndcg": dcg / ideal[counts.clamp(max=k)],
        "dcg": dcg,
        "ndcg_retrieved": dcg / ideal[found.long().clamp(min=1)],
        "recall": found / counts.double(),
        "hr": (found > 0).double(),
        "precision": found.double() / k,
    }
    metrics = {f"{name}@{k}": value.mean().item() for name, value in means.items()}
    return {**metrics, f"recall_micro@{k}": (found.sum() / counts.sum().double()).item()}


def _discounts(k: int) -> tuple[np.ndarray, np.ndarray]:
    """1 / log2(i + 1) of the places i = 1..k, and the DCG of h hits in the first places for h = 0..k."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    return discount, np.concatenate([[0.0], discount.cumsum()])


def _of_users(exclude: Ratings | None, users: Tensor, n: int, wanted: Tensor, n_items: int) -> Ratings | None:
    """The part of `exclude` about `users` (m,), of a table of n, renumbered 0..m-1."""
    if exclude is None:
        return None
    check_rows("exclude.users", exclude.users, n)
    check_rows("exclude.items", exclude.items, n_items)
    both = torch.isin(_pairs(exclude, n_items).to(wanted.device), wanted).nonzero()
    if len(both):
        row = int(both[0])
        raise ValueError(
            f"exclude, row {row}: item {int(exclude.items[row])} is also a relevant item of user "
            f"{int(exclude.users[row])}; a rating may be in one of the two only"
        )
    position = torch.full((n,), -1, device=exclude.users.device)
    position[users.to(position.device)] = torch.arange(len(users), device=position.device)
    of_users = position[exclude.users] >= 0
    return Ratings(position[exclude.users[of_users]], exclude.items[of_users], exclude.values[of_users])


def _pairs(ratings: Ratings, n_items: int) -> Tensor:
    return ratings.users * n_items + ratings.items


def _check(user_factors: Tensor, item_factors: Tensor, k: int) -> None:
    if user_factors.shape[1:] != item_factors.shape[1:]:
        raise ValueError(
            f"user factors {tuple(user_factors.shape)} and item factors {tuple(item_factors.shape)} "
            "differ in width; transfer into the space of these items"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")


def random_expectation(
    n_items: int | np.ndarray | Tensor, relevant_counts: np.ndarray | Tensor, k: int = 20
) -> dict[str, float]:
    """What `rank_metrics` gives on average for a ranker that orders the items uniformly at random.

    relevant_counts: (n,) integers R, the relevant items of each user, who is left out where R = 0;
    n_items: N, the items ranked, for all users or (n,) where some are excluded for some users.

    The hits among the min(k, N) places are hypergeometric, and their places uniform. So with D(h) the DCG of
    h hits in the first places and p = min(k, N): E[DCG] = D(p) R/N, E[recall] = p/N, E[hits] = p R/N,
    E[hr] = 1 − P(0 hits), and E[DCG / D(h) | h hits] = (h/p) D(p) / D(h).
    Raises ValueError where a user has more relevant items than items, no user has any, or k < 1.
    """
    relevant = np.asarray(relevant_counts)
    items = np.broadcast_to(np.asarray(n_items), relevant.shape)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    bad = np.flatnonzero((relevant < 0) | (relevant > items))
    if len(bad):
        user = bad[0]
        raise ValueError(
            f"relevant_counts, user {user}: {relevant[user]} relevant items of {items[user]}; "
            "count each relevant item once, and only items that are ranked"
        )
    ranked = relevant > 0
    if not ranked.any():
        raise ValueError("no user has a relevant item: there is nothing to expect")
    # Few users differ in both numbers, and the hypergeometric probabilities are slow to compute.
    cases, users = np.unique(np.stack([items, relevant])[:, ranked], axis=1, return_counts=True)
    items, relevant = cases
    _, ideal = _discounts(k)
    places = np.minimum(k, items)
    dcg = ideal[places] * relevant / items
    found = places * relevant / items
    hits = np.arange(1, k + 1)
    chance = hypergeom.pmf(hits, *(x[:, None] for x in (items, relevant, places)))
    means = {
        "ndcg": dcg / ideal[np.minimum(k, relevant)],
        "dcg": dcg,
        "ndcg_retrieved": (chance * hits / ideal[1:]).sum(1) * ideal[places] / places,
        "recall": places / items,
        "hr": chance.sum(1),
        "precision": found / k,
    }
    return {
        **{f"{name}@{k}": float(np.average(value, weights=users)) for name, value in means.items()},
        f"recall_micro@{k}": float((users * found).sum() / (users * relevant).sum()),
        "users": float(ranked.sum()),
        "users_left_out": float((~ranked).sum()),
    }
