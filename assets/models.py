"""The trained models of each profile: one asset a model, one MLflow run a cell.

Every model ends as the same folder: `metrics.parquet` (one row per selection rule and metric),
`curves.parquet` (losses and errors by epoch), `users.safetensors` (target user factors of the test users at
the chosen epoch, with the item factors where they are not the profile's), and `weights.safetensors` where
there are weights.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd

from assets import plots
from assets.compute import Compute
from assets.factors import FactorJudge, source_config
from assets.partitions import CATALOG, SEEDS_TOGETHER, Cell, by_task, cells, span
from assets.problems import CellData, cell_data, collective_table, held_out_ratings
from assets.profiles import Profile
from assets.progress import epochs
from assets.splits import split
from assets.store import Store, code_version, fingerprint, parquet, tensors
from assets.tracking import CellRun, DatasetRecord, MlflowTracking, log_diffcdr
from ml.splits import TEST

if TYPE_CHECKING:
    from torch import Tensor

    from ml.models.base import TransferModel

log = logging.getLogger("diffcdr")
SHARED_CODE = (
    "assets/models.py",
    "assets/problems.py",
    "ml/training.py",
    "ml/models/base.py",
    "ml/evaluation/ratings.py",
    "ml/evaluation/cold_start.py",
)
OWN_CODE = {
    "tgt": ("ml/factorization.py",),
    "cmf": ("ml/factorization.py",),
    "diffcdr": ("ml/models/diffcdr.py", "ml/diffusion"),
}
TITLES = {
    "tgt": "TGT",
    "cmf": "CMF",
    "emcdr": "EMCDR",
    "sscdr": "SSCDR",
    "lacdr": "LACDR",
    "ptupcdr": "PTUPCDR",
}
TITLES["diffcdr"] = "DiffCDR"


@lru_cache
def code_of(registered: str) -> str:
    """The code version of a registered model."""
    return code_version(*SHARED_CODE, *OWN_CODE.get(registered, (f"ml/models/{registered}.py",)))


@dataclass
class Outcome:
    """What training one cell leaves: curves by epoch, and the state at the epoch chosen so far."""

    curves: list[dict] = field(default_factory=list)
    users: "Tensor | None" = None
    items: "Tensor | None" = None  # where the model does not use the profile's target item factors
    weights: "dict[str, Tensor]" = field(default_factory=dict)

    @property
    def judged(self) -> list[dict]:
        """The curves as `ml.evaluation.ratings.select` takes them."""
        return [{side: _of_side(row, side) for side in ("validation", "test")} for row in self.curves]

    def chosen_now(self) -> bool:
        """Whether the newest epoch is the one to keep: the best on validation, else simply the last."""
        from ml.evaluation.ratings import chosen_epoch

        return chosen_epoch(self.judged) == len(self.curves)


def _of_side(row: Mapping, side: str) -> dict | None:
    return {k.removeprefix(f"{side}_"): v for k, v in row.items() if k.startswith(f"{side}_")} or None


def model_asset(profile: Profile, name: str) -> dg.AssetsDefinition:
    """The asset of one model of a profile."""
    registered = profile.registered(name)

    @dg.asset(
        name=name,
        key_prefix=profile.name,
        partitions_def=cells,
        deps=[split, *([] if registered == "cmf" else _factor_keys(profile, registered))],
        group_name="models",
        kinds={"pytorch", "mlflow"},
        owners=["team:recsys"],
        code_version=code_of(registered),
        backfill_policy=SEEDS_TOGETHER,
        pool="gpu",
        description=f"{TITLES.get(name, name)}: {_summary(registered)} Profile: {profile.title}.",
    )
    def trained(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, tracking: MlflowTracking
    ) -> None:
        tags = {"dagster.run_id": context.run.run_id, "dagster.asset": f"{profile.name}/{name}"}
        for group in by_task(context.partition_keys).values():
            ModelTraining(store, compute, tracking, profile, name, tags).run(group)
            for cell in group:
                context.add_asset_metadata(_metadata(store, profile, name, cell), partition_key=cell.key)

    return trained


def _factor_keys(profile: Profile, registered: str) -> list[dg.AssetKey]:
    needed = ["target_factors"] if registered == "tgt" else ["source_factors", "target_factors"]
    return [dg.AssetKey([profile.name, key]) for key in needed]


def _summary(registered: str) -> str:
    if registered == "tgt":
        return "the target domain's matrix factorization alone; a cold-start user's vector was never trained."
    if registered == "cmf":
        return "collective matrix factorization: one user vector for both domains (Singh and Gordon, 2008)."
    return f"learns to map a user's source factors to target factors (`ml/models/{registered}.py`)."


@dataclass
class ModelTraining:
    """Trains one model of a profile on the cells of a task."""

    store: Store
    compute: Compute
    tracking: MlflowTracking
    profile: Profile
    name: str
    tags: Mapping[str, str]

    def run(self, group: list[Cell]) -> None:
        """Train the cells that are missing or stale, together, and write each one's folder."""
        pending = {
            cell: mark
            for cell in group
            if not self.store.model(self.profile.name, self.name, cell).stands(mark := self.mark(cell))
        }
        if not pending:
            log.info("%s/%s %s: up to date", self.profile.name, self.name, span(group))
            return
        trainers = {"tgt": self._tgt, "cmf": self._cmf}
        train = trainers.get(self.registered, self._transfer)
        cells_to_train = list(pending)
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(self._mlflow_run(cell)) for cell in cells_to_train]
            outcomes = train(cells_to_train, runs)
            for cell, run, outcome in zip(cells_to_train, runs, outcomes, strict=True):
                self._write(cell, pending[cell], run, outcome)

    @property
    def registered(self) -> str:
        return self.profile.registered(self.name)

    def mark(self, cell: Cell) -> str:
        """The fingerprint of a finished cell: settings, code and everything it is computed from."""
        return fingerprint(
            code=code_of(self.registered),
            settings=self.profile.model(self.name, cell.task),
            validation=self.profile.validation,
            inputs={name: entry.require()["fingerprint"] for name, entry in self._inputs(cell).items()},
            factors=self.profile.factors(cell.task) if self.registered == "cmf" else None,
        )

    def _inputs(self, cell: Cell) -> dict:
        task = CATALOG.tasks[cell.task]
        inputs = {"split": self.store.split(cell)}
        if self.registered == "cmf":
            inputs["source"], inputs["target"] = (
                self.store.ratings(task.source),
                self.store.ratings(task.target),
            )
            return inputs
        inputs["target"] = self.store.target_factors(self.profile.name, cell)
        if self.registered != "tgt":
            inputs["source"] = self._source_factors(cell)
        return inputs

    def _source_factors(self, cell: Cell):
        config = source_config(self.profile, cell.task)
        return self.store.source_factors(
            self.profile.name, CATALOG.tasks[cell.task].source, config, cell.seed
        )

    def _tgt(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """TGT needs no training of its own: the target factorization was judged at each epoch."""
        import torch

        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            entry = self.store.target_factors(self.profile.name, cell)
            members, _ = held_out_ratings(self.store, self.profile, cell, TEST)
            codes = (
                self.store.overlap(cell.task).table("users.parquet")["target_user"].to_numpy(dtype=np.int64)
            )
            users = entry.tensors("factors.safetensors")["users"][torch.from_numpy(codes[members])]
            curves = entry.table("curves.parquet").to_dict("records")
            for row in curves:
                run.metrics(_without_epoch(row), int(row["epoch"]))
            outcomes.append(Outcome(curves=curves, users=users))
        return outcomes

    def _cmf(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """One user table for both domains, trained by the same factorization; judged on the target items."""
        import torch

        from ml.factorization import MatrixFactorization

        task = CATALOG.tasks[group[0].task]
        merged = [collective_table(self.store, self.profile, cell) for cell in group]
        first_item = self.store.ratings(task.source).require()["items"]
        judges = [
            FactorJudge(self.store, self.profile, cell, rows, first_item)
            for cell, (_, rows) in zip(group, merged, strict=True)
        ]
        trainer = MatrixFactorization(
            **{**self.profile.factors(task.name), **self.profile.model(self.name, task.name)}
        )
        outcomes = [Outcome() for _ in group]
        training = trainer.train(
            [table for table, _ in merged], f"cmf/{task.name}", self.compute.torch_device
        )
        for epoch in epochs(training, trainer.epochs, self._title(group)):
            for r, (judge, outcome) in enumerate(zip(judges, outcomes, strict=True)):
                users, items = trainer.user_factors_[r].cpu(), trainer.item_factors_[r].cpu()
                self._record(outcome, runs[r], epoch, r, judge(users, items))
                if outcome.chosen_now():
                    members, _ = held_out_ratings(self.store, self.profile, group[r], TEST)
                    outcome.users = users[torch.from_numpy(merged[r][1][members])].clone()
                    outcome.items = items[first_item:].clone()
        return outcomes

    def _transfer(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """Train a registered transfer model and judge its map at each epoch."""
        from ml.models.registry import build

        model = build(self.registered, **self.profile.model(self.name, group[0].task))
        data = [self._cell_data(cell) for cell in group]
        outcomes = [Outcome() for _ in group]
        training = model.train([d.problem for d in data], self.compute.torch_device)
        for epoch in epochs(training, model.epochs, self._title(group)):
            transferred = _transfer_held_out(model, data)
            for r, outcome in enumerate(outcomes):
                self._record(outcome, runs[r], epoch, r, _judge(data[r], transferred[r]))
                if outcome.chosen_now():
                    outcome.users, outcome.weights = transferred[r]["test"], model.state_dict(r)
        return outcomes

    def _cell_data(self, cell: Cell) -> CellData:
        source = self._source_factors(cell).tensors("factors.safetensors")
        target = self.store.target_factors(self.profile.name, cell).tensors("factors.safetensors")
        return cell_data(self.store, self.profile, cell, source, target)

    @staticmethod
    def _record(outcome: Outcome, run: CellRun, epoch, replica: int, judged: dict[str, float]) -> None:
        losses = {name: values[replica] for name, values in epoch.losses.items()}
        run.metrics({**losses, **judged}, epoch.number)
        outcome.curves.append({"epoch": epoch.number, **losses, **judged})

    def _title(self, group: list[Cell]) -> str:
        return f"{self.profile.name}/{self.name} {span(group)}"

    def _mlflow_run(self, cell: Cell):
        settings = self.profile.model(self.name, cell.task)
        return self.tracking.run(
            model=self.name,
            task=cell.task,
            beta=cell.beta,
            seed=cell.seed,
            profile=self.profile.name,
            params={**{f"factors.{k}": v for k, v in self.profile.factors(cell.task).items()}, **settings},
            tags={
                **self.tags,
                "dagster.partition": cell.key,
                "code_version": code_of(self.registered),
                "split_hash": self.store.split(cell).require()["manifest_hash"],
            },
            inputs=[
                DatasetRecord(name=domain, digest=raw["sha256"][:32], source=raw["source"], context=side)
                for side, domain in _sides(cell).items()
                for raw in [self.store.reviews(domain).require()]
            ],
        )

    def _write(self, cell: Cell, mark: str, run: CellRun, outcome: Outcome) -> None:
        from ml.evaluation.ratings import select

        rows = [
            {"stage": "cold", "objective": "rating", **asdict(selection)}
            for selection in select(outcome.judged)
        ]
        last = outcome.curves[-1]["epoch"]
        run.metrics({f"{row['selection']}.{row['metric']}": row["value"] for row in rows}, int(last))
        held = {"users": outcome.users, **({} if outcome.items is None else {"items": outcome.items})}
        files = {
            "metrics.parquet": parquet(pd.DataFrame(rows)),
            "curves.parquet": parquet(pd.DataFrame(outcome.curves)),
            "users.safetensors": tensors(held),
        }
        if outcome.weights:
            files["weights.safetensors"] = tensors(outcome.weights)
            settings = {"model": self.registered, "hyperparameters": self.profile.model(self.name, cell.task)}
            files["config.json"] = json.dumps(settings, indent=1).encode()
        run.flush()
        if self.registered == "diffcdr":
            log_diffcdr(
                run,
                weights=files["weights.safetensors"],
                hyperparameters=self.profile.model(self.name, cell.task),
                widths=(self.profile.factors(cell.task)["k"], outcome.users.shape[1]),
            )
        self.store.model(self.profile.name, self.name, cell).write(
            files, mark, mlflow_run_id=run.run_id, mlflow_url=run.url, test_users=len(outcome.users)
        )


def _without_epoch(row: Mapping) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch"}


def _sides(cell: Cell) -> dict[str, str]:
    task = CATALOG.tasks[cell.task]
    return {"source": task.source, "target": task.target}


def _transfer_held_out(model: "TransferModel", data: list[CellData]) -> "list[dict[str, Tensor]]":
    """Target factors of each replica's test (and validation) users."""
    out: list[dict] = [{} for _ in data]
    for side in ("validation", "test"):
        users = [getattr(d, side) for d in data]
        if None not in users:
            for result, factors in zip(out, model.transfer([u.users for u in users]), strict=True):
                result[side] = factors
    return out


def _judge(data: CellData, transferred: "dict[str, Tensor]") -> dict[str, float]:
    from ml.evaluation.cold_start import errors

    return {
        f"{side}_{metric}": value
        for side, factors in transferred.items()
        for metric, value in errors(factors, data.problem.target_items, getattr(data, side).ratings).items()
    }


def _metadata(store: Store, profile: Profile, name: str, cell: Cell) -> dict:
    entry = store.model(profile.name, name, cell)
    facts, metrics, curves = entry.require(), entry.table("metrics.parquet"), entry.table("curves.parquet")
    image = plots.curves(curves, "epoch", {"validation_mae": "validation MAE", "test_mae": "test MAE"})
    values = {
        f"{row.selection}_{row.metric}": float(row.value)
        for row in metrics.itertuples()
        if row.metric in ("mae", "rmse")
    }
    return {
        "dagster/row_count": facts["test_users"],
        **values,
        "mlflow_run": dg.MetadataValue.url(facts["mlflow_url"]),
        "mlflow_run_id": facts["mlflow_run_id"],
        "curve": dg.MetadataValue.md(plots.as_markdown(image, "error by epoch")),
    }
