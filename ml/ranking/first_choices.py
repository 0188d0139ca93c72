"""How lists get better once the first choices of a user in the target domain are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml.data import HeldOut
from ml.distribution.warming import split_first
from ml.evaluation.lists import list_scores
from ml.models.contract import Model

LISTED = 20


def scores_by_n(
    models: Mapping[str, Model], held_out: HeldOut, counts: Sequence[int], replica: int = 0
) -> list[dict[str, str | int | float]]:
    """Rows {model, n, users, ndcg@10, …} of the lists after each user's first n choices, n of `counts`.

    The ratings of `held_out` are in the order in which choices are made: of time, where there is time. Only
    users with more than the largest n choices, and of these the choices after it, so that every n is judged
    on the same; none where there is no such user. Choices seen are not listed.
    """
    rows: list[dict[str, str | int | float]] = []
    for n in sorted(counts):
        observed, later = split_first(held_out.ratings, n, max(counts))
        if len(later) == 0:
            return []
        for name, model in models.items():
            lists, _ = model.top_after(held_out.users, observed, LISTED, replica)
            means = list_scores(lists, later, model.items_of(replica)).means()
            del means["users_left_out"]
            rows.append({"model": name, "n": n, **means, "users": int(means["users"])})
    return rows
