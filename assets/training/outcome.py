"""What training leaves of one cell, and the tables that are made of it on the test users."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import domain_ratings, held_out_ratings, training_rows, warm_halves
from assets.settings.axes import CATALOG, Cell
from assets.settings.profile import Profile
from assets.state.store import Entry, Store, parquet
from assets.training.distributions import Predicted, calibration
from ml.splits import TEST, VALIDATION

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Ratings
    from ml.evaluation.selection import Objective

SIDES = {"validation": VALIDATION, "test": TEST}


@dataclass
class Outcome:
    """What training leaves of one cell. `held` and `weights` are those of the epoch chosen so far.

    held: target factors of the validation and test users by side; items: the item factors they go with;
    predicted: of the test ratings, where there are no such factors; model, settings: what `weights` belong
    to; warm: metrics by epoch of fine-tuning, and `before` it, by side; trials: all that were tried; speed:
    samples and seconds.
    """

    items: "Tensor | None" = None
    model: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    curves: list[dict] = field(default_factory=list)
    held: "dict[str, Tensor]" = field(default_factory=dict)
    predicted: Predicted | None = None
    trials: list[dict] = field(default_factory=list)
    weights: "dict[str, Tensor]" = field(default_factory=dict)
    before: dict[str, dict] = field(default_factory=dict)
    warm: list[dict] = field(default_factory=list)
    warm_left_out: int = 0
    speed: dict[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> list[dict]:
        """The curves as `ml.evaluation.selection` takes them."""
        return [{side: _of_side(row, side) for side in SIDES} for row in self.curves]


def _of_side(row: Mapping, side: str) -> dict | None:
    return {k.removeprefix(f"{side}_"): v for k, v in row.items() if k.startswith(f"{side}_")} or None


def restored(entry: Entry, device: str = "cpu"):
    """The model whose weights and settings training left in `entry`."""
    from ml.distribution import registry as distributions
    from ml.models.registry import build

    config = json.loads(entry.read("config.json"))
    make = distributions.build if config["model"] in distributions.MODELS else build
    weights = {name: value.to(device) for name, value in entry.tensors("weights.safetensors").items()}
    return make(config["model"], **config["hyperparameters"]).load_state_dict(weights)


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


def target_scale(cell: Cell) -> tuple[float, float]:
    """Lowest and highest rating of the cell's target domain."""
    return CATALOG.domains[CATALOG.tasks[cell.task].target].scale


def error_files(
    store: Store, profile: Profile, cell: Cell, outcome: Outcome, clips: bool
) -> dict[str, bytes]:
    """Where the errors on the test users are: by user, by what is known, by what was predicted."""
    from ml.evaluation.cold_start import user_error_sums

    members, ratings = held_out_ratings(store, profile, cell, TEST)
    raw = outcome.predicted or _points(outcome, ratings)
    scale = target_scale(cell)
    shown = replace(raw, mean=raw.mean.clamp(*scale), median=raw.median.clamp(*scale)) if clips else raw
    sums = user_error_sums(shown.mean, shown.median, shown.crps(ratings), ratings, len(members))
    frame = pd.DataFrame({"user": members, **{name: s.numpy() for name, s in sums.items()}})
    files = {
        "user_errors.parquet": parquet(frame),
        "coverage.parquet": parquet(_coverage(store, profile, cell, raw, clips)),
    }
    if raw.probabilities is not None:
        files["calibration.parquet"] = parquet(calibration(raw, ratings))
    return files


def _points(outcome: Outcome, ratings: "Ratings") -> Predicted:
    from ml.evaluation.ratings import predict

    predicted = predict(outcome.held["test"], outcome.items, ratings)
    return Predicted(predicted, predicted)


def _coverage(store: Store, profile: Profile, cell: Cell, predicted: Predicted, clips: bool) -> pd.DataFrame:
    """The test users' errors by training ratings of the item, by source history and by prediction."""
    import torch

    from ml.evaluation.coverage import coverage

    members, ratings = held_out_ratings(store, profile, cell, TEST)
    target = domain_ratings(store, CATALOG.tasks[cell.task].target)
    of_item = np.bincount(target.items[training_rows(store, profile, cell)], minlength=target.n_items)
    liked = store.overlap(cell.task).table("liked.parquet")["user"]
    history = np.bincount(liked, minlength=members.max() + 1)[members]
    sums = coverage(
        predicted.mean,
        ratings.values,
        torch.from_numpy(of_item)[ratings.items],
        torch.from_numpy(history)[ratings.users],
        target_scale(cell),
        clips,
        None if predicted.median is predicted.mean else predicted.median,
    )
    return pd.DataFrame(sums)


def fine_tune_held_out(
    store: Store,
    profile: Profile,
    objective: "Objective",
    group: list[Cell],
    outcomes: list[Outcome],
    clip: tuple[float, float] | None,
) -> None:
    """Fine-tune every held-out user on the earlier half of their ratings, and judge on the later half.

    Validation users are fine-tuned in the same way, so that the number of epochs can be chosen on them.
    """
    from ml.evaluation.cold_start import measure
    from ml.warm_start import fine_tune

    parts = [
        (cell, outcome, side, halves)
        for cell, outcome in zip(group, outcomes, strict=True)
        for side in outcome.held
        if (halves := warm_halves(store, profile, cell, SIDES[side], objective)) is not None
    ]
    if not parts:
        return
    for _, outcome, side, halves in parts:
        outcome.warm_left_out = halves.left_out if side == "test" else outcome.warm_left_out
        outcome.before[side] = measure(
            objective, outcome.held[side], outcome.items, halves.later, halves.known, clip
        )
    settings = profile.factors(group[0].task)
    tuned = fine_tune(
        [outcome.held[side] for _, outcome, side, _ in parts],
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
