"""The base models: source and target matrix factorizations of each profile, trained once and shared.

All pending cells of a task are trained together as replicas. Biased factors, and those of choices, are from
alternating least squares instead, one cell after another, with an item's bias as `offset` beside its factors;
so are Spark's, which reads the ratings itself.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd

from assets.data.cell import SIDES, Gate, joined, source_file, source_table, target_file, target_table
from assets.data.cell import source_factors as source_entry
from assets.data.ratings import ratings_fingerprint
from assets.data.splits import split_fingerprint
from assets.settings.axes import Axes, Cell, span
from assets.settings.catalog import Catalog
from assets.settings.profile import PLAIN, Profile
from assets.state import plots
from assets.state.code import code_of
from assets.state.compute import Compute, gpu_tags
from assets.state.progress import epochs
from assets.state.store import Entry, Store, parquet, tensors
from assets.training.checks import WHOLE, factor_check, factor_problems, judged
from assets.training.fingerprints import (
    FACTORS,
    Fingerprints,
    clips_tgt,
    judges_factors,
    objectives_with_factors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ml.factorization.adam import RatingTable
    from ml.factorization.spark import RatingFile

log = logging.getLogger("diffcdr")


def factor_assets(axes: Axes, profile: Profile) -> list[dg.AssetsDefinition]:
    """`source_factors` and `target_factors` of one profile."""
    common = {
        "key_prefix": profile.name,
        "partitions_def": axes.cells,
        "group_name": profile.group("factors"),
        "kinds": {"spark" if profile.by_spark(o) else "pytorch" for o in profile.objectives},
        "owners": ["team:recsys"],
        "code_version": code_of(*FACTORS),
        "backfill_policy": axes.seeds_together,
        "pool": "gpu",
        "op_tags": gpu_tags(any(_is_plain(profile, o) for o in objectives_with_factors(profile))),
    }

    @dg.asset(
        deps=["overlap"],
        check_specs=[factor_check(dg.AssetKey([profile.name, "source_factors"]))],
        description=f"Matrix factorization of the source domain's ratings; {profile.title}. "
        "One training for all tasks and β that share domain, settings and seed.",
        **common,
    )
    def source_factors(
        context: dg.AssetExecutionContext, store: Store, compute: Compute
    ) -> dg.MaterializeResult:
        entries = {}
        for group in axes.by_task(context.partition_keys).values():
            facts = [
                train_source(store, compute, axes.catalog, profile, group, o)
                for o in objectives_with_factors(profile)
            ]
            for cell in group:
                context.add_asset_metadata(_metadata(facts[0][cell.seed]), partition_key=cell.key)
                for objective in objectives_with_factors(profile):
                    # One for all β.
                    where = f"{cell.source.name} seed {cell.seed} {objective}"
                    entries[where] = source_entry(store, profile, cell, objective)
        return _checked(entries)

    @dg.asset(
        deps=["split"],
        check_specs=[factor_check(dg.AssetKey([profile.name, "target_factors"]))],
        description=f"Matrix factorization of the target domain's ratings without the held-out users'; "
        f"{profile.title}.",
        **common,
    )
    def target_factors(
        context: dg.AssetExecutionContext, store: Store, compute: Compute
    ) -> dg.MaterializeResult:
        written = {}
        for group in axes.by_task(context.partition_keys).values():
            for objective in objectives_with_factors(profile):
                train_target(store, compute, axes.catalog, profile, group, objective)
                for cell in group:
                    entry = store.target_factors(profile.name, cell, objective)
                    written[f"{cell.key} {objective}"] = entry
            entries = {
                cell: store.target_factors(profile.name, cell, objectives_with_factors(profile)[0])
                for cell in group
            }
            # One picture for the seeds that were trained together.
            frames = {cell.place: entry.table("curves.parquet") for cell, entry in entries.items()}
            picture = dg.MetadataValue.md(plots.curves(frames, "epoch", {"loss": "training MSE"}))
            for cell, entry in entries.items():
                facts = {**_metadata(entry.require()), "curve": picture}
                context.add_asset_metadata(facts, partition_key=cell.key)
        return _checked(written)

    return [source_factors, target_factors]


def _checked(entries: Mapping[str, Entry]) -> dg.MaterializeResult:
    """The result of the check of these factors."""
    problems = [problem for where, entry in entries.items() for problem in factor_problems(where, entry)]
    return dg.MaterializeResult(check_results=[judged(WHOLE, problems)])


def train_source(
    store: Store, compute: Compute, catalog: Catalog, profile: Profile, group: list[Cell], objective: str
) -> dict[int, dict]:
    """Manifests of the source factors by seed; trains the seeds that are missing or stale, together."""
    task, domain = group[0].task, group[0].source
    of_seed = {cell.seed: cell for cell in sorted(group)}
    entries = {seed: source_entry(store, profile, cell, objective) for seed, cell in of_seed.items()}
    expected = Fingerprints(store, catalog, profile).source_factors(group[0], objective)
    title = f"{profile.name}/source_factors {domain.name} {objective}"
    # Two tasks, or two β in two runs, may want the same factors at once: the second waits and finds them.
    with store.lock(f"source-{profile.name}-{domain.name}-{objective}"):
        pending = [seed for seed, entry in entries.items() if not entry.is_current(expected)]
        if pending:
            store.ratings(domain.name).require_current(ratings_fingerprint(store, domain))
            tables = [_source(store, compute, profile, domain.name, seed, objective) for seed in pending]
            work = Work(tables, f"source/{domain.name}", f"{title} seeds {pending}")
            trained = _fit(compute, profile, task, objective, work)
            for seed, table, fitted in zip(pending, tables, trained, strict=True):
                _write(entries[seed], expected, table, fitted)
        else:
            log.info("%s seeds %s: up to date", title, sorted(entries))
    return {seed: entry.require() for seed, entry in entries.items()}


def train_target(
    store: Store, compute: Compute, catalog: Catalog, profile: Profile, group: list[Cell], objective: str
) -> None:
    """Train the target factors of a task's cells that are missing or stale, together."""
    task, fingerprints = group[0].task, Fingerprints(store, catalog, profile)
    entries = {cell: store.target_factors(profile.name, cell, objective) for cell in group}
    expected = {cell: fingerprints.target_factors(cell, objective) for cell in group}
    pending = [cell for cell in group if not entries[cell].is_current(expected[cell])]
    title = f"{profile.name}/target_factors {objective}"
    if not pending:
        log.info("%s %s: up to date", title, span(group))
        return
    for cell in pending:
        store.split(cell).require_current(split_fingerprint(store, catalog, cell))
    tables = [_target(store, compute, profile, cell, objective) for cell in pending]
    judged = pending if judges_factors(profile, objective) else []
    judges = [target_judge(store, profile, cell, objective) for cell in judged]
    work = Work(tables, f"target/{task}", f"{title} {span(pending)}", judges)
    trained = _fit(compute, profile, task, objective, work)
    for cell, table, fitted in zip(pending, tables, trained, strict=True):
        _write(entries[cell], expected[cell], table, fitted)


@dataclass(frozen=True)
class Work:
    """Tables to factorize: purpose names their draws; title is for the log; judges, where there are any, give
    the metrics of each table's user and item factors at an epoch."""

    tables: "Sequence[RatingTable] | Sequence[RatingFile]"
    purpose: str
    title: str
    judges: "Sequence[Callable[[Tensor, Tensor], dict[str, float]]]" = ()


@dataclass
class Fitted:
    """One table's factors: users, items and, with biases, offset; and what was measured at each epoch."""

    factors: "dict[str, Tensor]" = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    trials: list[dict] = field(default_factory=list)


def table_objective(profile: Profile, objective: str) -> str:
    """Whose table is factorized: that of ratings also for factors of choices, which need no negatives."""
    return "rating" if profile.implicit(objective) else objective


def _source(
    store: Store, compute: Compute, profile: Profile, domain: str, seed: int, objective: str
) -> "RatingTable | RatingFile":
    if profile.by_spark(objective):
        return source_file(store, domain, seed, compute.spark_is_here)
    return source_table(store, domain, seed, table_objective(profile, objective))


def _target(
    store: Store, compute: Compute, profile: Profile, cell: Cell, objective: str
) -> "RatingTable | RatingFile":
    if profile.by_spark(objective):
        return target_file(store, profile, cell, compute.spark_is_here)
    return target_table(store, profile, cell, table_objective(profile, objective))


def _fit(compute: Compute, profile: Profile, task: str, objective: str, work: Work) -> list[Fitted]:
    settings = profile.factors(task, objective)
    if profile.by_spark(objective):
        return _fit_spark(settings, work, compute.spark_master, profile.implicit(objective))
    if profile.implicit(objective):
        return _fit_implicit(settings, work)
    if _is_plain(profile, objective):
        return _fit_plain(settings, work, compute.torch_device)
    return _fit_biased(settings, work)


def _is_plain(profile: Profile, objective: str) -> bool:
    """Whether factors are by gradient descent, on the device; alternating least squares are on the CPU."""
    return profile.factorization(objective) == PLAIN


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


def _fit_implicit(settings: dict, work: Work) -> list[Fitted]:
    """The offset is 0: as with biased factors, what models are given is then standardised, and the offset
    becomes the score that the mean user gives an item."""
    from ml.factorization.implicit import ImplicitFactorization

    trainer, fitted = ImplicitFactorization(**settings), [Fitted() for _ in work.tables]
    for r, (table, each) in enumerate(zip(work.tables, fitted, strict=True)):
        training = trainer.train(table, work.purpose)
        for epoch in epochs(training, trainer.sweeps, f"{work.title} {r + 1}/{len(fitted)}"):
            users, items = trainer.user_factors_, trainer.item_factors_
            each.factors = {"users": users, "items": items, "offset": items.new_zeros(len(items))}
            judged = work.judges[r](*joined(each.factors)) if work.judges else {}
            each.curve.append({"epoch": epoch.number, "loss": epoch.losses["loss"][0], **judged})
    return fitted


def _fit_spark(settings: dict, work: Work, master: str, implicit: bool) -> list[Fitted]:
    """The offset is 0, as with factors of choices. All sweeps are one epoch: Spark tells of none."""
    from ml.factorization.spark import SparkFactorization, SparkImplicitFactorization
    from ml.factorization.spark_session import spark_session

    kind = SparkImplicitFactorization if implicit else SparkFactorization
    given = {name: value for name, value in settings.items() if name != "model"}
    trainer, fitted = kind(**given), [Fitted() for _ in work.tables]
    with spark_session(master) as session:
        for r, (file, each) in enumerate(zip(work.tables, fitted, strict=True)):
            title = f"{work.title} {r + 1}/{len(fitted)}"
            for trained in epochs(map(lambda one: trainer.fit(session, one, work.purpose), [file]), 1, title):
                users, items = trained.user_factors_, trained.item_factors_
                each.factors = {"users": users, "items": items, "offset": items.new_zeros(len(items))}
                judged = work.judges[r](*joined(each.factors)) if work.judges else {}
                each.curve.append({"epoch": 1, "loss": trained.loss_, **judged})
    return fitted


def _write(entry: Entry, expected: str, table: "RatingTable | RatingFile", fitted: Fitted) -> None:
    files = {
        "factors.safetensors": tensors(fitted.factors),
        "curves.parquet": parquet(pd.DataFrame(fitted.curve)),
    }
    if fitted.trials:
        files["trials.parquet"] = parquet(pd.DataFrame(fitted.trials))
    entry.write(
        files,
        expected,
        ratings=len(table),
        users=table.n_users,
        items=table.n_items,
        final_loss=fitted.curve[-1]["loss"],
    )


def target_judge(
    store: Store, profile: Profile, cell: Cell, objective: str
) -> "Callable[[Tensor, Tensor], dict[str, float]]":
    """Metrics of a target factorization's own user vectors on the held-out users, at one epoch.

    A hidden user's vector was never trained: this is the TGT baseline, clipped as the profile does for it.
    """
    from ml.evaluation.cold_start import measure
    from ml.evaluation.selection import OBJECTIVES

    gate = Gate(store, profile, cell, objective, needs=())
    sides = {side: held for side in SIDES if (held := gate.held_out(side)) is not None}
    clip = cell.target.scale if clips_tgt(profile) else None

    def judge(users: "Tensor", items: "Tensor") -> dict[str, float]:
        return {
            f"{side}_{metric}": value
            for side, held in sides.items()
            for metric, value in measure(
                OBJECTIVES[objective], users[held.users.target_rows], items, held.ratings, clip=clip
            ).items()
        }

    return judge


def _metadata(facts: dict) -> dict:
    return {
        "dagster/row_count": facts["users"] + facts["items"],
        **{key: facts[key] for key in ("ratings", "users", "items", "final_loss")},
    }
