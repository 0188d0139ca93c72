"""Training one model of a profile on the cells of a task: is it current? fit, judge, write.

The loop knows no model by name: it asks the class what it needs, and the fitted model for its predictions.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import SIDES, Gate
from assets.data.domain import domain_ratings
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
from assets.training.trials import Trial, Trials, plan, together

if TYPE_CHECKING:
    from ml.evaluation.crossfit import FoldSums
    from ml.evaluation.selection import Objective
    from ml.models.contract import Model
    from ml.replicas import Epoch

log = logging.getLogger("diffcdr")
# Ratings of both domains, counted for each cell, of cells that are trained together. What they save is the
# overhead of small steps; with large steps it is nothing, and each holds an epoch's rows of its own.
TOGETHER = 100_000_000


@dataclass(frozen=True)
class Replica:
    """A cell under the settings of one of its trials, where it has any. run: where its curve goes."""

    gate: Gate
    settings: Mapping[str, object]
    run: CellRun | None
    trials: Trials | None = None
    number: int = 0

    def goes_on(self, epoch: int, score: float) -> bool:
        return self.trials.goes_on(self.number, epoch, score)


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
        """Train the cells that are missing or stale, as many together as memory is meant for."""
        fingerprints = {cell: self.fingerprints.model(self.name, cell, self.objective.name) for cell in group}
        pending = [cell for cell in group if not self.entry(cell).is_current(fingerprints[cell])]
        if not pending:
            log.info("%s %s: up to date", self.title, span(group))
            return
        left = [self._gate(cell) for cell in pending]
        size = self._at_once(group[0])
        while left:
            # What a cell holds in memory goes with its gate.
            part, left = left[:size], left[size:]
            self._train(part, fingerprints)
            for gate in part:
                gate.forget()

    def _at_once(self, cell: Cell) -> int:
        """Cells of a task that are trained together."""
        ratings = (len(domain_ratings(self.store, side.name).items) for side in (cell.source, cell.target))
        return max(1, TOGETHER // max(1, sum(ratings)))

    def _train(self, gates: list[Gate], fingerprints: Mapping[Cell, str]) -> None:
        """Train cells together and write each one's folder."""
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(self._mlflow_run(gate.cell)) for gate in gates]
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
            settings = plans[0].ask()
            return self._fit([Replica(gate, settings, run) for gate, run in zip(gates, runs, strict=True)])
        for gate in gates:
            if gate.held_out("validation") is None:
                raise ValueError(
                    f"{gate.cell.key}: the split leaves no validation user to choose one of the "
                    f"{len(plans[0])} trials of {self.name} by; lower beta, add overlapping users or take "
                    "the trials out of the profile"
                )
        # Only the best outcome so far is kept: each holds its vectors.
        best: list[Outcome | None] = [None] * len(gates)
        tried: list[dict[int, list[FoldSums]]] = [{} for _ in gates]
        while plans[0].ahead:
            asked = [
                Trial(cell, trials.asked, trials.ask())
                for cell, trials in enumerate(plans)
                for _ in range(trials.ahead)
            ]
            for program in together(asked, varied_of):
                replicas = [
                    Replica(gates[t.cell], t.settings, runs[t.cell], plans[t.cell], t.number) for t in program
                ]
                for trial, outcome in zip(program, self._tried(replicas), strict=True):
                    trials = plans[trial.cell]
                    told = {**outcome.validated(self.objective), "epochs": len(outcome.curves)}
                    trials.tell(trial.number, told[f"validation_{self.objective.criterion}"], told)
                    tried[trial.cell][trial.number] = outcome.tried
                    if trials.best == trial.number:
                        best[trial.cell] = outcome
        for outcome, of_trials, trials, run in zip(best, tried, plans, runs, strict=True):
            outcome.tried = [sums for number in sorted(of_trials) for sums in of_trials[number]]
            outcome.trials = trials.results.to_dict("records")
            outcome.study = trials.study if trials.about else {}
            for row in outcome.curves if len(outcome.curves) > 1 else ():
                run.metrics({name: v for name, v in row.items() if name != "epoch"}, int(row["epoch"]))
            run.params(hyperparameters(outcome.settings))
        return best

    def _plan(self, cell: Cell) -> Trials:
        return plan(self.profile, self.name, cell.task, cell.seed, self.objective.higher_is_better)

    def _tried(self, replicas: "Sequence[Replica]") -> list[Outcome]:
        """Trials trained as one program; one that was drawn from a space is a nested MLflow run."""
        if not any(replica.trials.about for replica in replicas):
            return self._fit([dataclasses.replace(replica, run=None) for replica in replicas])
        with contextlib.ExitStack() as stack:
            nested = [
                stack.enter_context(
                    self._mlflow_run(
                        replica.gate.cell,
                        replica.run,
                        replica.trials.label(replica.settings),
                        replica.settings,
                    )
                )
                for replica in replicas
            ]
            return self._fit(
                [dataclasses.replace(r, run=run) for r, run in zip(replicas, nested, strict=True)]
            )

    def _fit(self, replicas: "Sequence[Replica]") -> list[Outcome]:
        """Train replicas as one program, and judge each after each epoch, until its trials give it up. What
        one gives up others may go on with, unseen by it."""
        model, left = built(replicas[0].settings), set(range(len(replicas)))
        judges = [self._judges(replica.gate) for replica in replicas]
        criterion = f"validation_{self.objective.criterion}"
        outcomes, watch = [Outcome(dict(replica.settings)) for replica in replicas], Stopwatch()
        training = watch.time(self._training(model, replicas))
        title = f"{self.title} {span(list(dict.fromkeys(r.gate.cell for r in replicas)))}{numbers(replicas)}"
        for epoch in epochs(training, model.total_epochs, title):
            for r in sorted(left):
                replica, outcome = replicas[r], outcomes[r]
                judged = epoch.measured[r] if epoch.measured else _judged(model, r, judges[r])
                if "validation" in judges[r] and (sums := judges[r]["validation"].sums(model, r)) is not None:
                    outcome.tried.append(sums)
                row = {**losses_of(epoch, r), **judged}
                # One value is no curve.
                if replica.run is not None and model.total_epochs > 1:
                    replica.run.metrics(row, epoch.number)
                if outcome.record({"epoch": epoch.number, **row}, self.objective):
                    outcome.keep(model, r, {side: judge.held for side, judge in judges[r].items()})
                    outcome.predicted, outcome.lists = judges[r]["test"].predicted, judges[r]["test"].lists
                more = epoch.number < model.total_epochs
                if replica.trials and more and not replica.goes_on(epoch.number, row[criterion]):
                    left.remove(r)
            if not left:
                log.info("%s: given up after %d of %d epochs", title, epoch.number, model.total_epochs)
                break
            model.give_up(set(range(len(replicas))) - left)
        self._set_speed(model, replicas, outcomes, judges, watch.seconds)
        return outcomes

    def _training(self, model: "Model", replicas: "Sequence[Replica]") -> "Iterator[Epoch]":
        data, device = [replica.gate.data for replica in replicas], self.compute.torch_device
        if len({replica.number for replica in replicas}) == 1:
            return model.fit(data, device)
        each = [built(replica.settings) for replica in replicas]
        return model.fit(data, device, [{name: getattr(one, name) for name in model.varied} for one in each])

    def _judges(self, gate: Gate) -> dict[str, Judge]:
        sides = {side: held for side in SIDES if (held := gate.held_out(side)) is not None}
        return {side: Judge(held, self.objective, self._clip(gate)) for side, held in sides.items()}

    def _set_speed(
        self,
        model: "Model",
        replicas: "Sequence[Replica]",
        outcomes: list[Outcome],
        judges: Sequence[Mapping[str, Judge]],
        seconds: float,
    ) -> None:
        """Samples and seconds of the cells that were trained at once, as the paper counts: rating rows. Of
        the seconds that trials took together each has its share, by epochs."""
        if not all(np.isfinite(judge["test"].seconds) for judge in judges):
            return  # what has a closed form or was measured elsewhere took no time here
        every = sum(len(outcome.curves) for outcome in outcomes)
        for outcome, replica in zip(outcomes, replicas, strict=True):
            mine = [r for r, other in enumerate(replicas) if other.number == replica.number]
            tested = [judges[r]["test"] for r in mine]
            outcome.speed = {
                "device": self.compute.device_name,
                "replicas": len(mine),
                "train_samples": sum(
                    len(outcomes[r].curves) * model.rows(replicas[r].gate.data) for r in mine
                ),
                "train_seconds": seconds * sum(len(outcomes[r].curves) for r in mine) / every,
                "test_samples": sum(len(judge.held.ratings) for judge in tested),
                "test_users": sum(len(judge.held) for judge in tested),
                "test_seconds": sum(judge.seconds for judge in tested),
            }

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
        if gate.held_out("validation") is not None:
            files["validation.parquet"] = parquet(pd.DataFrame([outcome.comparable(self.objective)]))
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


def varied_of(kind: str) -> tuple[str, ...]:
    """What replicas of a model may differ in."""
    from ml.models.registry import find

    return find(kind).varied


def numbers(replicas: Sequence[Replica]) -> str:
    """Which trials of how many are trained together, for the log; nothing where there are no trials."""
    if replicas[0].trials is None:
        return ""
    first, last = replicas[0].number + 1, replicas[-1].number + 1
    which = f"trial {first}" if first == last else f"trials {first} to {last}"
    return f", {which} of {len(replicas[0].trials)}"


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
