"""Blocking checks of the split: what the whole evaluation rests on."""

from collections.abc import Iterable, Iterator

import dagster as dg
import numpy as np

from assets.partitions import CATALOG, Cell, cells
from assets.problems import domain_ratings, training_rows
from assets.profiles import Profile
from assets.splits import split
from assets.store import Store
from ml import splits


@dg.asset_check(asset=split, partitions_def=cells, blocking=True)
def roles_partition_the_overlap(context: dg.AssetCheckExecutionContext, store: Store) -> dg.AssetCheckResult:
    """Every overlapping user has exactly one role, in the shares of β and of the validation setting."""
    problems = [p for cell in _cells(context) for p in _partition_problems(store, cell)]
    return _result(problems)


@dg.asset_check(asset=split, partitions_def=cells, blocking=True)
def split_is_reproducible(context: dg.AssetCheckExecutionContext, store: Store) -> dg.AssetCheckResult:
    """Drawing the roles again from β, seed and user ids gives the recorded manifest hash."""
    return _result([p for cell in _cells(context) for p in _hash_problems(store, cell)])


def leakage_check(profiles: Iterable[Profile]) -> dg.AssetChecksDefinition:
    """The check that no profile trains on a rating it must not see."""

    @dg.asset_check(asset=split, partitions_def=cells, blocking=True)
    def no_held_out_rating_in_training(
        context: dg.AssetCheckExecutionContext, store: Store
    ) -> dg.AssetCheckResult:
        """No profile trains on a test user's target rating, nor on a validation user's where it has them."""
        problems = [
            problem
            for profile in profiles
            for cell in _cells(context)
            for problem in _leaks(store, profile, cell)
        ]
        return _result(problems)

    return no_held_out_rating_in_training


def _cells(context: dg.AssetCheckExecutionContext) -> list[Cell]:
    return [Cell.parse(key) for key in context.partition_keys]


def _partition_problems(store: Store, cell: Cell) -> Iterator[str]:
    users = store.overlap(cell.task).table("users.parquet")
    roles = store.split(cell).table("roles.parquet")
    if not np.array_equal(roles["user"], users["user"]):
        yield f"{cell.key}: {len(roles)} roles for {len(users)} overlapping users"
    counts = np.bincount(roles["role"], minlength=len(splits.ROLES))
    if counts[splits.TEST] != round(cell.beta * len(users)):
        yield f"{cell.key}: {counts[splits.TEST]} test users of {len(users)} at beta {cell.beta}"
    if counts[splits.VALIDATION] != round(CATALOG.split.validation * (len(users) - counts[splits.TEST])):
        yield f"{cell.key}: {counts[splits.VALIDATION]} validation users"


def _hash_problems(store: Store, cell: Cell) -> Iterator[str]:
    users, config = store.overlap(cell.task).table("users.parquet"), CATALOG.split
    seed = cell.seed if config.seed is None else config.seed
    roles = splits.assign_roles(len(users), cell.beta, seed, cell.task, config.validation)
    if splits.manifest_hash(users["user_id"].tolist(), roles) != store.split(cell).require()["manifest_hash"]:
        yield f"{cell.key}: the roles drawn again differ from the recorded ones"


def _leaks(store: Store, profile: Profile, cell: Cell) -> Iterator[str]:
    # The roles as written, not as the profile reads them: the check must not share the code it checks.
    hidden_roles = [splits.TEST, *([splits.VALIDATION] if profile.validation else [])]
    roles = store.split(cell).table("roles.parquet")["role"]
    users = store.overlap(cell.task).table("users.parquet")
    hidden = users.loc[roles.isin(hidden_roles).to_numpy(), "target_user"]
    target = domain_ratings(store, CATALOG.tasks[cell.task].target)
    trained = target.users[training_rows(store, profile, cell)]
    leaked = int(np.isin(trained, hidden).sum())
    if leaked:
        yield f"{profile.name} {cell.key}: {leaked} target ratings of held-out users are in training"


def _result(problems: list[str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not problems,
        metadata={"problems": dg.MetadataValue.json(problems[:20]), "found": len(problems)},
    )
