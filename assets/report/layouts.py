"""The paper's tables as they are read: text cells in the paper's shape, ours above the paper's value."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from assets.report import tables, verdicts
from assets.report.formats import STAR, Layout, layout
from assets.report.tables import OURS, Metric
from assets.settings.catalog import Catalog

SELECTIONS = {
    "validation": "selected on validation users",
    "last": "last epoch",
    "best_on_test": "best epoch on the test users, each metric apart (as the paper reports)",
}
UNDEFINED = "n/a"
BEATEN_NOTE = (
    "‡ Not better than the best control: a predictor that knows nothing of the user's taste, or only simple "
    "statistics of their source ratings."
)
INFERRED_NOTE = (
    "† Inferred. The paper does not define N@20 and H@20; its numbers fit DCG@20 (not normalised) and the "
    "mean recall@20 over users, and rule out standard nDCG and hit rate. These models are trained apart, "
    "on ratings plus one negative for each."
)


@dataclass(frozen=True)
class Names:
    """What readers call tasks and models."""

    catalog: Catalog
    models: Mapping[str, str]

    def task(self, name: str) -> str:
        task = self.catalog.tasks.get(name)
        if task is None:
            return name
        return f"{task.title} (the paper's Task {task.paper})" if task.paper else task.title

    def model(self, name: str) -> str:
        return self.models.get(name, name)

    def in_order(self, tasks: Iterable[str]) -> list[str]:
        """Tasks in the order of the catalogue; what it no longer has comes last."""
        known = list(self.catalog.tasks)
        return sorted(set(tasks), key=lambda name: (known.index(name) if name in known else len(known), name))


def table1(frame: pd.DataFrame, names: Names) -> Layout:
    """Rows: ours and the paper's, for each task; columns: items, ratings and users of both domains."""
    rows = []
    for task in names.in_order(frame["task"]):
        part = frame[frame["task"] == task]
        domains = names.catalog.tasks[task]
        head = {
            ("", "Task"): domains.title,
            ("Domain", "Source"): names.catalog.domains[domains.source].title,
            ("Domain", "Target"): names.catalog.domains[domains.target].title,
        }
        rows.append({**head, ("", ""): "ours", **_table1_cells(part, "ours", "{:,.0f}")})
        if part["paper"].notna().any():
            rows.append({**head, ("", ""): "paper", **_table1_cells(part, "paper", "{:,.0f} K")})
    return layout("", rows, keys=3)


def _table1_cells(part: pd.DataFrame, column: str, style: str) -> dict[tuple[str, str], str]:
    values = part.set_index(["quantity", "side"])[column]
    cells = {
        (quantity.capitalize(), side.capitalize()): style.format(values[quantity, side])
        for quantity in ("items", "ratings", "users")
        for side in ("source", "target")
    }
    return {**cells, ("Overlap", "Users"): style.format(values["overlap", "both"])}


BEATEN = "‡"
BEST_CONTROL = "Best control"


def table2(
    frame: pd.DataFrame, names: Names, models: Sequence[str], controls: Sequence[str] = ()
) -> list[Layout]:
    """One layout for each selection rule: rows task × β × metric, columns models, as in the paper.

    A value that is not better than the best control's is marked; then come the controls, and the optimism.
    """
    layouts = []
    for selection, caption in SELECTIONS.items():
        chosen = frame[(frame["selection"] == selection) & frame["model"].isin(models)]
        rows = []
        for head, metric, part in _groups(chosen, names, (*tables.ERRORS, *tables.INFERRED_METRICS)):
            rows += _beside_the_paper(head, part.set_index("model"), names, models, metric)
        if rows:
            layouts.append(_by_model(_sentence(caption), rows, names, models, _table2_notes(chosen)))
    return [*layouts, *_controls(frame, names, controls), *_optimism(frame, names, models)]


def _controls(frame: pd.DataFrame, names: Names, controls: Sequence[str]) -> list[Layout]:
    # Without epochs there is nothing to select: every rule has the same values.
    chosen = frame[frame["model"].isin(controls) & (frame["selection"] == "last")]
    rows = [
        {**head, **_plain_cells(part, names, controls, metric), "Seeds": _range(part["seeds"])}
        for head, metric, part in _groups(chosen, names, (*tables.ERRORS, *tables.INFERRED_METRICS))
    ]
    return [_by_model("Controls, the same under every rule", rows, names, controls)] if rows else []


def _optimism(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Layout]:
    chosen = frame[frame["model"].isin(models) & (frame["selection"] == "validation")]
    rows = [
        {**head, **{names.model(r.model): _signed(r.optimism, metric.digits) for r in part.itertuples()}}
        for head, metric, part in _groups(chosen, names, (*tables.ERRORS, *tables.INFERRED_METRICS))
    ]
    caption = "Optimism: best epoch on the test users minus the epoch selected on validation users"
    return [_by_model(caption, rows, names, models)] if rows else []


def _table2_notes(chosen: pd.DataFrame) -> tuple[str, ...]:
    notes = [INFERRED_NOTE] if chosen["metric"].isin(tables.INFERRED.values()).any() else []
    reasons = chosen.loc[chosen["model"] == OURS, "undefined"].dropna().unique()
    if chosen["control"].notna().any():
        notes.append(BEATEN_NOTE)
    return (
        *notes,
        *([f"{UNDEFINED}: undefined, for the test {'; '.join(reasons)}."] if len(reasons) else []),
    )


def _beside_the_paper(
    head: Mapping, part: pd.DataFrame, names: Names, models: Sequence[str], metric: Metric
) -> list[dict]:
    """Rows ours, paper and their difference; the last two where the paper has values."""
    present = [model for model in models if model in part.index]
    means, digits = part.loc[present, "mean"], metric.digits
    best = _best(means, metric)
    mine = part.loc[OURS] if OURS in present else None
    starred = mine is not None and mine["p_value"] < 0.05 and mine["improvement"] > 0
    ours = {
        names.model(model): _value(
            means[model],
            digits,
            best=means[model] == best,
            star=starred and model == OURS,
            beaten=_beaten(means[model], part.loc[model, "control_mean"], metric),
        )
        + _spread(part.loc[model, "std"], digits)
        for model in present
    }
    tail = {"Improve": "", "p": "", **_best_control(part.iloc[0], names, digits)}
    if mine is not None and pd.notna(mine["improvement"]):
        tail |= {"Improve": f"{mine['improvement']:.1%}", "p": _p_value(mine["p_value"])}
    rows = [{**head, "": "ours", **ours, **tail, "Seeds": _range(part.loc[present, "seeds"])}]
    paper = part.loc[present, "paper"].dropna()
    if len(paper):
        rows += [{**head, "": "paper", **_paper_cells(part, paper, names, metric)}]
        gaps = {names.model(m): _signed(means[m] - paper[m], digits) for m in paper.index}
        rows += [{**head, "": "difference", **gaps}]
    return rows


def _best_control(row: pd.Series, names: Names, digits: int) -> dict[str, str]:
    if pd.isna(row["control_mean"]):
        return {}
    return {BEST_CONTROL: f"{row['control_mean']:.{digits}f} {names.model(row['control'])}"}


def _beaten(value: float, control: float, metric: Metric) -> bool:
    """Whether a model is not better than the best control, where there is one."""
    if pd.isna(control) or pd.isna(value):
        return False
    return value <= control if metric.higher_is_better else value >= control


def _paper_cells(part: pd.DataFrame, paper: pd.Series, names: Names, metric: Metric) -> dict[str, str]:
    best = _best(paper, metric)
    cells = {
        names.model(model): _value(
            value, metric.digits, best=value == best, star=part.loc[model, "paper_significant"] == 1
        )
        for model, value in paper.items()
    }
    if OURS in paper:
        # As printed: it was computed before the values were rounded.
        cells["Improve"] = f"{part.loc[OURS, 'paper_improve']:.1%}"
    return cells


def verdict(frame: pd.DataFrame, recommended: pd.DataFrame, names: Names) -> list[Layout]:
    """Sentences, then numbers: rows task × β × metric × question."""
    rows = []
    for head, _, part in _groups(frame, names, verdicts.METRICS):
        for row in part.itertuples():
            cells = {
                "Question": row.question,
                "Best": f"{names.model(row.model)} {row.value:.4f}",
                "Against": f"{names.model(row.against)} {row.value_against:.4f}",
                "Difference": _signed(row.difference, 4),
                "95 % interval": _interval(row.low, row.high),
                "Helps": row.answer,
            }
            rows.append({**head, **cells})
    if not rows:
        return []
    numbers = layout("The numbers behind it", rows, keys=3, sections=True)
    sentences = _sentences(frame, recommended, names)
    return [sentences, numbers] if sentences.rows else [numbers]


def _sentences(frame: pd.DataFrame, recommended: pd.DataFrame, names: Names) -> Layout:
    transfer = frame[frame["question"] == "transfer"].set_index(["task", "beta", "metric"])
    use = recommended.set_index(["task", "beta", "metric"])["model"]
    rows = [
        {
            "Task": names.task(task),
            "β": f"{beta:.0%}",
            "Does transfer help?": "; ".join(
                _helps(transfer.loc[task, beta, metric.name], metric)
                for metric in tables.ERRORS
                if (task, beta, metric.name) in transfer.index
            ),
            "Use": _use(
                {
                    m.title: names.model(use[task, beta, m.name])
                    for m in tables.ERRORS
                    if (task, beta, m.name) in use
                }
            ),
        }
        for task in names.in_order(transfer.index.get_level_values("task"))
        for beta in sorted(transfer.loc[task].index.get_level_values("beta").unique())
    ]
    return layout("", rows, keys=1, sections=True)


def _helps(row: pd.Series, metric: Metric) -> str:
    word = {"yes": "yes", "no": "no, it harms", "open": "not beyond chance"}[row["answer"]]
    share = row["difference"] / row["value_against"]
    return f"{metric.title}: {word}, {_signed(row['difference'], 4)} ({share:+.1%})".replace("-", "−")


def _use(by_metric: Mapping[str, str]) -> str:
    if len(set(by_metric.values())) == 1:
        return next(iter(by_metric.values()))
    return ", ".join(f"{model} ({title})" for title, model in by_metric.items())


def _interval(low: float, high: float) -> str:
    return UNDEFINED if pd.isna(low) else f"{_signed(low, 4)} … {_signed(high, 4)}"


def distribution(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Layout]:
    """Rows task × β × model, columns the scores; the best of each β in bold."""
    rows = []
    for task in names.in_order(frame["task"]):
        for beta, part in frame[frame["task"] == task].groupby("beta"):
            means = part.pivot(index="model", columns="metric", values="mean")
            for model in (name for name in models if name in means.index):
                head = {"Task": names.task(task), "β": f"{beta:.0%}", "Model": names.model(model)}
                cells = {
                    metric.title: _value(
                        means.loc[model, metric.name],
                        4,
                        best=means.loc[model, metric.name] == _best(means[metric.name], metric),
                    )
                    for metric in tables.DISTRIBUTION
                    if metric.name in means and pd.notna(means.loc[model, metric.name])
                }
                rows.append({**head, **cells})
    return [layout("", rows, keys=2, sections=True)] if rows else []


METHODS = {
    "fine_tuned": "Fine-tuning",
    "gaussian_prior": "Ridge + user's shift",
    "shrunk_bias": "Item + shrunk bias",
}


def warming(frame: pd.DataFrame, names: Names) -> list[Layout]:
    """Rows task × β × n, columns methods: MAE, RMSE and CRPS."""
    methods = list(dict.fromkeys(frame["method"]))
    rows = []
    for task in names.in_order(frame["task"]):
        for (beta, n), part in frame[frame["task"] == task].groupby(["beta", "n"]):
            by_method = part.set_index("method")
            cells = {
                method_title(method, names): " / ".join(
                    f"{by_method.loc[method, metric]:.3f}" for metric in ("mae", "rmse", "crps")
                )
                for method in methods
                if method in by_method.index
            }
            head = {"Task": names.task(task), "β": f"{beta:.0%}", "Ratings seen": str(n)}
            rows.append({**head, **cells, "Ratings": f"{by_method['ratings'].iloc[0]:,.0f}"})
    return [layout("MAE / RMSE / CRPS", rows, keys=2, sections=True)] if rows else []


def method_title(method: str, names: Names) -> str:
    return METHODS.get(method, names.model(method))


def ranking(
    frame: pd.DataFrame,
    names: Names,
    models: Sequence[str],
    selection: str,
    controls: Sequence[str] = (),
) -> list[Layout]:
    """Columns models and controls; a model's value that is not better than the best control's is marked.

    Cold start on all held-out ratings; then cold and warm start on the later half, where there is one."""
    of_rule = frame[_of_rule(frame, selection)]
    whole = of_rule[(of_rule["stage"] == "cold") & (of_rule["half"] == "all")]
    rows = []
    for head, metric, part in _groups(whole, names, tables.RANKING):
        cells = _plain_cells(part, names, [*models, *controls], metric, controls)
        rows.append({**head, **cells, "Seeds": _range(part["seeds"])})
    notes = (BEATEN_NOTE,) if whole["model"].isin(controls).any() else ()
    caption = "Cold start, all held-out ratings"
    layouts = [_by_model(caption, rows, names, [*models, *controls], notes)] if rows else []
    later = of_rule[of_rule["half"] == "later"]
    rows = []
    for head, metric, part in _groups(later, names, tables.RANKING[:4]):
        for stage, mine in part.groupby("stage"):
            rows.append({**head, "": stage, **_plain_cells(mine, names, models, metric)})
    if rows:
        caption = "Cold and warm start, later half of each test user's ratings"
        layouts.append(_by_model(caption, rows, names, models))
    return layouts


def _of_rule(frame: pd.DataFrame, selection: str) -> pd.Series:
    """Rows of the selection rule; what knows no epochs, such as the random ranker, has one row for any."""
    untrained = frame.groupby("model")["selection"].transform("nunique") == 1
    return (frame["selection"] == selection) | untrained


def _plain_cells(
    part: pd.DataFrame, names: Names, models: Sequence[str], metric: Metric, controls: Sequence[str] = ()
) -> dict[str, str]:
    """Means and spreads, the best in bold, and marked what is beaten by one of `controls`."""
    by_model = part.set_index("model")
    present = [model for model in models if model in by_model.index]
    means = by_model.loc[present, "mean"]
    best, control = _best(means, metric), _best(means[means.index.isin(controls)], metric)
    beaten = {m: m not in controls and _beaten(means[m], control, metric) for m in present}
    return {
        names.model(m): _value(means[m], metric.digits, best=means[m] == best, beaten=beaten[m])
        + _spread(by_model.loc[m, "std"], metric.digits)
        for m in present
    }


def significance(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Layout]:
    """Rows task × β × metric × baseline."""
    rows = []
    for head, metric, part in _groups(frame, names, (*tables.ERRORS, *tables.INFERRED_METRICS)):
        order = {model: position for position, model in enumerate(models)}
        for record in part.sort_values("baseline", key=lambda names: names.map(order)).itertuples():
            rows.append(
                {
                    **{("", key): value for key, value in head.items()},
                    ("", "DiffCDR against"): names.model(record.baseline),
                    ("Over seeds", "difference"): _signed(record.difference, metric.digits),
                    ("Over seeds", "t-test p"): _p_value(record.t_p),
                    ("Over seeds", "Wilcoxon p"): _p_value(record.wilcoxon_seeds_p),
                    ("Over seeds", "Holm"): _p_value(record.wilcoxon_seeds_holm),
                    ("Over seeds", "seeds"): f"{record.seeds:.0f}",
                    **_user_cells(record, metric),
                }
            )
    return [layout("", rows, keys=4, sections=True)] if rows else []


def _user_cells(record, metric: Metric) -> dict[tuple[str, str], str]:
    if pd.isna(record.users):
        return {}
    interval = f"{_signed(record.low, metric.digits)} … {_signed(record.high, metric.digits)}"
    return {
        ("Over users", "95 % interval"): interval if pd.notna(record.low) else UNDEFINED,
        ("Over users", "Wilcoxon p"): _p_value(record.wilcoxon_users_p),
        ("Over users", "Holm"): _p_value(record.wilcoxon_users_holm),
        ("Over users", "users"): f"{record.users:,.0f}",
    }


ABLATION_ROWS = {
    tables.BEST_MAPPING: ("Mapping-oriented", "Best CDR M†"),
    tables.BEST_CONTROL: ("Control", BEST_CONTROL),
    "diffcdr_da": ("Mapping-oriented", "DiffCDR DA"),
    "ptupcdr": ("Task-oriented", "PTUPCDR"),
    "diffcdr_at": ("Task-oriented", "DiffCDR AT"),
    OURS: ("Mapping and task", "DiffCDR DAT"),
}


def table3(frame: pd.DataFrame, names: Names) -> list[Layout]:
    """One layout for each selection rule and metric: rows variants, columns β × task, as in the paper."""
    layouts = []
    for selection, caption in SELECTIONS.items():
        for metric in tables.ERRORS:
            chosen = frame[(frame["selection"] == selection) & (frame["metric"] == metric.name)]
            if len(chosen):
                layouts.append(_ablation(f"{metric.title}: {caption}", chosen, names))
    return layouts


def _ablation(caption: str, chosen: pd.DataFrame, names: Names) -> Layout:
    columns = [
        (beta, task)
        for beta in sorted(chosen["beta"].unique())
        for task in names.in_order(chosen.loc[chosen["beta"] == beta, "task"])
    ]
    best = chosen.groupby(["beta", "task"])["mean"].min()
    best_paper = chosen.groupby(["beta", "task"])["paper"].min()
    rows = []
    for row, (kind, title) in ABLATION_ROWS.items():
        mine = chosen[chosen["row"] == row].set_index(["beta", "task"])
        head = {("", "Kind"): kind, ("", "Method"): title}
        cells: dict[str, dict] = {"ours": {}, "paper": {}, "difference": {}}
        for beta, task in (column for column in columns if column in mine.index):
            name, value = (f"β = {beta:.0%}", _short(task, names)), mine.loc[(beta, task)]
            cells["ours"][name] = _value(value["mean"], 4, best=value["mean"] == best[beta, task])
            if pd.notna(value["paper"]):
                is_best = value["paper"] == best_paper[beta, task]
                cells["paper"][name] = _value(value["paper"], 4, best=is_best)
                cells["difference"][name] = _signed(value["mean"] - value["paper"], 4)
        rows += [{**head, ("", ""): line, **values} for line, values in cells.items() if values]
    order = [
        ("", "Kind"),
        ("", "Method"),
        ("", ""),
        *((f"β = {b:.0%}", _short(t, names)) for b, t in columns),
    ]
    return layout(caption, rows, order, keys=2)


def _short(task: str, names: Names) -> str:
    known = names.catalog.tasks.get(task)
    if known is None:
        return task
    return f"Task {known.paper}" if known.paper else known.title


def table4(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Layout]:
    """Rows task × device × phase, columns models; thousands a second."""
    phases = {"train": "Training samples", "test": "Test samples", "test_users": "Test users"}
    rows = []
    for task in names.in_order(frame["task"]):
        of_task = frame[frame["task"] == task]
        for (device, replicas), of_device in of_task.groupby(["device", "replicas"]):
            for phase, title in phases.items():
                part = of_device[of_device["phase"] == phase].set_index("model")
                head = {
                    "Task": names.task(task),
                    "Device": f"{device}, {_replicas(replicas)}",
                    "Thousands a second": title,
                }
                rows += _throughput_rows(
                    head, part, names, [model for model in models if model in part.index]
                )
    return [_by_model("", rows, names, models)] if rows else []


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas at once"


def _throughput_rows(head: Mapping, part: pd.DataFrame, names: Names, present: Sequence[str]) -> list[dict]:
    ours = {names.model(m): f"{part.loc[m, 'mean']:,.1f}" for m in present}
    rows = [{**head, "": "ours", **ours, "Cells": _range(part["cells"])}] if present else []
    paper = part.loc[present, "paper"].dropna()
    if len(paper):
        rows += [{**head, "": "paper", **{names.model(m): f"{value:,.1f}" for m, value in paper.items()}}]
    return rows


def figure3(
    frame: pd.DataFrame, names: Names, models: Sequence[str], left_out: Mapping[tuple[str, float], str]
) -> list[Layout]:
    """Rows task × β × metric, each cold, warm and the relative change; columns models."""
    rows = []
    for head, metric, part in _groups(frame, names, tables.ERRORS):
        task, beta = part["task"].iloc[0], part["beta"].iloc[0]
        for stage, mine in part.groupby("stage"):
            out = {"Seeds": _range(mine["seeds"]), "Left out": left_out.get((task, beta), UNDEFINED)}
            rows.append({**head, "": stage, **_plain_cells(mine, names, models, metric), **out})
        means = part.pivot(index="model", columns="stage", values="mean")
        if {"cold", "warm"} <= set(means.columns):
            change = (means["warm"] / means["cold"] - 1).dropna()
            cells = {names.model(m): f"{change[m]:+.1%}" for m in models if m in change}
            rows.append({**head, "": "difference", **cells})
    return [_by_model("", rows, names, models)] if rows else []


def distances(frame: pd.DataFrame, names: Names, models: Sequence[str]) -> list[Layout]:
    """Rows task × β × vectors, columns the distances on training and on test users."""
    measures = {"frechet": "Fréchet²", "mmd": "MMD²", "euclidean": "Euclidean", "cosine": "Cosine"}
    order = ["source", *models, *(f"{model}_dim" for model in models)]
    known = frame[frame["model"].isin(order)]
    known = known.assign(rank=known["model"].map(order.index)).sort_values(["beta", "rank", "nfe"])
    lowest = known[~known["model"].isin(REFERENCES)].groupby(["task", "beta", "side"])[list(measures)].min()
    rows: dict[tuple, dict] = {}
    for task in names.in_order(known["task"]):
        for record in known[known["task"] == task].to_dict("records"):
            head = (names.task(task), f"{record['beta']:.0%}", _vectors(record, names))
            row = rows.setdefault(head, dict(zip(_DISTANCE_KEYS, head, strict=True)))
            place = (task, record["beta"], record["side"])
            best = lowest.loc[place] if record["model"] not in REFERENCES else None
            for measure, title in measures.items():
                # Similar vectors have a high cosine: there the best is not the lowest.
                is_best = best is not None and measure != "cosine" and record[measure] == best[measure]
                row[_SIDES[record["side"]], title] = _value(record[measure], 3, best=is_best)
            row["", "Cells"] = f"{record['cells']}"
    reasons = known["undefined"].dropna().unique()
    notes = (f"{UNDEFINED}: {'; '.join(reasons)}.",) if len(reasons) else ()
    columns = [*_DISTANCE_KEYS, *((side, title) for side in _SIDES.values() for title in measures.values())]
    return [layout("", list(rows.values()), columns, keys=3, sections=True, notes=notes)] if rows else []


_DISTANCE_KEYS = (("", "Task"), ("", "β"), ("", "Vectors"))
REFERENCES = ("source", "tgt")  # vectors that nothing has transferred: they win nothing
_SIDES = {"train": "Training users", "test": "Test users"}


def _vectors(record: Mapping, names: Names) -> str:
    model = str(record["model"])
    title = (
        f"{names.model(model.removesuffix('_dim'))} before alignment"
        if model.endswith("_dim")
        else names.model(model)
    )
    return title if pd.isna(record["nfe"]) else f"{title}, NFE {record['nfe']:.0f}"


SUPPORT = {
    "all": "All",
    "item": "Training ratings of the item",
    "history": "Liked source items of the user",
}


def support(
    frame: pd.DataFrame, names: Names, models: Sequence[str], controls: Sequence[str]
) -> list[Layout]:
    """MAE and RMSE by support, then the share outside the scale: rows task × β × buckets, columns models."""
    known = frame[frame["by"].isin(SUPPORT) & frame["model"].isin([*models, *controls])]
    layouts = []
    for metric in tables.ERRORS:
        rows = []
        for head, bucket, part in _buckets(known, names):
            cells = _support_cells(
                part.set_index("model")[metric.name], names, models, controls, metric.digits
            )
            rows.append({**head, "": bucket, **cells, "Ratings": f"{part['count'].max():,.0f}"})
        layouts += [_by_model(f"{metric.title} by support", rows, names, models)] if rows else []
    rows = [
        {**head, "": bucket, **{names.model(r.model): f"{r.outside:.1%}" for r in part.itertuples()}}
        for head, bucket, part in _buckets(known[known["by"] == "all"], names)
    ]
    caption = "Share of predictions outside the scale, before clipping"
    return [*layouts, _by_model(caption, rows, names, [*models, *controls])] if rows else layouts


def _buckets(frame: pd.DataFrame, names: Names) -> Iterator[tuple[dict, str, pd.DataFrame]]:
    """Each task × β × bucket in reading order: its key cells, the bucket's label and its rows."""
    for task in names.in_order(frame["task"]):
        of_task = frame[frame["task"] == task]
        for beta, of_beta in of_task.groupby("beta"):
            for by, title in SUPPORT.items():
                head = {"Task": names.task(task), "β": f"{beta:.0%}", "By": title}
                for (_, bucket), part in of_beta[of_beta["by"] == by].groupby(["position", "bucket"]):
                    yield head, str(bucket), part


def _support_cells(
    values: pd.Series, names: Names, models: Sequence[str], controls: Sequence[str], digits: int
) -> dict[str, str]:
    present = [model for model in models if model in values.index]
    best = values[present].min()
    cells = {names.model(m): _value(values[m], digits, best=values[m] == best) for m in present}
    of_controls = values[values.index.isin(controls)].dropna()
    if len(of_controls):
        least = of_controls.idxmin()
        cells[BEST_CONTROL] = f"{of_controls[least]:.{digits}f} {names.model(least)}"
    return cells


def search(frame: pd.DataFrame, names: Names) -> list[Layout]:
    """Rows searched cells: chosen λ and s with their validation errors, and those of the paper's choice."""
    rows = []
    for task in names.in_order(frame["task"]):
        for (beta, seed), part in frame[frame["task"] == task].groupby(["beta", "seed"]):
            head = {"Task": names.task(task), "β": f"{beta:.0%}", "Seed": f"{seed}"}
            rows += [{**head, **cells} for cells in _search_rows(part)]
    return [layout("", rows, keys=3, sections=True)] if rows else []


def _search_rows(part: pd.DataFrame) -> list[dict[str, str]]:
    the_papers = (part["task_weight"] == 0.1) & (part["guidance"] == 0.1)
    return [
        {
            "": line,
            "λ": f"{trial.task_weight:g}",
            "s": f"{trial.guidance:g}",
            "Epoch": f"{trial.epoch:.0f}",
            "Validation MAE": f"{trial.validation_mae:.4f}",
            "Validation RMSE": f"{trial.validation_rmse:.4f}",
        }
        for line, rows in (("chosen", part[part["chosen"]]), ("paper", part[the_papers]))
        for trial in rows.itertuples()
    ]


def _groups(
    frame: pd.DataFrame, names: Names, metrics: Iterable[Metric]
) -> Iterator[tuple[dict, Metric, pd.DataFrame]]:
    """Each task × β × metric that has rows, in reading order: its key cells, the metric and the rows."""
    groups = {key: part for key, part in frame.groupby(["task", "beta", "metric"])}
    for task in names.in_order(frame["task"]):
        for beta in sorted(frame.loc[frame["task"] == task, "beta"].unique()):
            for metric in metrics:
                if (task, beta, metric.name) in groups:
                    head = {"Task": names.task(task), "β": f"{beta:.0%}", "Metric": metric.title}
                    yield head, metric, groups[task, beta, metric.name]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _best(values: pd.Series, metric: Metric) -> float:
    return values.max() if metric.higher_is_better else values.min()


def _value(value: float, digits: int, best: bool = False, star: bool = False, beaten: bool = False) -> str:
    if pd.isna(value):
        return UNDEFINED
    text = f"{value:.{digits}f}" + (BEATEN if beaten else "")
    return (f"**{text}**" if best else text) + (STAR if star else "")


def _spread(std: float, digits: int) -> str:
    return "" if pd.isna(std) else f" ± {std:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    return UNDEFINED if pd.isna(value) else f"{value:+.{digits}f}"


def _p_value(value: float | None) -> str:
    if pd.isna(value):
        return UNDEFINED
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _range(counts: pd.Series) -> str:
    """`5`, or `3–5` where they differ."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low}–{high}"


def _by_model(
    caption: str, rows: Sequence[Mapping], names: Names, models: Sequence[str], notes: tuple[str, ...] = ()
) -> Layout:
    """A layout whose first three columns are keys, then "" (the kind of row) and one column a model."""
    keys = list(rows[0])[:3]
    order = [*keys, "", *(names.model(model) for model in models)]
    return layout(caption, rows, order, keys=3, sections=True, notes=notes)
