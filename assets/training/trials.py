"""The one search: settings of a model are tried on one cell, and the best on its validation users is kept.

A list of settings, and a grid, are tried from the first to the last; of a space with a count, Optuna's
tree-structured Parzen estimator (Bergstra et al., 2011) asks for what promises most after what it was told.
A trial that reports its epochs may be told to stop: Optuna prunes it by what others had scored by then.
Nothing here trains, writes or knows a model:

    trials = plan(profile, "lacdr", task, seed)
    for _ in range(len(trials)):
        settings = trials.ask()
        for epoch, validation_rmse in training(settings):
            if not trials.goes_on(epoch, validation_rmse):
                break
        trials.tell(validation_rmse, {"epoch": epoch, "validation_rmse": validation_rmse})
    trials.results, trials.best, trials.study
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from assets.settings.profile import Profile
from assets.settings.space import Range, Settings, Space

if TYPE_CHECKING:
    import optuna

# Of a space without ranges the sampler may ask again for what it was told; so often it is asked anew.
REPEATS = 100
# After FIRST_RUNG epochs, and BEST_OF times as many, and so on, a trial goes on if it is among the best
# 1 / BEST_OF of those that came so far (asynchronous successive halving, Li et al., MLSys 2020). On generated
# ratings this takes 55 % of the time of all epochs and loses 0.01 % of the validation criterion.
FIRST_RUNG, BEST_OF = 3, 2


def plan(profile: Profile, name: str, task: str, seed: int, higher_is_better: bool = False) -> Trials:
    """The trials of a profile's model on a cell of `task` with `seed`: one where nothing is searched for."""
    tried = profile.trials(name, task)
    if isinstance(tried, Space):
        defaults = profile.facts[profile.kinds(name)[0]].defaults
        return of_space(_typed(tried, defaults), profile.given(name, task), seed, higher_is_better)
    return Trials(tried, higher_is_better=higher_is_better)


def of_space(space: Space, given: Settings, seed: int, higher_is_better: bool = False) -> Trials:
    """Trials of settings of a space, laid over `given`: all combinations of its choices where they are no
    more than are to be tried, else as many as its count says, drawn with `seed`."""
    grid = space.grid
    if grid and (space.count is None or space.count >= len(grid)):
        return Trials([{**given, **point} for point in grid], space.as_json(), higher_is_better)
    return Sampled(space, given, seed, higher_is_better)


def together(asked: Sequence[Settings]) -> list[tuple[Settings, list[int]]]:
    """Equal settings once, each with the numbers of the cells that asked for them: these can be trained as
    one program. All cells ask a list for the same, and a space for the same until it is told scores."""
    groups: dict[Hashable, tuple[Settings, list[int]]] = {}
    for number, settings in enumerate(asked):
        groups.setdefault(_key(settings), (settings, []))[1].append(number)
    return list(groups.values())


@dataclass
class Trials:
    """A list of settings, tried in its order. Each `ask` is answered by a `tell`, in the order of asking, so
    that all may be asked for before the first is told.

    settings: what is tried, the model's kind as `model`; about: the space, where they are of one.
    """

    settings: Sequence[Settings]
    about: Mapping[str, object] = field(default_factory=dict)
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        self._asked: deque[Settings] = deque()
        self._open: deque[optuna.trial.Trial] = deque()
        self._given_up = False
        self._rows: list[dict[str, object]] = []
        self._scores: list[float] = []

    def __len__(self) -> int:
        return len(self.settings)

    def ask(self) -> dict[str, object]:
        """The next settings. Raises IndexError once all were asked for."""
        number = len(self._scores) + len(self._asked)
        if number >= len(self):
            raise IndexError(f"all {len(self)} trials were asked for")
        settings = self._next(number)
        self._asked.append(settings)
        return dict(settings)

    def goes_on(self, epoch: int, score: float) -> bool:
        """Whether the settings asked for first of those not told promise enough to be trained further, with
        this score on validation users after `epoch` epochs. The first are, to the end."""
        if not self._open:
            self._open.append(self._study.ask())
        self._open[0].report(score, epoch)
        self._given_up = self._open[0].should_prune()
        return not self._given_up

    def tell(self, score: float, facts: Mapping[str, object] | None = None) -> None:
        """The score on validation users of the settings asked for first of those not told, NaN where they
        diverged; `facts` stand beside them in the results. Raises IndexError where none is open."""
        if not self._asked:
            raise IndexError("no trial is open: ask before you tell")
        settings = self._asked.popleft()
        self._rows.append({**settings, **(facts or {})})
        self._scores.append(float(score))
        self._learn(settings, float(score))

    @property
    def best(self) -> int:
        """The number of the best trial told; the first of equal ones, and of those that all diverged."""
        if not self._scores:
            raise IndexError("no trial was told yet")
        return min(range(len(self._scores)), key=lambda number: self._cost(self._scores[number]))

    @property
    def results(self) -> pd.DataFrame:
        """One row a trial told: its settings, the facts told with it, and whether it is `chosen`."""
        best = self.best if self._scores else None
        return pd.DataFrame([{**row, "chosen": number == best} for number, row in enumerate(self._rows)])

    @property
    def study(self) -> dict[str, object]:
        """How the settings were found, as JSON."""
        return {"sampler": "grid" if self.about else "list", "trials": len(self), **self.about}

    def label(self, settings: Settings) -> str:
        """What of `settings` is searched for, as MLflow names the trial's run: `lr0.001-latent4`."""
        parts = [f"{name}{_short(settings[name])}" for name in self._varied() if name in settings]
        return "-".join(parts) or "given"

    def _varied(self) -> list[str]:
        """The names whose values are not the same in all settings."""
        values: dict[str, set] = {}
        for settings in self.settings:
            for name, value in settings.items():
                values.setdefault(name, set()).add(value)
        everywhere = set.intersection(*(set(settings) for settings in self.settings))
        return [name for name, seen in values.items() if len(seen) > 1 or name not in everywhere]

    def _next(self, number: int) -> Settings:
        return self.settings[number]

    def _learn(self, settings: Settings, score: float) -> None:
        if self._open:
            self._close(self._open.popleft(), score, self._given_up)
        self._given_up = False

    def _close(self, trial: optuna.trial.Trial, score: float, given_up: bool = False) -> None:
        from optuna.trial import TrialState

        if given_up:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif math.isfinite(score):
            self._study.tell(trial, score)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    @cached_property
    def _study(self) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # In memory: what is kept is the table of results and what `study` says.
        return optuna.create_study(
            sampler=self._sampler(),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=BEST_OF),
            direction="maximize" if self.higher_is_better else "minimize",
        )

    def _sampler(self) -> optuna.samplers.BaseSampler | None:
        """What draws settings; a list is not drawn."""
        return None

    def _cost(self, score: float) -> float:
        if not math.isfinite(score):
            return math.inf
        return -score if self.higher_is_better else score


class Sampled(Trials):
    """As many settings of a space as its count says, each drawn by Optuna after what it was told."""

    def __init__(self, space: Space, given: Settings, seed: int, higher_is_better: bool = False) -> None:
        super().__init__((), space.as_json(), higher_is_better)
        self._space, self._given, self._seed = space, dict(given), seed
        self._known: dict[Hashable, float] = {}

    def _sampler(self) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(seed=self._seed)

    def __len__(self) -> int:
        return int(self._space.count)

    @property
    def study(self) -> dict[str, object]:
        import optuna

        sampler = type(self._study.sampler).__name__
        return {
            "sampler": sampler,
            "trials": len(self),
            "seed": self._seed,
            "optuna": optuna.__version__,
            **self.about,
        }

    def _varied(self) -> list[str]:
        return list(self._space.varied)

    def _next(self, number: int) -> Settings:
        for _ in range(REPEATS):
            trial = self._study.ask()
            settings = {**self._given, **self._drawn(trial)}
            if _key(settings) not in self._known:
                break
            self._close(trial, self._known[_key(settings)])
        else:
            trial = self._study.ask()
            settings = {**self._given, **self._drawn(trial)}
        self._open.append(trial)
        return settings

    def _drawn(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        return {name: _suggested(trial, name, values) for name, values in self._space.varied.items()}

    def _learn(self, settings: Settings, score: float) -> None:
        self._known[_key(settings)] = score
        super()._learn(settings, score)


def _typed(space: Space, defaults: Settings) -> Space:
    """The space with the ends of a float's range as floats, also where whole numbers are written."""
    varied = {
        name: Range(low=float(values.low), high=float(values.high), log=values.log)
        if isinstance(values, Range) and isinstance(defaults[name], float)
        else values
        for name, values in space.varied.items()
    }
    return Space(varied, space.count)


def _suggested(trial: optuna.trial.Trial, name: str, values: tuple | Range) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(name, values)
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, values.low, values.high, log=values.log)


def _key(settings: Settings) -> Hashable:
    return tuple(sorted((name, repr(value)) for name, value in settings.items()))


def _short(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)
