"""The code location: every asset, check, job and resource of diffcdr."""

import dagster as dg

from assets.data.checks import leakage_check, roles_partition_the_overlap, split_is_reproducible
from assets.data.ratings import ratings
from assets.data.reviews import reviews
from assets.data.splits import overlap, split
from assets.report.page import report_assets
from assets.serving.recommendations import candidates, recommendations_asset
from assets.settings.profile import load_profiles
from assets.state.compute import Compute
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.distributions import needs_effects
from assets.training.effects import effects_asset
from assets.training.embeddings import embeddings_asset
from assets.training.factors import factor_assets
from assets.training.models import model_asset
from assets.training.search import search_asset
from assets.training.warming import diffusions, warming_asset
from pipeline.automation import (
    following,
    freshness_sensor,
    stale_cells_sensor,
    watch_sources,
    weekly_refresh,
)
from pipeline.executor import in_process
from pipeline.jobs import build_jobs


def build_defs() -> dg.Definitions:
    """Fresh definitions from the catalogue and the profiles of the environment."""
    profiles = load_profiles()
    factors = [asset for profile in profiles.values() for asset in factor_assets(profile)]
    effects = [effects_asset(profile) for profile in profiles.values() if needs_effects(profile)]
    models = [model_asset(profile, name) for profile in profiles.values() for name in profile.trained]
    analyses = [embeddings_asset(profile) for profile in profiles.values() if not profile.biased]
    searches = [search_asset(profile) for profile in profiles.values() if profile.search]
    recommended = [recommendations_asset(profile) for profile in profiles.values() if candidates(profile)]
    tables = report_assets(profiles)
    warmings = [warming_asset(profile) for profile in profiles.values() if diffusions(profile)]
    trained = [*factors, *effects, *models, *warmings]
    computed = following([ratings, overlap, split, *trained, *analyses, *searches, *recommended])
    return dg.Definitions(
        assets=[reviews, *computed, *tables],
        asset_checks=[
            roles_partition_the_overlap,
            split_is_reproducible,
            leakage_check(profiles.values()),
        ],
        jobs=build_jobs(profiles),
        sensors=[watch_sources, stale_cells_sensor, freshness_sensor],
        schedules=[weekly_refresh],
        resources={"store": Store(), "compute": Compute(), "tracking": MlflowTracking()},
        executor=in_process,
    )


defs = build_defs()
