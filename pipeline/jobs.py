"""One job for each axis, since a job cannot mix partition definitions; `diffcdr run` chains them."""

from collections.abc import Iterable, Mapping

import dagster as dg

from assets.report.page import GROUP
from assets.settings.profile import Profile


def build_jobs(profiles: Mapping[str, Profile]) -> list:
    """One for each stage: `ingest` by domain, `pair` by task, four by cell, and `tables`."""
    data = ["reviews", "ratings"]
    return [
        dg.define_asset_job(
            "ingest",
            selection=dg.AssetSelection.assets(*data),
            description="Fetch a domain's reviews and read them into DuckDB.",
        ),
        dg.define_asset_job(
            "pair",
            selection=dg.AssetSelection.assets("overlap"),
            description="Find the users a task's two domains share.",
        ),
        dg.define_asset_job(
            "train",
            selection=_training(profiles.values()),
            description="Split, factors and every model of every profile for a cell or a range of cells.",
        ),
        *(
            dg.define_asset_job(
                f"train_{name}",
                selection=_training([profile]),
                description=f"Split, factors and every model. Profile: {profile.title}.",
            )
            for name, profile in profiles.items()
        ),
        dg.define_asset_job(
            "analyse",
            selection=_stage(profiles.values(), "analysis"),
            description="Embedding analysis and the search over λ and s, of a cell.",
        ),
        *(
            dg.define_asset_job(
                f"recommend_{name}",
                selection=dg.AssetSelection.assets([name, "recommendations"]),
                description=f"Top-k items of the cold-start users of a cell. Profile: {profile.title}.",
            )
            for name, profile in profiles.items()
        ),
        dg.define_asset_job(
            "tables", selection=report_selection(profiles), description="Make every table anew."
        ),
    ]


def report_selection(profiles: Mapping[str, Profile]) -> dg.AssetSelection:
    """All tables and figures, and the report."""
    return dg.AssetSelection.groups(GROUP) | _stage(profiles.values(), "tables")


def _training(profiles: Iterable[Profile]) -> dg.AssetSelection:
    return dg.AssetSelection.assets("split") | _stage(profiles, "factors", "models")


def _stage(profiles: Iterable[Profile], *stages: str) -> dg.AssetSelection:
    return dg.AssetSelection.groups(*(profile.group(stage) for profile in profiles for stage in stages))
