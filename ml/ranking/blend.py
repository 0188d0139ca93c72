"""A multinomial model of choices whose features are the scores of other rankers.

    p(i | u) = softmax over u's candidates of  w·x_ui + Σ_h c_h tanh(a_h·x_ui + b_h)              (1)

x_ui: log popularity of the item, each part's score as it is and its logarithm (a part that gives a logarithm:
that one alone), the log length of the source history and, where choices have times, how popular the item was
when the user chose (`ml.ranking.periods`), standardised. Without hidden units it is linear.
Candidates are the SHORT items of highest Σ 1/(10 + rank) over the parts' own orders (Cormack et al., SIGIR
2009): what decides a list of twenty is the order of the first hundred, and a likelihood over the whole
catalogue would be spent on the rest of it.

Fitted by the likelihood of what training users chose among their candidates, with scores of parts that have
not seen those choices: otherwise the part that remembers most would be trusted most. A training user's own
choice is left out of the popularity, too. The weights have a Gaussian prior, so that each user counts beside
it as one: with thousands of users it hardly matters, with some hundred it keeps the blend from a network
that remembers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from torch import Tensor

from ml.data import Users
from ml.descent import Adam
from ml.ranking.autoencoder import AutoEncoder
from ml.ranking.ials import CollectiveALS
from ml.ranking.neighbourhood import UserNeighbourhood
from ml.ranking.periods import BANDS, shares, timely, timely_of
from ml.ranking.ranker import Choices, HeldOutScores, Ranker, State, last, packed, part, transposed
from ml.ranking.regression import ItemRegression
from ml.replicas import replica_generator

SHORT = 100
SEARCHED = 150  # first places of each part's order that count
BLOCK = 1 << 23  # scores of one part held at a time
FLOOR = 0.05  # of a score, in units of its root mean square, under which its logarithm does not go


@dataclass(frozen=True)
class Candidates:
    """items (n, c) int64, c ≤ SHORT; features (n, c, f) float32; chosen (n, c), 1 where the user is
    known to have chosen it."""

    items: Tensor
    features: Tensor
    chosen: Tensor


class TimedRanker(Ranker):
    """A ranker that reads when users chose: its rows (m, s + PERIODS) are the choices and then, where the
    training choices had times, the shares of the periods."""

    needs: ClassVar[tuple[str, ...]] = ("ratings", "times")

    def source_of(self, users: Users, state: State) -> csr_matrix:
        rows = super().source_of(users, state)
        if "periods.edges" not in state:
            return rows
        return hstack([rows, shares(users.ratings, len(users), state["periods.edges"].numpy())]).tocsr()


def choices_and_times(state: State, rows: csr_matrix) -> tuple[csr_matrix, csr_matrix]:
    """Choices (m, s) and periods (m, PERIODS or 0) of a `TimedRanker`'s rows."""
    items = int(state["source_items"])
    return rows[:, :items], rows[:, items:]


@dataclass
class Blend(TimedRanker):
    """hidden: units h of (1); steps, batch, lr: Adam's; penalty: of the sum of squares of all weights beside
    the sum of the users' losses: of the prior N(0, 1 / (2 penalty)). Its parts have their own settings as
    `PARTS` gives them."""

    name: ClassVar[str] = "blend"
    title: ClassVar[str] = "Multinomial blend"
    summary: ClassVar[str] = "Weighs popularity, neighbourhood and regression by the likelihood of choices."
    source: ClassVar[str] = "McFadden's conditional logit on the scores of other rankers"
    warms_by: ClassVar[str] = "choices"
    role: ClassVar[str] = "learned"
    PARTS: ClassVar[Mapping[str, Ranker]] = {
        "neighbourhood": UserNeighbourhood(neighbours=100, popular=0.0),
        "regression": ItemRegression(normalised=False, penalty=3000.0, users=4096),
    }

    hidden: int = 0
    steps: int = 300
    batch: int = 128
    lr: float = 0.03
    penalty: float = 5.0

    def learn(self, choices: Choices, device: torch.device | str = "cpu") -> Iterator[State]:
        yield dict(self.learn_with_candidates(choices, device)[0])

    def learn_with_candidates(
        self, choices: Choices, device: torch.device | str = "cpu"
    ) -> tuple[State, Candidates, dict[str, HeldOutScores]]:
        """The state, the training users' candidates by scores that have not seen their choices, and those."""
        return choices.once(repr(self), partial(self._learn, choices, device))

    def _learn(
        self, choices: Choices, device: torch.device | str
    ) -> tuple[State, Candidates, dict[str, HeldOutScores]]:
        states, held_out = {}, {}
        for name, ranker in self.PARTS.items():
            states[name], held_out[name] = choices.once(
                repr(ranker), partial(learned, ranker, choices, device)
            )
        state = {
            "source_items": torch.tensor(choices.source.shape[1]),
            "popularity": torch.from_numpy(choices.popularity).float(),
            **periods_of(choices),
            **{f"{name}.{key}": value for name, mine in states.items() for key, value in mine.items()},
        }
        users = np.arange(len(choices))
        size = max(1, BLOCK // choices.target.shape[1])
        blocks = [users[begin : begin + size] for begin in range(0, len(users), size)]
        found = [
            self._raw_of_training({name: f(rows) for name, f in held_out.items()}, state, choices, rows)
            for rows in blocks
        ]
        items, raw = (torch.cat(parts) for parts in zip(*found, strict=True))
        columns = [column for column in range(raw.shape[2]) if column not in self._logarithmic()]
        state["blend.scale"] = torch.ones(raw.shape[2])
        state["blend.scale"][columns] = raw[..., columns].square().mean((0, 1)).sqrt().clamp(min=1e-9)
        features = self._expanded(raw, state["blend.scale"])
        state["blend.centre"] = features.mean((0, 1))
        state["blend.spread"] = features.std((0, 1), correction=0).clamp(min=1e-6)
        features = (features - state["blend.centre"]) / state["blend.spread"]
        candidates = Candidates(items, features, present(choices.target, items))
        state |= self._fit(candidates, choices.seed)
        return {name: value.contiguous() for name, value in state.items()}, candidates, held_out

    def _fit(self, candidates: Candidates, seed: int) -> State:
        generator = replica_generator(seed, self.name)
        width = candidates.features.shape[2]
        layers = {"weights": torch.zeros(width)}
        if self.hidden:
            layers["inner"] = torch.randn(width, self.hidden, generator=generator) * width**-0.5
            layers |= {"bias": torch.zeros(self.hidden), "outer": torch.zeros(self.hidden)}
        layers = {name: value.requires_grad_() for name, value in layers.items()}
        some = candidates.chosen.sum(1).nonzero()[:, 0]
        optimizer = Adam(layers, self.lr, self.steps, 0.02)
        for _ in range(self.steps):
            rows = some[torch.randint(len(some), (self.batch,), generator=generator)]
            logp = utility(layers, candidates.features[rows]).log_softmax(1)
            loss = choice_loss(logp, candidates.chosen[rows])
            # The loss is a mean over users: the prior is the less of it, the more they are.
            prior = self.penalty / len(some) * sum(value.square().sum() for value in layers.values())
            optimizer.descend(loss + prior)
        return {f"logit.{name}": value.detach() for name, value in layers.items()}

    def candidates(
        self,
        state: State,
        source: csr_matrix,
        also: csr_matrix | None = None,
        observed: csr_matrix | None = None,
    ) -> Candidates:
        """Of users with the rows `source`, those of `also` (m, t) among them; by what the parts say after the
        target choices `observed` (m, t), where given."""
        source, active = choices_and_times(state, source)
        scores = {}
        for name, ranker in self.PARTS.items():
            mine = part(state, name)
            scores[name] = (
                ranker.score(mine, source) if observed is None else ranker.score_after(mine, source, observed)
            )
        return self._standardized(state, *self._raw(scores, state, source, active, also))

    def of_items(self, state: State, source: csr_matrix, items: np.ndarray) -> Candidates:
        """The items (k,) as candidates of all users with the rows `source`."""
        source, active = choices_and_times(state, source)
        scores = [
            ranker.score_of(part(state, name), source, items).astype(np.float32)
            for name, ranker in self.PARTS.items()
        ]
        places = torch.from_numpy(items).repeat(source.shape[0], 1)
        tables = [torch.from_numpy(table) for table in scores]
        popular = (state["popularity"] + 0.5).log()[places]
        raw = self._columns(tables, popular, source)
        if "periods.edges" in state:
            raw = torch.cat([raw, popular_then(state, active, torch.from_numpy(items))], 2)
        return self._standardized(state, places, raw)

    def _standardized(self, state: State, items: Tensor, raw: Tensor) -> Candidates:
        features = self._expanded(raw, state["blend.scale"])
        features = (features - state["blend.centre"]) / state["blend.spread"]
        return Candidates(items, features, torch.zeros(items.shape))

    @torch.no_grad()
    def score(
        self,
        state: State,
        source: csr_matrix,
        also: csr_matrix | None = None,
        observed: csr_matrix | None = None,
    ) -> np.ndarray:
        """(1) without its normalisation; items that are no candidates follow, by popularity."""
        candidates = self.candidates(state, source, also, observed)
        return beyond_candidates(
            candidates.items, utility(part(state, "logit"), candidates.features), state["popularity"]
        ).numpy()

    def score_after(self, state: State, source: csr_matrix, observed: csr_matrix) -> np.ndarray:
        return self.score(state, source, observed, observed)

    @torch.no_grad()
    def score_of(self, state: State, source: csr_matrix, items: np.ndarray) -> np.ndarray:
        return utility(part(state, "logit"), self.of_items(state, source, items).features).numpy()

    def _logarithmic(self) -> list[int]:
        """Columns of the raw features that are logarithms or not a score at all."""
        parts = [n for n, ranker in enumerate(self.PARTS.values(), 1) if isinstance(ranker, AutoEncoder)]
        first = len(self.PARTS) + 1
        return [0, *parts, *range(first, first + 1 + len(BANDS))]

    def _raw(
        self,
        scores: dict[str, np.ndarray],
        state: State,
        source: csr_matrix,
        active: csr_matrix,
        also: csr_matrix | None = None,
        own: csr_matrix | None = None,
        when: csr_matrix | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Candidates (m, c) and [log popularity, the parts' scores, log history, what was popular then]:
        (m, c, parts + 2 or more). Of training users, own: (m, t), their choices; when: as in `When.own`."""
        popularity = state["popularity"]
        tables = [torch.from_numpy(table) for table in scores.values()]
        items = shortlist(tables, popularity, also)
        mine = [table.gather(1, items) for table in tables]
        others = popularity[items] if own is None else popularity[items] - present(own, items)
        raw = self._columns(mine, (others + 0.5).log(), source)
        if "periods.edges" in state:
            raw = torch.cat([raw, popular_then(state, active, items, when)], 2)
        return items, raw

    def _raw_of_training(
        self, scores: dict[str, np.ndarray], state: State, choices: Choices, users: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """`_raw` of training users (m,), their own choices left out."""
        source, when = choices.source[users], choices.when
        if when is None:
            return self._raw(scores, state, source, source[:, :0], own=choices.target[users])
        return self._raw(
            scores, state, source, when.active[users], own=choices.target[users], when=when.own[users]
        )

    def _columns(self, scores: Iterable[Tensor], popular: Tensor, source: csr_matrix) -> Tensor:
        """(m, c, parts + 2) of the parts' scores and the items' log popularity, (m, c) each."""
        mine = (
            score - popular if isinstance(ranker, AutoEncoder) else score
            for ranker, score in zip(self.PARTS.values(), scores, strict=True)
        )
        length = torch.from_numpy(np.diff(source.indptr)).float().log1p()
        return torch.stack([popular, *mine, length[:, None].expand_as(popular)], 2)

    def _expanded(self, raw: Tensor, scale: Tensor) -> Tensor:
        """Beside each score its logarithm."""
        scaled = raw / scale
        scores = [column for column in range(raw.shape[2]) if column not in self._logarithmic()]
        return torch.cat([scaled, (scaled[..., scores].clamp(min=0) + FLOOR).log()], 2)


@dataclass
class BlendAutoEncoder(Blend):
    name: ClassVar[str] = "blend_autoencoder"
    title: ClassVar[str] = "Blend with auto-encoder"
    on_device: ClassVar[bool] = True
    summary: ClassVar[str] = "The multinomial blend with the auto-encoder's log probabilities beside it."
    PARTS: ClassVar[Mapping[str, Ranker]] = {**Blend.PARTS, "autoencoder": AutoEncoder()}


@dataclass
class DeepBlend(Blend):
    """With a second regression, collective iALS at two confidences, and hidden units."""

    name: ClassVar[str] = "deep_blend"
    title: ClassVar[str] = "Blend of all rankers"
    on_device: ClassVar[bool] = True
    summary: ClassVar[str] = (
        "A small network over the scores of all other rankers, by the likelihood of choices."
    )
    PARTS: ClassVar[Mapping[str, Ranker]] = {
        **BlendAutoEncoder.PARTS,
        "even_regression": ItemRegression(normalised=True, penalty=10.0, users=4096),
        "als": CollectiveALS(rank=32, confidence=5.0),
        "sure_als": CollectiveALS(rank=32, confidence=20.0),
    }

    hidden: int = 16


def periods_of(choices: Choices) -> State:
    """What of a state says when items were chosen; nothing where that is not known."""
    if choices.when is None:
        return {}
    counts = choices.when.counts
    return {
        "periods.edges": torch.from_numpy(choices.when.edges),
        "periods.totals": torch.from_numpy(np.asarray(counts.sum(1), dtype=np.float64).ravel()),
        **packed("periods.counts", counts),
    }


def popular_then(state: State, active: csr_matrix, items: Tensor, own: csr_matrix | None = None) -> Tensor:
    """`timely` of the `items` (k,) of all users, or (m, c) of each; own: as there, of training users."""
    by_item, popularity = transposed("periods.counts", state), state["popularity"]
    share, totals = popularity / popularity.sum().clamp(min=1), state["periods.totals"].numpy()
    if items.dim() == 1:
        return timely(active, by_item[items.numpy()], totals, share[items])
    if own is None:
        return timely_of(active, by_item, totals, share, items)
    every = timely(active, by_item, totals, share, torch.from_numpy(own.toarray()).long())
    return every.gather(1, items[..., None].expand(-1, -1, len(BANDS)))


def learned(ranker: Ranker, choices: Choices, device: torch.device | str) -> tuple[State, HeldOutScores]:
    state = last(ranker.learn(choices, device))
    return state, ranker.held_out(choices, state, device)


def present(matrix: csr_matrix, items: Tensor) -> Tensor:
    """1 where the row of `matrix` (n, t) has the item of `items` (n, c): (n, c) float32."""
    rows, columns = (torch.from_numpy(x.astype(np.int64)) for x in matrix.nonzero())
    users = torch.arange(len(items))[:, None]
    return torch.isin(users * matrix.shape[1] + items, rows * matrix.shape[1] + columns).float()


def utility(layers: State, features: Tensor) -> Tensor:
    """Equation (1) without its normalisation: (..., c) of features (..., c, f)."""
    found = features @ layers["weights"]
    if "inner" in layers:
        found = found + torch.tanh(features @ layers["inner"] + layers["bias"]) @ layers["outer"]
    return found


def choice_loss(logp: Tensor, chosen: Tensor) -> Tensor:
    """Mean over users of −Σ log p(choice) / √choices: someone with many choices says more, but not as many
    times more as they have choices."""
    return -((chosen * logp).sum(1) / chosen.sum(1).clamp(min=1).sqrt()).mean()


def shortlist(tables: list[Tensor], popularity: Tensor, also: csr_matrix | None = None) -> Tensor:
    """Candidates (m, c), rising, by the reciprocal ranks in the parts' scores (m, t), and those of `also`.
    Scores of items without a choice are overwritten."""
    missing = popularity == 0
    count = int((~missing).sum())
    total = (popularity / popularity.sum().clamp(min=1) * 1e-3).repeat(len(tables[0]), 1)
    first = min(SEARCHED, count)
    places = 1 / (10 + torch.arange(first, dtype=torch.float32))
    for table in tables:
        best = table.masked_fill_(missing, -torch.inf).topk(first, dim=1).indices
        total.scatter_add_(1, best, places.expand(len(table), -1))
    total.masked_fill_(missing, -torch.inf)
    if also is not None:
        total[tuple(torch.from_numpy(x.astype(np.int64)) for x in also.nonzero())] += 10.0
    return total.topk(min(SHORT, count), dim=1).indices.sort(1).values


def beyond_candidates(items: Tensor, scores: Tensor, popularity: Tensor) -> Tensor:
    """Scores (m, t) of all items from those of the candidates (m, c)."""
    share = popularity / popularity.max().clamp(min=1)
    out = scores.amin(1, keepdim=True) - 2 + share
    return out.scatter(1, items, scores)
