"""Which epoch's values are reported: on validation users, the last, or the best on the test users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Curve = dict[str, dict[str, float] | None]


@dataclass(frozen=True)
class Objective:
    """What a model is trained for: `criterion` is the metric that chooses an epoch on validation users."""

    name: str
    criterion: str
    higher_is_better: bool


RATING = Objective("rating", "rmse", higher_is_better=False)
RANKING = Objective("ranking", "ndcg@20", higher_is_better=True)
OBJECTIVES = {objective.name: objective for objective in (RATING, RANKING)}


@dataclass(frozen=True)
class Selected:
    """One reported value: the test `value` of `metric` at `epoch` (from 1), which rule `selection` chose."""

    selection: str
    metric: str
    value: float
    epoch: int


def select(curves: Sequence[Curve], objective: Objective = RATING) -> list[Selected]:
    """The test values to report for a training whose epoch e measured `curves[e - 1]`.

    Each element is {"validation": metrics or None, "test": metrics}; whether lower or higher is better, the
    objective says. The rules, in the order of the rows:
    `validation`: one epoch for all metrics, the best by the criterion on validation; absent without it;
    `last`: the last epoch;
    `best_on_test`: each metric at its own best test epoch, as the paper's code reports.
    Of equal epochs the earliest counts; a NaN loses to any number. Raises ValueError on an empty list and
    where only some epochs have validation values.
    """
    validated = _validated(curves)
    rules = ["validation"] * validated + ["last"]
    epochs = {"validation": chosen_epoch(curves, objective), "last": len(curves)}
    rows = [
        Selected(rule, metric, value, epochs[rule])
        for rule in rules
        for metric, value in curves[epochs[rule] - 1]["test"].items()
    ]
    for metric in curves[0]["test"]:
        values = [curve["test"][metric] for curve in curves]
        best = _best(values, objective)
        rows.append(Selected("best_on_test", metric, values[best], best + 1))
    return rows


def chosen_epoch(curves: Sequence[Curve], objective: Objective = RATING) -> int:
    """The epoch (from 1) that is best on validation, or the last one without a validation set."""
    if not _validated(curves):
        return len(curves)
    return 1 + _best([curve["validation"][objective.criterion] for curve in curves], objective)


def _validated(curves: Sequence[Curve]) -> bool:
    if not curves:
        raise ValueError("no epoch to select from: measure at least one")
    missing = [number for number, curve in enumerate(curves, 1) if curve["validation"] is None]
    if missing and len(missing) < len(curves):
        raise ValueError(f"epochs {missing} have no validation values, the others have; measure every epoch")
    return not missing


def _best(values: Sequence[float], objective: Objective) -> int:
    sign = -1 if objective.higher_is_better else 1
    return min(range(len(values)), key=lambda i: (math.isnan(values[i]), sign * values[i]))
