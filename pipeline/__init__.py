"""How the pipeline is run: definitions, jobs, automation and the command line."""

import warnings

# Backfill policies, multi-partition mappings and partitioned checks print a line each per asset and process.
# By their words: their classes would import Dagster, for which `diffcdr --help` has no time.
for noise in ("is currently in beta", "is currently in preview", "is superseded"):
    warnings.filterwarnings("ignore", message=f".* {noise}")
