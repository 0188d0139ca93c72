"""`source_effects`: each source user's vector of rating style, what a distribution is transferred from."""

import logging

import dagster as dg

from assets.data.domain import domain_ratings, rating_levels
from assets.settings.axes import Axes
from assets.settings.profile import Profile
from assets.state.progress import Stopwatch
from assets.state.store import Store, code_version, fingerprint, tensors

log = logging.getLogger("diffcdr")
CODE = code_version(
    "assets/training/effects.py",
    "assets/data/cell.py",
    "ml/distribution/effects.py",
    "ml/models/transfer.py",
    "ml/replicas.py",
)


def effects_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The effects of a profile's source domains."""

    @dg.asset(
        name="source_effects",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=["overlap"],
        group_name="factors",
        kinds={"pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=axes.seeds_together,
        description="Crossed random effects of the source domain's users and items on the distribution over "
        f"rating levels; {profile.title}. One fit for all tasks and β that share domain and seed.",
    )
    def source_effects(context: dg.AssetExecutionContext, store: Store) -> None:
        for key in context.partition_keys:
            cell = axes.parse(key)
            facts = fit_source(store, profile, cell.source.name, cell.seed)
            context.add_asset_metadata({"dagster/row_count": facts["users"]}, partition_key=key)

    return source_effects


def fit_source(store: Store, profile: Profile, domain: str, seed: int) -> dict:
    """The manifest of a domain's effects, fitted where missing or stale."""
    from ml.distribution.effects import fit_effects

    entry = store.source_effects(profile.name, domain, seed)
    mark = fingerprint(code=CODE, seed=seed, ratings=store.ratings(domain).require()["fingerprint"])
    title = f"{profile.name}/source_effects {domain} seed {seed}"
    with store.lock(f"effects-{profile.name}-{domain}-{seed}"):
        if entry.stands(mark):
            log.info("%s: up to date", title)
            return entry.require()
        ratings = domain_ratings(store, domain)
        with Stopwatch() as watch:
            levels = rating_levels(store, domain)
            effects = fit_effects(ratings.tensors(), ratings.n_users, ratings.n_items, seed, levels=levels)
        log.info("%s: fitted in %.1f s", title, watch.seconds)
        held = {
            "description": effects.description(),
            "items": effects.items,
            "intercept": effects.intercept,
            "levels": effects.levels,
            "basis": effects.basis,
            "prior_map": effects.prior_map,
            "prior_covariance": effects.prior_covariance,
        }
        return entry.write(
            {"effects.safetensors": tensors(held)}, mark, users=ratings.n_users, items=ratings.n_items
        )
