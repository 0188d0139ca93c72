"""One job for each axis, since a job cannot mix partition definitions; `diffcdr run` chains them."""

from collections.abc import Mapping

import dagster as dg

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
            selection=_training(*profiles),
            description="Split, factors and every model of every profile for a cell or a range of cells.",
        ),
        *(
            dg.define_asset_job(
                f"train_{name}",
                selection=_training(name),
                description=f"Split, factors and every model. Profile: {profile.title}.",
            )
            for name, profile in profiles.items()
        ),
        dg.define_asset_job(
            "analyse",
            selection=dg.AssetSelection.groups("analysis", "search"),
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
            "tables", selection=dg.AssetSelection.groups("reports"), description="Make every table anew."
        ),
    ]


def _training(*profiles: str) -> dg.AssetSelection:
    trained = dg.AssetSelection.key_prefixes(*profiles) & dg.AssetSelection.groups("factors", "models")
    return dg.AssetSelection.assets("split") | trained
