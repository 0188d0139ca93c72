"""The trained models of each profile: one asset a model, one MLflow run a cell and objective."""

import math
from collections.abc import Mapping

import dagster as dg
import pandas as pd

from assets.settings.axes import Axes, Cell
from assets.settings.profile import Profile
from assets.state import plots
from assets.state.code import code_of
from assets.state.compute import Compute, gpu_tags
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.checks import Simple, is_compared, metrics_check, model_checks
from assets.training.choose import RIVALS, role
from assets.training.fingerprints import TRAINING, needs_of
from assets.training.run import Training

# The asset that gives what a model needs, where it is not the ratings themselves.
BASES = {
    "factors": ("source_factors", "target_factors"),
    "target_factors": ("target_factors",),
    "effects": ("source_effects",),
}
# The metric an asset page shows by objective.
HEADLINES = {"rating": ("mae", "rmse"), "ranking": ("ndcg@20", "recall@20")}


def model_asset(axes: Axes, profile: Profile, name: str) -> dg.AssetsDefinition:
    """The asset of one model of a profile."""
    kinds = [profile.facts[kind] for kind in profile.kinds(name)]

    @dg.asset(
        name=name,
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=["split", *(dg.AssetKey([profile.name, key]) for key in upstream(profile, name))],
        group_name=profile.group("models"),
        kinds={"pytorch", "mlflow"},
        owners=["team:recsys"],
        code_version=code_of(*TRAINING, *(kind.path for kind in kinds)),
        backfill_policy=axes.seeds_together,
        pool="gpu",
        # The simple predictors first, so that the others can be compared with them when they are finished.
        op_tags={
            **gpu_tags(any(kind.on_device for kind in kinds)),
            **({"dagster/priority": "1"} if role(profile, name) in RIVALS else {}),
        },
        check_specs=model_checks(profile, name),
        description=f"{profile.title_of(name)}: {kinds[0].summary} Profile: {profile.title}.",
    )
    def trained(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, tracking: MlflowTracking
    ) -> dg.MaterializeResult:
        from ml.evaluation.selection import OBJECTIVES

        tags = {"dagster.run_id": context.run.run_id, "dagster.asset": f"{profile.name}/{name}"}
        trainings = [
            Training(store, compute, tracking, axes.catalog, profile, name, OBJECTIVES[objective], tags)
            for objective in profile.objectives_of(name)
        ]
        groups, simple = axes.by_task(context.partition_keys), Simple(store, axes.catalog, profile, name)
        for group in groups.values():
            for training in trainings:
                training.run(group)
            pictures = {f"curves_{t.objective.name}": image for t in trainings for image in _curves(t, group)}
            for cell in group:
                curves = {f"curve_{t.objective.name}": _curve(t, cell) for t in trainings}
                metadata = {**curves, **_metadata(trainings, cell, simple), **pictures}
                context.add_asset_metadata(metadata, partition_key=cell.key)
        return dg.MaterializeResult(check_results=_checked(trainings, groups, simple))

    return trained


def _checked(
    trainings: list[Training], groups: Mapping[str, list[Cell]], simple: Simple
) -> list[dg.AssetCheckResult]:
    """The results of `model_checks` over the cells of a run."""
    cells, first = [cell for group in groups.values() for cell in group], trainings[0]
    entries = {f"{cell.key} {t.objective.name}": t.entry(cell) for t in trainings for cell in cells}
    results = [metrics_check(entries)]
    if is_compared(first.profile, first.name):
        results.append(simple.check([t.objective for t in trainings], cells))
    return results


def upstream(profile: Profile, name: str) -> list[str]:
    """The assets of the profile that a model is made from: factors, effects, and the model that it needs."""
    bases = [asset for need in needs_of(profile, name) for asset in BASES.get(need, ())]
    other = profile.of(name)
    return [*dict.fromkeys(bases), *([other] if other else [])]


def _metadata(trainings: list[Training], cell: Cell, simple: Simple) -> dict:
    """What an asset page shows of a cell: headline values, beside them the best simple predictor's, and the
    MLflow run of each objective."""
    metadata: dict = {}
    for training in trainings:
        entry, objective = training.entry(cell), training.objective.name
        manifest = entry.require()
        metrics = entry.table("metrics.parquet")
        cold = metrics[(metrics["stage"] == "cold") & metrics["metric"].isin(HEADLINES[objective])]
        values = {f"{row.selection}_{row.metric}": round(float(row.value), 6) for row in cold.itertuples()}
        # The rule that counts and the rival beside it come first.
        rule = "validation" if training.profile.validation else "last"
        metadata |= {name: value for name, value in values.items() if name.startswith(rule)}
        compared = is_compared(training.profile, training.name)
        if compared and (beside := simple.compare(training.objective, [cell])):
            metadata[f"best_simple_{beside.metric}"] = round(beside.best_value, 6)
            metadata[f"best_simple_by_{beside.metric}"] = beside.best
        metadata |= values
        metadata["dagster/row_count"] = manifest["test_users"]
        if "mlflow_url" in manifest:
            metadata[f"mlflow_run_{objective}"] = dg.MetadataValue.url(manifest["mlflow_url"])
    return metadata


def _curve(training: Training, cell: Cell) -> dg.MetadataValue:
    """The headline metric of a cell by epoch in one small line, which the page shows at once."""
    curve = training.entry(cell).table("curves.parquet")
    column, metric = _headline(training, curve)
    values, higher = curve[column].tolist(), training.objective.higher_is_better
    if not any(map(math.isfinite, values)):
        return dg.MetadataValue.text("diverged")
    best = int(curve[column].idxmax() if higher else curve[column].idxmin())
    # No more words than the page has room for.
    words = f"{metric}: {values[0]:.4g}" + (f" → {values[best]:.4g}" if best else "")
    line = [plots.sparkline(values, best, f"{metric} by epoch")] if len(values) > 1 else []
    return dg.MetadataValue.md("\n\n".join([*line, words]))


def _curves(training: Training, group: list[Cell]) -> list[dg.MetadataValue]:
    """One picture for the cells that were trained together: the headline metric by epoch. None where there is
    one epoch: a point is no curve."""
    frames = {cell.place: training.entry(cell).table("curves.parquet") for cell in group}
    if max(map(len, frames.values())) == 1:
        return []
    column, metric = _headline(training, next(iter(frames.values())))
    return [dg.MetadataValue.md(plots.curves(frames, "epoch", {column: metric}))]


def _headline(training: Training, curve: pd.DataFrame) -> tuple[str, str]:
    """The column of a curve that is shown, and what it is called."""
    metric = HEADLINES[training.objective.name][0]
    side = "validation" if f"validation_{metric}" in curve else "test"
    return f"{side}_{metric}", f"{side} {metric}"
