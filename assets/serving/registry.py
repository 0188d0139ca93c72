"""`diffcdr register`: the validated best model of a task, in MLflow's registry and ready to be served.

A model becomes the champion only if it beats the simple predictors on validation users, unless forced.
"""

import importlib.metadata
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from assets.report.results import read_results
from assets.serving.recommendations import Bundle, RecommendationConfig, candidates, validation_score
from assets.settings.axes import CATALOG, Cell, Trial
from assets.settings.profile import Profile
from assets.state.code import OURS
from assets.state.store import NotMaterialized, Store, parquet, tensors
from assets.state.tracking import MlflowTracking

ALIAS = "champion"
# What any model must beat before transfer can be said to help, and what else it must where a profile has it.
TRIVIAL = ("global_mean", "item_mean", "item_source_bias")
SIMPLE = ("ridge_source", "star_logit")
# Ratings are what is compared with the trivial predictors, and what is served.
OBJECTIVE = "rating"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "scipy", "torch")
# MLflow's limit of a version's description.
LONGEST = 5000
# Metrics of a distribution over the levels, which not all models have.
OF_DISTRIBUTIONS = {"crps": "CRPS", "calibration_error": "calibration error"}


class NotPromoted(RuntimeError):
    """The best model does not earn the alias; the message says why, with numbers."""


@dataclass(frozen=True)
class Registered:
    """A model in the registry. `uri` is what `mlflow models serve -m` takes."""

    name: str
    version: str
    model: str
    cell: Cell
    card: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}@{ALIAS}"


def register(
    store: Store, tracking: MlflowTracking, task: str, profile: Profile, force: bool = False
) -> Registered:
    """Put the best model of a task into the registry as `diffcdr-<task>` with the alias champion.

    Best is the lowest validation RMSE, as the mean over the finished cells; served is its best seed of the
    smallest β, which has the most training users. Raises NotPromoted where it does not beat the simple
    predictors and `force` is not given, NotMaterialized where no model is trained, ValueError for a profile
    without validation users.
    """
    scores = validation_rmse(store, profile, task)
    best = choose(scores, [name for name in candidates(profile) if name in scores])
    if not force:
        refuse_unless_better(scores, best, task, profile)
    cell = min((Cell.parse(key) for key in scores.index), key=lambda c: (c.beta, scores.loc[c.key, best]))
    bundle = Bundle.load(store, profile, cell, best, OBJECTIVE, "cpu", RecommendationConfig())
    card = model_card(store, profile, cell, bundle, scores)
    entry = store.model(profile.name, best, cell, OBJECTIVE)
    trained = entry.require()
    if "mlflow_run_id" not in trained:
        raise ValueError(
            f"{best} of {cell.key} was trained with --no-tracking, and a version needs an MLflow run: remove "
            f"{entry.path} and run it again with tracking"
        )
    version = _log_version(tracking, trained["mlflow_run_id"], f"diffcdr-{task}", bundle, cell, card)
    return Registered(f"diffcdr-{task}", version, best, cell, card)


def validation_rmse(store: Store, profile: Profile, task: str) -> pd.DataFrame:
    """Validation RMSE at the chosen epoch by cell (rows) and model, over the cells that all of them finished.

    Columns are the models that may be served and the simple predictors, of which there is any cell.
    """
    if not profile.validation:
        raise ValueError(
            f"profile {profile.name} has no validation users to choose a model on; register with "
            "`--profile strict`, or another profile that says `validation: true`"
        )
    every = [Cell(task, Trial(beta, seed)) for beta in CATALOG.betas for seed in CATALOG.seeds]
    scores = {
        name: {
            cell.key: validation_score(entry, OBJECTIVE)
            for cell in every
            if (entry := store.model(profile.name, name, cell, OBJECTIVE)).manifest()
        }
        for name in (*candidates(profile), *rivals(profile))
    }
    frame = pd.DataFrame({name: values for name, values in scores.items() if values}).dropna()
    if frame.empty or not set(candidates(profile)) & set(frame):
        raise NotMaterialized(
            f"task {task}: no cell in which the models of profile {profile.name} are all trained; run "
            f"`diffcdr run --task {task} --profile {profile.name}` first"
        )
    return frame


def rivals(profile: Profile) -> list[str]:
    """The simple predictors that a model of the profile must beat."""
    return [*TRIVIAL, *(name for name in profile.controls if profile.registered(name) in SIMPLE)]


def choose(scores: pd.DataFrame, names: list[str]) -> str:
    """The model of `names` with the lowest mean over the cells; of equal ones the first."""
    means = scores[names].mean()
    return min(names, key=means.get)


def refuse_unless_better(scores: pd.DataFrame, best: str, task: str, profile: Profile) -> None:
    """Raise NotPromoted unless `best` has a lower mean validation RMSE than each simple predictor."""
    means = scores.mean()
    missing = [name for name in rivals(profile) if name not in means]
    if missing:
        raise NotPromoted(
            f"{best} is not promoted: on {task} there is no validation RMSE of {', '.join(missing)} to "
            f"compare with; run `diffcdr run --task {task} --profile {profile.name}`, or use --force"
        )
    unbeaten = [name for name in rivals(profile) if not means[best] < means[name]]
    if unbeaten:
        numbers = ", ".join(f"{name} has {means[name]:.4f}" for name in unbeaten)
        raise NotPromoted(
            f"{best} is not promoted: its validation RMSE on {task} is {means[best]:.4f} (mean of "
            f"{_cells(scores)}), but {numbers}; improve the model, or register with --force"
        )


def _cells(scores: pd.DataFrame) -> str:
    return f"{len(scores)} cell{'s' * (len(scores) != 1)}"


# The model in MLflow.


def _log_version(
    tracking: MlflowTracking, run_id: str, name: str, bundle: Bundle, cell: Cell, card: str
) -> str:
    """Log the recommender beside the run that trained it, register it and move the alias; the version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    client, experiment = tracking.connect()
    logged = client.create_logged_model(experiment, name="recommender", source_run_id=run_id)
    about = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as folder:
        client.log_model_artifacts(logged.model_id, str(save_pyfunc(Path(folder), bundle, cell, card, about)))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description=f"Recommender of task {cell.task}.")
    version = client.create_model_version(
        name,
        # models:/<id> would be looked up in the environment's tracking store, which may be another.
        source=logged.artifact_location,
        run_id=run_id,
        tags={"model": bundle.name, "cell": cell.key, "logged_model": logged.model_id},
        description=card[:LONGEST],
    ).version
    client.set_registered_model_alias(name, ALIAS, version)
    return str(version)


def save_pyfunc(folder: Path, bundle: Bundle, cell: Cell, card: str, about: Any = None) -> Path:
    """Write the recommender into `folder` as an MLflow pyfunc that needs nothing else; returns where."""
    import mlflow.pyfunc

    files = {**_files(bundle, cell), "model_card.md": card.encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    mlflow.pyfunc.save_model(
        path=str(folder / "model"),
        python_model=str(Path(__file__).with_name("pyfunc_recommender.py")),
        artifacts={name.partition(".")[0]: str(folder / name) for name in files},
        code_paths=[str(OURS / "ml")],
        # Inferring the requirements would load the model in a new process, for half a minute.
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
        input_example=example(bundle),
        mlflow_model=about,
    )
    return folder / "model"


def example(bundle: Bundle) -> list[dict]:
    """A request for a known user, one for a new user, and one for ratings."""
    user = str(bundle.user_ids[int(bundle.known.argmax())])
    history = [{"item": str(item), "rating": float(bundle.scale[1])} for item in bundle.source_ids[:2]]
    return [
        {"user_id": user, "k": 5},
        {"history": history, "k": 5},
        {"user_id": user, "item_ids": [str(bundle.target_ids[0])]},
    ]


def _files(bundle: Bundle, cell: Cell) -> Mapping[str, bytes]:
    import torch

    recommender, task = bundle.recommender, CATALOG.tasks[cell.task]
    held = {
        # Transferred here and now: what is known of these users does not change until the next training.
        "users": recommender.transfer(bundle.users),
        "known": torch.from_numpy(bundle.known),
        **recommender.tensors(),
    }
    config = {
        "name": bundle.name,
        "recommender": recommender.kind,
        "settings": recommender.settings(),
        "source_scale": bundle.scale,
        "target_scale": CATALOG.domains[task.target].scale,
        "cell": cell.key,
    }
    ids = {"user_ids": bundle.user_ids, "source_item_ids": bundle.source_ids}
    ids["target_item_ids"] = bundle.target_ids
    return {
        "tensors.safetensors": tensors(held),
        "weights.safetensors": tensors(recommender.model.state_dict()),
        "config.json": json.dumps(config, indent=1).encode(),
        **{f"{name}.parquet": parquet(pd.DataFrame({"id": values})) for name, values in ids.items()},
    }


# The model card.


def model_card(store: Store, profile: Profile, cell: Cell, bundle: Bundle, scores: pd.DataFrame) -> str:
    """Markdown: data, protocol, metrics beside the simple predictors, overlap and known limits."""
    task, best = CATALOG.tasks[cell.task], bundle.name
    overlap, split = store.overlap(cell.task).require(), store.split(cell).require()
    roles = ", ".join(f"{count} {role}" for role, count in split["counts"].items())
    liked_above = CATALOG.domains[task.source].liked_above
    entry = store.model(profile.name, best, cell, OBJECTIVE)
    trained = entry.require()
    if "mlflow_run_id" not in trained:
        raise ValueError(
            f"{best} of {cell.key} was trained with --no-tracking, and a version needs an MLflow run: remove "
            f"{entry.path} and run it again with tracking"
        )
    return "\n".join(
        [
            f"# Recommender of {cell.task}: {best}",
            "",
            f"Recommends items of {task.target} to users known from {task.source} alone. Trained on cell "
            f"`{cell.key}` of profile {profile.name} ({profile.title}), MLflow run "
            f"{trained.get('mlflow_run_id', 'unknown')}.",
            "",
            "## Data",
            "",
            *_domain_rows(store, {"source": task.source, "target": task.target}),
            "",
            f"Overlap: {overlap['users']} users are in both domains, {overlap['without_liked']} of them "
            f"without a source rating above {liked_above:g}.",
            "",
            "## Protocol",
            "",
            f"Of the overlapping users: {roles}. The target ratings of validation and test users are hidden "
            f"from all training. Chosen by validation RMSE, the mean of {_cells(scores)}; test values are "
            "those of the epoch that validation chose.",
            "",
            "## Metrics",
            "",
            *_metric_rows(store, profile, cell.task, best, scores),
            "",
            "## Known limits",
            "",
            "- Offline errors on held-out ratings; users do not rate a random sample of items.",
            f"- {bundle.recommender.strangers} get popular items, the same for all.",
            "- Items without a rating in training are never recommended; their predicted ratings are noise.",
            "- A new user is folded in with the source items as they are: few ratings leave them near the "
            "mean user. Ratings that arrive later change nothing until the next training.",
        ]
    )


def _domain_rows(store: Store, domains: Mapping[str, str]) -> list[str]:
    rows = ["| side | domain | ratings | users | items | SHA-256 of the raw file |"]
    rows.append("|---|---|---:|---:|---:|---|")
    for side, name in domains.items():
        facts, raw = store.ratings(name).require(), store.reviews(name).require()
        counts = " | ".join(str(facts[key]) for key in ("ratings", "users", "items"))
        rows.append(f"| {side} | {name} | {counts} | `{raw['sha256'][:16]}…` |")
    return rows


def _metric_rows(store: Store, profile: Profile, task: str, best: str, scores: pd.DataFrame) -> list[str]:
    """Mean validation RMSE, and test metrics, of every model over the compared cells, best first."""
    results = read_results(store, task, profile.name)
    keys = [Cell(task, Trial(b, s)).key for b, s in zip(results["beta"], results["seed"], strict=True)]
    compared = (
        (results["stage"] == "cold")
        & (results["selection"] == "validation")
        & (results["objective"] == OBJECTIVE)
        & np.isin(keys, scores.index)
    )
    tested = results[compared].pivot_table(index="model", columns="metric", values="value")
    shown = {"rmse": "RMSE", "mae": "MAE"}
    shown |= {name: title for name, title in OF_DISTRIBUTIONS.items() if name in tested}
    rows = [f"| model | validation RMSE | {' | '.join(f'test {title}' for title in shown.values())} |"]
    rows.append("|---|---:|" + "---:|" * len(shown))
    simple = rivals(profile)
    for name, value in scores.mean().sort_values().items():
        test = [tested[m].get(name, math.nan) if m in tested else math.nan for m in shown]
        title = f"**{name}**" if name == best else f"{name} (simple)" if name in simple else name
        rows.append(f"| {title} | {' | '.join(f'{number:.4f}' for number in (value, *test))} |")
    if len(shown) > 2:
        rows += ["", "RMSE is that of the predicted mean. Of a model with a CRPS, MAE is that of the median."]
    return rows
