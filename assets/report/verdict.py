"""The verdict of a task: does transfer help here, by how much, and which model to use.

Models are chosen by their validation error alone; what is said of them is then measured on the test users,
with a paired bootstrap interval over users. Four questions, each a comparison of the best of two families:

- transfer: what knows the user's source ratings, against what knows nothing of the user;
- learning: trained models, against predictors from simple statistics of the source;
- baselines: our model, against every other trained model;
- diffusion: our model, against the same without its diffusion.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from assets.report.metrics import ERRORS, Metric, shown_in
from assets.report.names import Names, trained_for
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.significance import RESAMPLES, pooled_users, user_errors
from assets.report.summaries import groups, task_betas
from assets.report.table import Interval, Number, Table, digits, table
from assets.settings.profile import Profile
from assets.training.choose import best, candidates, compared, role

METRICS = shown_in("verdict")
COLUMNS = ["task", "beta", "metric", "question", "model", "against", "value", "value_against", "difference"]
COLUMNS += ["low", "high", "users", "seeds", "answer"]
SIGNED = digits(4, signed=True)


@dataclass(frozen=True)
class Families:
    """Whom a question compares: the best of `ours` with the best of `theirs`."""

    ours: Sequence[str]
    theirs: Sequence[str]


def families(profile: Profile) -> dict[str, Families]:
    """The comparison of each question, of the models that a profile has."""
    by_role: dict[str, list[str]] = {"learned": [], "simple": [], "blind": []}
    for name in compared(profile):
        by_role[role(profile, name)].append(name)
    learned, simple, ours = by_role["learned"], by_role["simple"], list(profile.ours)
    return {
        "transfer": Families([*learned, *simple], by_role["blind"]),
        "learning": Families(learned, simple),
        "baselines": Families(ours, [name for name in learned if name not in ours]),
        "diffusion": Families(ours, [n for n in profile.ablations if _without_diffusion(profile, n)]),
    }


def _without_diffusion(profile: Profile, name: str) -> bool:
    """Whether an ablation is our model but for the diffusion."""
    settings = profile.model(name, "")
    of_ours = profile.kind(name) in map(profile.kind, profile.ours)
    return of_ours and (settings.get("parts") == "at" or settings.get("vectors") in ("gaussian", "mean"))


def verdict_frame(source: Source) -> pd.DataFrame:
    """One row for each task, β, metric and question whose families both have results: COLUMNS.

    difference is the error of `model` minus that of `against` on the test users, over the seeds both have;
    low..high its 95 % paired bootstrap interval; answer is `yes` where all of it is below 0, `no` where all
    is above, else `open`.
    """
    judged = source.validated()
    rows = []
    for task in source.names.in_order(judged["task"]):
        errors = user_errors(source, task)
        for beta, part in judged[judged["task"] == task].groupby("beta"):
            of_beta = errors[errors["beta"] == beta]
            rows += [
                {"task": task, "beta": beta, "metric": metric.name, "question": question, **row}
                for metric in METRICS
                for question, pair in families(source.profile).items()
                if (row := _compared(part, of_beta, pair, metric)) is not None
            ]
    # An undefined bound is None, which must not turn the column into one of objects.
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})


def recommended(source: Source) -> pd.DataFrame:
    """The model to use for each task, β and metric by validation error: task, beta, metric, model."""
    rows = [
        (task, beta, metric.name, _best(part, candidates(source.profile), metric))
        for (task, beta), part in source.validated().groupby(["task", "beta"])
        for metric in ERRORS
    ]
    return pd.DataFrame(rows, columns=["task", "beta", "metric", "model"]).dropna()


def _best(judged: pd.DataFrame, names: Iterable[str], metric: Metric) -> str | None:
    return best(judged, names, metric.name, metric.higher_is_better) if metric.name in judged else None


def _compared(judged: pd.DataFrame, errors: pd.DataFrame, pair: Families, metric: Metric) -> dict | None:
    from ml.evaluation.significance import paired_bootstrap

    ours, theirs = _best(judged, pair.ours, metric), _best(judged, pair.theirs, metric)
    if ours is None or theirs is None:
        return None
    pairs = pooled_users(errors, ours, theirs, metric.sums)
    if pairs.empty:
        return None
    sums = [pairs[name].to_numpy(float) for name in ("ours", "other", "count")]
    interval = paired_bootstrap(*sums, resamples=RESAMPLES, root=metric.root)
    values = [total.sum() / sums[2].sum() for total in sums[:2]]
    values = [value**0.5 for value in values] if metric.root else values
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


def verdict_tables(frame: pd.DataFrame, use: pd.DataFrame, names: Names) -> list[Table]:
    """Sentences, then numbers: rows task × β × metric × question."""
    rows = [
        {
            **head,
            "Question": row.question,
            "Best": Number(row.value, who=names.model(row.model)),
            "Against": Number(row.value_against, who=names.model(row.against)),
            "Difference": Number(row.difference, SIGNED),
            "95 % interval": Interval(row.low, row.high, SIGNED),
            "Helps": row.answer,
        }
        for head, _, part in groups(frame, names, METRICS)
        for row in part.itertuples()
    ]
    if not rows:
        return []
    numbers = table("The numbers behind it", rows, keys=4, sections=True)
    sentences = _sentences(frame, use, names)
    return [table("", sentences, keys=4, sections=True), numbers] if sentences else [numbers]


def _sentences(frame: pd.DataFrame, use: pd.DataFrame, names: Names) -> list[dict[str, str]]:
    transfer = frame[frame["question"] == "transfer"]
    answers = transfer.set_index(["task", "beta", "metric"])
    models = use.set_index(["task", "beta", "metric"])["model"].map(names.model)
    rows = []
    for task, beta, head in task_betas(transfer, names):
        where = {metric.title: (task, beta, metric.name) for metric in ERRORS}
        helps = [_helps(title, answers.loc[key]) for title, key in where.items() if key in answers.index]
        chosen = {title: models[key] for title, key in where.items() if key in models}
        rows.append({**head, "Does transfer help?": "; ".join(helps), "Use": _use(chosen)})
    return rows


def _helps(title: str, row: pd.Series) -> str:
    word = {"yes": "yes", "no": "no, it harms", "open": "not beyond chance"}[row["answer"]]
    change = Number(row["difference"], SIGNED).text
    share = Number(row["difference"] / row["value_against"], "{:+.1%}").text
    return f"{title}: {word}, {change} ({share})"


def _use(by_metric: Mapping[str, str]) -> str:
    if len(set(by_metric.values())) == 1:
        return next(iter(by_metric.values()))
    return ", ".join(f"{model} ({title})" for title, model in by_metric.items())


def verdict_of_tasks(source: Source, tasks: Sequence[str]) -> list[Table]:
    """The verdict on these tasks: a sentence for each task and β, and the numbers behind it."""
    frame = verdict_frame(source)
    return verdict_tables(frame[frame["task"].isin(tasks)], recommended(source), source.names)


def verdict_part(source: Source) -> Part:
    profile, ours = source.profile, source.names.our_title
    frame = verdict_frame(source)
    notes = (
        "Each model is the best of its family by validation error; errors and differences are on the test "
        "users, pooled over seeds. Interval: paired bootstrap of whole users, "
        f"{RESAMPLES:,} resamples, 95 %. yes: all of it is below 0; no: all above; open: neither.",
        "Transfer: what knows the user's source ratings against what knows nothing of the user. Learning: "
        f"trained models against simple statistics of the source. Baselines: {ours} against every other "
        f"trained model. Diffusion: {ours} against the same without its diffusion. CRPS: of distributions "
        "alone.",
        "What predicts a distribution gives its median for MAE, the other models means: where half the "
        "ratings are five stars this alone is worth a good deal, whatever is known of the user. RMSE and "
        "CRPS compare like with like. Validation users of one seed may be test users of another, and "
        "nothing is corrected for the number of comparisons.",
    )
    tables = verdict_tables(frame, recommended(source), source.names)
    gaps = source.gaps(trained_for(profile, "rating"), ("rating",))
    return Part("verdict", f"Verdict. {profile.title}", frame, tables, notes, gaps)


VERDICT = Chapter(
    "verdict",
    "Does transfer help?",
    "Models are chosen on validation users, and what is said of them is measured on the test users.",
    "Whether transfer helps, by how much, and which model to use.",
    verdict_part,
    lambda profile: trained_for(profile, "rating"),
    lambda profile: profile.validation,
)
