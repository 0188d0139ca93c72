"""`warming_up_lists`: how a cold-start user's list gets better with the first choices, without training."""

import logging

import dagster as dg
import pandas as pd

from assets.settings.axes import Axes, Cell
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.progress import Stopwatch
from assets.state.store import Store, fingerprint, parquet
from assets.training.choose import candidates, role
from assets.training.fingerprints import Fingerprints
from assets.training.run import gate_of, restored_model
from assets.training.warming import first_ratings, some_users

log = logging.getLogger("diffcdr")
CODE = code_of("assets.training.first_choices:judge_lists")


def first_choices_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The lists of a profile after first choices."""

    @dg.asset(
        name="warming_up_lists",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=[dg.AssetKey([profile.name, name]) for name in list_models(profile)],
        group_name=profile.group("models"),
        kinds={"pytorch"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=axes.seeds_together,
        description="How good the lists of test users are for their later choices after n of their first. "
        f"Profile: {profile.title}.",
    )
    def warming_up_lists(context: dg.AssetExecutionContext, store: Store) -> None:
        for key in context.partition_keys:
            manifest = judge_lists(store, axes.catalog, profile, axes.parse(key))
            context.add_asset_metadata({"dagster/row_count": manifest["rows"]}, partition_key=key)

    return warming_up_lists


def list_models(profile: Profile) -> list[str]:
    """The list models of a profile that can be used and make something of first choices, and those that know
    no user, to compare with; none where only controls do."""
    kinds = {name: profile.facts[profile.kind(name)] for name in candidates(profile, "ranking")}
    if not any(kind.warms_by == "choices" for name, kind in kinds.items() if name in profile.models):
        return []
    return [
        name
        for name, kind in kinds.items()
        if kind.warms_by == "choices" or (role(profile, name) == "blind" and "rating" not in kind.objectives)
    ]


def first_choices_fingerprint(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> str:
    """What a cell's lists after first choices are made of: the models."""
    fingerprints = Fingerprints(store, catalog, profile)
    models = {name: fingerprints.model(name, cell, "ranking") for name in list_models(profile)}
    return fingerprint(code=CODE, models=models)


def judge_lists(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> dict:
    """The manifest of a cell's lists judged by number of first choices, computed where missing or stale."""
    from ml.distribution.warming import COUNTS
    from ml.ranking.first_choices import scores_by_n

    entry, title = store.first_choices(profile.name, cell), f"{profile.name}/warming_up_lists {cell.key}"
    expected = first_choices_fingerprint(store, catalog, profile, cell)
    if entry.is_current(expected):
        log.info("%s: up to date", title)
        return entry.require()
    names, fingerprints = list_models(profile), Fingerprints(store, catalog, profile)
    for name in names:
        model = store.model(profile.name, name, cell, "ranking")
        model.require_current(fingerprints.model(name, cell, "ranking"))
    with Stopwatch() as watch:
        models = {name: restored_model(store, profile, name, cell, "ranking") for name in names}
        test = some_users(gate_of(store, profile, names[0], cell, "ranking"), "test")
        most = first_ratings(store, cell)
        rows = scores_by_n(models, test, [n for n in COUNTS if n <= most])
    log.info("%s: %.1f s", title, watch.seconds)
    frame = pd.DataFrame(rows)
    return entry.write({"first_choices.parquet": parquet(frame)}, expected, rows=len(frame))
