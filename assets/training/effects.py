"""`source_effects`: each source user's vector of rating style, what a distribution is transferred from."""

import logging

import dagster as dg

from assets.data.cell import domain_ratings
from assets.data.splits import overlap
from assets.settings.axes import CATALOG, SEEDS_TOGETHER, Cell, cells
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.progress import Stopwatch
from assets.state.store import Store, fingerprint, tensors
from assets.training.distributions import levels_of

log = logging.getLogger("diffcdr")
CODE = code_of("assets.training.effects:fit_source")


def effects_asset(profile: Profile) -> dg.AssetsDefinition:
    """The effects of a profile's source domains."""

    @dg.asset(
        name="source_effects",
        key_prefix=profile.name,
        partitions_def=cells,
        deps=[overlap],
        group_name="factors",
        kinds={"pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=SEEDS_TOGETHER,
        description="Crossed random effects of the source domain's users and items on the distribution over "
        f"rating levels; {profile.title}. One fit for all tasks and β that share domain and seed.",
    )
    def source_effects(context: dg.AssetExecutionContext, store: Store) -> None:
        for key in context.partition_keys:
            cell = Cell.parse(key)
            facts = fit_source(store, profile, CATALOG.tasks[cell.task].source, cell.seed)
            context.add_asset_metadata({"dagster/row_count": facts["users"]}, partition_key=key)

    return source_effects


def fit_source(store: Store, profile: Profile, domain: str, seed: int) -> dict:
    """The manifest of a domain's effects, fitted where missing or stale."""
    from ml.distribution.effects import fit_effects

    entry = store.source_effects(profile.name, domain, seed)
    wanted = fingerprint(code=CODE, seed=seed, ratings=store.ratings(domain).require()["fingerprint"])
    title = f"{profile.name}/source_effects {domain} seed {seed}"
    with store.lock(f"effects-{profile.name}-{domain}-{seed}"):
        if entry.is_current(wanted):
            log.info("%s: up to date", title)
            return entry.require()
        ratings = domain_ratings(store, domain)
        with Stopwatch() as watch:
            levels = levels_of(store, domain)
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
            {"effects.safetensors": tensors(held)}, wanted, users=ratings.n_users, items=ratings.n_items
        )
