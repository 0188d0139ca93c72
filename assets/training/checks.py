"""Checks of what was trained: factors that can be used, metrics that can be, and whether transfer pays.

They run in the step of their asset, on what lies in the store. Factors that are not finite end the run; a
model that is no better than the simple predictors is a warning, since that is a result.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd

from assets.settings.axes import Cell
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Entry, Store
from assets.training.choose import RIVALS, rivals, role
from assets.training.fingerprints import expected_fingerprint

if TYPE_CHECKING:
    from ml.evaluation.selection import Objective

WHOLE, POSSIBLE, BEATS = "factors_are_whole", "metrics_are_possible", "beats_the_best_simple_predictor"
# Shares of a list or of what is liked; DCG has no such bound.
SHARES = ("ndcg", "recall", "hr@", "precision", "mrr")


def factor_check(key: dg.AssetKey) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        WHOLE,
        asset=key,
        blocking=True,
        description="Every number is finite, and there is one row for each user and item.",
    )


def model_checks(profile: Profile, name: str) -> list[dg.AssetCheckSpec]:
    """The checks of a model of a profile; what is itself a simple predictor is not compared with them."""
    key = dg.AssetKey([profile.name, name])
    possible = dg.AssetCheckSpec(
        POSSIBLE,
        asset=key,
        description="Test users were judged under every rule; errors are not negative and MAE is not above "
        "RMSE; shares are from 0 to 1. A value that is not finite is a warning: the model has diverged.",
    )
    beats = dg.AssetCheckSpec(
        BEATS,
        asset=key,
        description="On test users, at the epoch that is chosen without them, the mean over the cells of the "
        "run is better than that of every simple predictor of the profile.",
    )
    return [possible, *([beats] if is_compared(profile, name) else [])]


def is_compared(profile: Profile, name: str) -> bool:
    """Whether a model has simple predictors to beat."""
    asked = profile.objectives_of(name)
    return role(profile, name) not in RIVALS and any(rivals(profile, each) for each in asked)


def judged(check: str, problems: Iterable[str], warns: bool = False) -> dg.AssetCheckResult:
    """The result of a check that found these problems, the first of them with words."""
    found = list(problems)
    return dg.AssetCheckResult(
        check_name=check,
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR,
        description="; ".join(found[:3]) or None,
        metadata={"problems": dg.MetadataValue.json(found[:20]), "found": len(found)},
    )


def factor_problems(where: str, entry: Entry, file: str = "factors.safetensors") -> Iterator[str]:
    """What is wrong with the factors, or effects, in an entry."""
    facts, found = entry.require(), entry.tensors(file)
    for name, values in found.items():
        lost = int((~values.isfinite()).sum()) if values.is_floating_point() else 0
        if lost:
            yield f"{where}: {lost} numbers of {name} are not finite"
    for name in ("users", "items"):
        if name in found and len(found[name]) != facts[name]:
            yield f"{where}: {len(found[name])} rows of {name} for {facts[name]}"


def metrics_check(entries: Mapping[str, Entry]) -> dg.AssetCheckResult:
    """Whether the metrics of these entries, by what they are of, can be."""
    wrong, lost = [], []
    for where, entry in entries.items():
        metrics = entry.table("metrics.parquet")
        if metrics.empty or not entry.require()["test_users"]:
            wrong.append(f"{where}: no test user was judged")
        for keys, rows in metrics.groupby(["stage", "selection"]):
            values = rows.set_index("metric")["value"]
            named = f"{where}, {' '.join(keys)}"
            lost += [f"{named}: {name} is {v}" for name, v in values.items() if not math.isfinite(v)]
            wrong += [f"{named}: {problem}" for problem in _impossible(values.dropna())]
    return judged(POSSIBLE, wrong or lost, warns=not wrong)


def _impossible(values: pd.Series) -> Iterator[str]:
    for name, value in values.items():
        if name in ("mae", "mae_mean", "rmse", "crps") and value < 0:
            yield f"{name} is {value:g}, below 0"
        if name.startswith(SHARES) and not -1e-9 <= value <= 1 + 1e-9:
            yield f"{name} is {value:g}, not from 0 to 1"
    # A distribution's MAE is that of its median, its RMSE that of its mean.
    mae = values.get("mae_mean", values.get("mae"))
    if mae is not None and "rmse" in values and mae > values["rmse"] * (1 + 1e-6):
        yield f"MAE is {mae:g}, above the RMSE of {values['rmse']:g}"


@dataclass(frozen=True)
class Comparison:
    """A model's test value beside that of the best simple predictor, over the cells that both have."""

    metric: str
    value: float
    best: str
    best_value: float
    cells: int
    beats: bool

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.4f} against {self.best_value:.4f} of {self.best} "
            f"(mean of {self.cells} cell{'s' * (self.cells != 1)})"
        )


@dataclass(frozen=True)
class Simple:
    """Compares a model of a profile with the simple predictors that are finished in the same cells; what it
    has read once it knows."""

    store: Store
    catalog: Catalog
    profile: Profile
    name: str
    _known: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)  # by objective and cell

    def compare(self, objective: "Objective", cells: Iterable[Cell]) -> Comparison | None:
        """By the objective's criterion; None where no simple predictor is finished in any of the cells."""
        cells = list(cells)
        for cell in cells:
            if (objective.name, cell.key) not in self._known:
                self._known[objective.name, cell.key] = self._values(objective, cell)
        values = pd.DataFrame({cell.key: self._known[objective.name, cell.key] for cell in cells}).T
        if self.name not in values:
            return None
        # Each with the model over the cells that both have; a model that diverged beats nobody.
        mine, sign = values[self.name], 1 if objective.higher_is_better else -1
        found = []
        for rival in values.columns.drop(self.name):
            both = pd.DataFrame({"mine": mine, "theirs": values[rival]}).dropna()
            if len(both):
                found.append((rival, both.mean(), len(both)))
        if not found:
            return None
        best, means, count = max(found, key=lambda each: (each[2], sign * each[1]["theirs"]))
        value, best_value = float(means["mine"]), float(means["theirs"])
        beats = sign * value > sign * best_value
        return Comparison(objective.criterion, value, best, best_value, count, beats)

    def check(self, objectives: Iterable["Objective"], cells: list[Cell]) -> dg.AssetCheckResult:
        asked = [o for o in objectives if rivals(self.profile, o.name)]
        compared = {each.name: self.compare(each, cells) for each in asked}
        problems = [
            f"{name}: no simple predictor of profile {self.profile.name} is finished in these cells"
            if one is None
            else f"{name}: {one}"
            for name, one in compared.items()
            if one is None or not one.beats
        ]
        result = judged(BEATS, problems, warns=True)
        shown = {name: str(one) if one else "not compared" for name, one in compared.items()}
        return result._replace(metadata={**result.metadata, **shown})

    def _values(self, objective: "Objective", cell: Cell) -> dict[str, float]:
        """Test values in a cell by name; infinitely bad where one is not finite."""
        rule = "validation" if self.profile.validation else "last"
        worst = -math.inf if objective.higher_is_better else math.inf
        found = {}
        for name in dict.fromkeys([self.name, *rivals(self.profile, objective.name)]):
            entry = self.store.model(self.profile.name, name, cell, objective.name)
            if not self._is_current(entry, name, cell, objective.name):
                continue
            rows = entry.table("metrics.parquet")
            cold = rows[(rows["stage"] == "cold") & (rows["selection"] == rule)]
            value = cold.loc[cold["metric"] == objective.criterion, "value"]
            if len(value):
                found[name] = float(value.iloc[0]) if math.isfinite(value.iloc[0]) else worst
        return found

    def _is_current(self, entry: Entry, name: str, cell: Cell, objective: str) -> bool:
        if entry.manifest() is None:
            return False
        expected = expected_fingerprint(self.store, self.catalog, self.profile, name, cell, objective)
        return expected is not None and entry.is_current(expected)
