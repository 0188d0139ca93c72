"""How the pipeline is run: definitions, jobs, automation and the command line."""

import warnings

from dagster import BetaWarning, PreviewWarning, SupersessionWarning

# Backfill policies, multi-partition mappings and partitioned checks print a line each per asset and process.
for noise in (BetaWarning, PreviewWarning, SupersessionWarning):
    warnings.filterwarnings("ignore", category=noise)
