"""Training one model of a profile on the cells of a task: is it current? fit, judge, write.

The loop knows no model by name: it asks the class what it needs, and the fitted model for its predictions.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import SIDES, Gate
from assets.settings.axes import Cell, span
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.compute import Compute
from assets.state.progress import Stopwatch, epochs
from assets.state.store import Entry, Store, parquet
from assets.state.tracking import CellRun, DatasetRecord, MlflowTracking
from assets.training.fingerprints import TRAINING, Fingerprints, needs_of, warms
from assets.training.outcome import (
    Judge,
    Outcome,
    error_files,
    fine_tune_held_out,
    list_files,
    losses_of,
    metric_rows,
    model_files,
    restored,
)
from assets.training.trials import Trials, plan, together

if TYPE_CHECKING:
    from ml.evaluation.selection import Objective
    from ml.models.contract import Model

log = logging.getLogger("diffcdr")


@dataclass
class Training:
    """Trains one model of a profile for one objective on the cells of a task."""

    store: Store
    compute: Compute
    tracking: MlflowTracking
    catalog: Catalog
    profile: Profile
    name: str
    objective: "Objective"
    tags: Mapping[str, str]

    def run(self, group: list[Cell]) -> None:
        """Train the cells that are missing or stale, together, and write each one's folder."""
        fingerprints = {cell: self.fingerprints.model(self.name, cell, self.objective.name) for cell in group}
        pending = [cell for cell in group if not self.entry(cell).is_current(fingerprints[cell])]
        if not pending:
            log.info("%s %s: up to date", self.title, span(group))
            return
        gates = [self._gate(cell) for cell in pending]
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(self._mlflow_run(cell)) for cell in pending]
            outcomes = self._best_trial(gates, runs)
            if self._warms(gates[0]):
                fine_tune_held_out(gates, outcomes, self.objective, self._clip(gates[0]))
            failed = []
            for gate, run, outcome in zip(gates, runs, outcomes, strict=True):
                try:
                    self._write(gate, fingerprints[gate.cell], run, outcome)
                    run.finish()
                # The neighbours are trained: they are written before the first failure is raised.
                except Exception as error:
                    run.fail(str(error))
                    failed.append(error)
            if failed:
                raise failed[0]

    @property
    def fingerprints(self) -> Fingerprints:
        return Fingerprints(self.store, self.catalog, self.profile)

    @property
    def title(self) -> str:
        return f"{self.profile.name}/{self.name} {self.objective.name}"

    def entry(self, cell: Cell) -> Entry:
        return self.store.model(self.profile.name, self.name, cell, self.objective.name)

    def _gate(self, cell: Cell) -> Gate:
        """The cell as the model may see it. Raises NotMaterialized where an input is missing or stale."""
        self.fingerprints.require_inputs(self.name, cell, self.objective.name)
        return gate_of(self.store, self.profile, self.name, cell, self.objective.name)

    def _clip(self, gate: Gate) -> tuple[float, float] | None:
        return gate.cell.target.scale if self.profile.clips(self.name) else None

    def _warms(self, gate: Gate) -> bool:
        timed = self.store.overlap(gate.cell.task).require()["timed"]
        return timed and warms(self.profile, self.name, self.objective.name)

    # Fitting and judging.

    def _best_trial(self, gates: list[Gate], runs: list[CellRun]) -> list[Outcome]:
        """Each cell's outcome under the settings that are best on its validation users; without trials, under
        the profile's settings, with the curves in MLflow while it trains."""
        plans = [self._plan(gate.cell) for gate in gates]
        if len(plans[0]) == 1:
            return self._fit(gates, plans[0].ask(), runs)
        for gate in gates:
            if gate.held_out("validation") is None:
                raise ValueError(
                    f"{gate.cell.key}: the split leaves no validation user to choose one of the "
                    f"{len(plans[0])} trials of {self.name} by; lower beta, add overlapping users or take "
                    "the trials out of the profile"
                )
        # Only the best outcome so far is kept: each holds its vectors.
        best: list[Outcome | None] = [None] * len(gates)
        for number in range(len(plans[0])):
            for settings, cells in together([trials.ask() for trials in plans]):
                of_cells = {r: (gates[r], plans[r], runs[r]) for r in cells}
                outcomes = self._tried(settings, of_cells, f", trial {number + 1} of {len(plans[0])}")
                for r, outcome in zip(cells, outcomes, strict=True):
                    told = {**outcome.validated(self.objective), "epochs": len(outcome.curves)}
                    plans[r].tell(told[f"validation_{self.objective.criterion}"], told)
                    if plans[r].best == number:
                        best[r] = outcome
        for outcome, trials, run in zip(best, plans, runs, strict=True):
            outcome.trials = trials.results.to_dict("records")
            outcome.study = trials.study if trials.about else {}
            for row in outcome.curves if len(outcome.curves) > 1 else ():
                run.metrics({name: v for name, v in row.items() if name != "epoch"}, int(row["epoch"]))
            run.params(hyperparameters(outcome.settings))
        return best

    def _plan(self, cell: Cell) -> Trials:
        return plan(self.profile, self.name, cell.task, cell.seed, self.objective.higher_is_better)

    def _tried(
        self, settings: Mapping[str, object], cells: "Mapping[int, tuple[Gate, Trials, CellRun]]", trial: str
    ) -> list[Outcome]:
        """Cells under one trial's settings; a trial that was drawn from a space is a nested MLflow run.
        trial: which of how many it is, for the log."""
        gates, plans, _ = zip(*cells.values(), strict=True)
        if not any(trials.about for trials in plans):
            return self._fit(gates, settings, [None] * len(gates), plans, trial)
        with contextlib.ExitStack() as stack:
            nested = [
                stack.enter_context(self._mlflow_run(gate.cell, run, trials.label(settings), settings))
                for gate, trials, run in cells.values()
            ]
            return self._fit(gates, settings, nested, plans, trial)

    def _fit(
        self,
        gates: Sequence[Gate],
        settings: Mapping[str, object],
        runs: "Sequence[CellRun | None]",
        plans: Sequence[Trials] = (),
        trial: str = "",
    ) -> list[Outcome]:
        """Train a model with `settings` on all cells as one program, and judge it after each epoch; with the
        cells' `plans`, until these give it up. What one cell gives up others may go on with, unseen by it."""
        model, open_cells, run_epochs = built(settings), set(range(len(gates))), 0
        sides = [{s: held for s in SIDES if (held := gate.held_out(s)) is not None} for gate in gates]
        judges = [
            {s: Judge(held, self.objective, self._clip(gate)) for s, held in of_cell.items()}
            for gate, of_cell in zip(gates, sides, strict=True)
        ]
        criterion = f"validation_{self.objective.criterion}"
        outcomes, watch = [Outcome(dict(settings)) for _ in gates], Stopwatch()
        training = watch.time(model.fit([gate.data for gate in gates], self.compute.torch_device))
        title = f"{self.title} {span([gate.cell for gate in gates])}{trial}"
        for epoch in epochs(training, model.total_epochs, title):
            run_epochs = epoch.number
            for r in sorted(open_cells):
                outcome, run = outcomes[r], runs[r]
                judged = epoch.measured[r] if epoch.measured else _judged(model, r, judges[r])
                row = {**losses_of(epoch, r), **judged}
                # One value is no curve.
                if run is not None and model.total_epochs > 1:
                    run.metrics(row, epoch.number)
                if outcome.record({"epoch": epoch.number, **row}, self.objective):
                    outcome.keep(model, r, sides[r])
                    outcome.predicted, outcome.lists = judges[r]["test"].predicted, judges[r]["test"].lists
                more = epoch.number < model.total_epochs
                if plans and more and not plans[r].goes_on(epoch.number, row[criterion]):
                    open_cells.remove(r)
            if not open_cells:
                log.info("%s: given up after %d of %d epochs", title, epoch.number, model.total_epochs)
                break
        self._set_speed(model, gates, outcomes, judges, run_epochs, watch.seconds)
        return outcomes

    def _set_speed(
        self,
        model: "Model",
        gates: Sequence[Gate],
        outcomes: list[Outcome],
        judges: Sequence[Mapping[str, Judge]],
        run_epochs: int,
        seconds: float,
    ) -> None:
        """Samples and seconds of the whole batched program, as the paper counts: rating rows."""
        tested = [judge["test"] for judge in judges]
        if not all(np.isfinite(judge.seconds) for judge in tested):
            return  # what has a closed form or was measured elsewhere took no time here
        speed = {
            "device": self.compute.device_name,
            "replicas": len(outcomes),
            "train_samples": run_epochs * sum(model.rows(gate.data) for gate in gates),
            "train_seconds": seconds,
            "test_samples": sum(len(judge.held.ratings) for judge in tested),
            "test_users": sum(len(judge.held) for judge in tested),
            "test_seconds": sum(judge.seconds for judge in tested),
        }
        for outcome in outcomes:
            outcome.speed = speed

    # What is written.

    def _mlflow_run(
        self,
        cell: Cell,
        parent: "CellRun | None" = None,
        trial: str = "",
        settings: Mapping[str, object] | None = None,
    ) -> contextlib.AbstractContextManager[CellRun]:
        """The run of a cell, or of one `trial` under its `parent` with these settings."""
        suffix = "" if self.objective.name == "rating" else f".{self.objective.name}"
        kinds = [self.profile.facts[kind].path for kind in self.profile.kinds(self.name)]
        return self.tracking.run(
            model=f"{self.name}{suffix}",
            task=cell.task,
            beta=cell.beta,
            seed=cell.seed,
            profile=self.profile.name,
            params=self._parameters(cell) if settings is None else hyperparameters(settings),
            tags={
                **self.tags,
                "objective": self.objective.name,
                "dagster.partition": cell.key,
                "code_version": code_of(*TRAINING, *kinds),
                "split_hash": self.store.split(cell).require()["manifest_hash"],
            },
            inputs=dataset_records(self.store, cell) if parent is None else (),
            parent=None if parent is None else parent.run_id,
            variant=trial,
        )

    def _parameters(self, cell: Cell) -> dict[str, object]:
        """Every hyper-parameter with its value, defaults included, as MLflow shows it."""
        factors = {f"factors.{k}": v for k, v in self.profile.factors(cell.task, self.objective.name).items()}
        trials = self._plan(cell)
        # Of several trials the chosen one's are added when it is known.
        settings = hyperparameters(trials.ask()) if len(trials) == 1 else {}
        return {**factors, **settings, "clip_predictions": self.profile.clips(self.name)}

    def _write(self, gate: Gate, fingerprint: str, run: CellRun, outcome: Outcome) -> None:
        rows = metric_rows(outcome, self.objective)
        everything = {f"{row['stage']}.{row['selection']}.{row['metric']}": row["value"] for row in rows}
        head = f"cold.{'validation' if self.profile.validation else 'last'}."
        values = {name.removeprefix(head): v for name, v in everything.items() if name.startswith(head)}
        tested = dataset_records(self.store, gate.cell)[-1]
        run.result(values, everything, tested, f"{self.profile.name}-{self.name}-{self.objective.name}")
        files = {
            "metrics.parquet": parquet(pd.DataFrame(rows)),
            "curves.parquet": parquet(pd.DataFrame(outcome.curves)),
            **model_files(outcome),
        }
        predicted = outcome.predicted
        if self.objective.name == "rating":
            files |= error_files(gate, predicted or self._predicted(gate, outcome), self._clip(gate))
        if outcome.lists is not None:
            files |= list_files(gate, outcome.lists)
        if outcome.trials:
            files["trials.parquet"] = parquet(pd.DataFrame(outcome.trials))
        if outcome.study:
            files["study.json"] = json.dumps(outcome.study, indent=1).encode()
        if outcome.speed:
            files["throughput.parquet"] = parquet(pd.DataFrame([outcome.speed]))
        self.entry(gate.cell).write(
            files,
            fingerprint,
            **run.facts,
            test_users=len(gate.members("test")),
            warm_left_out=outcome.warm_left_out,
        )

    @staticmethod
    def _predicted(gate: Gate, outcome: Outcome):
        """Predictions of the test ratings by the chosen epoch's vectors, of what was judged elsewhere."""
        from ml.data import Predicted
        from ml.evaluation.ratings import predict

        held = gate.held_out("test")
        return Predicted.points(predict(outcome.vectors["test"], outcome.items, held.ratings))


def built(settings: Mapping[str, object]) -> "Model":
    """The model of a trial: its kind is the setting `model`."""
    from ml.models.registry import build

    given = dict(settings)
    return build(str(given.pop("model")), **given)


def hyperparameters(settings: Mapping[str, object]) -> dict[str, object]:
    """Every hyper-parameter of a trial with its value, defaults included."""
    return {"model": settings["model"], **built(settings).hyperparameters()}


def gate_of(store: Store, profile: Profile, name: str, cell: Cell, objective: str) -> Gate:
    """A cell as a model of a profile meets it, with the trained model that it needs, where it needs one."""
    needs, other = needs_of(profile, name), profile.of(name)
    needed = restored_model(store, profile, other, cell, objective) if other else None
    return Gate(store, profile, cell, objective, needs, needed)


def restored_model(store: Store, profile: Profile, name: str, cell: Cell, objective: str) -> "Model":
    """A trained model of a profile with what it reads of its cell."""
    entry = store.model(profile.name, name, cell, objective)
    entry.require()
    return restored(entry, gate_of(store, profile, name, cell, objective))


def dataset_records(store: Store, cell: Cell) -> list[DatasetRecord]:
    """The raw files that a cell rests on, as MLflow records them."""
    return [
        DatasetRecord(name=domain.name, digest=raw["sha256"][:32], source=raw["source"], context=side)
        for side, domain in (("source", cell.source), ("target", cell.target))
        for raw in [store.reviews(domain.name).require()]
    ]


def _judged(model: "Model", replica: int, judges: Mapping[str, Judge]) -> dict[str, float]:
    """Metrics of both sides, under names that begin with the side."""
    return {
        f"{side}_{metric}": value
        for side, judge in judges.items()
        for metric, value in judge(model, replica).items()
    }
