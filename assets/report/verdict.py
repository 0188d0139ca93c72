"""The verdict of a task: which stars a user would give and what to show them, by which model, and why.

Models are chosen on validation users alone: of stars for each metric by that metric, of lists by nDCG@20.
What is said of them is measured on the test users, with a paired bootstrap interval over users. For either
objective the model to use is compared with the best simple row (`gain`), and the best of two families with
each other:

- transfer: what knows the user's source ratings, against what knows nothing of the user;
- learning: trained models, against predictors from simple statistics of the source;
- baselines: our model, against every other trained model;
- diffusion: our model, against the same without its diffusion.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from assets.report.metrics import BY_NAME, LIST_HEADLINE, Metric, shown_in
from assets.report.names import Names
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.significance import RESAMPLES, pooled_users, user_sums
from assets.report.summaries import groups, task_betas
from assets.report.table import Interval, Number, Table, Words, digits, table
from assets.settings.profile import Profile
from assets.training.choose import best, candidates, compared, lacking, role

METRICS = shown_in("verdict")
COLUMNS = ["task", "beta", "metric", "question", "model", "against", "value", "value_against", "difference"]
COLUMNS += ["low", "high", "users", "seeds", "answer"]
SIGNED, PLAIN = digits(4, signed=True), digits(4)
# The comparisons of `families`.
ASKED = ("gain", "transfer", "learning", "baselines", "diffusion")
# What a shop asks, and how the answer begins, by objective.
QUESTIONS = {
    "rating": ("Which stars would this user give?", "Predict stars by"),
    "ranking": ("What should we show them?", "Show lists by"),
}
# Whom validation chooses the model to use by; a CRPS is of distributions alone.
DECIDING = {"rating": ("mae", "rmse"), "ranking": (LIST_HEADLINE,)}


@dataclass(frozen=True)
class Families:
    """Whom a question compares: the best of `ours` with the best of `theirs`."""

    ours: Sequence[str]
    theirs: Sequence[str]


def families(profile: Profile, objective: str = "rating") -> dict[str, Families]:
    """The comparison of each question, of the models that a profile trains for an objective."""
    by_role: dict[str, list[str]] = {"learned": [], "simple": [], "blind": []}
    for name in compared(profile, objective):
        by_role[role(profile, name)].append(name)
    learned, simple, blind = by_role["learned"], by_role["simple"], by_role["blind"]
    ours = [name for name in profile.ours if objective in profile.objectives_of(name)]
    ablations = [name for name in profile.ablations if objective in profile.objectives_of(name)]
    return {
        "gain": Families([*learned, *simple, *blind], [*simple, *blind]),
        "transfer": Families([*learned, *simple], blind),
        "learning": Families(learned, simple),
        "baselines": Families(ours, [name for name in learned if name not in ours]),
        "diffusion": Families(ours, [name for name in ablations if _without_diffusion(profile, name)]),
    }


def _without_diffusion(profile: Profile, name: str) -> bool:
    """Whether an ablation is our model but for the diffusion."""
    settings = profile.model(name, "")
    of_ours = profile.kind(name) in map(profile.kind, profile.ours)
    return of_ours and (settings.get("parts") == "at" or settings.get("vectors") in ("gaussian", "mean"))


def verdict_frame(
    source: Source, only: Collection[str] = ASKED, metrics: Sequence[Metric] = METRICS
) -> pd.DataFrame:
    """One row for each task, β, metric and question of `only` whose families both have results: COLUMNS.

    difference is the value of `model` minus that of `against` on the test users, over the seeds both have;
    low..high its 95 % paired bootstrap interval; answer is `yes` where all of it favours `model`, `no` where
    all favours `against`, else `open`. The question `gain` has no row where the model to use is simple.
    """
    profile, names, rows = source.profile, source.names, []
    judged = {objective: source.validated(objective) for objective in profile.objectives}
    for task in names.in_order(task for frame in judged.values() for task in frame["task"]):
        sums = user_sums(source, task)
        for objective, frame in judged.items():
            of_users = sums[objective]
            here = [metric for metric in metrics if metric.objective == objective]
            for beta, part in frame[frame["task"] == task].groupby("beta"):
                of_beta = of_users[of_users["beta"] == beta]
                rows += [
                    {"task": task, "beta": beta, "metric": metric.name, "question": question, **row}
                    for metric in here
                    for question, pair in families(profile, objective).items()
                    if question in only
                    if (row := _compared(part, of_beta, pair, metric)) is not None
                ]
    # An undefined bound is None, which must not turn the column into one of objects.
    return pd.DataFrame(rows, columns=COLUMNS).astype({"low": float, "high": float})


def recommended(source: Source) -> pd.DataFrame:
    """The model to use by each deciding metric on validation users: task, beta, metric, model; and
    others_lack, whether another could not be chosen, for it lacks a seed that this one has."""
    rows = []
    for objective in source.profile.objectives:
        able = candidates(source.profile, objective)
        for (task, beta), part in source.validated(objective).groupby(["task", "beta"]):
            for name in DECIDING[objective]:
                model = _best(part, able, BY_NAME[name])
                if model is not None:
                    rows.append((task, beta, name, model, bool(lacking(part, able, model))))
    return pd.DataFrame(rows, columns=["task", "beta", "metric", "model", "others_lack"])


def _best(judged: pd.DataFrame, names: Iterable[str], metric: Metric) -> str | None:
    chosen_by = _chosen_by(metric.name)
    return best(judged, names, chosen_by, metric.higher_is_better) if chosen_by in judged else None


def _compared(judged: pd.DataFrame, sums: pd.DataFrame, pair: Families, metric: Metric) -> dict | None:
    from ml.evaluation.significance import paired_bootstrap

    ours, theirs = _best(judged, pair.ours, metric), _best(judged, pair.theirs, metric)
    if ours is None or theirs is None or ours == theirs:
        return None
    pairs = pooled_users(sums, ours, theirs, metric.sums)
    if pairs.empty:
        return None
    totals = [pairs[name].to_numpy(float) for name in ("ours", "other", "count")]
    interval = paired_bootstrap(*totals, resamples=RESAMPLES, root=metric.root)
    values = [total.sum() / totals[2].sum() for total in totals[:2]]
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
        "seeds": len(_seeds(sums, ours) & _seeds(sums, theirs)),
        "answer": _answer(interval.low, interval.high, metric.higher_is_better),
    }


def _seeds(errors: pd.DataFrame, model: str) -> set[int]:
    return set(errors.loc[errors["model"] == model, "seed"])


def _answer(low: float | None, high: float | None, higher_is_better: bool) -> str:
    if low is None or high is None or not np.isfinite([low, high]).all():
        return "open"
    above, below = ("yes", "no") if higher_is_better else ("no", "yes")
    return above if low > 0 else below if high < 0 else "open"


def verdict_tables(frame: pd.DataFrame, use: pd.DataFrame, names: Names) -> list[Table]:
    """Answers in sentences, then numbers: rows task × β × metric × question."""
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
    answers = _answers(frame, use, names)
    tables = [table("", answers, keys=4, sections=True)] if answers else []
    return [
        *tables,
        *([table("The numbers behind it", rows, keys=4, sections=True, folded=True)] if rows else []),
    ]


def _answers(frame: pd.DataFrame, use: pd.DataFrame, names: Names) -> list[dict[str, str]]:
    """A row for each task, β and question of a shop: the model to use, what it gains, whether it is worth it
    to know the user."""
    objective = {"frame": frame["metric"], "use": use["metric"]}
    objective = {key: column.map(lambda name: BY_NAME[name].objective) for key, column in objective.items()}
    rows = []
    for task, beta, head in task_betas(use, names):
        for asked, (question, begin) in QUESTIONS.items():
            here = (use["task"] == task) & (use["beta"] == beta) & (objective["use"] == asked)
            chosen = {row.metric: row.model for row in use[here].itertuples()}
            if not chosen:
                continue
            lacking = use[here & use["others_lack"]]["model"].tolist()
            here = (frame["task"] == task) & (frame["beta"] == beta) & (objective["frame"] == asked)
            said = _answer_in_words(begin, chosen, frame[here], names, lacking)
            rows.append({**head, "Question": question, "Use": _use(chosen, names), "Answer": Words(said)})
    return rows


def _answer_in_words(
    begin: str, chosen: Mapping[str, str], frame: pd.DataFrame, names: Names, lacking: Collection[str]
) -> str:
    """`Show lists by X: nDCG@20 …; …. Does knowing the user help? …`; lacking: the models beside which others
    lack a seed."""
    sentences = []
    for model, metrics in _by_model(chosen).items():
        mine = frame[frame["metric"].map(_chosen_by).isin(metrics)]
        gain = mine[(mine["question"] == "gain") & (mine["model"] == model)]
        learning = mine[(mine["question"] == "learning") & (mine["against"] == model)]
        title = names.model(model)
        title += f" ({', '.join(_titles(metrics))})" if len(set(chosen.values())) > 1 else ""
        if len(gain):
            sentences.append(f"{begin} {title}: {_gains(gain, names)}.")
        elif model in lacking:
            sentences.append(
                f"{begin} {title}: not because it is better, but others lack a seed that it has; "
                "run them on it."
            )
        else:
            sentences.append(f"{begin} {title}: a simple row, and nothing is better on validation users.")
        if len(learning):
            trained = names.model(learning["model"].iloc[0])
            sentences.append(f"Of what is trained the best is {trained}: {_gains(learning, names)}.")
    transfer = frame[frame["question"] == "transfer"].itertuples()
    helps = [_helps(BY_NAME[row.metric].title, row) for row in transfer]
    return " ".join([*sentences, *([f"Does knowing the user help? {'; '.join(helps)}."] if helps else [])])


def _chosen_by(metric: str) -> str:
    return BY_NAME[metric].chosen_by or metric


def _gains(frame: pd.DataFrame, names: Names) -> str:
    return "; ".join(_gain(BY_NAME[row.metric].title, row, names) for row in frame.itertuples())


def _by_model(chosen: Mapping[str, str]) -> dict[str, list[str]]:
    """Metrics by the model that is chosen by them."""
    return {m: [n for n, model in chosen.items() if model == m] for m in dict.fromkeys(chosen.values())}


def _titles(metrics: Iterable[str]) -> list[str]:
    return [BY_NAME[name].title for name in metrics]


def _gain(title: str, row, names: Names) -> str:
    """`nDCG@20 0.2823 against 0.2381 of item regression, +0.0442 (+0.0310 … +0.0580)`"""
    against = f"{Number(row.value_against, PLAIN)} of {names.model(row.against)}"
    change = f"{Number(row.difference, SIGNED)} ({Interval(row.low, row.high, SIGNED)})"
    chance = {"yes": "", "no": ", which is worse", "open": ", not beyond chance"}[row.answer]
    return f"{title} {Number(row.value, PLAIN)} against {against}, {change}{chance}"


def _helps(title: str, row) -> str:
    word = {"yes": "yes", "no": "no, it harms", "open": "not beyond chance"}[row.answer]
    share = Number(row.difference / row.value_against, "{:+.1%}").text
    return f"{title}: {word}, {Number(row.difference, SIGNED).text} ({share})"


def _use(chosen: Mapping[str, str], names: Names) -> str:
    by_model = _by_model(chosen)
    if len(by_model) == 1:
        return names.model(next(iter(by_model)))
    return ", ".join(f"{names.model(model)} ({', '.join(_titles(ms))})" for model, ms in by_model.items())


def verdict_of_tasks(source: Source, tasks: Sequence[str]) -> list[Table]:
    """The verdict on these tasks: an answer for each task, β and question, and the numbers behind it."""
    frame, use = verdict_frame(source), recommended(source)
    return verdict_tables(frame[frame["task"].isin(tasks)], use[use["task"].isin(tasks)], source.names)


def verdict_part(source: Source) -> Part:
    profile, ours = source.profile, source.names.our_titles
    frame = verdict_frame(source)
    notes = (
        "Each model is the best of its family on validation users: of stars for each metric apart, of lists "
        "by nDCG@20; values and differences are on the test users, pooled over seeds. Interval: paired "
        f"bootstrap of whole users, {RESAMPLES:,} resamples, 95 %. yes: all of it favours the first; no: all "
        "favours the other; open: neither. Of errors less is better, of nDCG@20 and hit rate@20 more.",
        "Gain: the model to use against the best row that is simple or knows nothing of the user; none where "
        "such a row is itself the one to use. Transfer: what knows the user's source ratings against what "
        "knows nothing of the user. Learning: trained models against simple statistics of the source. "
        f"Baselines: {ours} against every other trained model. Diffusion: {ours} against the same without "
        "its diffusion. CRPS: of distributions alone.",
        "What predicts a distribution gives its median for MAE, the other models means: where half the "
        "ratings are five stars this alone is worth a good deal, whatever is known of the user. RMSE and "
        "CRPS compare like with like. Validation users of one seed may be test users of another, and "
        "nothing is corrected for the number of comparisons.",
    )
    tables = verdict_tables(frame, recommended(source), source.names)
    gaps = source.gaps(profile.trained)
    return Part("verdict", f"Verdict. {profile.title}", frame, tables, notes, gaps)


VERDICT = Chapter(
    "verdict",
    "What to use",
    "Which stars would this user give, and what should we show them? Models are chosen on validation users, "
    "and what is said of them is measured on the test users.",
    "For stars and for lists the model to use, what it gains, and whether knowing the user helps.",
    verdict_part,
    lambda profile: profile.trained,
    lambda profile: profile.validation,
)
