"""What happens by itself, once someone switches it on: stale cells are recomputed, tables follow."""

from collections.abc import Iterator, Mapping

import dagster as dg

from assets.data.reviews import change
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Store
from pipeline.jobs import report_selection

When = dg.AutomationCondition

# Only what was computed before is computed again: no training starts that nobody has asked for. The trigger
# holds until it is handled, so that what changes while a run is going on is not lost.
FOLLOW = (
    When.any_deps_match(When.data_version_changed() | When.will_be_requested()).since_last_handled()
    & ~When.missing()
    & ~When.any_deps_missing()
    & ~When.any_deps_in_progress()
    & ~When.in_progress()
).with_label("recompute where something upstream changed")


def following(assets: list[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets with the condition FOLLOW."""
    return list(dg.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=FOLLOW), assets))


def change_sensor(catalog: Catalog) -> dg.SensorDefinition:
    """Reads a domain again when its source has changed."""

    @dg.sensor(
        job_name="ingest",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Reads a domain again when its source file has changed: size and time of a local file, "
        "the Last-Modified or ETag of a URL. Only domains that were read before.",
    )
    def watch_sources(store: Store) -> Iterator[dg.RunRequest]:
        yield from changed_domains(store, catalog)

    return watch_sources


def weekly_schedule(catalog: Catalog) -> dg.ScheduleDefinition:
    """The same by the clock."""

    @dg.schedule(
        job_name="ingest",
        cron_schedule="0 3 * * 1",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="The same once a week, Mondays at three, instead of every five minutes.",
    )
    def weekly_refresh(store: Store) -> Iterator[dg.RunRequest]:
        yield from changed_domains(store, catalog)

    return weekly_refresh


def changed_domains(store: Store, catalog: Catalog) -> Iterator[dg.RunRequest]:
    """A run of `ingest` for each domain whose source has changed; one change asks once, even if it fails."""
    for domain in catalog.domains.values():
        if state := change(store, domain):
            yield dg.RunRequest(run_key=f"{domain.name}-{state}", partition_key=domain.name)


def condition_sensors(profiles: Mapping[str, Profile]) -> list[dg.AutomationConditionSensorDefinition]:
    """What evaluates the assets' conditions: of cells, and of tables."""
    tables = report_selection(profiles)
    return [
        dg.AutomationConditionSensorDefinition(
            "recompute_stale_cells",
            target=dg.AssetSelection.all() - tables,
            default_status=dg.DefaultSensorStatus.STOPPED,
            description="Where a domain's ratings have changed, computes overlaps, splits, factors, models "
            "and analyses of the cells that had been computed before, and no others.",
        ),
        dg.AutomationConditionSensorDefinition(
            "keep_tables_fresh",
            target=tables,
            default_status=dg.DefaultSensorStatus.STOPPED,
            description="Makes a table anew when its cells have been recomputed; training never starts by "
            "itself.",
        ),
    ]
