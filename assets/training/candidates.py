"""Who may be used, and who is best: verdict, champion and recommendations ask here."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from assets.settings.axes import Cell
from assets.settings.profile import Profile
from assets.state.store import Entry, NotMaterialized
from assets.training.fingerprints import Fingerprints


def role(profile: Profile, name: str) -> str:
    """How a model of a profile stands in a comparison, see `ml.models.contract.ROLES`."""
    return profile.facts[profile.kind(name)].role


def candidates(profile: Profile, objective: str) -> list[str]:
    """The models and controls of a profile that may be used: those that can answer for anyone with source
    ratings. What only probes another model may not, nor what is made from another."""
    names = (*profile.models, *profile.controls)
    trained = [name for name in names if objective in profile.objectives_of(name)]
    return [
        name
        for name in trained
        if role(profile, name) != "probe"
        and not profile.of(name)
        and all(profile.facts[kind].serves == "anyone" for kind in profile.kinds(name))
    ]


def best(
    validated: pd.DataFrame, names: Iterable[str], metric: str, higher_is_better: bool = False
) -> str | None:
    """Of `names` the one with the best mean of `metric` over seeds; None where none has a finite value.

    validated: one row for each seed (or cell) and model, with the columns seed, model and metric; names
    without a row do not count. A value that is NaN or infinite, or a seed that another model has and this one
    lacks, is a failure, and what failed on a seed is never better than what did not: the complete ones are
    compared, over every seed. Where none is complete, those are compared that failed least often, over the
    seeds that all of them have, and where they share none, by what they have. Of equal ones the first counts.
    """
    order = list(dict.fromkeys(names))
    rows = validated[validated["model"].isin(order)]
    values = rows.pivot(index="seed", columns="model", values=metric).astype(float)
    values = values.where(np.isfinite(values)).reindex(columns=[name for name in order if name in values])
    succeeded = values.count()
    if values.empty or succeeded.max() == 0:
        return None
    compared = values.loc[:, succeeded == succeeded.max()]
    shared = compared.dropna()
    means = (compared if shared.empty else shared).mean()
    return str(means.idxmax() if higher_is_better else means.idxmin())


def current(fingerprints: Fingerprints, cell: Cell, name: str, objective: str) -> Entry | None:
    """A model's entry, where what is there is what today's settings, code and inputs give."""
    store, profile = fingerprints.store, fingerprints.profile
    entry = store.model(profile.name, name, cell, objective)
    if entry.manifest() is None:
        return None
    try:
        return entry if entry.is_current(fingerprints.model(name, cell, objective)) else None
    except NotMaterialized:
        return None


def validated(
    fingerprints: Fingerprints, cells: Sequence[Cell], names: Iterable[str], objective: str
) -> pd.DataFrame:
    """Validation values of the models `names` at the epoch that validation chose, of current cells alone:
    columns seed (the cell's key), model and the objective's criterion, NaN where a model has diverged."""
    from ml.evaluation.selection import OBJECTIVES

    chosen = OBJECTIVES[objective]
    rows = []
    for name in names:
        for cell in cells:
            entry = current(fingerprints, cell, name, objective)
            if entry is None:
                continue
            values = entry.table("curves.parquet")[f"validation_{chosen.criterion}"]
            rows.append((cell.key, name, values.max() if chosen.higher_is_better else values.min()))
    return pd.DataFrame(rows, columns=["seed", "model", chosen.criterion])
