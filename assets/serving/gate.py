"""What a model must beat before it is promoted: the simple rows of its profile, on validation users."""

from dataclasses import dataclass

import pandas as pd

from assets.serving.choice import LISTS, STARS, Chosen, validated
from assets.settings.axes import Axes
from assets.settings.profile import Profile
from assets.state.store import Store
from assets.training.choose import candidates, lacking, rivals, role

METRICS = {STARS: "RMSE", LISTS: "nDCG@20"}
OF = {STARS: "stars", LISTS: "lists"}


class NotPromoted(RuntimeError):
    """The best models do not earn the alias; the message says why, with numbers, and `reasons` only why."""

    def __init__(self, what: str, reasons: str) -> None:
        super().__init__(f"{what} is not promoted: {reasons}. Improve it, or register with --force")
        self.reasons = reasons


@dataclass(frozen=True)
class Judged:
    """Validation values of an objective: cells (rows) by model, over the cells in which all of them have one.

    best: the model that is to be promoted; rivals: those it must beat; missing: rivals without a value there;
    lacking: models that might be better, and could not be chosen, for they lack a cell that the best has.
    """

    objective: str
    best: str
    rivals: tuple[str, ...]
    missing: tuple[str, ...]
    scores: pd.DataFrame
    lacking: tuple[str, ...] = ()

    @property
    def higher_is_better(self) -> bool:
        from ml.evaluation.selection import OBJECTIVES

        return OBJECTIVES[self.objective].higher_is_better

    @property
    def means(self) -> pd.Series:
        """Means over the cells, the best first."""
        return self.scores.mean().sort_values(ascending=not self.higher_is_better)

    def __str__(self) -> str:
        """The best and what it was compared with, by name with numbers."""
        means = self.scores.mean()
        numbers = ", ".join(f"{name} {means[name]:.4f}" for name in self.rivals if name in means)
        line = (
            f"{OF[self.objective]}: validation {METRICS[self.objective]} of {self.best} "
            f"{means[self.best]:.4f} (mean of {counted(self.scores)}); {numbers or 'no simple row'}"
        )
        return f"{line}. {self.not_compared}" if self.lacking else line

    @property
    def not_compared(self) -> str:
        """Whom the best was chosen without, in a sentence; "" where everything was compared."""
        if not self.lacking:
            return ""
        verb = "lacks" if len(self.lacking) == 1 else "lack"
        return (
            f"Chosen without {', '.join(self.lacking)}, which {verb} a cell that {self.best} has and may be "
            "better: run the whole profile on it to compare"
        )

    def objections(self, profile: Profile) -> list[str]:
        """Why the best should not be promoted, with numbers; nothing where it may."""
        means, metric, what = self.scores.mean(), METRICS[self.objective], OF[self.objective]
        if self.missing:
            return [
                f"there is no validation {metric} of {', '.join(self.missing)} to compare {self.best} with "
                f"for {what}; run `diffcdr run` with the whole profile"
            ]
        if role(profile, self.best) == "blind":
            return [f"{self.best} is the best for {what}, and it knows nothing of the user"]
        sign = 1 if self.higher_is_better else -1
        unbeaten = [name for name in self.rivals if not sign * means[self.best] > sign * means[name]]
        if not unbeaten:
            return []
        numbers = ", ".join(f"{name} has {means[name]:.4f}" for name in unbeaten)
        return [
            f"for {what} the validation {metric} of {self.best} is {means[self.best]:.4f} (mean of "
            f"{counted(self.scores)}), but {numbers}"
        ]


def judge(store: Store, axes: Axes, profile: Profile, task: str, chosen: Chosen) -> list[Judged]:
    """The chosen models beside all that may be used and the simple rows, for each objective."""
    from ml.evaluation.selection import OBJECTIVES

    found = []
    for objective in dict.fromkeys(each.objective for each in chosen.all):
        best = (chosen.lists if objective == chosen.lists.objective else chosen.stars).name
        simple = tuple(name for name in rivals(profile, objective) if name != best)
        names = dict.fromkeys([best, *simple, *candidates(profile, objective)])
        rows = validated(store, axes.catalog, profile, axes.of_task(task), objective)
        rows = rows[rows["model"].isin(names)]
        metric = OBJECTIVES[objective].criterion
        values = rows.pivot(index="seed", columns="model", values=metric)
        # A NaN is a model that has diverged, not one that is missing.
        worst = float("-inf") if OBJECTIVES[objective].higher_is_better else float("inf")
        there = rows.assign(there=True).pivot(index="seed", columns="model", values="there")
        values = values.mask(values.isna() & there.notna(), worst)
        compared = values[[name for name in (best, *simple) if name in values]].dropna()
        missing = tuple(name for name in simple if name not in values)
        if compared.empty and not missing:
            missing = simple
        shared = values.loc[compared.index].dropna(axis=1)
        others = tuple(lacking(rows, candidates(profile, objective), best))
        found.append(Judged(objective, best, simple, missing, shared, others))
    return found


def counted(scores: pd.DataFrame) -> str:
    return f"{len(scores)} cell{'s' * (len(scores) != 1)}"


def refuse(judged: list[Judged], profile: Profile, task: str, chosen: Chosen) -> None:
    """Raise NotPromoted where there is any objection."""
    objections = [reason for each in judged for reason in each.objections(profile)]
    if objections:
        raise NotPromoted(f"{chosen} of {task}", "; ".join(objections))
