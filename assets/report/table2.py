"""Table 2: cold start, every model under each selection rule, beside the paper's values."""

from collections.abc import Mapping, Sequence

import pandas as pd

from assets.report.metrics import BY_NAME, ERRORS, Metric, of_table2, shown_in
from assets.report.names import Names, compared
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import (
    BEATEN_NOTE,
    BEST_CONTROL,
    SELECTIONS,
    beside_the_papers,
    best_other,
    best_rows,
    groups,
    headline,
    model_cells,
    of_metrics,
    paired_seeds,
    published,
    strict_mean,
    summary,
    table_by_model,
)
from assets.report.table import KIND, UNDEFINED, Number, PValue, Table, counted, digits, fold
from assets.settings.profile import Profile
from assets.state import plots

INFERRED_NOTE = (
    "† Inferred. The paper does not define N@20 and H@20; its numbers fit DCG@20 (not normalised) and the "
    "mean recall@20 over users, and rule out standard nDCG and hit rate. These models are trained apart, "
    "on ratings plus one negative for each."
)
PERCENT = "{:.1%}"
UNEQUAL_NOTE = (
    "Seeds given as a range: models of the row have finished different seeds, so bold and ‡ compare means "
    "over different seeds. Improve and p are over the seeds that both models have."
)


def table2_frame(results: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Cold-start results: task, beta, metric, model, selection, mean, std, seeds, paper, paper_significant.

    Every row also names the best control by its mean (control, control_mean) and has optimism, the model's
    mean at its best epochs on the test users minus that at the epochs chosen on validation users. Rows of the
    profile's own model also say what it is compared with: baseline (the best other model by its mean),
    improvement (relative to it, positive where ours is better; paper_improve is the paper's), p_value (paired
    t-test) or, where that is undefined, why (undefined); both over the seeds that both models have.
    """
    profile, keys = names.profile, ["task", "beta", "metric", "selection"]
    metrics = of_table2(profile)
    ours = {metric.name: names.ours(metric.objective) for metric in metrics}
    everything = of_metrics(results, metrics, [*profile.models, *profile.controls])
    chosen = everything[everything["model"].isin(profile.models)]
    frame = summary(everything, [*keys, "model"])
    frame = _with_optimism(_with_best_control(frame, keys, profile.controls))
    theirs = published("table2").rename(columns={"value": "paper", "significant": "paper_significant"})
    theirs["paper_improve"] = theirs.pop("improve_percent") / 100
    frame = beside_the_papers(frame, theirs, names.catalog, ["beta", "metric", "model"])
    against = [
        {**dict(zip(keys, key, strict=True)), **_against_the_best(part, ours[key[2]], BY_NAME[key[2]])}
        for key, part in chosen.groupby(keys)
        if ours[key[2]] in set(part["model"]) and part["model"].nunique() > 1
    ]
    columns = [*keys, "model", "baseline", "improvement", "p_value", "undefined"]
    # An undefined number is None, which must not turn the column into one of objects.
    types = {**frame[[*keys, "model"]].dtypes, "improvement": float, "p_value": float}
    comparison = pd.DataFrame(against, columns=columns).astype(types)
    return frame.merge(comparison, how="left", on=[*keys, "model"])


def _with_best_control(frame: pd.DataFrame, keys: Sequence[str], controls: Sequence[str]) -> pd.DataFrame:
    best = best_rows(frame[frame["model"].isin(controls)], keys)
    best = best.rename(columns={"model": "control", "mean": "control_mean"})
    return frame.merge(best[[*keys, "control", "control_mean"]], how="left", on=list(keys))


def _with_optimism(frame: pd.DataFrame) -> pd.DataFrame:
    keys = ["task", "beta", "metric", "model"]
    by_rule = frame.pivot(index=keys, columns="selection", values="mean")
    by_rule = by_rule.reindex(columns=["best_on_test", "validation"])
    optimism = (by_rule["best_on_test"] - by_rule["validation"]).rename("optimism")
    return frame.merge(optimism, how="left", left_on=keys, right_index=True)


def improvement(ours: float, best: float, metric: Metric) -> float:
    """Ours relative to the best other model, positive where ours is better (the paper's column Improve)."""
    return (ours - best if metric.higher_is_better else best - ours) / best


def _against_the_best(part: pd.DataFrame, ours: str, metric: Metric) -> dict[str, object]:
    from ml.evaluation.significance import paired_t_test

    means = part.groupby("model")["value"].agg(strict_mean)
    best = best_other(means, ours, metric)
    if best is None:
        return {"model": ours, "undefined": "every other model has diverged"}
    pairs = paired_seeds(part, ours, best)
    test = paired_t_test(pairs["ours"], pairs["other"])
    gain = improvement(strict_mean(pairs["ours"]), strict_mean(pairs["other"]), metric)
    found = {"baseline": best, "improvement": gain, "p_value": test.p_value, "undefined": test.undefined}
    return {"model": ours, **found}


def table2_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """One table for each selection rule: rows task × β × metric, columns models, as in the paper; then the
    controls, and the optimism. Lists have tables of their own where other models make them."""
    profile, tables = names.profile, []
    for selection, caption in SELECTIONS.items():
        caption = caption[0].upper() + caption[1:]
        of_rule = frame[(frame["selection"] == selection) & frame["model"].isin(profile.models)]
        for what, metrics in _divided(profile):
            chosen = of_rule[of_rule["metric"].isin([metric.name for metric in metrics])]
            rows = [row for group in groups(chosen, names, metrics) for row in _rows(*group, names)]
            of_rule_tables = table_by_model(what + caption, rows, names, profile.models, _notes(chosen))
            tables += of_rule_tables if selection == headline(profile) else fold(of_rule_tables)
    return [*tables, *fold([*_controls(frame, names), *_optimism(frame, names)])]


def _divided(profile: Profile) -> list[tuple[str, list[Metric]]]:
    """The metrics of one table under what its caption begins with; two where other models make the lists."""
    metrics = of_table2(profile)
    trained = {
        objective: {name for name in profile.models if objective in profile.objectives_of(name)}
        for objective in profile.objectives
    }
    if len(set(map(frozenset, trained.values()))) == 1:
        return [("", list(metrics))]
    captions = {"rating": "", "ranking": "Lists. "}
    return [(captions[o], [metric for metric in metrics if metric.objective == o]) for o in trained]


def _controls(frame: pd.DataFrame, names: Names) -> list[Table]:
    controls = names.profile.controls
    # Without epochs there is nothing to select: every rule has the same values.
    chosen = frame[frame["model"].isin(controls) & (frame["selection"] == "last")]
    tables = []
    for what, metrics in _divided(names.profile):
        rows = [
            {**head, **model_cells(part, names, controls, metric), "Seeds": counted(part["seeds"])}
            for head, metric, part in groups(chosen, names, metrics)
        ]
        tables += table_by_model(f"{what}Controls, the same under every rule", rows, names, controls)
    return tables


def _optimism(frame: pd.DataFrame, names: Names) -> list[Table]:
    models, tables = names.profile.models, []
    chosen = frame[frame["model"].isin(models) & (frame["selection"] == "validation")]
    caption = "Optimism: best epoch on the test users minus the epoch selected on validation users"
    for what, metrics in _divided(names.profile):
        rows = [
            {**head, **{names.model(r.model): Number(r.optimism, digits(metric.digits, True)) for r in rows}}
            for head, metric, part in groups(chosen, names, metrics)
            for rows in [list(part.itertuples())]
        ]
        tables += table_by_model(what + caption, rows, names, models)
    return tables


def _notes(chosen: pd.DataFrame) -> list[str]:
    inferred = [metric.name for metric in shown_in("table2_paper")]
    notes = [INFERRED_NOTE] if chosen["metric"].isin(inferred).any() else []
    notes += [BEATEN_NOTE] if chosen["control"].notna().any() else []
    counts = chosen.groupby(["task", "beta", "metric"])["seeds"].nunique()
    notes += [UNEQUAL_NOTE] if (counts > 1).any() else []
    reasons = chosen["undefined"].dropna().unique()
    return notes + ([f"{UNDEFINED}: undefined, for the test {'; '.join(reasons)}."] if len(reasons) else [])


def _rows(head: Mapping, metric: Metric, part: pd.DataFrame, names: Names) -> list[dict]:
    """Rows ours, paper and their difference; the last two where the paper has values."""
    by_model = part.set_index("model")
    present = [model for model in names.profile.models if model in by_model.index]
    by_model = by_model.loc[present]
    rows = [{**head, KIND: "ours", **_our_cells(by_model, metric, names)}]
    paper = by_model["paper"].dropna()
    if len(paper):
        gaps = (by_model["mean"] - by_model["paper"])[paper.index]
        signed = {names.model(model): Number(gap, digits(metric.digits, True)) for model, gap in gaps.items()}
        rows += [{**head, KIND: "paper", **_paper_cells(by_model, metric, names)}]
        rows += [{**head, KIND: "difference", **signed}]
    return rows


def _our_cells(by_model: pd.DataFrame, metric: Metric, names: Names) -> dict[str, object]:
    means, ours, style = by_model["mean"], names.ours(metric.objective), digits(metric.digits)
    mine = by_model.loc[ours] if ours in by_model.index else None
    significant = mine is not None and mine["p_value"] < 0.05 and mine["improvement"] > 0
    best = metric.best(means)
    cells: dict[str, object] = {
        names.model(model): Number(
            row["mean"],
            style,
            spread=row["std"],
            best=row["mean"] == best,
            star=significant and model == ours,
            beaten=metric.is_beaten(row["mean"], row["control_mean"]),
        )
        for model, row in by_model.iterrows()
    }
    compared = mine is not None and pd.notna(mine["improvement"])
    cells["Improve"] = Number(mine["improvement"], PERCENT) if compared else ""
    cells["p"] = PValue(mine["p_value"]) if compared else ""
    control = by_model.iloc[0]
    if pd.notna(control["control_mean"]):
        cells[BEST_CONTROL] = Number(control["control_mean"], style, who=names.model(control["control"]))
    return {**cells, "Seeds": counted(by_model["seeds"])}


def _paper_cells(by_model: pd.DataFrame, metric: Metric, names: Names) -> dict[str, Number]:
    paper = by_model["paper"].dropna()
    best = metric.best(paper)
    cells = {
        names.model(model): Number(
            value,
            digits(metric.digits),
            best=value == best,
            star=by_model.loc[model, "paper_significant"] == 1,
        )
        for model, value in paper.items()
    }
    # As printed: it was computed before the values were rounded.
    improve = by_model.loc[paper.index, "paper_improve"].dropna()
    return cells | ({"Improve": Number(improve.iloc[0], PERCENT)} if len(improve) else {})


def optimism_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """MAE's and RMSE's optimism of each task that was validated."""
    chosen = frame[frame["optimism"].notna() & (frame["selection"] == "validation")]
    errors = [metric.name for metric in ERRORS]
    chosen = chosen[chosen["model"].isin(names.profile.models) & chosen["metric"].isin(errors)]
    return each_task(chosen, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    betas, present = sorted(frame["beta"].unique()), set(frame["model"])
    models = [model for model in names.profile.models if model in present]
    figure = plots.new_figure(7.2, 2.8)
    for axes, metric in zip(figure.subplots(1, len(ERRORS)), ERRORS, strict=True):
        for position, beta in enumerate(betas):
            part = frame[(frame["metric"] == metric.name) & (frame["beta"] == beta)].set_index("model")
            width = 0.8 / len(betas)
            places = [i + (position - (len(betas) - 1) / 2) * width for i in range(len(models))]
            colour = plots.lighter(plots.BLUE, (position + 1) / len(betas))
            axes.bar(places, part["optimism"].reindex(models), width, color=colour, label=f"β = {beta:.0%}")
        axes.set_xticks(range(len(models)), [names.model(model) for model in models], fontsize=7, rotation=30)
        plots.plain(axes, metric.title)
        axes.legend(fontsize=6)
    caption = (
        f"Optimism. {names.task(task)}: error at the best epoch on the test users minus error at the epoch "
        "chosen on validation users; 0 is honest."
    )
    return Picture(f"optimism-{task}", caption, plots.formats(figure), folded=True)


def table2_of_tasks(source: Source, tasks: Sequence[str]) -> list[Table]:
    """The tables of these tasks, one for each selection rule that has results."""
    results = source.results
    return table2_tables(table2_frame(results[results["task"].isin(tasks)], source.names), source.names)


def table2_part(source: Source) -> Part:
    names, profile = source.names, source.profile
    frame = table2_frame(source.results, names)
    ours = names.our_titles
    higher = " and ".join(m.title.rstrip("†") for m in of_table2(profile) if m.higher_is_better)
    notes = (
        "Means ± sample standard deviation over seeds; bold is the best of a row. MAE and RMSE: lower is "
        f"better; {higher}: higher is better. Improve: {ours} against the best other model, positive where "
        "ours is better. p: paired t-test over seeds between the two; * where ours is better with p < 0.05. "
        "Difference: ours − paper.",
    )
    gaps = source.gaps((*profile.models, *profile.controls))
    title = f"Table 2. Cold start. {profile.title}"
    pictures = optimism_pictures(frame, names)
    return Part("table2", title, frame, table2_tables(frame, names), notes, gaps, pictures)


TABLE2 = Chapter(
    "table2",
    "Cold start",
    "How well ratings of users are predicted who have none in the target domain. One table for each rule by "
    "which the epoch is chosen: the paper's best epoch on the test users is optimistic, for it looks at what "
    "it is judged by; compare it with the other rules to see by how much.",
    "Table 2: cold start, every model, mean and spread over seeds, under each selection rule.",
    table2_part,
    compared,
    reproduces=True,
)
