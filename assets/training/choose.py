"""The one best: trials, verdict, champion and recommendations choose by this function."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from assets.settings.profile import Profile

# What a model must beat: it knows nothing of the user, or statistics of the source alone.
RIVALS = ("blind", "simple")


def role(profile: Profile, name: str) -> str:
    """How a model of a profile stands in a comparison, see `ml.models.contract.ROLES`."""
    return profile.facts[profile.kind(name)].role


def compared(profile: Profile, objective: str = "rating") -> list[str]:
    """The models and controls of a profile that comparisons are about: all but what only probes another."""
    names = (*profile.models, *profile.controls)
    trained = [name for name in names if objective in profile.objectives_of(name)]
    return [name for name in trained if role(profile, name) != "probe"]


def candidates(profile: Profile, objective: str = "rating") -> list[str]:
    """Those of them that may be used: they answer for anyone with source ratings, and by themselves."""
    return [
        name
        for name in compared(profile, objective)
        if not profile.of(name)
        and all(profile.facts[kind].serves == "anyone" for kind in profile.kinds(name))
    ]


def rivals(profile: Profile, objective: str) -> list[str]:
    """The models and controls of a profile that any other must beat."""
    names = (*profile.models, *profile.controls)
    return [n for n in names if objective in profile.objectives_of(n) and role(profile, n) in RIVALS]


def lacking(validated: pd.DataFrame, names: Iterable[str], chosen: str) -> list[str]:
    """Of `names` those beside which `chosen` could be the best without being better: they have a row, and
    lack one of a seed that it has. validated: as for `best`."""
    seeds = validated.groupby("model")["seed"].nunique()
    return [name for name in dict.fromkeys(names) if name in seeds and seeds[name] < seeds[chosen]]


def best(
    validated: pd.DataFrame, names: Iterable[str], metric: str, higher_is_better: bool = False
) -> str | None:
    """Of `names` the one with the best mean of `metric` over seeds; None where none has a finite value.

    validated: one row for each seed and model, with the columns seed, model and metric; names without a row
    do not count. A value that is NaN or infinite, or a seed that another model has and this one
    lacks, is a failure, and what failed on a seed is never better than what did not: the complete ones are
    compared, over every seed. Where none is complete, those are compared that failed least often, over the
    seeds that all of them have, and where they share none, by what they have. Of equal ones the first counts.
    """
    order = list(dict.fromkeys(names))
    rows = validated[validated["model"].isin(order)]
    values = rows.pivot(index="seed", columns="model", values=metric).astype(float)
    values = values.where(np.isfinite(values)).reindex(columns=[name for name in order if name in values])
    succeeded = values.count()
    if succeeded.max() in (0, np.nan) or values.empty:
        return None
    compared = values.loc[:, succeeded == succeeded.max()]
    shared = compared.dropna()
    means = (compared if shared.empty else shared).mean()
    return means.idxmax() if higher_is_better else means.idxmin()
