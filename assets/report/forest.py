"""The first thing that a reader sees: each model against the simplest there is, in words and in one picture.

Lists are compared with the most popular items in nDCG@20, stars with the item's mean in RMSE, on the same
test users, with a paired bootstrap interval over users.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from assets.report.metrics import BY_NAME, Metric
from assets.report.names import Names, compared
from assets.report.part import Chapter, Part, Picture
from assets.report.results import Source
from assets.report.significance import RESAMPLES, user_sums
from assets.report.summaries import SELECTIONS, headline, task_betas
from assets.report.table import Interval, Number, Table, digits, table
from assets.report.verdict import recommended, verdict_frame
from assets.settings.profile import Profile
from assets.state import plots
from assets.training.choose import role

# What each metric is compared with: the least that anybody could do.
REFERENCES = {"ndcg@20": "popularity", "rmse": "item_mean"}
SAID = {"popularity": "the most popular items", "item_mean": "each item's mean"}
COLUMNS = ["task", "beta", "metric", "model", "reference", "value", "value_reference"]
COLUMNS += ["gain", "low", "high", "users", "seeds"]
# A model that is further off than this many times the typical distance is drawn at the edge.
FAR = 4.0
KINDS = {"ours": plots.RED, "learned": plots.BLUE, "simple": plots.GREY, "blind": plots.GREY}
LEGEND = {"ours": "ours", "learned": "trained", "simple": "simple"}
MARKERS = "osD^vP*X"


def forest_frame(source: Source) -> pd.DataFrame:
    """One row for each task, β, metric of REFERENCES and model: COLUMNS.

    gain is how much better the model is than the reference (a lower error is a positive gain), pooled over
    the seeds that both have; low..high is its 95 % paired bootstrap interval over users, NaN where the model
    has diverged.
    """
    rows = []
    for task in source.names.in_order(source.results["task"]):
        sums = user_sums(source, task)
        for name, reference in REFERENCES.items():
            metric = BY_NAME[name]
            for beta, part in sums[metric.objective].groupby("beta"):
                head = {"task": task, "beta": beta, "metric": name, "reference": reference}
                rows += [{**head, **row} for row in _against(part, reference, metric, shown(source.profile))]
    return pd.DataFrame(rows, columns=COLUMNS).astype({name: float for name in COLUMNS[5:]})


def shown(profile: Profile) -> list[str]:
    """The models and the simple predictors that know the user; what knows nobody is what they must beat."""
    models = compared(profile)
    return [n for n in models if n in profile.models or role(profile, n) in ("learned", "simple")]


def _against(sums: pd.DataFrame, reference: str, metric: Metric, models: Sequence[str]) -> list[dict]:
    """Each model's row, models over the same users together."""
    from ml.evaluation.significance import paired_bootstraps

    keys = ["seed", "user"]
    wide = sums.pivot(index=keys, columns="model", values=metric.sums)
    if reference not in wide:
        return []
    counts = sums.groupby(keys)["count"].first()
    has = sums.groupby("model")["seed"].agg(lambda seeds: tuple(sorted(set(seeds))))
    both = {name: tuple(s for s in has[name] if s in has[reference]) for name in models if name in has}
    rows = []
    for seeds in dict.fromkeys(both.values()):
        names = [name for name in both if both[name] == seeds and name != reference]
        if not seeds or not names:
            continue
        mine = wide[wide.index.get_level_values("seed").isin(seeds)].assign(count=counts)
        # A sum leaves NaN out, but not infinity: what has diverged for one user has no sum.
        mine = mine[[*names, reference, "count"]].fillna(np.inf)
        users = mine.groupby("user").sum().replace(np.inf, np.nan)
        found = paired_bootstraps(
            {name: users[name].to_numpy() for name in names},
            users[reference].to_numpy(),
            users["count"].to_numpy(),
            resamples=RESAMPLES,
            root=metric.root,
        )
        sign = 1 if metric.higher_is_better else -1
        values = {name: _value(users, name, metric) for name in (*names, reference)}
        for name, interval in found.items():
            ends = sorted(sign * (np.nan if end is None else end) for end in (interval.low, interval.high))
            gain = sign * (values[name] - values[reference])
            row = {"model": name, "value": values[name], "value_reference": values[reference], "gain": gain}
            rows.append({**row, "low": ends[0], "high": ends[1], "users": len(users), "seeds": len(seeds)})
    return rows


def _value(users: pd.DataFrame, name: str, metric: Metric) -> float:
    mean = users[name].sum(skipna=False) / users["count"].sum()
    return float(mean**0.5 if metric.root else mean)


# The picture.


def leading(frame: pd.DataFrame) -> float:
    """The β that is shown where there is room for one: the smallest, of which the most is known."""
    return frame["beta"].min()


def forest_picture(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """All tasks in one picture at the smallest β: a panel for lists, one for stars, better to the right."""
    frame = frame[frame["beta"] == leading(frame)]
    metrics = [name for name in REFERENCES if frame.loc[frame["metric"] == name, "gain"].notna().any()]
    if not metrics:
        return []
    tasks = names.in_order(frame["task"])
    rows = {name: _order(frame[frame["metric"] == name]) for name in metrics}
    longest = max(map(len, rows.values()))
    height = 1.15 + longest * max(0.23, 0.12 * len(tasks))
    figure = plots.new_figure(4.9 * len(metrics), height)
    for axes, name in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _panel(axes, frame[frame["metric"] == name], rows[name], tasks, names)
        metric, reference = BY_NAME[name], REFERENCES[name]
        what = "Lists" if metric.objective == "ranking" else "Stars"
        plots.plain(axes, f"{what}: {metric.title} against {SAID[reference]}")
        axes.grid(False)
        axes.set_xlabel("better →", fontsize=8)
    _legend(figure, tasks, frame, names)
    against = " and ".join(f"{SAID[REFERENCES[name]]} ({BY_NAME[name].title})" for name in metrics)
    caption = (
        f"Each model against {against}, the lines at zero, on the same test users at β = "
        f"{leading(frame):.0%}. Dots are differences, lines 95 % bootstrap intervals over users; right of "
        "zero is better. An arrow: further off than there is room for, by the number beside it."
    )
    return [Picture("forest", caption, plots.formats(figure))]


def _order(frame: pd.DataFrame) -> list[str]:
    """Models from the best to the worst by their mean gain; those that have diverged come last."""
    return list(frame.groupby("model")["gain"].mean().sort_values(ascending=False, na_position="last").index)


def _panel(axes, frame: pd.DataFrame, models: list[str], tasks: list[str], names: Names) -> None:
    low, high = _limits(frame)
    axes.axvline(0, color=plots.INK, linewidth=0.9)
    for row in frame.dropna(subset=["gain"]).itertuples():
        offset = (tasks.index(row.task) - (len(tasks) - 1) / 2) * 0.7 / max(1, len(tasks))
        place, colour = models.index(row.model) + offset, KINDS[kind(names.profile, row.model)]
        marker = MARKERS[tasks.index(row.task) % len(MARKERS)]
        if not low <= row.gain <= high:
            edge = low if row.gain < low else high
            axes.plot(edge, place, "<" if row.gain < low else ">", color=colour, markersize=4)
            side = {"ha": "left" if row.gain < low else "right", "va": "center"}
            shift = (high - low) * (0.025 if row.gain < low else -0.025)
            text = Number(row.gain, digits(3, signed=True)).text
            axes.text(edge + shift, place, text, fontsize=6.5, color=colour, **side)
            continue
        axes.plot((max(row.low, low), min(row.high, high)), (place, place), color=colour, linewidth=1.3)
        axes.plot(row.gain, place, marker, color=colour, markersize=4.5)
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_yticks(range(len(models)), [names.model(name) for name in models], fontsize=7.5)
    for label, name in zip(axes.get_yticklabels(), models, strict=True):
        label.set_color(KINDS[kind(names.profile, name)])
        label.set_fontweight("bold" if kind(names.profile, name) == "ours" else "normal")


def kind(profile: Profile, name: str) -> str:
    """ours, or how the model stands in a comparison."""
    return "ours" if name in profile.ours else role(profile, name)


def _limits(frame: pd.DataFrame) -> tuple[float, float]:
    """Ends of the axis: all intervals but those of models that are far off."""
    gains = frame["gain"].dropna()
    reach = FAR * max(gains.abs().median(), 1e-6)
    near = frame[frame["gain"].abs() <= reach]
    near = frame.dropna(subset=["gain"]) if near.empty else near
    ends = [0.0, *near["low"].fillna(near["gain"]), *near["high"].fillna(near["gain"])]
    ends = np.clip(ends, -reach * 1.5, reach * 1.5)
    return float(min(ends)), float(max(ends))


def _legend(figure, tasks: list[str], frame: pd.DataFrame, names: Names) -> None:
    from matplotlib.lines import Line2D

    kinds = {kind(names.profile, name) for name in frame["model"]}
    handles = [
        Line2D([], [], color=KINDS[each], marker="o", markersize=4.5, linewidth=1.3, label=label)
        for each, label in LEGEND.items()
        if each in kinds
    ]
    if len(tasks) > 1:
        style = {"color": plots.INK, "linestyle": ""}
        handles += [
            Line2D([], [], marker=MARKERS[i % len(MARKERS)], label=names.short_task(task), **style)
            for i, task in enumerate(tasks)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7.5, frameon=False)


# The words.


def asked(frame: pd.DataFrame, names: Names) -> list[str]:
    """What was asked, and of how many users, at the smallest β: nothing else makes sense without it."""
    if frame.empty:
        return []
    frame = frame[frame["beta"] == leading(frame)]
    users = frame.groupby("task")["users"].max()
    tasks = [f"{names.task(task)}, {users[task]:,.0f} users" for task in names.in_order(frame["task"])]
    return [
        f"{'; '.join(tasks)}: their ratings in the target domain were hidden (β = {leading(frame):.0%}). "
        "Which items had they chosen there, and how many stars did they give?"
    ]


def sentences(source: Source, frame: pd.DataFrame) -> list[str]:
    """What lists gain, what stars gain, and what is left of it against the best simple model: at the smallest
    β, over the tasks of `frame`."""
    if frame.empty:
        return []
    beta, names = leading(frame), source.names
    frame = frame[frame["beta"] == beta]
    use = _used(source, beta)
    lacking = _lacking(source, beta)
    spoken = [
        _spoken(frame[frame["metric"] == name], use.get(name, {}), names, lacking.get(name, ()))
        for name in REFERENCES
    ]
    if source.profile.validation:
        last = _against_simple(source, beta, set(frame["task"]), use)
    else:
        last = _counted(frame, names)
    return [sentence for sentence in (*spoken, last) if sentence]


def _used(source: Source, beta: float) -> dict[str, dict[str, str]]:
    """The model to use by metric and task: validation's choice, and without validation users ours."""
    use = {}
    for metric in REFERENCES:
        ours = source.names.ours(BY_NAME[metric].objective)
        use[metric] = {task: ours for task in set(source.results["task"])}
    if source.profile.validation:
        chosen = recommended(source)
        for row in chosen[chosen["beta"] == beta].itertuples():
            if row.metric in use:
                use[row.metric][row.task] = row.model
    return use


def _lacking(source: Source, beta: float) -> dict[str, set[str]]:
    """By metric the tasks in which others lack a seed that the chosen model has."""
    if not source.profile.validation:
        return {}
    chosen = recommended(source)
    chosen = chosen[(chosen["beta"] == beta) & chosen["others_lack"]]
    return {metric: set(rows["task"]) for metric, rows in chosen.groupby("metric")}


BEGIN = {"ranking": "Lists", "rating": "Stars"}
WHAT = {
    "ndcg@20": "reach an nDCG@20 of {value}, {reference} {value_reference}",
    "rmse": "miss by {value} (RMSE), {reference} by {value_reference}",
}


def _spoken(frame: pd.DataFrame, use: Mapping[str, str], names: Names, lacking: Collection[str]) -> str:
    """`Lists by X reach an nDCG@20 of …, the most popular items …: better by … (95 % interval … to …).`"""
    if frame.empty:
        return ""
    metric, reference = BY_NAME[frame["metric"].iloc[0]], frame["reference"].iloc[0]
    begin = BEGIN[metric.objective]
    said = []
    for task in names.in_order(frame["task"]):
        mine = frame[(frame["task"] == task) & (frame["model"] == use.get(task))]
        where = f" ({names.task(task)})" if frame["task"].nunique() > 1 else ""
        if use.get(task) == reference and task in lacking:
            said.append(
                f"{begin.lower()}: no model can be chosen, for some were run on fewer seeds than "
                f"{SAID[reference]}; run them on the same{where}"
            )
        elif use.get(task) == reference:
            best = frame.loc[frame["task"] == task, "value_reference"].iloc[0]
            value = Number(best, digits(3))
            said.append(f"nothing beats {SAID[reference]} on validation users, {metric.title} {value}{where}")
        elif len(mine) and np.isfinite(mine["gain"].iloc[0]):
            said.append(_one(mine.iloc[0], metric, names, begin.lower()) + where)
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _one(row: pd.Series, metric: Metric, names: Names, begin: str) -> str:
    values = {key: Number(row[key], digits(3)) for key in ("value", "value_reference")}
    what = WHAT[metric.name].format(reference=SAID[row["reference"]], **values)
    return f"{begin} by {names.model(row['model'])} {what}: {_better(row)}"


def _better(row) -> str:
    """`better by 0.123 (95 % interval 0.101 to 0.145)`"""
    size = Number(abs(row["gain"]), digits(3))
    if pd.isna(row["low"]):
        return f"{'better' if row['gain'] > 0 else 'worse'} by {size}"
    ends = sorted((row["low"], row["high"]) if row["gain"] > 0 else (-row["high"], -row["low"]))
    low, high = (Number(end, digits(3)) for end in ends)
    word = "better" if row["gain"] > 0 else "worse"
    sure = "" if row["low"] > 0 or row["high"] < 0 else ", which may be chance"
    return f"{word} by {size} (95 % interval {low} to {high}){sure}"


def _against_simple(
    source: Source, beta: float, tasks: Collection[str], use: Mapping[str, Mapping[str, str]]
) -> str:
    """`Of the simple predictors the best is X in lists, 0.044 nDCG@20 behind Y, and …`"""
    names, metrics = source.names, [BY_NAME[name] for name in REFERENCES]
    found = verdict_frame(source, ("gain", "learning"), metrics)
    found = found[(found["beta"] == beta) & found["task"].isin(tasks)]
    said = []
    for metric in metrics:
        of_metric = found[found["metric"] == metric.name]
        for task in names.in_order(of_metric["task"]):
            rows = of_metric[of_metric["task"] == task].set_index("question")
            question = "gain" if "gain" in rows.index else "learning"
            row = rows.loc[question]
            # Where a simple row is the one to use, what is trained stands against it.
            if question == "learning" and row["against"] != use[metric.name].get(task):
                continue
            where = f" ({names.short_task(task)})" if found["task"].nunique() > 1 else ""
            said.append(f"{_margin(row, metric, names)}{where}")
    return f"Of the simple predictors the best is {_joined(said)}." if said else ""


def _margin(row: pd.Series, metric: Metric, names: Names) -> str:
    """`Ridge in stars, 0.028 RMSE behind X, which may be chance`"""
    gain = row["difference"] if metric.higher_is_better else -row["difference"]
    side = f"{Number(abs(gain), digits(3))} {metric.title} {'behind' if gain > 0 else 'ahead of'}"
    chance = ", which may be chance" if row["answer"] == "open" else ""
    of = BEGIN[metric.objective].lower()
    return f"{names.model(row['against'])} in {of}, {side} {names.model(row['model'])}{chance}"


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])}, and {texts[-1]}"


def _counted(frame: pd.DataFrame, names: Names) -> str:
    """`Beyond chance, 2 of the 7 models beat the most popular items in nDCG@20, and none of the 7 …`"""
    said = []
    for metric, reference in REFERENCES.items():
        mine = frame[(frame["metric"] == metric) & frame["model"].isin(names.profile.models)]
        mine = mine[mine["model"] != reference]
        if len(mine):
            ahead = int((mine["low"] > 0).sum())
            verb = "beats" if ahead < 2 else "beat"
            who = f"{ahead or 'none'} of the {len(mine)} models {verb} {SAID[reference]}"
            said.append(f"{who} in {BY_NAME[metric].title}")
    where = " over all tasks" if frame["task"].nunique() > 1 else ""
    return f"Beyond chance{where}, {_joined(said)}." if said else ""


def short_table(frame: pd.DataFrame, names: Names) -> Table:
    """A row for each task, β and model: its values and by how much it is better than the references."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        part = frame[(frame["task"] == task) & (frame["beta"] == beta)]
        for name in dict.fromkeys(part["model"]):
            row = {**head, "Model": names.model(name)}
            for found in part[part["model"] == name].itertuples():
                row[BY_NAME[found.metric].title] = Number(found.value, digits(3))
                row[f"than {names.model(found.reference).lower()}"] = Number(
                    found.gain, digits(3, signed=True)
                )
            rows.append(row)
    columns = [
        title
        for name, reference in REFERENCES.items()
        for title in (BY_NAME[name].title, f"than {names.model(reference).lower()}")
        if name in set(frame["metric"])
    ]
    return table("", rows, ["Task", "β", "Model", *columns], keys=3, sections=True)


def forest_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × model, columns by metric; folded, for the picture says most of it."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        for name, reference in REFERENCES.items():
            part = frame[(frame["task"] == task) & (frame["beta"] == beta) & (frame["metric"] == name)]
            metric = BY_NAME[name]
            against = f"{metric.title} against {names.model(reference)}"
            for row in part.sort_values("gain", ascending=False).itertuples():
                rows.append(
                    {
                        **head,
                        "Compared in": against,
                        "Model": names.model(row.model),
                        "Value": Number(row.value),
                        "Reference": Number(row.value_reference),
                        "Better by": Number(row.gain, digits(4, signed=True)),
                        "95 % interval": Interval(row.low, row.high, digits(4, signed=True)),
                        "Users": f"{row.users:,.0f}",
                        "Seeds": f"{row.seeds:.0f}",
                    }
                )
    return [table("The numbers behind the picture", rows, keys=4, sections=True, folded=True)] if rows else []


def forest_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    frame = forest_frame(source)
    notes = (
        "Better by: of nDCG@20 the difference, of RMSE how much lower it is, pooled over the seeds that both "
        f"have. Interval: paired bootstrap of whole users, {RESAMPLES:,} resamples, 95 %. Epochs: "
        f"{SELECTIONS[headline(profile)]}.",
    )
    title = f"Against the simplest there is. {profile.title}"
    gaps = source.gaps(shown(profile))
    pictures = forest_picture(frame, names) if len(frame) else []
    tables = forest_tables(frame, names)
    said = [*asked(frame, names), *sentences(source, frame)]
    return Part("forest", title, frame, tables, notes, gaps, pictures, said)


FOREST = Chapter(
    "forest",
    "Against the simplest there is",
    "Each model against what anybody could do: show the most popular items, and predict each item's mean.",
    "Each model against popularity in lists and the item's mean in stars, in words and in one picture.",
    forest_part,
    compared,
)
