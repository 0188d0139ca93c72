"""Learning curves: the criterion by epoch, and the epoch that counts."""

import numpy as np
import pandas as pd

from assets.report.by_beta import drawn
from assets.report.forest import FAR
from assets.report.metrics import BY_NAME
from assets.report.names import Names, trained_for
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.settings.profile import Profile
from assets.state import plots

COLUMNS = ["task", "beta", "objective", "model", "epoch", "value", "seeds"]


def learned(profile: Profile) -> list[str]:
    """The models that may have curves."""
    return [name for name in profile.models if name in drawn(profile)]


def learning_frame(source: Source) -> pd.DataFrame:
    """The criterion by epoch of each model that has several, at the smallest β of its task: COLUMNS.

    It is that of the validation users, and of the test users where a profile has no others; a mean over
    seeds, of the epochs that all of them have.
    """
    from ml.evaluation.selection import OBJECTIVES

    side = "validation" if source.profile.validation else "test"
    parts = []
    for objective, rule in OBJECTIVES.items():
        column = f"{side}_{rule.criterion}"
        if objective not in source.profile.objectives:
            continue
        curves = source.table("curves.parquet", ["task", "beta", "seed", "model", "epoch", column], objective)
        curves = curves[
            curves["model"].isin(set(learned(source.profile)) & set(trained_for(source.profile, objective)))
        ]
        if curves.empty:
            continue
        curves = curves[curves["beta"] == curves.groupby("task")["beta"].transform("min")]
        keys = ["task", "beta", "model"]
        seeds = curves.groupby(keys)["seed"].transform("nunique")
        grouped = curves.assign(all=seeds).groupby([*keys, "epoch"])
        means = grouped[column].mean().rename("value").to_frame()
        means = means.assign(seeds=grouped["seed"].nunique(), all=grouped["all"].first()).reset_index()
        means = means[means["seeds"] == means.pop("all")]
        several = means.groupby(keys)["epoch"].transform("size") > 1
        parts.append(means[several].assign(objective=objective))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def learning_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task a panel for each objective, a line for each model, a dot where it is best."""
    return each_task(frame, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    from ml.evaluation.selection import OBJECTIVES

    present = [name for name in OBJECTIVES if (frame["objective"] == name).any()]
    figure = plots.new_figure(4.9 * len(present), 2.9)
    for axes, objective in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        rule, part = OBJECTIVES[objective], frame[frame["objective"] == objective]
        finite = part[np.isfinite(part["value"])]
        bests = finite.groupby("model")["value"].agg("max" if rule.higher_is_better else "min")
        models = [name for name in names.profile.models if name in bests.index]
        axes.set_xlim(1, max(2, finite["epoch"].max()))
        if len(finite):
            axes.set_ylim(*plots.near(finite["value"], float(bests.median()), FAR))
        ends = {}
        for model in models:
            line = finite[finite["model"] == model].sort_values("epoch")
            ours = model in names.profile.ours
            position = list(names.profile.models).index(model)
            colour = plots.RED if ours else plots.COLOURS[position % len(plots.COLOURS)]
            axes.plot(line["epoch"], line["value"], color=colour, linewidth=2.0 if ours else 1.1)
            best = line.loc[line["value"].idxmax() if rule.higher_is_better else line["value"].idxmin()]
            axes.plot(best["epoch"], best["value"], "o", color=colour, markersize=4)
            ends[names.model(model)] = (line["epoch"].iloc[-1], line["value"].iloc[-1], colour)
        plots.plain(
            axes, f"{'Lists' if objective == 'ranking' else 'Stars'}: {BY_NAME[rule.criterion].title}"
        )
        axes.set_xlabel("epoch", fontsize=8)
        plots.label(axes, ends)
    users = "validation" if names.profile.validation else "test"
    beta = frame["beta"].iloc[0]
    caption = (
        f"{names.task(task)}, β = {beta:.0%}: error or nDCG on {users} users by epoch, mean over seeds; a "
        "dot is the best epoch. What has a closed form has no curve."
    )
    return Picture(f"learning-{task}", caption, plots.formats(figure))


def learning_part(source: Source) -> Part:
    frame = learning_frame(source)
    title = f"Learning curves. {source.profile.title}"
    return Part("learning", title, frame, (), (), "", learning_pictures(frame, source.names))


LEARNING = Chapter(
    "learning",
    "How they learn",
    "The criterion by which epochs are chosen, after each epoch of training.",
    "Learning curves: nDCG@20 and the error by epoch.",
    learning_part,
    learned,
)
