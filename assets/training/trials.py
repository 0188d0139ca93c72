"""The one search: settings of a model are tried on one cell, and the best on its validation users is kept.

A list of settings, and a grid, are tried from the first to the last; of a space with a count, Optuna's
tree-structured Parzen estimator (Bergstra et al., 2011) asks for what promises most after what it was told.
A trial that reports its epochs may be told to stop: Optuna prunes it by what others had scored by then.
Nothing here trains, writes or knows a model:

    trials = plan(profile, "lacdr", task, seed)
    for number in range(len(trials)):
        settings = trials.ask()
        for epoch, validation_rmse in training(settings):
            if not trials.goes_on(number, epoch, validation_rmse):
                break
        trials.tell(number, validation_rmse, {"epoch": epoch, "validation_rmse": validation_rmse})
    trials.results, trials.best, trials.study

Several may be asked for before the first is told, and reported in turn, epoch by epoch: at a rung a trial is
compared with those before it there, so that they go on as they would one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Trial(NamedTuple):
    """The settings that a cell, by its place, asked for as its trial `number`."""

    cell: int
    number: int
    settings: Settings


def together(
    asked: Iterable[Trial], varied: Callable[[str], Collection[str]] = lambda model: ()
) -> list[list[Trial]]:
    """Trials that can be trained as one program: equal settings, but for what replicas of their model may
    differ in, which `varied` says. In their order. All cells ask a list for the same, and a space for the
    same until it is told scores."""
    groups: dict[Hashable, list[Trial]] = {}
    for trial in sorted(asked, key=lambda trial: (trial.number, trial.cell)):
        free = varied(str(trial.settings.get("model")))
        key = _key({name: value for name, value in trial.settings.items() if name not in free})
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


@dataclass
class Trials:
    """A list of settings, tried in its order. A trial's number counts the calls of `ask`, from 0.

    settings: what is tried, the model's kind as `model`; about: the space, where they are of one.
    """

    settings: Sequence[Settings]
    about: Mapping[str, object] = field(default_factory=dict)
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        self._asked: list[Settings] = []
        self._open: dict[int, optuna.trial.Trial] = {}
        self._given_up: set[int] = set()
        self._told: dict[int, tuple[float, Mapping[str, object]]] = {}

    def __len__(self) -> int:
        return len(self.settings)

    @property
    def asked(self) -> int:
        """How many trials were asked for."""
        return len(self._asked)

    @property
    def ahead(self) -> int:
        """How many more can be asked for before any of them is told."""
        return len(self) - self.asked

    def ask(self) -> dict[str, object]:
        """The next settings. Raises IndexError once all were asked for."""
        if self.asked >= len(self):
            raise IndexError(f"all {len(self)} trials were asked for")
        self._asked.append(self._next(self.asked))
        return dict(self._asked[-1])

    def goes_on(self, number: int, epoch: int, score: float) -> bool:
        """Whether a trial promises enough to be trained further, with this score on validation users after
        `epoch` epochs. The first does, to the end."""
        if number not in self._open:
            self._open[number] = self._study.ask()
        self._open[number].report(score, epoch)
        if self._open[number].should_prune():
            self._given_up.add(number)
        return number not in self._given_up

    def tell(self, number: int, score: float, facts: Mapping[str, object] | None = None) -> None:
        """The score on validation users of a trial, NaN where it diverged; `facts` stand beside its settings
        in the results. Raises IndexError where it was not asked for, or told before."""
        if number >= self.asked or number in self._told:
            raise IndexError(f"trial {number} is not open: ask before you tell, and tell once")
        self._told[number] = float(score), dict(facts or {})
        self._learn(number, float(score))

    @property
    def best(self) -> int:
        """The number of the best trial told; the first of equal ones, and of those that all diverged."""
        if not self._told:
            raise IndexError("no trial was told yet")
        return min(sorted(self._told), key=lambda number: self._cost(self._told[number][0]))

    @property
    def results(self) -> pd.DataFrame:
        """One row a trial told: its settings, the facts told with it, and whether it is `chosen`."""
        best = self.best if self._told else None
        return pd.DataFrame(
            [
                {**self._asked[number], **self._told[number][1], "chosen": number == best}
                for number in sorted(self._told)
            ]
        )

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

    def _learn(self, number: int, score: float) -> None:
        if number in self._open:
            self._close(self._open.pop(number), score, number in self._given_up)

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

    @property
    def ahead(self) -> int:
        """One: what is drawn next depends on what was told."""
        return min(1, super().ahead)

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
        self._open[number] = trial
        return settings

    def _drawn(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        return {name: _suggested(trial, name, values) for name, values in self._space.varied.items()}

    def _learn(self, number: int, score: float) -> None:
        self._known[_key(self._asked[number])] = score
        super()._learn(number, score)


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
