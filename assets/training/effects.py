"""`source_effects`: each source user's vector of rating style, what a distribution is transferred from."""

import logging

import dagster as dg

from assets.data.domain import domain_ratings, rating_levels
from assets.data.ratings import ratings_fingerprint
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.progress import Stopwatch
from assets.state.store import Store, tensors
from assets.training.checks import WHOLE, factor_check, factor_problems, judged
from assets.training.fingerprints import EFFECTS, Fingerprints

log = logging.getLogger("diffcdr")


def effects_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The effects of a profile's source domains."""

    @dg.asset(
        name="source_effects",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=["overlap"],
        group_name=profile.group("factors"),
        kinds={"pytorch"},
        owners=["team:recsys"],
        code_version=code_of(*EFFECTS),
        backfill_policy=axes.seeds_together,
        check_specs=[factor_check(dg.AssetKey([profile.name, "source_effects"]))],
        description="Crossed random effects of the source domain's users and items on the distribution over "
        f"rating levels; {profile.title}. One fit for all tasks and β that share domain and seed.",
    )
    def source_effects(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        entries = {}
        for key in context.partition_keys:
            cell = axes.parse(key)
            facts = fit_source(store, axes.catalog, profile, cell)
            context.add_asset_metadata({"dagster/row_count": facts["users"]}, partition_key=key)
            where = f"{cell.source.name} seed {cell.seed}"
            entries[where] = store.source_effects(profile.name, cell.source.name, cell.seed)
        found = (p for where, e in entries.items() for p in factor_problems(where, e, "effects.safetensors"))
        return dg.MaterializeResult(check_results=[judged(WHOLE, found)])

    return source_effects


def fit_source(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> dict:
    """The manifest of the effects of a cell's source domain, fitted where missing or stale."""
    domain, seed = cell.source.name, cell.seed
    entry = store.source_effects(profile.name, domain, seed)
    expected = Fingerprints(store, catalog, profile).effects(cell)
    title = f"{profile.name}/source_effects {domain} seed {seed}"
    with store.lock(f"effects-{profile.name}-{domain}-{seed}"):
        if entry.is_current(expected):
            log.info("%s: up to date", title)
            return entry.require()
        store.ratings(domain).require_current(ratings_fingerprint(store, cell.source))
        ratings = domain_ratings(store, domain)
        from ml.distribution.effects import fit_effects

        with Stopwatch() as watch:
            levels = rating_levels(store, domain)
            effects = fit_effects(ratings.narrow(), ratings.n_users, ratings.n_items, seed, levels=levels)
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
            {"effects.safetensors": tensors(held)}, expected, users=ratings.n_users, items=ratings.n_items
        )
