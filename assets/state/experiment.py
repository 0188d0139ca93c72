"""The experiment as MLflow shows it: its description, the views it opens on, and runs that hold others.

A cell's run lies under the one run of its profile, task and β, so that a list of hundreds can be folded.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.state.locks import by_file

# The tag by which MLflow nests a run under another.
PARENT = "mlflow.parentRunId"
# The tag of a run nested in a cell's: its name among them.
VARIANT = "variant"
# By which a holding run is found: its profile, task and β.
SCENARIO = "scenario"
DESCRIPTION = """
Trainings of diffcdr. A run named `profile/task/β` holds its cells; each cell is a run named
`profile/task/β-seed/model`, and trials lie below it.

Metrics without a prefix are of the test users at the epoch that the profile's rule chooses: of errors the
lower is the better, of lists (`ndcg_at_20`, …) the higher. With a prefix they are curves by epoch. All stages
and rules are in each run's artifact `metrics.json`. Runs with the tag `superseded` were trained again. Saved
views: *Best lists* and *Smallest errors* by model, with means over seeds; *Errors and lists* and *Profiles
and tasks*, folded.
"""
# The key of the view that links open, see `_view`. MLflow keeps which rows are unfolded for each reader, so a
# view of folded runs would show no number; one of groups shows their means.
OPENING_VIEW = "diffcdr-lists"
SCENARIO_TAGS, CELL_TAGS = ("profile", "task", "beta"), ("seed", "model", "objective")
ERRORS, LISTS = ("rmse", "mae"), ("ndcg_at_20", "hr_at_20")
NAME_COLUMN, NAME_WIDTH = "attributes.`Run Name`", 370


def face() -> dict[str, str]:
    """The experiment's tags: what MLflow 3 knows of descriptions, kinds and saved views."""
    # Profile, task and β are in the names of the runs that hold the others.
    scenario, cell = ([f"tags.`{tag}`" for tag in tags] for tags in (SCENARIO_TAGS, CELL_TAGS))
    lists, errors = ([f"metrics.`{metric}`" for metric in metrics] for metrics in (LISTS, ERRORS))
    current = "tags.superseded IS NULL"
    return {
        "mlflow.note.content": DESCRIPTION,
        # Else MLflow guesses, and asks whether it guessed well.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "rmse",
        **_means(OPENING_VIEW, "Best lists", [*lists, *errors], ascending=False),
        **_means("diffcdr-errors", "Smallest errors", [*errors, *lists], ascending=True),
        **_view("diffcdr-results", "Errors and lists", [*cell, *lists, *errors], current),
        **_view("diffcdr-scenarios", "Profiles and tasks", scenario, f"tags.{SCENARIO} LIKE '%'"),
    }


def _means(key: str, name: str, columns: list[str], ascending: bool) -> dict[str, str]:
    """A saved view of models, each with its mean over seeds, in the order of the first column."""
    cells = f"tags.superseded IS NULL AND tags.{VARIANT} IS NULL AND tags.model LIKE '%'"
    return _view(
        key,
        name,
        columns,
        cells,
        orderByKey=columns[0],
        orderByAsc=ascending,
        groupBy={"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "group"}]},
        columnOrder=[NAME_COLUMN, *columns],
        columnWidths={NAME_COLUMN: NAME_WIDTH},
    )


def _view(key: str, name: str, columns: list[str], query: str, **more: object) -> dict[str, str]:
    """A saved view as MLflow's pages write and read it, opened by `?viewStateShareKey=<key>`."""
    newest_first = {"orderByKey": "attributes.start_time"}
    state = {"searchFilter": query, "selectedColumns": columns, **newest_first, **more}
    # The time is that of the view's making, which nobody needs; equal views are to be equal tags.
    view = {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{key}": json.dumps(view)}


def dress(client: Any, experiment: str) -> None:
    """Give the experiment its face where a tag of it is missing; what a person has changed stays."""
    tags = client.get_experiment(experiment).tags
    for name, value in face().items():
        if name not in tags:
            client.set_experiment_tag(experiment, name, value)


def holder(client: Any, experiment: str, about: Mapping[str, str], name: str, locks: Path) -> str:
    """The id of the run that holds the cells of a profile, task and β; created where there is none.

    about: its tags. It is finished at once, since no process owns it: what is killed leaves it as it was.
    Processes of one machine ask one after another, by a lock in `locks`; of two that other machines have made
    at the same moment, all take the older.
    """
    query = f"tags.{SCENARIO} = '{name}'"

    def oldest() -> str | None:
        found = client.search_runs(
            [experiment], query, order_by=["attributes.start_time ASC"], max_results=10
        )
        ids = sorted((run.info.start_time, run.info.run_id) for run in found)
        return ids[0][1] if ids else None

    with by_file(locks, name.replace("/", "-")):
        if (there := oldest()) is not None:
            return there
        made = client.create_run(experiment, run_name=name, tags={SCENARIO: name, **about}).info.run_id
        client.set_terminated(made, "FINISHED")
        first = oldest() or made
        if first != made:
            with contextlib.suppress(Exception):
                client.delete_run(made)
        return first
