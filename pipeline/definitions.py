"""The code location: every asset, check, job and resource of diffcdr."""

import dagster as dg

from assets.checks import leakage_check, roles_partition_the_overlap, split_is_reproducible
from assets.compute import Compute
from assets.embeddings import embeddings_asset
from assets.factors import factor_assets
from assets.models import model_asset
from assets.profiles import load_profiles
from assets.ratings import ratings
from assets.reports import report_assets
from assets.reviews import reviews
from assets.search import search_asset
from assets.splits import overlap, split
from assets.store import Store
from assets.tracking import MlflowTracking
from pipeline.automation import freshness_sensor
from pipeline.jobs import build_jobs


def build_defs() -> dg.Definitions:
    """Fresh definitions from the catalogue and the profiles of the environment."""
    profiles = load_profiles()
    factors = [asset for profile in profiles.values() for asset in factor_assets(profile)]
    models = [model_asset(profile, name) for profile in profiles.values() for name in profile.trained]
    analyses = [embeddings_asset(profile) for profile in profiles.values()]
    searches = [search_asset(profile) for profile in profiles.values() if profile.search]
    tables = report_assets(profiles)
    return dg.Definitions(
        assets=[reviews, ratings, overlap, split, *factors, *models, *analyses, *searches, *tables],
        asset_checks=[
            roles_partition_the_overlap,
            split_is_reproducible,
            leakage_check(profiles.values()),
        ],
        jobs=build_jobs(profiles),
        sensors=[freshness_sensor],
        resources={"store": Store(), "compute": Compute(), "tracking": MlflowTracking()},
        executor=dg.in_process_executor,
    )


defs = build_defs()
