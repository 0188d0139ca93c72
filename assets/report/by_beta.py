"""Lists and stars by β, the share of users without a history: what models are worth as less is known."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from assets.report.forest import FAR, KINDS, REFERENCES, kind, shown
from assets.report.metrics import BY_NAME, Metric
from assets.report.names import Names, compared
from assets.report.part import Chapter, Part, Picture
from assets.report.results import Source
from assets.report.summaries import SELECTIONS, groups, headline, model_cells, of_metrics, summary
from assets.report.table import Table, table
from assets.settings.profile import Profile
from assets.state import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = [BY_NAME[name] for name in REFERENCES]
# How lines are drawn, by the kind of the model.
STYLE = {
    "ours": {"linewidth": 2.2, "zorder": 4},
    "learned": {"linewidth": 1.1, "zorder": 3},
    "simple": {"linewidth": 1.0, "linestyle": (0, (4, 2)), "zorder": 2},
    "blind": {"linewidth": 1.0, "linestyle": (0, (1, 1.5)), "zorder": 2},
}


def drawn(profile: Profile) -> list[str]:
    """What is drawn: the models of the forest and what they are compared with there."""
    return [*shown(profile), *(n for n in REFERENCES.values() if n in compared(profile))]


def by_beta_frame(source: Source) -> pd.DataFrame:
    """Means over seeds: task, beta, metric, model, mean, std, seeds."""
    results = of_metrics(source.results, METRICS, drawn(source.profile))
    # What has no epochs has the same value under every rule.
    rule = headline(source.profile)
    results = results[results["selection"] == rule]
    return summary(results, ["task", "beta", "metric", "model"])


def by_beta_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task with several β a panel for lists and one for stars, a line for each model."""
    betas = frame.groupby("task")["beta"].nunique()
    tasks = names.in_order(betas.index[betas > 1])
    return [_picture(frame[frame["task"] == task], task, names) for task in tasks]


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    figure, off = panels_of(
        frame, "mean", "β, share of the shared users that are new", lambda *given: _panel(*given, names)
    )
    beyond = f" Off the scale: {', '.join(off)}." if off else ""
    caption = (
        f"{names.task(task)}. Means over seeds, lines standard deviations. Red: ours; blue: trained; grey: "
        f"simple, dotted where it knows nothing of the user.{beyond}"
    )
    return Picture(f"by-beta-{task}", caption, plots.formats(figure))


def panels_of(
    frame: pd.DataFrame, column: str, what: str, draw: Callable[[Any, pd.DataFrame, Metric], list[str]]
) -> "tuple[Figure, list[str]]":
    """A figure with a panel for each metric that has any value in `column`, side by side, drawn by `draw`,
    which returns what is off its scale; what: is on the axis below. Returns it with all that is off."""
    metrics = [m for m in METRICS if frame.loc[frame["metric"] == m.name, column].notna().any()]
    most = max((frame.loc[frame["metric"] == m.name, "model"].nunique() for m in metrics), default=1)
    figure = plots.new_figure(4.9 * max(1, len(metrics)), max(2.8, 0.165 * most + 0.8))
    off = []
    panels = figure.subplots(1, max(1, len(metrics)), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        plots.plain(axes, f"{metric.title}, {'higher' if metric.higher_is_better else 'lower'} is better")
        axes.set_xlabel(what, fontsize=8)
        off += draw(axes, frame[frame["metric"] == metric.name], metric)
    return figure, off


def _panel(axes, frame: pd.DataFrame, metric: Metric, names: Names) -> list[str]:
    """Draw a metric; returns the titles of the models that are off the scale at every β."""
    frame = frame.dropna(subset=["mean"])
    betas = sorted(frame["beta"].unique())
    of_reference = frame.loc[frame["model"] == REFERENCES[metric.name], "mean"]
    centre = float((of_reference if len(of_reference) else frame["mean"]).median())
    low, high = plots.near(frame["mean"], centre, FAR)
    axes.set_xlim(betas[0] - 0.04, betas[-1] + 0.04)
    axes.set_ylim(low, high)
    axes.set_xticks(betas, [f"{beta:.0%}" for beta in betas])
    ends, off = {}, []
    for model in (name for name in drawn(names.profile) if name in set(frame["model"])):
        line = frame[frame["model"] == model].sort_values("beta")
        if not line["mean"].between(low, high).any():
            off.append(names.model(model))
            continue
        of_kind = kind(names.profile, model)
        colour, style = KINDS[of_kind], STYLE[of_kind]
        axes.errorbar(
            line["beta"],
            line["mean"],
            line["std"].fillna(0),
            color=colour,
            marker="o",
            markersize=3,
            elinewidth=0.7,
            **style,
        )
        last = line[line["mean"].between(low, high)].iloc[-1]
        ends[names.model(model)] = (last["beta"], last["mean"], colour)
    plots.label(axes, ends)
    return off


def by_beta_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × metric × β, columns models: folded."""
    models = drawn(names.profile)
    rows = [
        {**head, **model_cells(part, names, models, metric)}
        for head, metric, part in groups(frame, names, METRICS)
    ]
    return [table("The numbers behind the picture", rows, keys=3, sections=True, folded=True)] if rows else []


def by_beta_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    frame = by_beta_frame(source)
    notes = (f"Epochs: {SELECTIONS[headline(profile)]}. Bold is the best of a row.",)
    title = f"By share of new users. {profile.title}"
    tables, pictures = by_beta_tables(frame, names), by_beta_pictures(frame, names)
    gaps = source.gaps(drawn(profile))
    betas = frame["beta"].unique()
    alone = [f"Only β = {beta:.0%} has been run; others would be drawn beside it." for beta in betas]
    sentences = alone if len(alone) == 1 else ()
    return Part("by_beta", title, frame, tables, notes, gaps, pictures, sentences)


BY_BETA = Chapter(
    "by_beta",
    "As less is known",
    "β is the share of the shared users whose target ratings are all hidden: at a large one there are few "
    "left to learn from how tastes go together.",
    "nDCG@20 and RMSE by β, with simple predictors as lines.",
    by_beta_part,
    drawn,
)
