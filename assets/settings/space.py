"""What is tried of a model: a list of settings, or a space of them."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictBool, model_validator

from assets.settings.yaml import Count, Section, SettingsFile
from ml.models.facts import flat

Settings = Mapping[str, object]


class Range(Section):
    """Numbers between low and high, both included; log: drawn evenly in their logarithm. Of a float
    hyper-parameter also where both ends are whole numbers."""

    low: int | float
    high: int | float
    log: StrictBool = False

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"with log, low must be above 0, not {self.low}")
        return self


class _Space(Section):
    count: Count | None = None
    space: Annotated[dict[str, dict[str, Any] | list[Any]], Field(min_length=1)]


@dataclass(frozen=True)
class Space:
    """Settings to choose from: each name has its choices or a range. count: how many are tried; None tries
    every combination of the choices."""

    varied: Mapping[str, "tuple[object, ...] | Range"]
    count: int | None = None

    @property
    def grid(self) -> list[dict[str, object]]:
        """Every combination of the choices, the last name varying fastest; empty where there is a range."""
        if any(isinstance(values, Range) for values in self.varied.values()):
            return []
        return [
            dict(zip(self.varied, point, strict=True)) for point in itertools.product(*self.varied.values())
        ]

    def as_json(self) -> dict[str, object]:
        """For fingerprints and MLflow."""
        return {
            "count": self.count,
            "space": {
                name: values.model_dump() if isinstance(values, Range) else list(values)
                for name, values in self.varied.items()
            },
        }


def read_trials(file: SettingsFile, where: str, tried: object) -> tuple[Settings, ...] | Space:
    """The `trials` of the key `where`. Raises the file's error for what cannot be tried."""
    if isinstance(tried, dict):
        return _space(file, where, file.validated(_Space, where, tried))
    if not isinstance(tried, list):
        raise file.wrong(where, f"write a list of settings, or a count and a space, not {tried!r}")
    if not tried:
        raise file.wrong(where, "it is an empty list; leave it out")
    trials = tuple(flat(file.mapping(f"{where}.{i}", trial)) for i, trial in enumerate(tried))
    for i, trial in enumerate(trials):
        if trial in trials[:i]:
            raise file.wrong(f"{where}.{i}", "the same settings are tried before; take them out")
    return trials


def _space(file: SettingsFile, where: str, given: _Space) -> Space:
    varied: dict[str, tuple | Range] = {}
    for name, values in given.space.items():
        key = f"{where}.space.{name}"
        if isinstance(values, dict):
            varied[name] = file.validated(Range, key, values)
        elif not values or any(value in values[:i] for i, value in enumerate(values)):
            raise file.wrong(key, f"list different values to choose from, not {values!r}")
        else:
            varied[name] = tuple(values)
    space = Space(varied, given.count)
    if space.count is None and not space.grid:
        raise file.wrong(f"{where}.count", "this key is required: a range has no end of values")
    return space
