"""`diffcdr register`: the best models of a task as one version in MLflow's registry, ready to be served.

They become the champion only if they beat the simple rows of the profile on validation users, unless forced.
"""

import importlib.metadata
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.serving.bundle import Bundle
from assets.serving.card import model_card
from assets.serving.choice import Chosen, choose, complete, validated
from assets.serving.gate import Judged, NotPromoted, judge, refuse
from assets.serving.versions import ALIAS, find, registered_name
from assets.settings.axes import Axes, Cell
from assets.settings.profile import Profile
from assets.state.code import OURS
from assets.state.store import NotMaterialized, Store
from assets.state.tracking import MlflowTracking
from ml.models.registry import MODELS

log = logging.getLogger("diffcdr")
# What the served code imports: all that `ml` does, and what answers.
REQUIREMENTS = (
    "implicit",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "threadpoolctl",
    "torch",
)
# MLflow's limits of a version's description and of a tag.
LONGEST, LONGEST_TAG = 5000, 5000


@dataclass(frozen=True)
class Registered:
    """A version in the registry. `uri` is what `mlflow models serve -m` takes; judged: what it was compared
    with; forced: why it would have been refused, "" where it would not."""

    name: str
    version: str
    model: str
    cell: Cell
    card: str
    judged: list[Judged]
    forced: str = ""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@{ALIAS}"


def register(
    store: Store, tracking: MlflowTracking, axes: Axes, task: str, profile: Profile, force: bool = False
) -> Registered:
    """Put the best models of a task into the registry as `diffcdr-<task>` with the alias champion.

    Chosen by validation over all finished cells; served from their best seed of the smallest β, which has the
    most training users. Raises NotPromoted where they do not beat the simple rows and `force` is not given,
    NotMaterialized where no model is trained, ValueError for a profile without validation users.
    """
    if not profile.validation:
        raise ValueError(
            f"profile {profile.name} has no validation users to choose a model on; register with "
            "`--profile strict`, or another profile that says `validation: true`"
        )
    cells = axes.of_task(task)
    chosen = choose(store, axes.catalog, profile, cells)
    judged, forced = judge(store, axes, profile, task, chosen), ""
    try:
        refuse(judged, profile, task, chosen)
    except NotPromoted as refused:
        if not force:
            raise
        forced = refused.reasons
        log.warning("FORCED PROMOTION of %s: %s", chosen, forced)
    cell = _best_cell(store, axes, profile, cells, chosen)
    bundle = Bundle.of_cell(store, profile, cell, chosen)
    card = model_card(store, axes, profile, cell, chosen, bundle, judged, forced)
    trained = store.model(profile.name, chosen.lists.name, cell, chosen.lists.objective).require()
    run_id, tags = trained.get("mlflow_run_id"), _tags(profile, cell, chosen, forced)
    with tracking.answering():
        version = log_version(tracking, task, bundle, card, tags, run_id)
    return Registered(registered_name(task), version, str(chosen), cell, card, judged, forced)


def _best_cell(store: Store, axes: Axes, profile: Profile, cells: list[Cell], chosen: Chosen) -> Cell:
    """Of the cells with the smallest β in which all chosen models are trained, the best seed for lists."""
    there = complete(store, axes.catalog, profile, cells, chosen)
    if not there:
        raise NotMaterialized(
            f"no cell of task {cells[0].task} has both {chosen}; run `diffcdr run --task {cells[0].task} "
            f"--profile {profile.name}` first"
        )
    from ml.evaluation.selection import OBJECTIVES

    smallest = [cell for cell in there if cell.beta == min(each.beta for each in there)]
    name, rule = chosen.lists.name, OBJECTIVES[chosen.lists.objective]
    rows = validated(store, axes.catalog, profile, smallest, rule.name)
    values = rows[rows["model"] == name].set_index("seed")[rule.criterion]
    key = values.idxmax() if rule.higher_is_better else values.idxmin()
    return next(cell for cell in smallest if cell.key == key)


def champion(tracking: MlflowTracking, task: str) -> tuple[Bundle, str] | None:
    """What the champion of a task answers from, and its version; None where none is registered."""
    version = find(tracking, task)
    if version is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Bundle.of_files(version.download(tracking, Path(folder), "artifacts")), version.number


# The model in MLflow.


def log_version(
    tracking: MlflowTracking,
    task: str,
    bundle: Bundle,
    card: str,
    tags: Mapping[str, str],
    run_id: str | None = None,
) -> str:
    """Log a recommender beside the run that trained it, register it and move the alias; the version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    name = registered_name(task)
    client, experiment = tracking.connect()
    run_id = _known(client, run_id)
    logged = client.create_logged_model(experiment, name=f"recommender-{task}", source_run_id=run_id)
    about = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as folder:
        client.log_model_artifacts(logged.model_id, str(save_pyfunc(Path(folder), bundle, card, about)))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description=f"Recommender of task {task}.")
    version = client.create_model_version(
        name,
        # models:/<id> would be looked up in the environment's tracking store, which may be another.
        source=logged.artifact_location,
        run_id=run_id,
        tags={**tags, "logged_model": logged.model_id},
        description=card[:LONGEST],
    ).version
    client.set_registered_model_alias(name, ALIAS, version)
    return str(version)


def _tags(profile: Profile, cell: Cell, chosen: Chosen, forced: str) -> dict[str, str]:
    tags = {
        "model": chosen.lists.name,
        "stars": chosen.stars.name if chosen.stars else "",
        "profile": profile.name,
        "cell": cell.key,
        "forced": forced[:LONGEST_TAG],
        "synthetic": "true" if cell.source.synthetic or cell.target.synthetic else "",
    }
    return {key: value for key, value in tags.items() if value}


def _known(client: Any, run_id: str | None) -> str | None:
    """The run, or None: where it was trained without tracking, or the database of then is gone."""
    from mlflow.exceptions import MlflowException

    try:
        return run_id and client.get_run(run_id).info.run_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def save_pyfunc(folder: Path, bundle: Bundle, card: str, about: Any = None) -> Path:
    """Write the bundle into `folder` as an MLflow pyfunc that needs nothing else; returns where."""
    import mlflow.pyfunc

    files = {**bundle.files(), "model_card.md": card.encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    mlflow.pyfunc.save_model(
        path=str(folder / "model"),
        python_model=str(OURS / "assets" / "serving" / "pyfunc_recommender.py"),
        artifacts={name.partition(".")[0]: str(folder / name) for name in files},
        code_paths=[str(OURS / "ml"), *_code_of_others(bundle)],
        # Inferring the requirements would load the model in a new process, for half a minute.
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        input_example=example(bundle),
        mlflow_model=about,
    )
    return folder / "model"


def _code_of_others(bundle: Bundle) -> list[str]:
    """The top files or folders of models from outside the project."""
    import importlib

    recommender = bundle.recommender
    kinds = {served.kind for served in (recommender.lists, recommender.stars) if served is not None}
    found = {importlib.import_module(kind.split(":")[0].split(".")[0]) for kind in kinds - set(MODELS)}
    paths = [Path(module.__file__) for module in found if module.__name__ != "ml"]
    return [str(path.parent if path.name == "__init__.py" else path) for path in paths]


def example(bundle: Bundle) -> list[dict]:
    """A request for a known user, one for a new user, and one for ratings."""
    user = str(bundle.user_ids[0])
    history = [{"item": str(item), "rating": float(bundle.scale[1])} for item in bundle.source_ids[:2]]
    return [
        {"user_id": user, "k": 5},
        {"history": history, "k": 5, "because": True},
        {"user_id": user, "item_ids": [str(bundle.target_ids[0])]},
    ]
