"""The code location: every asset, check, job and resource of diffcdr."""

from collections.abc import Mapping

import dagster as dg

from assets.data.checks import split_checks
from assets.data.ratings import ratings_asset
from assets.data.reviews import reviews_asset
from assets.data.splits import overlap_asset, split_asset
from assets.report.page import report_assets
from assets.serving.recommendations import recommendations_asset
from assets.settings.axes import Axes
from assets.settings.catalog import load_catalog
from assets.settings.profile import Profile, load_profiles
from assets.state.compute import Compute
from assets.state.store import Store
from assets.state.tracking import MlflowTracking
from assets.training.effects import effects_asset
from assets.training.embeddings import embeddings_asset
from assets.training.factors import factor_assets
from assets.training.fingerprints import needs_of
from assets.training.first_choices import first_choices_asset, list_models
from assets.training.models import model_asset
from assets.training.search import search_asset
from assets.training.warming import sampling_models, warming_asset
from pipeline.automation import (
    change_sensor,
    condition_sensors,
    following,
    weekly_schedule,
)
from pipeline.executor import in_process
from pipeline.jobs import build_jobs


def build_defs(axes: Axes | None = None, profiles: Mapping[str, Profile] | None = None) -> dg.Definitions:
    """Fresh definitions of a catalogue and profiles, by default those of the environment."""
    axes, profiles = axes or Axes(load_catalog()), profiles or load_profiles()
    data = [ratings_asset(axes), overlap_asset(axes), split_asset(axes)]
    computed = [asset for profile in profiles.values() for asset in profile_assets(axes, profile)]
    assets = [reviews_asset(axes), *following([*data, *computed]), *report_assets(axes, profiles)]
    return dg.Definitions(
        # With the file and line of each asset's function, which its page shows.
        assets=dg.with_source_code_references(assets),
        asset_checks=split_checks(axes, profiles.values()),
        jobs=build_jobs(profiles),
        sensors=[change_sensor(axes.catalog), *condition_sensors(profiles)],
        schedules=[weekly_schedule(axes.catalog)],
        resources={"store": Store(), "compute": Compute(), "tracking": MlflowTracking()},
        executor=in_process,
    )


def profile_assets(axes: Axes, profile: Profile) -> list[dg.AssetsDefinition]:
    """All that is computed of a profile's cells."""
    needs = {need for name in profile.trained for need in needs_of(profile, name)}
    return [
        *(factor_assets(axes, profile) if {"factors", "target_factors"} & needs else []),
        *([effects_asset(axes, profile)] if "effects" in needs else []),
        *(model_asset(axes, profile, name) for name in profile.trained),
        *([warming_asset(axes, profile)] if sampling_models(profile) else []),
        *([first_choices_asset(axes, profile)] if list_models(profile) else []),
        *([embeddings_asset(axes, profile)] if profile.plain else []),
        *([search_asset(axes, profile)] if profile.search else []),
        recommendations_asset(axes, profile),
    ]


@dg.definitions
def defs() -> dg.Definitions:
    """Those of the environment, built where a code location is loaded; the command line builds its own."""
    return build_defs()
