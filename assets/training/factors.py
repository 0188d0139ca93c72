"""The base models: source and target matrix factorizations of each profile, trained once and shared.

All pending cells of a task are trained together as replicas. A profile with biased factors has them from
alternating least squares instead, one cell after another, and an item's bias as `offset` beside its factors.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd

from assets.data.cell import held_out_ratings, joined, source_table, target_table
from assets.data.splits import overlap, split
from assets.settings.axes import CATALOG, SEEDS_TOGETHER, Cell, by_task, cells, span
from assets.settings.profile import Profile
from assets.state import plots
from assets.state.code import code_of
from assets.state.compute import Compute
from assets.state.progress import epochs
from assets.state.store import Entry, Store, fingerprint, parquet, tensors
from ml.splits import TEST, VALIDATION

if TYPE_CHECKING:
    from torch import Tensor

    from ml.factorization.adam import RatingTable

log = logging.getLogger("diffcdr")
EVALUATION = tuple(f"ml/evaluation/{name}.py" for name in ("cold_start", "ranking", "ratings", "selection"))
SOURCE_CODE = code_of("assets.training.factors:train_source")
TARGET_CODE = code_of("assets.training.factors:train_target")


def factor_assets(profile: Profile) -> list[dg.AssetsDefinition]:
    """`source_factors` and `target_factors` of one profile."""
    common = {
        "key_prefix": profile.name,
        "partitions_def": cells,
        "group_name": "factors",
        "kinds": {"pytorch"},
        "owners": ["team:recsys"],
        "backfill_policy": SEEDS_TOGETHER,
        "pool": "gpu",
    }

    @dg.asset(
        deps=[overlap],
        code_version=SOURCE_CODE,
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
        code_version=TARGET_CODE,
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
    domain, config = CATALOG.tasks[task].source, source_config(profile, task)
    entries = {
        seed: store.source_factors(profile.name, domain, config, seed, objective) for seed in sorted(seeds)
    }
    wanted = fingerprint(
        code=SOURCE_CODE,
        settings=profile.factors(task),
        objective=objective,
        ratings=store.ratings(domain).require()["fingerprint"],
    )
    title = f"{profile.name}/source_factors {domain} {objective}"
    # Two tasks, or two β in two runs, may want the same factors at once: the second waits and finds them.
    with store.lock(f"source-{profile.name}-{domain}-{config}-{objective}"):
        pending = [seed for seed, entry in entries.items() if not entry.is_current(wanted)]
        if pending:
            tables = [source_table(store, domain, seed, objective) for seed in pending]
            work = Work(tables, f"source/{domain}", f"{title} seeds {pending}")
            for seed, table, fitted in zip(pending, tables, _fit(compute, profile, task, work), strict=True):
                _write(entries[seed], wanted, table, fitted)
        else:
            log.info("%s seeds %s: up to date", title, sorted(entries))
    return {seed: entry.require() for seed, entry in entries.items()}


def train_target(store: Store, compute: Compute, profile: Profile, group: list[Cell], objective: str) -> None:
    """Train the target factors of a task's cells that are missing or stale, together."""
    task = group[0].task
    pending = {
        cell: wanted
        for cell in group
        if not store.target_factors(profile.name, cell, objective).is_current(
            wanted := _target_fingerprint(store, profile, cell, objective)
        )
    }
    title = f"{profile.name}/target_factors {objective}"
    if not pending:
        log.info("%s %s: up to date", title, span(group))
        return
    tables = [target_table(store, profile, cell, objective) for cell in pending]
    judges = [target_judge(store, profile, cell, objective) for cell in pending]
    work = Work(tables, f"target/{task}", f"{title} {span(list(pending))}", judges)
    fitted = _fit(compute, profile, task, work)
    for (cell, wanted), table, each in zip(pending.items(), tables, fitted, strict=True):
        _write(store.target_factors(profile.name, cell, objective), wanted, table, each)


@dataclass(frozen=True)
class Work:
    """Tables to factorize: purpose names their draws; title is for the log; judges, where there are any, give
    the metrics of each table's user and item factors at an epoch."""

    tables: "Sequence[RatingTable]"
    purpose: str
    title: str
    judges: "Sequence[Callable[[Tensor, Tensor], dict[str, float]]]" = ()


@dataclass
class Fitted:
    """One table's factors: users, items and, with biases, offset; and what was measured at each epoch."""

    factors: "dict[str, Tensor]" = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    trials: list[dict] = field(default_factory=list)


def _fit(compute: Compute, profile: Profile, task: str, work: Work) -> list[Fitted]:
    settings = profile.factors(task)
    return _fit_biased(settings, work) if profile.biased else _fit_plain(settings, work, compute.torch_device)


def _fit_plain(settings: dict, work: Work, device: str) -> list[Fitted]:
    from ml.factorization.adam import MatrixFactorization

    trainer, fitted = MatrixFactorization(**settings), [Fitted() for _ in work.tables]
    training = trainer.train(work.tables, work.purpose, device)
    for epoch in epochs(training, trainer.epochs, work.title):
        for r, each in enumerate(fitted):
            users, items = trainer.user_factors_[r].cpu(), trainer.item_factors_[r].cpu()
            judged = work.judges[r](users, items) if work.judges else {}
            each.curve.append({"epoch": epoch.number, "loss": epoch.losses["loss"][r], **judged})
            each.factors = {"users": users, "items": items}
    return fitted


def _fit_biased(settings: dict, work: Work) -> list[Fitted]:
    """Each table by the trial that is best on a tenth of its ratings, held out, then on all of them."""
    from ml.factorization.biased import BiasedFactorization, choose

    fixed = {name: value for name, value in settings.items() if name != "trials"}
    trials = [{**fixed, **trial} for trial in settings["trials"]]
    fitted = [Fitted() for _ in work.tables]
    for r, (table, each) in enumerate(zip(work.tables, fitted, strict=True)):
        chosen, each.trials = choose(table, work.purpose, trials)
        trainer = BiasedFactorization(**chosen)
        training = trainer.train(table, work.purpose)
        for epoch in epochs(training, trainer.sweeps, f"{work.title} {r + 1}/{len(fitted)}"):
            each.factors = {
                "users": trainer.user_factors_,
                "items": trainer.item_factors_,
                "offset": trainer.item_offset_,
            }
            judged = work.judges[r](*joined(each.factors)) if work.judges else {}
            each.curve.append({"epoch": epoch.number, "loss": epoch.losses["loss"][0], **judged})
    return fitted


def _write(entry: Entry, wanted: str, table: "RatingTable", fitted: Fitted) -> None:
    files = {
        "factors.safetensors": tensors(fitted.factors),
        "curves.parquet": parquet(pd.DataFrame(fitted.curve)),
    }
    if fitted.trials:
        files["trials.parquet"] = parquet(pd.DataFrame(fitted.trials))
    entry.write(
        files,
        wanted,
        ratings=len(table.users),
        users=table.n_users,
        items=table.n_items,
        final_loss=fitted.curve[-1]["loss"],
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


def _target_fingerprint(store: Store, profile: Profile, cell: Cell, objective: str) -> str:
    return fingerprint(
        code=TARGET_CODE,
        objective=objective,
        settings=profile.factors(cell.task),
        clips=profile.clips("tgt"),
        validation=profile.validation,
        split=store.split(cell).require()["fingerprint"],
        ratings=store.ratings(CATALOG.tasks[cell.task].target).require()["fingerprint"],
    )


def _metadata(facts: dict) -> dict:
    return {
        "dagster/row_count": facts["users"] + facts["items"],
        **{key: facts[key] for key in ("ratings", "users", "items", "final_loss")},
    }
