"""Cross-domain recommendation of two DataFrames, as scikit-learn's estimators are used.

The models, their training and their answers are those of the pipeline; what the pipeline adds are files,
trials of settings, tables, and a server.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ml.cold_start import ColdStart
from ml.data import HeldOut, Ratings
from ml.evaluation.cold_start import crps_of, list_metrics, rating_metrics, user_error_sums
from ml.evaluation.lists import list_scores
from ml.evaluation.selection import OBJECTIVES, RANKING, RATING, Objective, chosen_epoch
from ml.evaluation.significance import paired_bootstrap
from ml.frames import COLUMNS, Domain, checked
from ml.models.contract import ORDERS, Model
from ml.models.registry import build, facts
from ml.prepared import Prepared
from ml.recommender import Asked, Recommender, Served, UserRatings
from ml.splits import TEST, TRAIN, VALIDATION, assign_roles

log = logging.getLogger("diffcdr")
LISTED = 20
PURPOSE = "frames"
STARS_AGAINST = ("item_mean", "item_source_bias", "star_logit")
LISTS_AGAINST = ("popularity", "user_neighbourhood", "item_regression")
RESAMPLES = 1_000
STAR_METRICS = {"mae": "absolute", "rmse": "squared", "crps": "crps"}  # what is summed of each user
LIST_METRICS = ("ndcg@20", "recall@20", "hr@20")


class CrossDomainRecommender(BaseEstimator):
    """Recommends items of a target domain to users who are known from a source domain.

    lists, stars: models of `ml.models.registry`, one that makes lists and one that predicts ratings, by name
    or as `module:Class`; validation: share of the users of both domains by whom epochs and shrinkage are
    chosen, from whom nothing else is learned; seed: every draw follows from it; columns: what the frames'
    columns are called, in place of user, item, rating and timestamp (which may be absent); source_scale,
    target_scale: lowest and highest rating, those that occur where not given; device: where it is trained.

    After `fit`: `recommender_`, which answers; `source_` and `target_`, the domains with their ids;
    `n_shared_`, users of both.
    """

    def __init__(
        self,
        lists: str = "choice_diffusion",
        stars: str = "star_diffusion",
        *,
        validation: float = 0.1,
        seed: int = 0,
        columns: Mapping[str, str] | None = None,
        source_scale: tuple[float, float] | None = None,
        target_scale: tuple[float, float] | None = None,
        device: str = "cpu",
    ) -> None:
        self.lists = lists
        self.stars = stars
        self.validation = validation
        self.seed = seed
        self.columns = columns
        self.source_scale = source_scale
        self.target_scale = target_scale
        self.device = device

    def fit(self, source: pd.DataFrame, target: pd.DataFrame) -> Self:
        """Learn from the ratings of both domains, one a row; users of both have the same id in both.

        Raises ValueError for a frame that cannot be used (it names the column and row), for a model that
        does not exist or is not for what it is asked, and where fewer than three users are in both.
        """
        check_model(self.lists, RANKING)
        check_model(self.stars, RATING)
        self.source_ = Domain.of(source, "source", self._columns, self.source_scale)
        self.target_ = Domain.of(target, "target", self._columns, self.target_scale)
        shared = self._shared()
        self.n_shared_ = len(shared[0])
        # Who is drawn for testing elsewhere is drawn for validation here.
        roles = assign_roles(self.n_shared_, self.validation, self.seed, PURPOSE, validation=0)
        roles = np.where(roles == TEST, VALIDATION, TRAIN).astype(np.int8)
        prepared = self._prepared(shared, roles, self.seed)
        stars = _served(prepared, self.stars, RATING, self.device)
        lists = _served(prepared, self.lists, RANKING, self.device)
        self.recommender_ = _recommender(prepared, lists, stars)
        return self

    def recommend(
        self,
        users: Sequence | None = None,
        histories: pd.DataFrame | None = None,
        k: int = 10,
        order: str = ORDERS[0],
        because: bool = False,
    ) -> pd.DataFrame:
        """The k items that each user should be shown, best first.

        users: ids of the source domain; all who are not in the target domain where neither is given.
        histories: source ratings of users who need not be in the domain, in the columns of `fit`. order:
        `probability`, or `coverage` where the model makes such lists. Items that a known user has rated are
        not listed.

        Returns a frame with `user`, `rank` from 1, `item`, `probability` (or `score`, of a model whose scores
        only order), `rating` and `median`, the stars that are expected; with `because` the source items that
        speak most for the item, a list. Raises ValueError for a user or item that is not in the source
        domain, and where both are given.
        """
        check_is_fitted(self, "recommender_")
        if users is not None and histories is not None:
            raise ValueError("users are known or have a history: give `users` or `histories`, not both")
        ids, asked = self._known(users) if histories is None else self._new(histories)
        listed = self.recommender_.recommend(asked, k, order)
        who, place = (listed.items >= 0).nonzero(as_tuple=True)
        rows = listed.items[who, place].numpy()
        scored = self.recommender_.lists.model.scored_by
        frame = pd.DataFrame(
            {
                "user": ids[who.numpy()],
                "rank": place.numpy() + 1,
                "item": self.target_.items[rows],
                scored: listed.scores[who, place].numpy(),
                "rating": listed.mean[who, place].numpy(),
                "median": listed.median[who, place].numpy(),
            }
        )
        if because:
            frame["because"] = [
                [self.source_.items[row] for row in rows]
                for user in range(len(asked))
                for rows in self.recommender_.because(
                    asked, user, listed.items[user][listed.items[user] >= 0]
                )
            ]
        return frame

    def predict(self, pairs: pd.DataFrame) -> pd.Series:
        """The rating that is expected of each pair of a source `user` and a target `item`, with the index of
        `pairs`. Raises ValueError for a user or an item that is not in its domain."""
        check_is_fitted(self, "recommender_")
        wanted = checked(pairs, "pairs", ("user", "item"), self._columns)
        codes, ids = pd.factorize(wanted["user"])
        rows = self.source_.rows("users", pd.Series(ids), "pairs")
        items = self.target_.rows("items", wanted["item"], "pairs")
        asked = self.recommender_.known_users(torch.from_numpy(rows))
        predicted = self.recommender_.rate(asked, torch.from_numpy(codes), torch.from_numpy(items))
        return pd.Series(predicted.mean.float().numpy(), index=pairs.index, name="rating")

    def evaluate(
        self,
        beta: float = 0.2,
        seeds: Sequence[int] = (0,),
        against: Sequence[str] = LISTS_AGAINST + STARS_AGAINST,
    ) -> pd.DataFrame:
        """How well cold users of the frames of `fit` are foreseen, beside simple models.

        Of each seed a share `beta` of the users of both domains is held out, and all is trained anew without
        their target ratings. against: models to compare with, each for what it can be trained for.

        Returns a frame with `question` (lists or stars), `metric`, `model`, its `value` over all held-out
        users, and the `gain` of the recommender's own model over it with its 95 % interval `low` to `high`
        over users (drawn again 1,000 times); of errors a negative gain is the better one.
        """
        check_is_fitted(self, "recommender_")
        shared = self._shared()
        cells = []
        for seed in seeds:
            roles = assign_roles(self.n_shared_, beta, seed, PURPOSE, self.validation)
            cells.append(self._prepared(shared, roles, seed))
        rows = []
        for question, objective, own in (("lists", RANKING, self.lists), ("stars", RATING, self.stars)):
            ours = self._measured(cells, own, objective)
            rows += ours.rows(question, own)
            for name in against:
                if name != own and objective.name in facts(name).objectives:
                    rows += self._measured(cells, name, objective).rows(question, name, ours)
        return pd.DataFrame(rows)

    def _measured(self, cells: Sequence[Prepared], name: str, objective: Objective) -> _Sums:
        """One model of all cells, on their held-out users."""
        parts = []
        for number, prepared in enumerate(cells, 1):
            log.info("evaluate: %s for %s, seed %d of %d", name, objective.name, number, len(cells))
            parts.append(_measured(prepared, name, objective, self.device))
        return _Sums.joined(parts)

    @property
    def _columns(self) -> dict[str, str]:
        return {**COLUMNS, **(self.columns or {})}

    def _shared(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of the users of both domains in either."""
        shared = self.source_.users.intersection(self.target_.users)
        if len(shared) < 3:
            raise ValueError(
                f"{len(shared)} users are in source and target; at least 3 are needed to learn what carries "
                "over: look whether both frames name users alike"
            )
        return tuple(d.users.get_indexer(shared).astype(np.int64) for d in (self.source_, self.target_))

    def _prepared(self, shared: tuple[np.ndarray, np.ndarray], roles: np.ndarray, seed: int) -> Prepared:
        known = ColdStart(self.source_.ratings, self.target_.ratings, *shared, roles)
        return Prepared(self.source_, self.target_, known, seed)

    def _known(self, users: Sequence | None) -> tuple[pd.Index, Asked]:
        strangers = self.source_.users.difference(self.target_.users)
        ids = strangers if users is None else pd.Index(users)
        rows = self.source_.rows("users", pd.Series(ids), "users")
        return ids, self.recommender_.known_users(torch.from_numpy(rows))

    def _new(self, histories: pd.DataFrame) -> tuple[pd.Index, Asked]:
        ids, ratings = self.source_.histories(histories, "histories", self._columns)
        return ids, self.recommender_.new_users(ratings, len(ids))


def check_model(name: str, objective: Objective) -> None:
    """Raise ValueError where there is no such model, or it cannot be trained for the objective."""
    if objective.name not in facts(name).objectives:
        other = next(o for o in OBJECTIVES if o != objective.name)
        raise ValueError(
            f"{name} is trained for {other}, not for {objective.name}; choose another model for "
            f"{'lists' if objective is RANKING else 'stars'}"
        )
    if objective is RANKING and "factors" in facts(name).needs:
        raise ValueError(f"{name} makes lists from factors of choices, which the pipeline alone trains")


def _trained(prepared: Prepared, name: str, objective: Objective, device: str) -> Model:
    """The model at the epoch that is best on the validation users, or at its last where there are none."""
    needs = facts(name).needs
    data, judged_on = prepared.data(needs), prepared.held_out(needs, VALIDATION, "validation")
    model, curves, state = build(name), [], {}
    for epoch in model.fit([data], device):
        log.info("%s: epoch %d of %d", name, epoch.number, model.total_epochs)
        judged = None
        if judged_on is not None and model.total_epochs > 1:
            judged = _judged(model, judged_on, objective, prepared.target.scale)
        curves.append({"validation": judged, "test": {}})
        if chosen_epoch(curves, objective) == len(curves):
            state = model.state_dict()
    return build(name).load_state_dict(state).bind([data])


def _judged(
    model: Model, held: HeldOut, objective: Objective, scale: tuple[float, float]
) -> dict[str, float]:
    if objective is RANKING:
        return list_metrics(_lists(model, held), held.ratings, model.items_of())
    return rating_metrics(model.predict(held.users, held.ratings).clipped(scale), held.ratings)


def _lists(model: Model, held: HeldOut) -> Tensor:
    """The LISTED best items of each user, −1 where the domain has fewer."""
    found = model.top(held.users, min(LISTED, model.items_of()))[0]
    return torch.nn.functional.pad(found, (0, LISTED - found.shape[1]), value=-1)


def _served(prepared: Prepared, name: str, objective: Objective, device: str) -> Served:
    needs, model = facts(name).needs, _trained(prepared, name, objective, device)
    return Served(name, name, model, prepared.encoder(needs), prepared.everyone(needs))


def _recommender(prepared: Prepared, lists: Served, stars: Served) -> Recommender:
    known, source = prepared.known, prepared.source.ratings
    target = known.target.tensors()
    popularity = torch.bincount(
        target.items[torch.from_numpy(known.training_rows())], minlength=known.target.n_items
    )
    users = known.source_user()[target.users]
    mine = users >= 0
    rated = Ratings(users[mine], target.items[mine], target.values[mine])
    return Recommender(
        lists=lists,
        stars=stars,
        history=UserRatings.of(source.tensors(), source.n_users),
        rated=UserRatings.of(rated, source.n_users),
        popularity=popularity,
        allowed=popularity.nonzero()[:, 0],
        scale=prepared.target.scale,
    )


@dataclass(frozen=True)
class _Sums:
    """values: what is summed of each held-out user, (users,) each; weights: (users,), over what."""

    values: dict[str, np.ndarray]
    weights: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[_Sums]) -> _Sums:
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
        return cls(values, np.concatenate([part.weights for part in parts]))

    def rows(self, question: str, name: str, ours: _Sums | None = None) -> list[dict]:
        """One row a metric: the value, and the gain over it of `ours`, which are of the same users."""
        return [
            {"question": question, "metric": metric, "model": name, **self._row(metric, ours)}
            for metric in self.values
        ]

    def _row(self, metric: str, ours: _Sums | None) -> dict[str, float]:
        values, root = self.values[metric], metric == "rmse"
        mean = values.sum() / self.weights.sum()
        row = {"value": mean**0.5 if root else mean, "gain": np.nan, "low": np.nan, "high": np.nan}
        if ours is None:
            return row
        gain = paired_bootstrap(ours.values[metric], values, self.weights, RESAMPLES, root=root)
        return row | {"gain": gain.difference, "low": gain.low, "high": gain.high}


def _measured(prepared: Prepared, name: str, objective: Objective, device: str) -> _Sums:
    """A model trained without the test users' target ratings, on them."""
    held = prepared.held_out(facts(name).needs, TEST, "test")
    model = _trained(prepared, name, objective, device)
    if objective is RANKING:
        scores = list_scores(_lists(model, held), held.ratings, model.items_of())
        values = {metric: scores.values[metric].numpy() for metric in LIST_METRICS}
        return _Sums(values, np.ones(len(scores.users)))
    shown = model.predict(held.users, held.ratings).clipped(prepared.target.scale)
    sums = user_error_sums(shown.mean, shown.median, crps_of(shown, held.ratings), held.ratings, len(held))
    values = {metric: sums[of].numpy() for metric, of in STAR_METRICS.items()}
    return _Sums(values, sums["count"].numpy())
