"""After the first choices: how good lists are by how many of a user's target choices are known."""

import pandas as pd

from assets.report.by_count import draw_by_count
from assets.report.metrics import shown_in
from assets.report.names import Names
from assets.report.part import Chapter, Part, Picture, each_task
from assets.report.results import Source
from assets.report.summaries import strict_mean, task_betas
from assets.report.table import Number, Table, table
from assets.state import plots
from assets.training.first_choices import list_models

METRICS = shown_in("first_choices")
COLUMNS = ["task", "beta", "seed", "model", "n", "users", *(metric.name for metric in METRICS)]


def first_choices_frame(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: task, beta, model, n, the metrics, users (of all seeds together), seeds."""
    grouped = scores.groupby(["task", "beta", "model", "n"], sort=False)
    means = grouped[[metric.name for metric in METRICS]].agg(strict_mean)
    return means.assign(users=grouped["users"].sum(), seeds=grouped.size()).reset_index()


def first_choices_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × n, columns models, each with its metrics."""
    rows = []
    for task, beta, head in task_betas(frame, names):
        part = frame[(frame["task"] == task) & (frame["beta"] == beta)]
        for n, of_n in part.groupby("n"):
            cells = {
                (names.model(str(record["model"])), metric.title): Number(record[metric.name], "{:.3f}")
                for record in of_n.to_dict("records")
                for metric in METRICS
            }
            users = Number(of_n["users"].iloc[0], "{:,.0f}")
            rows.append({**head, "Choices seen": f"{n:.0f}", **cells, "Users": users})
    return [table("", rows, keys=2, sections=True)] if rows else []


def first_choices_pictures(frame: pd.DataFrame, names: Names) -> list[Picture]:
    """Of each task the metrics by number of choices seen, a line for each model."""
    return each_task(frame, names, _picture)


def _picture(frame: pd.DataFrame, task: str, names: Names) -> Picture:
    figure = plots.new_figure(max(6.4, 1.6 + 3.6 * frame["beta"].nunique()), 2.6 * len(METRICS))
    panels = draw_by_count(figure, frame, METRICS, "model", names.model, "choices seen")
    # Beside the panels: seven lines leave no room among them.
    panels[0, -1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    caption = (
        f"After the first choices. {names.task(task)}: lists of test users judged by their later choices, "
        "the same for every n, after their first n have been seen. Means over seeds; higher is better."
    )
    return Picture(f"first-choices-{task}", caption, plots.formats(figure))


def first_choices_part(source: Source) -> Part:
    names = source.names
    frame = first_choices_frame(source.analysis("first_choices", "first_choices.parquet", COLUMNS))
    notes = (
        "Of each test user with enough target choices the first n are seen, by time where there is time, and "
        "the list of twenty that follows is judged by the same later ones for every n; what was seen is not "
        "listed again. Nothing is trained: neighbours are found by the choices of both domains, factors are "
        "folded in, blends take what their parts then say, and samples of a taste are weighted by the "
        "likelihood of what was chosen. Popularity leaves out what was seen, and learns nothing.",
    )
    tables, pictures = first_choices_tables(frame, names), first_choices_pictures(frame, names)
    title = f"After the first choices. {source.profile.title}"
    return Part("first_choices", title, frame, tables, notes, "", pictures)


FIRST_CHOICES = Chapter(
    "first_choices",
    "After the first choices",
    "What a user's first choices in the target domain are worth to the rest of the list.",
    "Quality of lists by number of target choices seen.",
    first_choices_part,
    lambda profile: ["warming_up_lists"],
    lambda profile: bool(list_models(profile)),
)
