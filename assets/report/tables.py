"""The paper's tables as numbers: frames in long form, with the paper's values beside ours.

Where several seeds were run, `mean` is over them, `std` is their sample standard deviation (null for one),
and `seeds` their number. A diverged cell (NaN) makes its mean NaN; it is not left out in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from assets.report.results import read_user_errors
from assets.settings.axes import Trial
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Store

PUBLISHED = Path(__file__).parent / "published"
SELECTIONS = ("validation", "last", "best_on_test")
OURS = "diffcdr"
# The paper's two ranking metrics, by the metrics of ours that its numbers fit.
INFERRED = {"ndcg@20": "dcg@20", "hr@20": "recall@20"}
BEST_MAPPING = "best_cdr_m"
BEST_CONTROL = "best_control"
MAPPING_MODELS = ("cmf", "emcdr", "sscdr", "lacdr")
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A metric as results name it, as tables do, and how it is read."""

    name: str
    title: str
    objective: str = "rating"
    higher_is_better: bool = False

    @property
    def digits(self) -> int:
        return 4 if self.objective == "rating" else 5


ERRORS = (Metric("mae", "MAE"), Metric("rmse", "RMSE"))
INFERRED_METRICS = (
    Metric("dcg@20", "N@20†", "ranking", True),
    Metric("recall@20", "H@20†", "ranking", True),
)
RANKING = tuple(
    Metric(name, title, "ranking", True)
    for name, title in {
        "ndcg@20": "nDCG@20",
        "recall@20": "Recall@20, mean over users",
        "recall_micro@20": "Recall@20, all hits",
        "hr@20": "Hit rate@20",
        "precision@20": "Precision@20",
        "dcg@20": "DCG@20",
        "ndcg_retrieved@20": "nDCG@20 of retrieved",
    }.items()
)


DISTRIBUTION = (
    Metric("mae", "MAE of the median"),
    Metric("mae_mean", "MAE of the mean"),
    Metric("rmse", "RMSE of the mean"),
    Metric("crps", "CRPS"),
    Metric("log_loss", "Log loss"),
    Metric("calibration_error", "Calibration error"),
    Metric("joint_log_likelihood", "Joint log-likelihood", higher_is_better=True),
)


def table1(store: Store, catalog: Catalog) -> pd.DataFrame:
    """Data statistics of each task whose overlap is known: task, quantity, side, ours, paper (thousands)."""
    rows = []
    for task in catalog.tasks.values():
        shared = store.overlap(task.name).manifest()
        if shared is None:
            continue
        for side, domain in (("source", task.source), ("target", task.target)):
            facts = store.ratings(domain).require()
            rows += [
                (task.name, quantity, side, facts[quantity]) for quantity in ("items", "ratings", "users")
            ]
        rows.append((task.name, "overlap", "both", shared["users"]))
    frame = pd.DataFrame(rows, columns=["task", "quantity", "side", "ours"])
    published = _published("table1").rename(columns={"thousands": "paper"})
    return _beside_the_papers(frame, published, catalog, ["quantity", "side"])


def table2(
    results: pd.DataFrame, catalog: Catalog, models: Sequence[str], controls: Sequence[str] = ()
) -> pd.DataFrame:
    """Cold-start results: task, beta, metric, model, selection, mean, std, seeds, paper, paper_significant.

    Every row also names the best of `controls` by its mean (control, control_mean) and has optimism, the
    model's mean at its best epochs on the test users minus that at the epochs chosen on validation users.
    Rows of DiffCDR also say what it is compared with: baseline (the best other model of `models` by its
    mean), improvement (relative to it, positive where DiffCDR is better; paper_improve is the paper's),
    p_value (paired t-test over the seeds both have) or, where that is undefined, why (undefined).
    """
    metrics = (*ERRORS, *INFERRED_METRICS)
    everything = _of(results, "cold", metrics, [*models, *controls])
    chosen = everything[everything["model"].isin(models)]
    keys = ["task", "beta", "metric", "selection"]
    frame = summary(everything, [*keys, "model"])
    frame = _with_optimism(_with_best_control(frame, keys, controls), ["task", "beta", "metric", "model"])
    published = _published("table2").rename(columns={"value": "paper", "significant": "paper_significant"})
    published["paper_improve"] = published.pop("improve_percent") / 100
    published["metric"] = published["metric"].replace(INFERRED)
    frame = _beside_the_papers(frame, published, catalog, ["beta", "metric", "model"])
    higher = {metric.name: metric.higher_is_better for metric in metrics}
    compared = [
        {**dict(zip(keys, key, strict=True)), "model": OURS, **_against_the_best(part, higher[key[2]])}
        for key, part in chosen.groupby(keys)
        if OURS in set(part["model"]) and part["model"].nunique() > 1
    ]
    columns = [*keys, "model", "baseline", "improvement", "p_value", "undefined"]
    # An undefined number is None, which must not turn the column into one of objects.
    types = {**frame[[*keys, "model"]].dtypes, "improvement": float, "p_value": float}
    comparison = pd.DataFrame(compared, columns=columns).astype(types)
    return frame.merge(comparison, how="left", on=[*keys, "model"])


def _with_best_control(frame: pd.DataFrame, keys: Sequence[str], controls: Sequence[str]) -> pd.DataFrame:
    rows = best_rows(frame[frame["model"].isin(controls)], keys)
    best = rows.rename(columns={"model": "control", "mean": "control_mean"})
    return frame.merge(best[[*keys, "control", "control_mean"]], how="left", on=list(keys))


def best_rows(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Of each group the row with the best `mean` by its `metric`, which must be one of `keys`."""
    higher = frame["metric"].isin([metric.name for metric in RANKING])
    cost = frame["mean"].where(~higher, -frame["mean"]).dropna()
    return frame.loc[cost.groupby([frame[key] for key in keys]).idxmin()]


def _with_optimism(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    by_rule = frame.pivot(index=list(keys), columns="selection", values="mean")
    by_rule = by_rule.reindex(columns=["best_on_test", "validation"])
    optimism = (by_rule["best_on_test"] - by_rule["validation"]).rename("optimism")
    return frame.merge(optimism, how="left", left_on=list(keys), right_index=True)


def improvement(ours: float, best: float, higher_is_better: bool = False) -> float:
    """Ours relative to the best other model, positive where ours is better (the paper's column Improve)."""
    return (ours - best if higher_is_better else best - ours) / best


def best_other(means: pd.Series, higher_is_better: bool = False) -> str | None:
    """The best model by its mean that is not DiffCDR, of means by model; None without one."""
    others = means.drop(OURS, errors="ignore").dropna()
    if others.empty:
        return None
    return str(others.idxmax() if higher_is_better else others.idxmin())


def _against_the_best(part: pd.DataFrame, higher_is_better: bool) -> dict[str, object]:
    from ml.evaluation.significance import paired_t_test

    means = part.groupby("model")["value"].agg(_strict_mean)
    best = best_other(means, higher_is_better)
    if best is None:
        return {"undefined": "every other model has diverged"}
    pairs = _paired_seeds(part, best)
    test = paired_t_test(pairs["ours"], pairs["other"])
    gain = improvement(means[OURS], means[best], higher_is_better)
    return {"baseline": best, "improvement": gain, "p_value": test.p_value, "undefined": test.undefined}


def _paired_seeds(part: pd.DataFrame, other: str) -> pd.DataFrame:
    """Values of DiffCDR (ours) and of another model (other) by seed, for the seeds that both have."""
    by_model = {model: rows.set_index("seed")["value"] for model, rows in part.groupby("model")}
    return pd.concat([by_model[OURS], by_model[other]], axis=1, keys=["ours", "other"], join="inner")


def ranking(results: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Ranking metrics: task, beta, stage, half, metric, model, selection, mean, std, seeds.

    half is `all` (every held-out rating) or `later` (those that warm start is tested on).
    """
    mine = results[(results["objective"] == "ranking") & results["model"].isin(models)].copy()
    later = mine["metric"].str.endswith("_later") | (mine["stage"] == "warm")
    mine["half"] = np.where(later, "later", "all")
    mine["metric"] = mine["metric"].str.removesuffix("_later")
    mine = mine[mine["metric"].isin([metric.name for metric in RANKING])]
    return summary(mine, ["task", "beta", "stage", "half", "metric", "selection", "model"])


def significance(
    store: Store, profile: str, results: pd.DataFrame, selection: str, models: Sequence[str]
) -> pd.DataFrame:
    """DiffCDR against each other model of `models`: one row for each task, beta, metric and baseline.

    difference is the mean over seeds of DiffCDR − baseline; t_p, wilcoxon_seeds_p test it over seeds. For
    MAE and RMSE, wilcoxon_users_p tests each user's own error, and low..high is the 95 % paired bootstrap
    interval of user_difference, the pooled one, when whole users are drawn again. A user's errors are summed
    over the seeds in which they are a test user. Columns *_holm are Holm-corrected over the baselines.
    A test that is undefined is null, and `undefined` says why.
    """
    metrics = (*ERRORS, *INFERRED_METRICS)
    chosen = _of(results, "cold", metrics, models)
    chosen = chosen[chosen["selection"] == selection]
    rows = []
    for task, of_task in chosen.groupby("task"):
        errors = read_user_errors(store, profile, str(task))
        for (beta, metric), part in of_task.groupby(["beta", "metric"]):
            rows += _comparisons(
                part, errors[errors["beta"] == beta], {"task": task, "beta": beta, "metric": metric}
            )
    columns = ["task", "beta", "metric", "baseline", "difference", "seeds", "t_p", "wilcoxon_seeds_p"]
    columns += ["wilcoxon_seeds_holm", "users", "wilcoxon_users_p", "wilcoxon_users_holm"]
    frame = pd.DataFrame(rows, columns=[*columns, "user_difference", "low", "high", "undefined"])
    words = ("task", "metric", "baseline", "undefined")
    return frame.astype({column: float for column in frame.columns if column not in words})


def _comparisons(part: pd.DataFrame, errors: pd.DataFrame, head: Mapping[str, object]) -> list[dict]:
    from ml.evaluation.significance import holm

    models = set(part["model"])
    if OURS not in models:
        return []
    rows = {baseline: {"baseline": baseline} for baseline in sorted(models - {OURS})}
    for baseline, row in rows.items():
        _add(row, _over_seeds(_paired_seeds(part, baseline)))
        _add(row, _over_users(errors, baseline, str(head["metric"])))
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
        "difference": _strict_mean(pairs["ours"] - pairs["other"]),
        "seeds": len(pairs),
        **{name: test.p_value for name, test in tests.items()},
        "undefined": "; ".join(reasons) or None,
    }


def _over_users(errors: pd.DataFrame, baseline: str, metric: str) -> dict[str, object]:
    from ml.evaluation.significance import paired_bootstrap, wilcoxon_signed_rank

    column = {"mae": "absolute", "rmse": "squared"}.get(metric)
    if column is None:
        return {}
    pairs = pooled_users(errors, OURS, baseline, column)
    if pairs.empty:
        return {"undefined": "over users: no errors by user"}
    root = metric == "rmse"
    means = pairs[["ours", "other"]].div(pairs["count"], axis=0)
    means = means**0.5 if root else means
    test = wilcoxon_signed_rank(means["ours"], means["other"])
    values = (pairs[name].to_numpy(float) for name in ("ours", "other", "count"))
    interval = paired_bootstrap(*values, resamples=RESAMPLES, root=root)
    reasons = dict.fromkeys(f"over users: {r}" for r in (test.undefined, interval.undefined) if r)
    return {
        "users": len(pairs),
        "wilcoxon_users_p": test.p_value,
        "user_difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "undefined": "; ".join(reasons) or None,
    }


def pooled_users(errors: pd.DataFrame, ours: str, other: str, column: str) -> pd.DataFrame:
    """Sums of two models (ours, other) and of ratings (count) by user, over the seeds that both have."""
    keys = ["seed", "user"]
    mine, theirs = (
        errors[errors["model"] == model].set_index(keys)[[column, "count"]] for model in (ours, other)
    )
    pairs = mine.rename(columns={column: "ours"}).join(theirs[column].rename("other"), how="inner")
    return pairs.groupby("user").sum(min_count=1)


def distribution(results: pd.DataFrame, selection: str) -> pd.DataFrame:
    """Scores of the models that predict a distribution: task, beta, metric, model, mean, std, seeds."""
    cold = results[(results["stage"] == "cold") & (results["selection"] == selection)]
    distributions = cold.loc[cold["metric"] == "crps", "model"].unique()
    names = [metric.name for metric in DISTRIBUTION]
    chosen = cold[cold["model"].isin(distributions) & cold["metric"].isin(names)]
    return summary(chosen, ["task", "beta", "metric", "model"])


def warming(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: task, beta, method, n, mae, rmse, crps, ratings (of all seeds together), seeds."""
    keys = ["task", "beta", "method", "n"]
    grouped = frame.groupby(keys, sort=False)
    means = grouped[["mae", "rmse", "crps"]].agg(_strict_mean)
    return means.assign(ratings=grouped["ratings"].sum(), seeds=grouped.size()).reset_index()


def table3(results: pd.DataFrame, catalog: Catalog, controls: Sequence[str] = ()) -> pd.DataFrame:
    """Ablation: task, beta, metric, selection, row, model, mean, std, seeds, paper.

    row `best_cdr_m` is the model with the lowest mean of CMF, EMCDR, SSCDR and LACDR, for each metric apart
    as the paper forms it, and `best_control` that of `controls`; `model` says which.
    """
    rows = ("diffcdr_da", "ptupcdr", "diffcdr_at", OURS)
    keys = ["task", "beta", "metric", "selection"]
    frame = summary(_of(results, "cold", ERRORS, [*MAPPING_MODELS, *rows, *controls]), [*keys, "model"])
    families = {BEST_MAPPING: MAPPING_MODELS, BEST_CONTROL: controls}
    best = [
        best_rows(frame[frame["model"].isin(family)], keys).assign(row=row)
        for row, family in families.items()
    ]
    single = frame[frame["model"].isin(rows)]
    both = pd.concat([*best, single.assign(row=single["model"])], ignore_index=True)
    published = _published("table3").rename(columns={"value": "paper"})
    joined = _beside_the_papers(both, published, catalog, ["beta", "metric", "row"])
    return joined[[*keys, "row", "model", "mean", "std", "seeds", "paper"]]


def table4(throughput: pd.DataFrame) -> pd.DataFrame:
    """Throughput in thousands per second: task, device, replicas, phase, model, mean, std, cells, paper.

    phase is `train` and `test` (rating rows, as the paper counts) or `test_users`; the mean is over cells.
    """
    rates = {
        "train": throughput["train_samples"] / throughput["train_seconds"],
        "test": throughput["test_samples"] / throughput["test_seconds"],
        "test_users": throughput["test_users"] / throughput["test_seconds"],
    }
    head = throughput[["task", "device", "replicas", "model"]]
    parts = [head.assign(phase=phase, value=rate / 1000) for phase, rate in rates.items()]
    keys = ["task", "device", "replicas", "phase", "model"]
    # A model that is not trained, or not in this way, has no rate.
    long = pd.concat(parts, ignore_index=True)
    long = long[np.isfinite(long["value"].astype(float))]
    frame = summary(long, keys).rename(columns={"seeds": "cells"})
    published = _published("table4").rename(columns={"thousands": "paper"})
    return frame.merge(published, how="left", on=["phase", "model"])


def figure3(results: pd.DataFrame, selection: str, models: Sequence[str]) -> pd.DataFrame:
    """Cold and warm start on the later half: task, beta, metric, stage, model, mean, std, seeds."""
    errors = results[(results["objective"] == "rating") & (results["selection"] == selection)].copy()
    later = {f"{metric.name}_later": metric.name for metric in ERRORS}
    cold = errors[(errors["stage"] == "cold") & errors["metric"].isin(later)]
    warm = errors[(errors["stage"] == "warm") & errors["metric"].isin(later.values())]
    both = pd.concat([cold.assign(metric=cold["metric"].map(later)), warm])
    both = both[both["model"].isin(models)]
    return summary(both, ["task", "beta", "metric", "stage", "model"])


def distances(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the analysed seeds of each distance: task, beta, side, model, nfe, …, cells, undefined."""
    keys = ["task", "beta", "side", "model", "nfe"]
    measures = ["frechet", "mmd", "euclidean", "cosine"]
    grouped = frame.groupby(keys, dropna=False, sort=False)
    means = grouped[measures].agg(_strict_mean)
    reasons = grouped["undefined"].agg(lambda texts: "; ".join(dict.fromkeys(texts.dropna())) or None)
    return means.assign(cells=grouped.size(), undefined=reasons).reset_index()


def support(sums: pd.DataFrame) -> pd.DataFrame:
    """Where each model's errors are, by bucket of `ml.evaluation.coverage`, pooled over seeds.

    Columns: task, beta, by, position, bucket, model, count, mae, rmse, predicted, actual, outside.
    count is the number of predictions in the bucket; predicted and actual are their means, outside the share
    that was outside the scale before clipping. `by` is all, item (training ratings of the item), history
    (liked source items of the user) or prediction (for calibration).
    """
    keys = ["task", "beta", "by", "position", "bucket", "model"]
    columns = ["count", "absolute", "squared", "predicted", "actual", "outside"]
    # A sum leaves NaN out, but not infinity: a diverged seed must not be pooled away.
    total = sums.fillna(np.inf).groupby(keys)[columns].sum().replace(np.inf, np.nan)
    means = total.drop(columns="count").div(total["count"], axis=0)
    means = means.rename(columns={"absolute": "mae", "squared": "rmse"})
    means["rmse"] **= 0.5
    return means.assign(count=total["count"]).reset_index()


def coverage(results: pd.DataFrame, profile: Profile, catalog: Catalog) -> pd.DataFrame:
    """Cells of the tasks with results: profile, task, objective, model, present, missing, expected, trials.

    trials names the missing ones, such as `b20-s0`.
    """
    trials = [Trial(beta, seed) for beta in catalog.betas for seed in catalog.seeds]
    done = set(results[["task", "objective", "model", "beta", "seed"]].itertuples(index=False, name=None))
    rows = []
    for task in [name for name in catalog.tasks if name in set(results["task"])]:
        for objective in profile.objectives:
            for model in (m for m in profile.trained if objective in profile.objectives_of(m)):
                lacks = [t.key for t in trials if (task, objective, model, t.beta, t.seed) not in done]
                have = len(trials) - len(lacks)
                rows.append(
                    (profile.name, task, objective, model, have, len(lacks), len(trials), " ".join(lacks))
                )
    columns = ["profile", "task", "objective", "model", "present", "missing", "expected", "trials"]
    return pd.DataFrame(rows, columns=columns)


def summary(results: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """mean, std and number of the values of each group."""
    grouped = results.groupby(list(keys), dropna=False)["value"]
    columns = {"mean": grouped.agg(_strict_mean), "std": grouped.agg(_strict_std), "seeds": grouped.size()}
    return pd.DataFrame(columns).reset_index()


def _strict_mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def _strict_std(values: pd.Series) -> float:
    return float(values.std(skipna=False))


def _of(results: pd.DataFrame, stage: str, metrics: Sequence[Metric], models: Sequence[str]) -> pd.DataFrame:
    """The results of a stage in these metrics, each from the objective it is measured for."""
    objective = results["metric"].map({metric.name: metric.objective for metric in metrics})
    return results[
        (results["stage"] == stage) & (results["objective"] == objective) & results["model"].isin(models)
    ]


def _published(name: str) -> pd.DataFrame:
    return pd.read_csv(PUBLISHED / f"{name}.csv")


def _beside_the_papers(
    frame: pd.DataFrame, published: pd.DataFrame, catalog: Catalog, keys: Sequence[str]
) -> pd.DataFrame:
    """`frame` with the paper's columns, null where the task is not one of the paper's."""
    numbers = {task.name: task.paper for task in catalog.tasks.values()}
    numbered = frame.assign(paper_task=frame["task"].map(numbers).astype(float))
    published = published.rename(columns={"task": "paper_task"})
    return numbered.merge(published, how="left", on=["paper_task", *keys]).drop(columns="paper_task")
