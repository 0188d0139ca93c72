"""Significance: our model against each other one, by tests over seeds and over users."""

from collections.abc import Mapping

import pandas as pd

from assets.report.metrics import BY_NAME, METRICS, Metric, of_table2
from assets.report.names import Names, compared
from assets.report.part import Chapter, Part
from assets.report.results import Source
from assets.report.summaries import SELECTIONS, groups, headline, of_metrics, paired_seeds, strict_mean
from assets.report.table import UNDEFINED, Interval, Number, PValue, Table, digits, table

USER_ERRORS = ["task", "beta", "seed", "model", "user", "absolute", "squared", "crps", "count"]
LIST_SCORES = [metric.sums for metric in METRICS if metric.sums and metric.objective == "ranking"]
RESAMPLES = 1000


def user_errors(source: Source, task: str) -> pd.DataFrame:
    """Each test user's sums of errors and number of ratings: columns USER_ERRORS."""
    return source.table("user_errors.parquet", USER_ERRORS, task=task)


def user_sums(source: Source, task: str) -> dict[str, pd.DataFrame]:
    """What is summed over test users, by objective, each with its number in `count`: a user's errors, one for
    each rating, and the metrics of a user's list, one for each seed in which they are a test user."""
    lists = source.table("list_scores.parquet", [*USER_ERRORS[:5], *LIST_SCORES], "ranking", task)
    return {"rating": user_errors(source, task), "ranking": lists.assign(count=1)}


def pooled_users(errors: pd.DataFrame, ours: str, other: str, column: str) -> pd.DataFrame:
    """Sums of two models (ours, other) and of ratings (count) by user, over the seeds that both have."""
    keys = ["seed", "user"]
    mine, theirs = (
        errors[errors["model"] == model].set_index(keys)[[column, "count"]] for model in (ours, other)
    )
    pairs = mine.rename(columns={column: "ours"}).join(theirs[column].rename("other"), how="inner")
    return pairs.groupby("user").sum(min_count=1)


def significance_frame(source: Source) -> pd.DataFrame:
    """Our model against each other one: one row for each task, beta, metric and baseline.

    difference is the mean over seeds of ours − baseline; t_p, wilcoxon_seeds_p test it over seeds. For
    metrics that are known by user, wilcoxon_users_p tests each user's own, and low..high is the 95 % paired
    bootstrap interval of user_difference, the pooled one, when whole users are drawn again. A user's errors
    are summed, and the metrics of their lists averaged, over the seeds in which they are a test user.
    Columns *_holm are Holm-corrected over the baselines.
    A test that is undefined is null, and `undefined` says why.
    """
    profile = source.profile
    chosen = of_metrics(source.results, of_table2(profile), [*profile.models, *profile.controls])
    chosen = chosen[chosen["selection"] == headline(profile)]
    rows = []
    for task, of_task in chosen.groupby("task"):
        sums = user_sums(source, str(task))
        for (beta, metric), part in of_task.groupby(["beta", "metric"]):
            head, objective = {"task": task, "beta": beta, "metric": metric}, BY_NAME[metric].objective
            of_users = sums[objective]
            ours = source.names.ours(objective)
            rows += _comparisons(part, of_users[of_users["beta"] == beta], head, ours)
    columns = ["task", "beta", "metric", "baseline", "difference", "seeds", "t_p", "wilcoxon_seeds_p"]
    columns += ["wilcoxon_seeds_holm", "users", "wilcoxon_users_p", "wilcoxon_users_holm"]
    frame = pd.DataFrame(rows, columns=[*columns, "user_difference", "low", "high", "undefined"])
    words = ("task", "metric", "baseline", "undefined")
    return frame.astype({column: float for column in frame.columns if column not in words})


def _comparisons(part: pd.DataFrame, errors: pd.DataFrame, head: Mapping, ours: str | None) -> list[dict]:
    from ml.evaluation.significance import holm

    models = set(part["model"])
    if ours not in models:
        return []
    rows = {baseline: {"baseline": baseline} for baseline in sorted(models - {ours})}
    for baseline, row in rows.items():
        _add(row, _over_seeds(paired_seeds(part, ours, baseline)))
        _add(row, _over_users(errors, ours, baseline, BY_NAME[head["metric"]]))
    for kind in ("wilcoxon_seeds", "wilcoxon_users"):
        corrected = holm({baseline: row.get(f"{kind}_p") for baseline, row in rows.items()})
        for baseline, p_value in corrected.items():
            rows[baseline][f"{kind}_holm"] = p_value
    return [{**head, **row} for row in rows.values()]


def _add(row: dict, facts: Mapping) -> None:
    """Put `facts` into `row`, reasons one after the other."""
    reasons = dict.fromkeys(reason for reason in (row.get("undefined"), facts.get("undefined")) if reason)
    row.update(facts)
    row["undefined"] = "; ".join(reasons) or None


def _over_seeds(pairs: pd.DataFrame) -> dict[str, object]:
    from ml.evaluation.significance import paired_t_test, wilcoxon_signed_rank

    tests = {
        "t_p": paired_t_test(pairs["ours"], pairs["other"]),
        "wilcoxon_seeds_p": wilcoxon_signed_rank(pairs["ours"], pairs["other"]),
    }
    reasons = dict.fromkeys(f"over seeds: {test.undefined}" for test in tests.values() if test.undefined)
    return {
        "difference": strict_mean(pairs["ours"] - pairs["other"]),
        "seeds": len(pairs),
        **{name: test.p_value for name, test in tests.items()},
        "undefined": "; ".join(reasons) or None,
    }


def _over_users(errors: pd.DataFrame, ours: str, baseline: str, metric: Metric) -> dict[str, object]:
    from ml.evaluation.significance import paired_bootstrap, wilcoxon_signed_rank

    if not metric.sums:
        return {}
    pairs = pooled_users(errors, ours, baseline, metric.sums)
    if pairs.empty:
        return {"undefined": "over users: no errors by user"}
    means = pairs[["ours", "other"]].div(pairs["count"], axis=0)
    means = means**0.5 if metric.root else means
    test = wilcoxon_signed_rank(means["ours"], means["other"])
    values = (pairs[name].to_numpy(float) for name in ("ours", "other", "count"))
    interval = paired_bootstrap(*values, resamples=RESAMPLES, root=metric.root)
    reasons = dict.fromkeys(f"over users: {r}" for r in (test.undefined, interval.undefined) if r)
    return {
        "users": len(pairs),
        "wilcoxon_users_p": test.p_value,
        "user_difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "undefined": "; ".join(reasons) or None,
    }


def significance_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × metric × baseline."""
    rows, order = [], [*names.profile.models, *names.profile.controls]
    ours = f"{names.our_titles} against"
    for head, metric, part in groups(frame, names, of_table2(names.profile)):
        style = digits(metric.digits, signed=True)
        for record in part.sort_values("baseline", key=lambda column: column.map(order.index)).itertuples():
            rows.append(
                {
                    **head,
                    ours: names.model(record.baseline),
                    ("Over seeds", "difference"): Number(record.difference, style),
                    ("Over seeds", "t-test p"): PValue(record.t_p),
                    ("Over seeds", "Wilcoxon p"): PValue(record.wilcoxon_seeds_p),
                    ("Over seeds", "Holm"): PValue(record.wilcoxon_seeds_holm),
                    ("Over seeds", "seeds"): f"{record.seeds:.0f}",
                    **_user_cells(record, style),
                }
            )
    return [table("", rows, keys=4, sections=True)] if rows else []


def _user_cells(record, style: str) -> dict[tuple[str, str], object]:
    if pd.isna(record.users):
        return {}
    return {
        ("Over users", "95 % interval"): Interval(record.low, record.high, style),
        ("Over users", "Wilcoxon p"): PValue(record.wilcoxon_users_p),
        ("Over users", "Holm"): PValue(record.wilcoxon_users_holm),
        ("Over users", "users"): f"{record.users:,.0f}",
    }


def significance_part(source: Source) -> Part:
    profile, ours = source.profile, source.names.our_titles
    frame = significance_frame(source)
    metrics = of_table2(profile)
    low, high = (
        " and ".join(m.title for m in metrics if m.higher_is_better == higher) for higher in (False, True)
    )
    notes = (
        f"Difference: {ours} − baseline, mean over seeds; of {low} a negative one favours ours, of {high} a "
        f"positive one. Epochs: {SELECTIONS[headline(profile)]}. Over seeds: paired t-test as in the paper, "
        "and Wilcoxon's signed-rank test (with five seeds its p cannot go below 0.0625).",
        "Over users: a user's errors are summed, and the metrics of their lists averaged, over the seeds in "
        f"which they are a test user. Interval: paired bootstrap of whole users, {RESAMPLES:,} resamples. "
        "Wilcoxon: of each user's own value. Holm: the p to its left, corrected for comparing with several "
        f"baselines. {UNDEFINED}: undefined, for example with one seed; blank: not known by user.",
    )
    tables = significance_tables(frame, source.names)
    gaps = source.gaps((*profile.models, *profile.controls))
    return Part("significance", f"Significance. {profile.title}", frame, tables, notes, gaps)


SIGNIFICANCE = Chapter(
    "significance",
    "Significance",
    "Whether our model and each baseline differ by more than chance. Seeds tell whether a repeated "
    "experiment would come out alike, users whether other users would.",
    "Our model against each baseline: tests over seeds and over users.",
    significance_part,
    compared,
    folded=True,
)
