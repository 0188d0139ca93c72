"""What happens by itself, once someone switches it on: tables follow their cells."""

import dagster as dg

freshness_sensor = dg.AutomationConditionSensorDefinition(
    "keep_tables_fresh",
    target=dg.AssetSelection.groups("reports"),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Makes a table anew when its cells have been recomputed; training never starts by itself.",
)
