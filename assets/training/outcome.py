"""What training leaves of one cell, and how it is judged.

Every cell ends as the same folder of the store:
- `metrics.parquet`: one row per stage, selection rule and metric;
- `curves.parquet`: losses and metrics by epoch;
- `validation.parquet`: the validation metrics that models are compared by, where there are validation users;
- `weights.safetensors`, where the model has any, and `config.json`: what `restored` makes it of again;
- `user_errors.parquet`: each test user's sums of errors (rating); `coverage.parquet`: where the errors are
  (rating); `calibration.parquet`: of predicted distributions; `throughput.parquet`: how fast it was;
- `lists.parquet`: each test user's list; `list_scores.parquet`: its metrics (ranking); `list_groups.parquet`:
  metrics by popularity of the items and length of the history, and beyond accuracy;
- `trials.parquet`: the settings that were tried and their validation errors, where there were several;
  `study.json`: the space that they were drawn from, and how.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import SIDES, Gate, training_rows
from assets.data.domain import domain_ratings
from assets.data.warm import warm_halves
from assets.state.progress import Stopwatch
from assets.state.store import Entry, parquet, tensors

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import HeldOut, Predicted
    from ml.evaluation.crossfit import FoldSums
    from ml.evaluation.selection import Objective
    from ml.models.contract import Model
    from ml.replicas import Epoch

log = logging.getLogger("diffcdr")
LISTED = 20  # items of a list


@dataclass
class Outcome:
    """What training leaves of one cell. `vectors`, `items`, `predicted` and `weights` are those of the epoch
    chosen so far.

    settings: the model's kind and hyper-parameters; vectors: target user vectors of the held-out users by
    side, and the item vectors that they meet, of models that have them; predicted: of the test ratings;
    lists: (test users, LISTED) items, best first, where the objective is ranking;
    tried: sums on validation users of all epochs that this one was chosen from, those of other trials too;
    warm: metrics by epoch of fine-tuning, and `before` it, by side; trials: all that were tried, and
    the `study` that drew them from a space; speed: samples and seconds.
    """

    settings: dict[str, object] = field(default_factory=dict)
    curves: list[dict] = field(default_factory=list)
    vectors: "dict[str, Tensor]" = field(default_factory=dict)
    items: "Tensor | None" = None
    predicted: "Predicted | None" = None
    lists: "Tensor | None" = None
    weights: "dict[str, Tensor]" = field(default_factory=dict)
    tried: "list[FoldSums]" = field(default_factory=list)
    trials: list[dict] = field(default_factory=list)
    study: dict[str, object] = field(default_factory=dict)
    before: dict[str, dict] = field(default_factory=dict)
    warm: list[dict] = field(default_factory=list)
    warm_left_out: int = 0
    speed: dict[str, object] = field(default_factory=dict)

    @property
    def judged(self) -> list[dict]:
        """The curves as `ml.evaluation.selection` takes them."""
        return [{side: _of_side(row, side) for side in SIDES} for row in self.curves]

    def record(self, row: Mapping[str, float], objective: "Objective") -> bool:
        """Add an epoch to the curves; whether it is the best so far."""
        from ml.evaluation.selection import chosen_epoch

        self.curves.append(dict(row))
        return chosen_epoch(self.judged, objective) == len(self.curves)

    def keep(self, model: "Model", replica: int, sides: "Mapping[str, HeldOut]") -> None:
        """Take what the model is now."""
        from ml.models.contract import VectorModel

        self.weights = model.state_dict(replica)
        if isinstance(model, VectorModel):
            self.items = model.items(replica)
            self.vectors = {side: model.vectors(held.users, replica) for side, held in sides.items()}

    def validated(self, objective: "Objective") -> dict[str, float]:
        """The chosen epoch and the criterion there: not what the test users say of it."""
        from ml.evaluation.selection import chosen_epoch

        row = self.curves[chosen_epoch(self.judged, objective) - 1]
        criterion = f"validation_{objective.criterion}"
        return {"epoch": row["epoch"], criterion: row[criterion]}

    def comparable(self, objective: "Objective") -> dict[str, float]:
        """The validation metrics that models are compared by: those of the chosen epoch, and in place of what
        luck had a part in, because it was chosen by it, what the choice is worth on users it was not made on.
        """
        from ml.evaluation.crossfit import crossfitted
        from ml.evaluation.selection import chosen_epoch

        chosen = self.judged[chosen_epoch(self.judged, objective) - 1]["validation"]
        return chosen | (crossfitted(self.tried, objective) if self.tried else {})


def _of_side(row: Mapping, side: str) -> dict | None:
    return {k.removeprefix(f"{side}_"): v for k, v in row.items() if k.startswith(f"{side}_")} or None


class Judge:
    """Judges a model on one side of a cell; `seconds` is the fastest that it predicted."""

    def __init__(self, held: "HeldOut", objective: "Objective", clip: tuple[float, float] | None) -> None:
        self.held, self.objective, self.clip = held, objective, clip
        self.predicted: Predicted | None = None
        self.lists: Tensor | None = None
        self.seconds = np.inf

    def __call__(self, model: "Model", replica: int) -> dict[str, float]:
        """Metrics of the held-out ratings."""
        from ml.evaluation.cold_start import list_metrics, rating_metrics

        held, watch = self.held, Stopwatch()
        if self.objective.name == "ranking":
            expected = model.expected(held.ratings, len(held), replica)
            if expected is not None:
                return expected
            with watch:
                self.lists = _lists(model, held, replica)
            metrics = list_metrics(self.lists, held.ratings, model.items_of(replica))
        else:
            with watch:
                self.predicted = model.predict(held.users, held.ratings, replica)
            shown = self.predicted.clipped(self.clip)
            metrics = rating_metrics(shown, held.ratings)
            metrics |= model.own_metrics(held.users, held.ratings, replica)
        self.seconds = min(self.seconds, watch.seconds)
        return metrics

    def sums(self, model: "Model", replica: int) -> "FoldSums | None":
        """What the last metrics are the means of, by fold of the users; None of what was judged elsewhere."""
        from ml.evaluation.crossfit import list_sums, rating_sums

        held = self.held
        if self.lists is not None:
            return list_sums(self.lists, held.ratings, model.items_of(replica))
        if self.predicted is not None:
            return rating_sums(self.predicted.clipped(self.clip), held.ratings, len(held))
        return None


def _lists(model: "Model", held: "HeldOut", replica: int) -> "Tensor":
    """The LISTED best items of each held-out user; empty lists of a model that has diverged."""
    import torch

    from ml.evaluation.ranking import Diverged

    try:
        return model.top(held.users, LISTED, replica=replica)[0]
    except Diverged as reason:
        log.warning("%s gives no lists: %s", model.name, reason)
        return torch.full((len(held), LISTED), -1)


def metric_rows(outcome: Outcome, objective: "Objective") -> list[dict]:
    """Cold: all held-out ratings. Warm: the later half after fine-tuning. Cold, `_later`: it before."""
    from ml.evaluation.selection import select

    cold = select(outcome.judged, objective)
    rows = [{"stage": "cold", **asdict(selected)} for selected in cold]
    if outcome.before.get("test"):
        rules = dict.fromkeys(selected.selection for selected in cold)
        rows += [
            {"stage": "cold", "selection": rule, "metric": f"{metric}_later", "value": value, "epoch": 0}
            for rule in rules
            for metric, value in outcome.before["test"].items()
        ]
        rows += [{"stage": "warm", **asdict(s)} for s in select(outcome.warm, objective)]
    return rows


def model_files(outcome: Outcome) -> dict[str, bytes]:
    """The model itself, for `restored`."""
    settings = dict(outcome.settings)
    config = {"model": settings.pop("model"), "hyperparameters": settings}
    files = {"config.json": json.dumps(config, indent=1).encode()}
    return files | ({"weights.safetensors": tensors(outcome.weights)} if outcome.weights else {})


def restored(entry: Entry, gate: Gate | None = None) -> "Model":
    """The model that training left in `entry`, with what it reads of its cell where `gate` is given."""
    from ml.models.registry import build

    config = json.loads(entry.read("config.json"))
    model = build(config["model"], **config["hyperparameters"])
    weights = "weights.safetensors"
    model.load_state_dict(entry.tensors(weights) if entry.has(weights) else {})
    return model if gate is None else model.bind([gate.data])


def error_files(gate: Gate, predicted: "Predicted", clip: tuple[float, float] | None) -> dict[str, bytes]:
    """Where the errors on the test users are: by user, by what is known, by what was predicted."""
    from ml.evaluation.cold_start import crps_of, user_error_sums

    held, shown = gate.held_out("test"), predicted.clipped(clip)
    sums = user_error_sums(shown.mean, shown.median, crps_of(shown, held.ratings), held.ratings, len(held))
    frame = pd.DataFrame({"user": gate.members("test"), **{name: s.numpy() for name, s in sums.items()}})
    files = {
        "user_errors.parquet": parquet(frame),
        "coverage.parquet": parquet(_coverage(gate, held, predicted, clip is not None)),
    }
    if predicted.probabilities is not None:
        files["calibration.parquet"] = parquet(_calibration(predicted, held))
    return files


def list_files(gate: Gate, lists: "Tensor") -> dict[str, bytes]:
    """What the test users are shown, how good it is for each, and for which items and users it is."""
    import torch

    from ml.evaluation.lists import beyond_accuracy, by_length, by_popularity, list_scores

    held, members = gate.held_out("test"), gate.members("test")
    popularity = torch.from_numpy(_training_counts(gate))
    scores = list_scores(lists, held.ratings, len(popularity))
    by_user = {"user": members[scores.users.numpy()], **{n: v.numpy() for n, v in scores.values.items()}}
    shown = pd.DataFrame(lists.numpy().astype(np.int32), columns=[f"{i + 1}" for i in range(lists.shape[1])])
    shown.insert(0, "user", members)
    history = torch.from_numpy(_liked_counts(gate))
    groups = [
        {"by": "all", "group": "all", **beyond_accuracy(lists, popularity, _training_users(gate))},
        *(
            {"by": "popularity", "group": r.pop("third"), **r}
            for r in by_popularity(lists, held.ratings, popularity)
        ),
        *({"by": "history", "group": _span(row), **row} for row in by_length(scores, history)),
    ]
    return {
        "lists.parquet": parquet(shown),
        "list_scores.parquet": parquet(pd.DataFrame(by_user)),
        "list_groups.parquet": parquet(pd.DataFrame(groups)),
    }


def _span(row: dict) -> str:
    """`1–4`, or `50 or more`, of a row with `from` and `to`, which it loses."""
    start, end = row.pop("from"), row.pop("to")
    return f"{start} or more" if end is None else f"{start}" if start == end else f"{start}–{end}"


def _training_counts(gate: Gate) -> np.ndarray:
    """Training ratings of each target item: (items,) int64."""
    target = domain_ratings(gate.store, gate.cell.target.name)
    rows = training_rows(gate.store, gate.profile, gate.cell)
    return np.bincount(target.items[rows], minlength=target.n_items)


def _training_users(gate: Gate) -> int:
    target = domain_ratings(gate.store, gate.cell.target.name)
    return len(np.unique(target.users[training_rows(gate.store, gate.profile, gate.cell)]))


def _liked_counts(gate: Gate) -> np.ndarray:
    """Liked source items of each test user: (n,) int64."""
    members = gate.members("test")
    liked = gate.store.overlap(gate.cell.task).table("liked.parquet")["user"]
    return np.bincount(liked, minlength=members.max() + 1)[members]


def _coverage(gate: Gate, held: "HeldOut", predicted: "Predicted", clips: bool) -> pd.DataFrame:
    """The test users' errors by training ratings of the item, by source history and by prediction."""
    import torch

    from ml.evaluation.coverage import coverage

    of_item, history = _training_counts(gate), _liked_counts(gate)
    sums = coverage(
        predicted.mean,
        held.ratings.values,
        torch.from_numpy(of_item)[held.ratings.items],
        torch.from_numpy(history)[held.ratings.users],
        gate.cell.target.scale,
        clips,
        None if predicted.median is predicted.mean else predicted.median,
    )
    return pd.DataFrame(sums)


def _calibration(predicted: "Predicted", held: "HeldOut") -> pd.DataFrame:
    """Sums to pool over seeds: kind (`level` or `pit`), level, bin, count, stated, observed.

    Of a level but the lowest: how many predictions said P(r ≥ level) within the bin, the sum of what they
    said, and how many ratings came so high. Of the PIT: the count of ratings spread over the bins.
    """
    from ml.evaluation.distribution import calibration_curve, pit_histogram

    values = held.ratings.values
    curve = calibration_curve(predicted.probabilities, predicted.levels, values)
    rows = [
        {
            "kind": "level",
            "level": float(level),
            "bin": place,
            "count": curve["count"][row, place].item(),
            **{
                name: (curve[name].nan_to_num() * curve["count"])[row, place].item()
                for name in ("stated", "observed")
            },
        }
        for row, level in enumerate(predicted.levels[1:])
        for place in range(curve["count"].shape[1])
    ]
    shares = pit_histogram(predicted.probabilities, predicted.levels, values)
    nothing = {"level": np.nan, "stated": 0.0, "observed": 0.0}
    rows += [
        {"kind": "pit", "bin": place, "count": share * len(values), **nothing}
        for place, share in enumerate(shares.tolist())
    ]
    return pd.DataFrame(rows)


def fine_tune_held_out(
    gates: list[Gate], outcomes: list[Outcome], objective: "Objective", clip: tuple[float, float] | None
) -> None:
    """Fine-tune every held-out user on the earlier half of their ratings, and judge on the later half.

    Validation users are fine-tuned in the same way, so that the number of epochs can be chosen on them.
    """
    from ml.evaluation.cold_start import measure
    from ml.warm_start import fine_tune

    profile = gates[0].profile
    parts = [
        (gate.cell, outcome, side, halves)
        for gate, outcome in zip(gates, outcomes, strict=True)
        for side in outcome.vectors
        if (halves := warm_halves(gate.store, profile, gate.cell, SIDES[side], objective)) is not None
    ]
    if not parts:
        return
    for _, outcome, side, halves in parts:
        outcome.warm_left_out = halves.left_out if side == "test" else outcome.warm_left_out
        outcome.before[side] = measure(
            objective, outcome.vectors[side], outcome.items, halves.later, halves.known, clip
        )
    settings = profile.factors(gates[0].cell.task)
    tuned = fine_tune(
        [outcome.vectors[side] for _, outcome, side, _ in parts],
        [outcome.items for _, outcome, _, _ in parts],
        [halves.tuning for *_, halves in parts],
        [cell.seed for cell, *_ in parts],
        **{key: settings[key] for key in ("epochs", "batch", "lr")},
    )
    for users in tuned:
        for outcome in outcomes:
            outcome.warm.append(dict.fromkeys(SIDES))
        for (_, outcome, side, halves), factors in zip(parts, users, strict=True):
            outcome.warm[-1][side] = measure(
                objective, factors, outcome.items, halves.later, halves.known, clip
            )


def losses_of(epoch: "Epoch", replica: int) -> dict[str, float]:
    """One replica's losses of an epoch by name."""
    return {name: values[replica] for name, values in epoch.losses.items()}
