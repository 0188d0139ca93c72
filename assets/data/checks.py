"""Blocking checks of the split: what the whole evaluation rests on."""

from collections.abc import Callable, Iterable, Iterator

import dagster as dg
import numpy as np

from assets.data.cell import training_rows
from assets.data.domain import domain_ratings
from assets.data.splits import split_seed
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import SplitConfig
from assets.settings.profile import Profile
from assets.state.store import Store
from ml import splits


def split_checks(axes: Axes, profiles: Iterable[Profile]) -> list[dg.AssetChecksDefinition]:
    """The checks of every cell's split, for all `profiles` that train on it."""
    check = dg.asset_check(asset="split", partitions_def=axes.cells, blocking=True)

    @check
    def roles_partition_the_overlap(
        context: dg.AssetCheckExecutionContext, store: Store
    ) -> dg.AssetCheckResult:
        """Every overlapping user has exactly one role, in the shares of β and of the validation setting."""
        return _judge(context, axes, lambda cell: _partition_problems(store, axes.catalog.split, cell))

    @check
    def split_is_reproducible(context: dg.AssetCheckExecutionContext, store: Store) -> dg.AssetCheckResult:
        """Drawing the roles again from β, seed and user ids gives the recorded manifest hash."""
        return _judge(context, axes, lambda cell: _hash_problems(store, axes.catalog.split, cell))

    @check
    def no_held_out_rating_in_training(
        context: dg.AssetCheckExecutionContext, store: Store
    ) -> dg.AssetCheckResult:
        """No profile trains on a test user's target rating, nor on a validation user's where it has them."""
        return _judge(context, axes, lambda cell: (p for each in profiles for p in _leaks(store, each, cell)))

    return [roles_partition_the_overlap, split_is_reproducible, no_held_out_rating_in_training]


def _judge(
    context: dg.AssetCheckExecutionContext, axes: Axes, problems_of: Callable[[Cell], Iterable[str]]
) -> dg.AssetCheckResult:
    """The result over the run's cells; where there are several, also an evaluation for each.

    Dagster files the result of a range under no partition and would show its cells as skipped.
    """
    found = {key: list(problems_of(axes.parse(key))) for key in context.partition_keys}
    if len(found) > 1:
        for key, problems in found.items():
            context.op_execution_context.log_event(
                dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey("split"),
                    check_name=context.check_specs[0].name,
                    passed=not problems,
                    metadata=_metadata(problems),
                    blocking=True,
                    partition=key,
                )
            )
    problems = [problem for each in found.values() for problem in each]
    return dg.AssetCheckResult(passed=not problems, metadata=_metadata(problems))


def _metadata(problems: list[str]) -> dict:
    return {"problems": dg.MetadataValue.json(problems[:20]), "found": len(problems)}


def _partition_problems(store: Store, config: SplitConfig, cell: Cell) -> Iterator[str]:
    users = store.overlap(cell.task).table("users.parquet")
    roles = store.split(cell).table("roles.parquet")
    if not np.array_equal(roles["user"], users["user"]):
        yield f"{cell.key}: {len(roles)} roles for {len(users)} overlapping users"
    counts = np.bincount(roles["role"], minlength=len(splits.ROLES))
    if counts[splits.TEST] != round(cell.beta * len(users)):
        yield f"{cell.key}: {counts[splits.TEST]} test users of {len(users)} at beta {cell.beta}"
    if counts[splits.VALIDATION] != round(config.validation * (len(users) - counts[splits.TEST])):
        yield f"{cell.key}: {counts[splits.VALIDATION]} validation users"


def _hash_problems(store: Store, config: SplitConfig, cell: Cell) -> Iterator[str]:
    users = store.overlap(cell.task).table("users.parquet")
    seed = split_seed(config, cell)
    roles = splits.assign_roles(len(users), cell.beta, seed, cell.task, config.validation)
    if splits.manifest_hash(users["user_id"].tolist(), roles) != store.split(cell).require()["manifest_hash"]:
        yield f"{cell.key}: the roles drawn again differ from the recorded ones"


def _leaks(store: Store, profile: Profile, cell: Cell) -> Iterator[str]:
    # The roles as written, not as the profile reads them: the check must not share the code it checks.
    hidden_roles = [splits.TEST, *([splits.VALIDATION] if profile.validation else [])]
    roles = store.split(cell).table("roles.parquet")["role"]
    users = store.overlap(cell.task).table("users.parquet")
    hidden = users.loc[roles.isin(hidden_roles).to_numpy(), "target_user"]
    target = domain_ratings(store, cell.target.name)
    trained = target.users[training_rows(store, profile, cell)]
    leaked = int(np.isin(trained, hidden).sum())
    if leaked:
        yield f"{profile.name} {cell.key}: {leaked} target ratings of held-out users are in training"
