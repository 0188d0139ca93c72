"""The trained models of each profile: one asset a model, one MLflow run a cell and objective."""

import dagster as dg

from assets.data.splits import split
from assets.settings.axes import SEEDS_TOGETHER, Cell, by_task, cells
from assets.settings.profile import Profile, ProfileError
from assets.state import plots
from assets.state.compute import Compute
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.controls import PERMUTED, PERMUTED_MODEL, PREDICTORS, VECTORS
from assets.training.distributions import DIFFUSION, DISCRIMINATIVE, DISTRIBUTIONS
from assets.training.run import ModelTraining, code_of

TITLES = {
    "tgt": "TGT",
    "cmf": "CMF",
    "emcdr": "EMCDR",
    "sscdr": "SSCDR",
    "lacdr": "LACDR",
    "ptupcdr": "PTUPCDR",
    "diffcdr": "DiffCDR",
    "diffcdr_da": "DiffCDR DA",
    "diffcdr_at": "DiffCDR AT",
    "diffcdr_vector": "DiffCDR, paper",
    "diffcdr_gaussian": "Gaussian",
    "diffcdr_mean": "Mean vector only",
    "item_stars": "Item's stars",
    "star_logit": "Logit",
    "star_boosting": "Boosting",
    "global_mean": "Global mean",
    "item_mean": "Item mean",
    "item_source_bias": "Item + bias",
    "ridge_source": "Ridge",
    "mean_target_vector": "Mean vector",
    "shared_vector": "Shared vector",
    "permuted_source": "Permuted",
    "popularity": "Popularity",
    "random": "Random",
}
SUMMARIES = {
    "tgt": "the target domain's matrix factorization alone; a cold-start user's vector was never trained.",
    "cmf": "collective matrix factorization: one user vector for both domains (Singh and Gordon, 2008).",
    "global_mean": "the mean of all training ratings; predictions are clipped to the scale.",
    "item_mean": "each item's mean, shrunk to the mean of all as far as validation users say.",
    "item_source_bias": "item mean + a · the user's shrunk bias in the source domain.",
    "ridge_source": "ridge regression on the item's mean and count and the user's source statistics.",
    "mean_target_vector": "the mean of the training users' target vectors, for every user.",
    "shared_vector": "the one vector that fits the training users' ratings best, for every user.",
    "permuted_source": "trained DiffCDR with the sources of test users mixed up; worse if the source helps.",
    "star_diffusion": "a distribution over ratings from diffusion samples of the user's vector "
    "(`ml/distribution/model.py`, docs/tuned.md).",
    "item_stars": "the item's star shares, shrunk to the domain's: a distribution that knows nothing of the "
    "user.",
    "star_logit": "multinomial logit on the item's and the user's source star histograms.",
    "star_boosting": "boosted trees on the same features for the absolute error; its MAE alone counts.",
    "popularity": "ranking by the number of training ratings, for every user.",
    "random": "the closed-form expectation of a uniformly random ranker; nothing is trained.",
}
# What models are made from.
BASES = ("source_factors", "target_factors", "source_effects")
# The metric an asset page shows by objective.
HEADLINES = {"rating": ("mae", "rmse"), "ranking": ("ndcg@20", "recall@20")}


def model_asset(profile: Profile, name: str) -> dg.AssetsDefinition:
    """The asset of one model of a profile. Raises ProfileError for settings that the model cannot have."""
    registered = profile.registered(name)
    _check(profile, name)

    @dg.asset(
        name=name,
        key_prefix=profile.name,
        partitions_def=cells,
        deps=[split, *(dg.AssetKey([profile.name, key]) for key in upstream(profile, registered))],
        group_name="models",
        kinds={"pytorch", "mlflow"},
        owners=["team:recsys"],
        code_version=code_of(*profile.kinds(name)),
        backfill_policy=SEEDS_TOGETHER,
        pool="gpu",
        description=f"{TITLES.get(name, name)}: {_summary(registered)} Profile: {profile.title}.",
    )
    def trained(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, tracking: MlflowTracking
    ) -> None:
        from ml.evaluation.selection import OBJECTIVES

        tags = {"dagster.run_id": context.run.run_id, "dagster.asset": f"{profile.name}/{name}"}
        trainings = [
            ModelTraining(store, compute, tracking, profile, name, OBJECTIVES[objective], tags)
            for objective in profile.objectives_of(name)
        ]
        for group in by_task(context.partition_keys).values():
            for training in trainings:
                training.run(group)
            pictures = {f"curve_{t.objective.name}": _curve(t, group) for t in trainings}
            for cell in group:
                facts = {**_metadata(trainings, cell), **pictures}
                context.add_asset_metadata(facts, partition_key=cell.key)

    return trained


def _check(profile: Profile, name: str) -> None:
    registered = profile.registered(name)
    if registered in DISTRIBUTIONS and "ranking" in profile.objectives_of(name):
        raise ProfileError(
            f"profile {profile.name}: {name} is a distribution over ratings and cannot be trained for "
            "ranking; give it `objectives: [rating]`"
        )
    untried = ("random", "tgt", *PREDICTORS, *VECTORS, PERMUTED)
    if registered in untried and "trials" in profile.settings[name]:
        raise ProfileError(f"profile {profile.name}: {name} has no settings to try; take its trials out")


def upstream(profile: Profile, registered: str) -> list[str]:
    """What of the profile a registered model is made from: some of BASES, and models."""
    factors = ["source_factors", "target_factors"]
    needed = {
        **{name: [] for name in ("cmf", "random", *PREDICTORS, *DISCRIMINATIVE)},
        "tgt": ["target_factors"],
        DIFFUSION: ["source_effects"],
        PERMUTED: [*factors, PERMUTED_MODEL],
    }
    if registered == PERMUTED and profile.registered(PERMUTED_MODEL) == DIFFUSION:
        return ["source_effects", PERMUTED_MODEL]
    return needed.get(registered, factors)


def _summary(registered: str) -> str:
    place = registered if ":" in registered else f"ml/models/{registered}.py"
    learned = f"learns to map a user's source factors to target factors (`{place}`)."
    return SUMMARIES.get(registered, learned)


def _metadata(trainings: list[ModelTraining], cell: Cell) -> dict:
    """What an asset page shows of a cell: headline values and the MLflow run of each objective."""
    metadata: dict = {}
    for training in trainings:
        entry, objective = training.entry(cell), training.objective.name
        facts = entry.require()
        metrics = entry.table("metrics.parquet")
        cold = metrics[(metrics["stage"] == "cold") & metrics["metric"].isin(HEADLINES[objective])]
        metadata |= {f"{row.selection}_{row.metric}": round(float(row.value), 6) for row in cold.itertuples()}
        metadata["dagster/row_count"] = facts["test_users"]
        if "mlflow_url" in facts:
            metadata[f"mlflow_run_{objective}"] = dg.MetadataValue.url(facts["mlflow_url"])
    return metadata


def _curve(training: ModelTraining, group: list[Cell]) -> dg.MetadataValue:
    """One picture for the cells that were trained together: the headline metric by epoch."""
    frames = {cell.trial.key: training.entry(cell).table("curves.parquet") for cell in group}
    metric = HEADLINES[training.objective.name][0]
    side = "validation" if f"validation_{metric}" in next(iter(frames.values())) else "test"
    return dg.MetadataValue.md(plots.curves(frames, "epoch", {f"{side}_{metric}": f"{side} {metric}"}))
