"""Figure 3: cold beside warm start on the same later half of each test user's ratings."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from assets.report.metrics import ERRORS
from assets.report.names import Names
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import (
    SELECTIONS,
    groups,
    headline,
    model_cells,
    summary,
    table_by_model,
)
from assets.report.table import KIND, UNDEFINED, Number, Table, counted, fold
from assets.settings.profile import Profile
from assets.state import plots

TALL = 2.0  # bars higher than this many medians would press the others flat: they are cut and labelled
LeftOut = Mapping[tuple[str, float], str]


def figure3_frame(results: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Cold and warm start on the later half: task, beta, metric, stage, model, mean, std, seeds."""
    errors = results[(results["objective"] == "rating") & results["model"].isin(profile.models)]
    errors = errors[errors["selection"] == headline(profile)]
    later = {f"{metric.name}_later": metric.name for metric in ERRORS}
    cold = errors[(errors["stage"] == "cold") & errors["metric"].isin(later)]
    warm = errors[(errors["stage"] == "warm") & errors["metric"].isin(later.values())]
    both = pd.concat([cold.assign(metric=cold["metric"].map(later)), warm])
    return summary(both, ["task", "beta", "metric", "stage", "model"])


def figure3_tables(frame: pd.DataFrame, names: Names, left_out: LeftOut) -> list[Table]:
    """Rows task × β × metric, each cold, warm and the relative change; columns models."""
    models, rows = names.profile.models, []
    for head, metric, part in groups(frame, names, ERRORS):
        out = left_out.get((part["task"].iloc[0], part["beta"].iloc[0]), UNDEFINED)
        for stage, mine in part.groupby("stage"):
            cells = model_cells(mine, names, models, metric)
            rows.append({**head, KIND: stage, **cells, "Seeds": counted(mine["seeds"]), "Left out": out})
        means = part.pivot(index="model", columns="stage", values="mean")
        if {"cold", "warm"} <= set(means.columns):
            change = (means["warm"] / means["cold"] - 1).dropna()
            cells = {names.model(model): Number(value, "{:+.1%}") for model, value in change.items()}
            rows.append({**head, KIND: "difference", **cells})
    return fold(table_by_model("Errors, cold and warm", rows, names, models))


def left_out(source: Source) -> LeftOut:
    """How many test users warm start leaves out, by task and β: a number, or its range over cells."""
    counts: dict[tuple[str, float], set[int]] = {}
    for model in source.profile.models:
        for cell, manifest in source.manifests(model).items():
            if manifest.get("warm_left_out") is not None:
                counts.setdefault((cell.task, cell.beta), set()).add(manifest["warm_left_out"])
    return {where: counted(pd.Series(sorted(of))) for where, of in counts.items()}


def figure3_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Figure 3 of each task: cold in light, warm in dark colours, one panel for each metric and β; error bars
    are the sample standard deviation over seeds."""
    return each_task(frame, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    betas = sorted(frame["beta"].unique())
    present = [model for model in names.profile.models if model in set(frame["model"])]
    figure = plots.new_figure(max(4.6, 3.6 * len(betas)), 2.3 * len(ERRORS) + 0.6)
    panels = figure.subplots(len(ERRORS), len(betas), squeeze=False)
    for row, metric in zip(panels, ERRORS, strict=True):
        for axes, beta in zip(row, betas, strict=True):
            part = frame[(frame["metric"] == metric.name) & (frame["beta"] == beta)]
            panel(axes, part, names, present)
            plots.plain(axes, f"{metric.title}, β = {beta:.0%}")
    caption = (
        f"Figure 3. {names.task(task)}: cold start (light) and warm start (dark) on the same later half of "
        "each test user's ratings; bars are means and lines standard deviations over seeds. Lower is "
        "better."
    )
    return Picture(f"figure3-{task}", caption, plots.formats(figure))


def panel(axes, part: pd.DataFrame, names: Names, models: list[str]) -> None:
    """Bars of one metric and β; a diverged model has none."""
    top = _top(part["mean"])
    bars = part[part["mean"].notna() & part["model"].isin(models)]
    for bar in bars.sort_values(["stage", "model"], key=_position(models)).itertuples():
        position = models.index(bar.model)
        place = position + (0.2 if bar.stage == "warm" else -0.2)
        colour = plots.COLOURS[position % len(plots.COLOURS)]
        axes.bar(
            place,
            bar.mean,
            0.38,
            color=plots.lighter(colour, 1.0 if bar.stage == "warm" else 0.45),
            yerr=None if pd.isna(bar.std) else bar.std,
            error_kw={"elinewidth": 0.8, "ecolor": plots.INK},
        )
        if bar.mean > top:
            axes.text(place, top, f"{bar.mean:.2f}", rotation=90, fontsize=6.5, ha="center", va="top")
    axes.set_ylim(0, top if np.isfinite(top) else None)
    axes.set_xticks(range(len(models)), [names.model(model) for model in models], fontsize=7, rotation=30)


def _position(models: list[str]):
    return lambda column: column.map(models.index) if column.name == "model" else column


def _top(means: pd.Series) -> float:
    """The upper end of the axis: a little above the highest bar that is not TALL."""
    finite = means[np.isfinite(means)]
    return float(finite[finite <= TALL * finite.median()].max() * 1.12) if len(finite) else np.nan


def figure3_part(source: Source) -> Part:
    profile, names = source.profile, source.names
    frame = figure3_frame(source.results, profile)
    notes = (
        "Cold: before fine-tuning; warm: after fine-tuning each test user's vector on the earlier half of "
        f"their ratings. Both on the later half, by time. Epochs: {SELECTIONS[headline(profile)]}. "
        "Left out: test users with fewer than two target ratings, by cell. Difference: warm against cold, "
        "negative is better.",
    )
    tables, pictures = figure3_tables(frame, names, left_out(source)), figure3_pictures(frame, names)
    gaps, title = source.gaps(profile.models, ("rating",)), f"Figure 3. Warm start. {profile.title}"
    return Part("figure3", title, frame, tables, notes, gaps, pictures)


FIGURE3 = Chapter(
    "figure3",
    "Warm start",
    "What the earlier half of a user's ratings adds: every model is fine-tuned from its transferred vector "
    "and both states are tested on the same later half.",
    "Figure 3: cold beside warm start.",
    figure3_part,
    lambda profile: profile.models,
    lambda profile: profile.plain,
    reproduces=True,
)
