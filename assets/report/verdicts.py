"""The verdict of a task: does transfer help here, by how much, and which model to use.

Models are chosen by their validation error alone; what is said of them is then measured on the test users,
with a paired bootstrap interval over users. Four questions, each a comparison of the best of two families:

- transfer: what knows the user's source ratings, against what knows nothing of the user;
- learning: trained models, against predictors from simple statistics of the source;
- baselines: DiffCDR, against every other trained model;
- diffusion: DiffCDR, against the same model without its diffusion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from assets.report.results import read_user_errors, read_validation
from assets.report.tables import ERRORS, OURS, RESAMPLES, Metric, pooled_users
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Store
from assets.training.controls import PERMUTED, VECTORS
from assets.training.distributions import BLIND, DISCRIMINATIVE

WITHOUT_USER = ("global_mean", "item_mean", BLIND, *VECTORS, "tgt")
SIMPLE = ("item_source_bias", "ridge_source", *(name for name in DISCRIMINATIVE if name != BLIND))
# A distribution's CRPS is compared with that of other distributions alone.
METRICS = (*ERRORS, Metric("crps", "CRPS"))
SUMS = {"mae": "absolute", "rmse": "squared", "crps": "crps"}
COLUMNS = ["task", "beta", "metric", "question", "model", "against", "value", "value_against", "difference"]
COLUMNS += ["low", "high", "users", "seeds", "answer"]


@dataclass(frozen=True)
class Families:
    """Whom a question compares: the best of `ours` with the best of `theirs`."""

    ours: Sequence[str]
    theirs: Sequence[str]


def families(profile: Profile) -> dict[str, Families]:
    """The comparison of each question, of the models that a profile has."""
    trained = [name for name in profile.models if name not in WITHOUT_USER]
    simple = [name for name in profile.controls if name in SIMPLE]
    blind = [name for name in (*profile.models, *profile.controls) if name in WITHOUT_USER]
    return {
        "transfer": Families([*trained, *simple], blind),
        "learning": Families(trained, simple),
        "baselines": Families([OURS], [name for name in trained if name != OURS]),
        "diffusion": Families([OURS], [n for n in profile.ablations if _without_diffusion(profile, n)]),
    }


def _without_diffusion(profile: Profile, name: str) -> bool:
    settings = profile.model(name, "")
    return settings.get("parts") == "at" or settings.get("vectors") in ("gaussian", "mean")


def candidates(profile: Profile) -> list[str]:
    """All that may be used: what the controls do to a model's users is no model."""
    return [name for name in (*profile.models, *profile.controls) if name != PERMUTED]


def verdicts(store: Store, profile: Profile, catalog: Catalog) -> pd.DataFrame:
    """One row for each task, β, metric and question whose families both have results: COLUMNS.

    difference is the error of `model` minus that of `against` on the test users, over the seeds both have;
    low..high its 95 % paired bootstrap interval; answer is `yes` where all of it is below 0, `no` where all
    is above, else `open`.
    """
    judged = read_validation(store, profile.name)
    rows = []
    for task in [name for name in catalog.tasks if name in set(judged["task"])]:
        errors = read_user_errors(store, profile.name, task)
        for beta, part in judged[judged["task"] == task].groupby("beta"):
            of_beta = errors[errors["beta"] == beta]
            rows += [
                {"task": task, "beta": beta, "metric": metric.name, "question": question, **row}
                for metric in METRICS
                for question, pair in families(profile).items()
                if (row := _compared(part, of_beta, pair, metric)) is not None
            ]
    # An undefined bound is None, which must not turn the column into one of objects.
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})


def best_validated(judged: pd.DataFrame, names: Sequence[str], metric: str) -> str | None:
    """Of `names` the model with the lowest mean validation error over the seeds that all of them have."""
    of_names = judged[judged["model"].isin(names)]
    by_seed = of_names.pivot(index="seed", columns="model", values=metric).dropna(axis=1, how="all")
    means = by_seed.dropna().mean().dropna()
    return str(means.idxmin()) if len(means) else None


def recommended(store: Store, profile: Profile, catalog: Catalog) -> pd.DataFrame:
    """The model to use for each task, β and metric by validation error: task, beta, metric, model."""
    judged = read_validation(store, profile.name)
    rows = [
        (task, beta, metric.name, best_validated(part, candidates(profile), metric.name))
        for (task, beta), part in judged.groupby(["task", "beta"])
        if task in catalog.tasks
        for metric in ERRORS
    ]
    return pd.DataFrame(rows, columns=["task", "beta", "metric", "model"]).dropna()


def _compared(judged: pd.DataFrame, errors: pd.DataFrame, pair: Families, metric: Metric) -> dict | None:
    from ml.evaluation.significance import paired_bootstrap

    ours = best_validated(judged, pair.ours, metric.name)
    theirs = best_validated(judged, pair.theirs, metric.name)
    if ours is None or theirs is None:
        return None
    root = metric.name == "rmse"
    pairs = pooled_users(errors, ours, theirs, SUMS[metric.name])
    if pairs.empty:
        return None
    sums = [pairs[name].to_numpy(float) for name in ("ours", "other", "count")]
    interval = paired_bootstrap(*sums, resamples=RESAMPLES, root=root)
    values = [total.sum() / sums[2].sum() for total in sums[:2]]
    values = [value**0.5 for value in values] if root else values
    return {
        "model": ours,
        "against": theirs,
        "value": values[0],
        "value_against": values[1],
        "difference": values[0] - values[1],
        "low": interval.low,
        "high": interval.high,
        "users": len(pairs),
        "seeds": len(_seeds(errors, ours) & _seeds(errors, theirs)),
        "answer": _answer(interval.low, interval.high),
    }


def _seeds(errors: pd.DataFrame, model: str) -> set[int]:
    return set(errors.loc[errors["model"] == model, "seed"])


def _answer(low: float | None, high: float | None) -> str:
    if low is None or high is None or not np.isfinite([low, high]).all():
        return "open"
    return "yes" if high < 0 else "no" if low > 0 else "open"
