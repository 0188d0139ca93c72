"""The base models: source and target matrix factorizations of each profile, trained once and shared.

All pending cells of a task are trained together as replicas.
"""

import logging
from collections.abc import Iterable

import dagster as dg
import numpy as np
import pandas as pd

from assets import plots
from assets.compute import Compute
from assets.partitions import CATALOG, SEEDS_TOGETHER, Cell, by_task, cells, span
from assets.problems import held_out_ratings, source_table, target_table
from assets.profiles import Profile
from assets.progress import epochs
from assets.splits import overlap, split
from assets.store import Store, code_version, fingerprint, parquet, tensors
from ml.splits import TEST, VALIDATION

log = logging.getLogger("diffcdr")
EVALUATION = tuple(f"ml/evaluation/{name}.py" for name in ("cold_start", "ranking", "ratings", "selection"))
CODE = code_version(
    "assets/factors.py",
    "assets/problems.py",
    "ml/factorization.py",
    "ml/training.py",
    "ml/negatives.py",
    *EVALUATION,
)


def factor_assets(profile: Profile) -> list[dg.AssetsDefinition]:
    """`source_factors` and `target_factors` of one profile."""
    common = {
        "key_prefix": profile.name,
        "partitions_def": cells,
        "group_name": "factors",
        "kinds": {"pytorch"},
        "owners": ["team:recsys"],
        "code_version": CODE,
        "backfill_policy": SEEDS_TOGETHER,
        "pool": "gpu",
    }

    @dg.asset(
        deps=[overlap],
        description=f"Matrix factorization of the source domain's ratings; {profile.title}. "
        "One training for all tasks and β that share domain, settings and seed.",
        **common,
    )
    def source_factors(context: dg.AssetExecutionContext, store: Store, compute: Compute) -> None:
        for task, group in by_task(context.partition_keys).items():
            seeds = {cell.seed for cell in group}
            facts = [train_source(store, compute, profile, task, seeds, o) for o in profile.objectives]
            for cell in group:
                context.add_asset_metadata(_metadata(facts[0][cell.seed]), partition_key=cell.key)

    @dg.asset(
        deps=[split],
        description=f"Matrix factorization of the target domain's ratings without the held-out users'; "
        f"{profile.title}.",
        **common,
    )
    def target_factors(context: dg.AssetExecutionContext, store: Store, compute: Compute) -> None:
        for group in by_task(context.partition_keys).values():
            for objective in profile.objectives:
                train_target(store, compute, profile, group, objective)
            entries = {
                cell: store.target_factors(profile.name, cell, profile.objectives[0]) for cell in group
            }
            # One picture for the seeds that were trained together.
            frames = {cell.trial.key: entry.table("curves.parquet") for cell, entry in entries.items()}
            picture = dg.MetadataValue.md(plots.curves(frames, "epoch", {"loss": "training MSE"}))
            for cell, entry in entries.items():
                facts = {**_metadata(entry.require()), "curve": picture}
                context.add_asset_metadata(facts, partition_key=cell.key)

    return [source_factors, target_factors]


def source_config(profile: Profile, task: str) -> str:
    """The digest under which a task's source factors are shared."""
    return fingerprint(**profile.factors(task))[:8]


def train_source(
    store: Store, compute: Compute, profile: Profile, task: str, seeds: Iterable[int], objective: str
) -> dict[int, dict]:
    """Manifests of the source factors by seed; trains the seeds that are missing or stale, together."""
    from ml.factorization import MatrixFactorization

    domain, config = CATALOG.tasks[task].source, source_config(profile, task)
    entries = {
        seed: store.source_factors(profile.name, domain, config, seed, objective) for seed in sorted(seeds)
    }
    mark = fingerprint(
        code=CODE,
        settings=profile.factors(task),
        objective=objective,
        ratings=store.ratings(domain).require()["fingerprint"],
    )
    title = f"{profile.name}/source_factors {domain} {objective}"
    # Two tasks, or two β in two runs, may want the same factors at once: the second waits and finds them.
    with store.lock(f"source-{profile.name}-{domain}-{config}-{objective}"):
        pending = [seed for seed, entry in entries.items() if not entry.stands(mark)]
        if pending:
            tables = [source_table(store, domain, seed, objective) for seed in pending]
            trainer = MatrixFactorization(**profile.factors(task))
            losses = [
                epoch.losses["loss"]
                for epoch in epochs(
                    trainer.train(tables, f"source/{domain}", compute.torch_device),
                    trainer.epochs,
                    f"{title} seeds {pending}",
                )
            ]
            for r, seed in enumerate(pending):
                entries[seed].write(
                    _factor_files(trainer, r),
                    mark,
                    ratings=len(tables[r].users),
                    users=tables[r].n_users,
                    items=tables[r].n_items,
                    final_loss=losses[-1][r],
                )
        else:
            log.info("%s seeds %s: up to date", title, sorted(entries))
    return {seed: entry.require() for seed, entry in entries.items()}


def train_target(store: Store, compute: Compute, profile: Profile, group: list[Cell], objective: str) -> None:
    """Train the target factors of a task's cells that are missing or stale, together."""
    from ml.factorization import MatrixFactorization

    settings = profile.factors(group[0].task)
    pending = {
        cell: mark
        for cell in group
        if not store.target_factors(profile.name, cell, objective).stands(
            mark := _target_mark(store, profile, cell, objective)
        )
    }
    title = f"{profile.name}/target_factors {objective}"
    if not pending:
        log.info("%s %s: up to date", title, span(group))
        return
    tables = [target_table(store, profile, cell, objective) for cell in pending]
    judges = [target_judge(store, profile, cell, objective) for cell in pending]
    trainer = MatrixFactorization(**settings)
    curves: list[list[dict]] = [[] for _ in pending]
    training = trainer.train(tables, f"target/{group[0].task}", compute.torch_device)
    for epoch in epochs(training, trainer.epochs, f"{title} {span(list(pending))}"):
        for r, judge in enumerate(judges):
            judged = judge(trainer.user_factors_[r].cpu(), trainer.item_factors_[r].cpu())
            curves[r].append({"epoch": epoch.number, "loss": epoch.losses["loss"][r], **judged})
    for r, (cell, mark) in enumerate(pending.items()):
        store.target_factors(profile.name, cell, objective).write(
            {**_factor_files(trainer, r), "curves.parquet": parquet(pd.DataFrame(curves[r]))},
            mark,
            ratings=len(tables[r].users),
            users=tables[r].n_users,
            items=tables[r].n_items,
            final_loss=curves[r][-1]["loss"],
        )


class FactorJudge:
    """Metrics of a factorization's own user vectors on the held-out users, at one epoch.

    A hidden user's vector in the target factors was never trained: this is the TGT baseline. `user_rows` (n,)
    says where the overlapping users are in the user table, `first_item` where the target items begin, `clip`
    the scale that predictions are clipped to.
    """

    def __init__(
        self,
        store: Store,
        profile: Profile,
        cell: Cell,
        objective: str,
        user_rows: np.ndarray,
        first_item: int = 0,
        clip: tuple[float, float] | None = None,
    ) -> None:
        import torch

        from ml.evaluation.selection import OBJECTIVES

        self.objective, self.first_item, self.clip = OBJECTIVES[objective], first_item, clip
        self.held_out = {}
        for name, role in (("validation", VALIDATION), ("test", TEST)):
            members, ratings = held_out_ratings(store, profile, cell, role)
            if len(members):
                self.held_out[name] = (torch.from_numpy(user_rows[members]), ratings)

    def __call__(self, users, items) -> dict[str, float]:
        from ml.evaluation.cold_start import measure

        items = items[self.first_item :]
        return {
            f"{name}_{metric}": value
            for name, (rows, ratings) in self.held_out.items()
            for metric, value in measure(self.objective, users[rows], items, ratings, clip=self.clip).items()
        }


def target_judge(store: Store, profile: Profile, cell: Cell, objective: str) -> FactorJudge:
    """The judge of TGT, clipping as the profile does for it."""
    rows = store.overlap(cell.task).table("users.parquet")["target_user"].to_numpy(dtype=np.int64)
    scale = CATALOG.domains[CATALOG.tasks[cell.task].target].scale
    clip = scale if profile.clips("tgt") else None
    return FactorJudge(store, profile, cell, objective, rows, clip=clip)


def _target_mark(store: Store, profile: Profile, cell: Cell, objective: str) -> str:
    return fingerprint(
        code=CODE,
        objective=objective,
        settings=profile.factors(cell.task),
        clips=profile.clips("tgt"),
        validation=profile.validation,
        split=store.split(cell).require()["fingerprint"],
        ratings=store.ratings(CATALOG.tasks[cell.task].target).require()["fingerprint"],
    )


def _factor_files(trainer, replica: int) -> dict[str, bytes]:
    users, items = trainer.user_factors_[replica].cpu(), trainer.item_factors_[replica].cpu()
    return {"factors.safetensors": tensors({"users": users, "items": items})}


def _metadata(facts: dict) -> dict:
    return {
        "dagster/row_count": facts["users"] + facts["items"],
        **{key: facts[key] for key in ("ratings", "users", "items", "final_loss")},
    }
