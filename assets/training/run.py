"""Training one model of a profile on the cells of a task: what each model asset does.

Every cell ends as the same folder of the store:
- `metrics.parquet`: one row per stage, selection rule and metric;
- `curves.parquet`: losses and metrics by epoch;
- `users.safetensors`: target user factors of the test users at the chosen epoch, with the item factors where
  they are not the profile's target factors (biased ones are standardised over the training users);
- `weights.safetensors` and `config.json`, where there are weights;
- `user_errors.parquet`: each test user's sums of errors (rating); `coverage.parquet`: where the errors are
  (rating); `calibration.parquet`: of predicted distributions; `throughput.parquet`: how fast it was;
- `trials.parquet`: the settings that were tried and their validation errors, where there were several.
"""

import contextlib
import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.data.cell import (
    CellData,
    cell_data,
    collective_table,
    held_out_ratings,
    joined,
)
from assets.settings.axes import CATALOG, Cell, span
from assets.settings.profile import Profile
from assets.state.compute import Compute
from assets.state.progress import Stopwatch, epochs, fastest
from assets.state.store import Entry, Store, code_version, fingerprint, parquet, tensors
from assets.state.tracking import CellRun, DatasetRecord, MlflowTracking, log_diffcdr
from assets.training.controls import PERMUTED, PERMUTED_MODEL, PREDICTORS, VECTORS, evidence, source_of
from assets.training.distributions import (
    DIFFUSION,
    DISCRIMINATIVE,
    DISTRIBUTIONS,
    describe,
    overlap_codes,
    predict,
    source_effects,
    target_levels,
    transfer_ratings,
)
from assets.training.factors import EVALUATION, FactorJudge, source_config
from assets.training.outcome import (
    SIDES,
    Outcome,
    error_files,
    fine_tune_held_out,
    metric_rows,
    restored,
    target_scale,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data import Ratings
    from ml.evaluation.selection import Objective
    from ml.factorization.adam import RatingTable
    from ml.models.transfer import TransferModel
    from ml.replicas import Epoch

log = logging.getLogger("diffcdr")
SHARED_CODE = (
    "assets/training/run.py",
    "assets/training/outcome.py",
    "assets/data/cell.py",
    "ml/replicas.py",
    "ml/warm_start.py",
    "ml/factorization/negatives.py",
    "ml/models/transfer.py",
    "ml/evaluation/coverage.py",
    "assets/training/distributions.py",
    *EVALUATION,
)
CONTROL_CODE = ("assets/training/controls.py", "ml/models/controls.py")
DISTRIBUTION_CODE = (
    "ml/distribution/model.py",
    "ml/distribution/effects.py",
    "ml/evaluation/distribution.py",
)
OWN_CODE = {
    "random": (),
    **dict.fromkeys((*PREDICTORS, *VECTORS, PERMUTED), CONTROL_CODE),
    DIFFUSION: (*DISTRIBUTION_CODE, "ml/distribution/diffusion.py", "ml/diffusion"),
    **dict.fromkeys(
        DISCRIMINATIVE, (*DISTRIBUTION_CODE, "ml/distribution/discriminative.py", "ml/models/controls.py")
    ),
    "tgt": ("ml/factorization/adam.py", "ml/factorization/biased.py"),
    "cmf": ("assets/training/factors.py", "ml/factorization/adam.py", "ml/factorization/biased.py"),
    "diffcdr": ("ml/models/diffcdr.py", "ml/diffusion"),
    **dict.fromkeys(
        ("emcdr_ridge", "emcdr_mlp", "sscdr_rejecting", "lacdr_wide"),
        ("ml/models/variants.py", "ml/models/sscdr.py", "ml/models/lacdr.py"),
    ),
}


@lru_cache
def code_of(*registered: str) -> str:
    """The code version of registered models, or of those named as `module:Class`."""
    return code_version(*SHARED_CODE, *(file for name in registered for file in _own_code(name)))


def _own_code(registered: str) -> tuple[str, ...]:
    module, colon, _ = registered.partition(":")
    file = importlib.util.find_spec(module).origin if colon else f"ml/models/{registered}.py"
    return OWN_CODE.get(registered, (file,))


# Both domains' ratings over one user table, and the rows of the overlapping users in it.
Collective = tuple["RatingTable", np.ndarray]
# Trains the cells of a group with settings, recording epochs in the runs that are given.
Attempt = Callable[[dict[str, object], "list[CellRun | None]"], list[Outcome]]


@dataclass
class ModelTraining:
    """Trains one model of a profile for one objective on the cells of a task."""

    store: Store
    compute: Compute
    tracking: MlflowTracking
    profile: Profile
    name: str
    objective: "Objective"
    tags: Mapping[str, str]

    def run(self, group: list[Cell]) -> None:
        """Train the cells that are missing or stale, together, and write each one's folder."""
        pending = {
            cell: wanted
            for cell in group
            if not self.entry(cell).is_current(wanted := self.fingerprint(cell))
        }
        if not pending:
            log.info("%s %s: up to date", self.title, span(group))
            return
        train = {
            "random": self._random,
            "tgt": self._tgt,
            "cmf": self._cmf,
            **dict.fromkeys(PREDICTORS, self._predictor),
            **dict.fromkeys(VECTORS, self._vector),
            **dict.fromkeys(DISTRIBUTIONS, self._distribution),
            PERMUTED: self._permuted,
        }.get(self.registered, self._transfer)
        cells = list(pending)
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(self._mlflow_run(cell)) for cell in cells]
            outcomes = train(cells, runs)
            if self._warms(cells[0].task):
                clip = self._clip(cells[0])
                fine_tune_held_out(self.store, self.profile, self.objective, cells, outcomes, clip)
            for cell, run, outcome in zip(cells, runs, outcomes, strict=True):
                self._write(cell, pending[cell], run, outcome)

    @property
    def registered(self) -> str:
        return self.profile.registered(self.name)

    def _warms(self, task: str) -> bool:
        """Whether the test users are fine-tuned: where there is time to split their ratings by, and vectors
        that the paper's warm start moves. Biases and distributions warm up without training."""
        timed = self.store.overlap(task).require()["timed"]
        return timed and not self.profile.biased and self.name not in self.profile.controls

    @property
    def clips(self) -> bool:
        """Whether predictions are clipped to the scale; a model under permuted users is judged as itself."""
        return self.profile.clips(PERMUTED_MODEL if self.registered == PERMUTED else self.name)

    def _clip(self, cell: Cell) -> tuple[float, float] | None:
        return target_scale(cell) if self.clips else None

    @property
    def title(self) -> str:
        return f"{self.profile.name}/{self.name} {self.objective.name}"

    def entry(self, cell: Cell) -> Entry:
        return self.store.model(self.profile.name, self.name, cell, self.objective.name)

    def fingerprint(self, cell: Cell) -> str:
        """The fingerprint of a finished cell: settings, code and everything it is computed from."""
        return fingerprint(
            code=code_of(*self.profile.kinds(self.name)),
            settings=self.profile.trials(self.name, cell.task),
            clips=self.clips,
            objective=self.objective.name,
            validation=self.profile.validation,
            inputs={name: entry.require()["fingerprint"] for name, entry in self._inputs(cell).items()},
            # Fine-tuning and CMF use the settings of the factorizations.
            factors=None if self._without_factors else self.profile.factors(cell.task),
        )

    @property
    def _without_factors(self) -> bool:
        return self.registered in ("random", *PREDICTORS, *DISTRIBUTIONS)

    def _inputs(self, cell: Cell) -> dict[str, Entry]:
        task = CATALOG.tasks[cell.task]
        inputs = {"split": self.store.split(cell)}
        if self.registered in ("cmf", "random", *PREDICTORS, *DISTRIBUTIONS):
            inputs["source"], inputs["target"] = (
                self.store.ratings(task.source),
                self.store.ratings(task.target),
            )
            if self.registered == DIFFUSION:
                inputs["effects"] = source_effects(self.store, self.profile, cell)
            return inputs
        if self.registered == PERMUTED:
            inputs["model"] = self._permuted_model(cell)
            if self.profile.registered(PERMUTED_MODEL) == DIFFUSION:
                return inputs
        inputs["target"] = self._target_factors(cell)
        if self.registered != "tgt":
            inputs["source"] = self._source_factors(cell)
        return inputs

    def _permuted_model(self, cell: Cell) -> Entry:
        return self.store.model(self.profile.name, PERMUTED_MODEL, cell, self.objective.name)

    def _source_factors(self, cell: Cell) -> Entry:
        config = source_config(self.profile, cell.task)
        domain = CATALOG.tasks[cell.task].source
        return self.store.source_factors(self.profile.name, domain, config, cell.seed, self.objective.name)

    def _target_factors(self, cell: Cell) -> Entry:
        return self.store.target_factors(self.profile.name, cell, self.objective.name)

    # The ways to train.

    def _random(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """A uniformly random ranker needs no training and no simulation: its expectation is known."""
        from ml.evaluation.cold_start import random_ranker

        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            n_items = self.store.ratings(CATALOG.tasks[cell.task].target).require()["items"]
            expected = {
                f"{side}_{metric}": value
                for side, (members, ratings) in self._held_out(cell).items()
                for metric, value in random_ranker(n_items, len(members), ratings).items()
                if "@" in metric
            }
            run.metrics(expected, 1)
            outcomes.append(Outcome(curves=[{"epoch": 1, **expected}]))
        return outcomes

    def _predictor(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """A predictor from rating statistics, fitted in closed form."""
        import torch

        from ml.models.controls import PREDICTORS as FIT

        source = source_of(self.store, group[0].task)
        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            users, items = FIT[self.registered](evidence(self.store, self.profile, cell, source))
            sides = self._held_out(cell)
            held = {side: users[torch.from_numpy(members)] for side, (members, _) in sides.items()}
            outcomes.append(self._judged_once(run, sides, held, items, self._clip(cell)))
        return outcomes

    def _vector(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """One target vector for all users, whatever their source."""
        from ml.models.controls import VECTORS as FIT

        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            data, sides = self._cell_data(cell), self._held_out(cell)
            vector = data.complete(FIT[self.registered](data.problem)[None])
            held = {side: vector.repeat(len(members), 1) for side, (members, _) in sides.items()}
            outcomes.append(self._judged_once(run, sides, held, data.items, self._clip(cell)))
        return outcomes

    def _permuted(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """A trained model at its chosen epoch, on held-out users who each have the source of another."""
        from ml.models.controls import permuted

        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            model = restored(self._permuted_model(cell))
            if self.profile.registered(PERMUTED_MODEL) == DIFFUSION:
                outcomes.append(self._permuted_distribution(cell, run, model))
                continue
            data, sides = self._cell_data(cell), self._held_out(cell)
            held = {
                side: data.complete(model.transfer([permuted(getattr(data, side).users, cell.seed, side)])[0])
                for side in sides
            }
            outcomes.append(self._judged_once(run, sides, held, data.items, self._clip(cell)))
        return outcomes

    def _distribution(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """A model of ratings given what is known of the user, which predicts without target factors."""
        return self._best_trial(group, runs, partial(self._distribution_trial, group))

    def _distribution_trial(
        self, group: list[Cell], settings: dict[str, object], runs: "list[CellRun | None]"
    ) -> list[Outcome]:
        from ml.distribution.registry import build

        settings = dict(settings)
        registered = str(settings.pop("model"))
        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            description = describe(self.store, self.profile, cell, registered)
            data = transfer_ratings(self.store, self.profile, cell, description)
            model, watch = build(registered, **settings), Stopwatch()
            with watch:
                model.fit(data)
            log.info("%s %s: fitted in %.1f s", self.title, cell.key, watch.seconds)
            outcome = self._judged_distribution(cell, run, model, description)
            outcome.weights, outcome.model, outcome.settings = model.state_dict(), registered, settings
            trained = {"train_samples": len(data.target), "train_seconds": watch.seconds}
            outcome.speed = {"device": "cpu", "replicas": 1, **trained, **outcome.speed}
            outcomes.append(outcome)
        return outcomes

    def _permuted_distribution(self, cell: Cell, run: CellRun, model) -> Outcome:
        from ml.models.controls import shuffled

        description = describe(self.store, self.profile, cell, DIFFUSION)
        outcome = self._judged_distribution(cell, run, model, description, shuffled)
        outcome.speed = {}  # nothing was trained
        return outcome

    def _judged_distribution(
        self,
        cell: Cell,
        run: "CellRun | None",
        model,
        description: "Tensor",
        moved: Callable | None = None,
    ) -> Outcome:
        """The outcome of a fitted distribution; `moved` says whose description each user is given instead."""
        import torch

        levels = target_levels(self.store, cell)
        codes = torch.from_numpy(overlap_codes(self.store, cell.task, "source"))
        judged: dict[str, float] = {}
        for side, (members, ratings) in self._held_out(cell).items():
            rows = codes[torch.from_numpy(members)]
            rows = rows if moved is None else rows[moved(len(rows), cell.seed, side)]
            with Stopwatch() as watch:
                predicted = predict(model, description[rows], ratings, levels)
            judged |= {f"{side}_{name}": value for name, value in predicted.metrics(ratings).items()}
        if self.registered == DIFFUSION:
            joint = model.joint_log_likelihood(description[rows], ratings).sum().item() / len(ratings)
            judged["test_joint_log_likelihood"] = joint
        if run is not None:
            run.metrics(judged, 1)
        speed = {"test_samples": len(ratings), "test_users": len(members), "test_seconds": watch.seconds}
        return Outcome(curves=[{"epoch": 1, **judged}], predicted=predicted, speed=speed)

    def _judged_once(
        self,
        run: CellRun,
        sides: "dict[str, tuple[np.ndarray, Ratings]]",
        held: "dict[str, Tensor]",
        items: "Tensor",
        clip: tuple[float, float] | None,
    ) -> Outcome:
        """The outcome of what has no epochs: target factors of the held-out users by side, and the items'."""
        judged = self._judge(sides, held, items, clip)
        run.metrics(judged, 1)
        return Outcome(curves=[{"epoch": 1, **judged}], held=held, items=items)

    def _tgt(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """TGT needs no training of its own: the target factorization was judged at each epoch."""
        import torch

        outcomes = []
        for cell, run in zip(group, runs, strict=True):
            entry = self._target_factors(cell)
            users, items = joined(entry.tensors("factors.safetensors"))
            codes = torch.from_numpy(overlap_codes(self.store, cell.task, "target"))
            outcome = Outcome(curves=entry.table("curves.parquet").to_dict("records"), items=items)
            for row in outcome.curves:
                run.metrics({k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"]))
            for side, (members, _) in self._held_out(cell).items():
                outcome.held[side] = users[codes[torch.from_numpy(members)]]
            outcomes.append(outcome)
        return outcomes

    def _best_trial(self, group: list[Cell], runs: list[CellRun], attempt: Attempt) -> list[Outcome]:
        """Each cell's outcome under the settings that are best on its validation users; without trials, under
        the profile's settings, with the curves in MLflow while it trains."""
        trials = self.profile.trials(self.name, group[0].task)
        if len(trials) == 1:
            return attempt(trials[0], runs)
        for cell in group:
            if "validation" not in self._held_out(cell):
                raise ValueError(
                    f"{cell.key}: the split leaves no validation user to choose one of the {len(trials)} "
                    f"trials of {self.name} by; lower beta, add overlapping users or take the trials out of "
                    "the profile"
                )
        # Only the best outcome so far is kept: each holds its factors.
        best: list[Outcome | None] = [None] * len(group)
        tried: list[list[dict]] = [[] for _ in group]
        for settings in trials:
            for r, outcome in enumerate(attempt(settings, [None] * len(group))):
                tried[r].append({**settings, **self._validated(outcome)})
                if best[r] is None or self._cost(tried[r][-1]) < self._cost(self._validated(best[r])):
                    best[r] = outcome
        for outcome, rows, run in zip(best, tried, runs, strict=True):
            self._keep(outcome, rows, run)
        return best

    @property
    def _criterion(self) -> str:
        return f"validation_{self.objective.criterion}"

    def _validated(self, outcome: Outcome) -> dict[str, float]:
        """The chosen epoch of an outcome, and the criterion there: not what the test users say of it."""
        from ml.evaluation.selection import chosen_epoch

        row = outcome.curves[chosen_epoch(outcome.judged, self.objective) - 1]
        return {"epoch": row["epoch"], self._criterion: row[self._criterion]}

    def _cost(self, row: Mapping[str, float]) -> float:
        value = row[self._criterion]
        return np.inf if np.isnan(value) else -value if self.objective.higher_is_better else value

    def _keep(self, outcome: Outcome, rows: list[dict], run: CellRun) -> None:
        """Say in the outcome what was tried beside it, and log it."""
        costs = [self._cost(row) for row in rows]
        chosen = costs.index(min(costs))
        outcome.trials = [{**row, "chosen": number == chosen} for number, row in enumerate(rows)]
        for row in outcome.curves:
            run.metrics({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))
        settings = {k: v for k, v in rows[chosen].items() if k not in ("epoch", self._criterion)}
        run.params(_hyperparameters(settings))

    def _cmf(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        """One user table for both domains, trained by the same factorization; judged on the target items."""
        merged = [collective_table(self.store, self.profile, cell, self.objective.name) for cell in group]
        attempt = self._cmf_biased if self.profile.biased else self._cmf_plain
        return self._best_trial(group, runs, partial(attempt, group, merged))

    def _cmf_plain(
        self,
        group: list[Cell],
        merged: list[Collective],
        settings: dict[str, object],
        runs: "list[CellRun | None]",
    ) -> list[Outcome]:
        import torch

        from ml.factorization.adam import MatrixFactorization

        task = CATALOG.tasks[group[0].task]
        first_item = self.store.ratings(task.source).require()["items"]
        judges = [
            FactorJudge(
                self.store, self.profile, cell, self.objective.name, rows, first_item, self._clip(cell)
            )
            for cell, (_, rows) in zip(group, merged, strict=True)
        ]
        sides = [self._held_out(cell) for cell in group]
        given = {name: value for name, value in settings.items() if name != "model"}
        trainer = MatrixFactorization(**{**self.profile.factors(task.name), **given})
        outcomes, watch = [Outcome() for _ in group], Stopwatch()
        training = trainer.train(
            [table for table, _ in merged], f"cmf/{task.name}", self.compute.torch_device
        )
        for epoch in epochs(watch.time(training), trainer.epochs, f"{self.title} {span(group)}"):
            for r, (judge, outcome) in enumerate(zip(judges, outcomes, strict=True)):
                users, items = trainer.user_factors_[r].cpu(), trainer.item_factors_[r].cpu()
                if self._record(outcome, runs[r], epoch, r, judge(users, items)):
                    outcome.items = items[first_item:].clone()
                    for side, (members, _) in sides[r].items():
                        outcome.held[side] = users[torch.from_numpy(merged[r][1][members])].clone()
        samples = trainer.epochs * sum(len(table) for table, _ in merged)
        self._set_speed(outcomes, samples, watch.seconds, 0.0, sides)
        return outcomes

    def _cmf_biased(
        self,
        group: list[Cell],
        merged: list[Collective],
        settings: dict[str, object],
        runs: "list[CellRun | None]",
    ) -> list[Outcome]:
        """CMF with biases, a penalty and a weight of the source domain's ratings; one cell after another."""
        return [
            self._cmf_biased_cell(cell, both, settings, run)
            for cell, both, run in zip(group, merged, runs, strict=True)
        ]

    def _cmf_biased_cell(
        self, cell: Cell, merged: Collective, settings: dict[str, object], run: "CellRun | None"
    ) -> Outcome:
        import torch

        from ml.factorization.biased import BiasedFactorization

        task, (table, rows) = CATALOG.tasks[cell.task], merged
        first_item = self.store.ratings(task.source).require()["items"]
        ours = table.items >= first_item
        weight = torch.where(ours, 1.0, float(settings.get("source_weight", 1.0)))
        # Each domain's own mean, or the item biases would have to make up for it.
        means = [table.values[side].mean() for side in (~ours, ours)]
        offset = torch.where(ours, means[1], means[0])
        own = {name: value for name, value in settings.items() if name not in ("model", "source_weight")}
        trainer = BiasedFactorization(**own)
        outcome, watch, held_out = Outcome(), Stopwatch(), self._held_out(cell)
        for epoch in watch.time(trainer.train(table, f"cmf/{task.name}", weight, offset)):
            own_offset = trainer.item_offset_ + means[1]
            users, items = joined(
                {"users": trainer.user_factors_, "items": trainer.item_factors_, "offset": own_offset}
            )
            held = {side: users[torch.from_numpy(rows[members])] for side, (members, _) in held_out.items()}
            judged = self._judge(held_out, held, items[first_item:], self._clip(cell))
            if self._record(outcome, run, epoch, 0, judged):
                outcome.items, outcome.held = items[first_item:], held
        self._set_speed([outcome], trainer.sweeps * len(table), watch.seconds, 0.0, [held_out])
        return outcome

    def _transfer(self, group: list[Cell], runs: list[CellRun]) -> list[Outcome]:
        data = [self._cell_data(cell) for cell in group]
        return self._best_trial(group, runs, partial(self._transfer_trial, group, data))

    def _transfer_trial(
        self,
        group: list[Cell],
        data: list[CellData],
        settings: dict[str, object],
        runs: "list[CellRun | None]",
    ) -> list[Outcome]:
        """Train a registered transfer model and judge its map at each epoch."""
        from ml.models.registry import build

        settings = dict(settings)
        registered = settings.pop("model")
        model = build(registered, **settings)
        sides = [self._held_out(cell) for cell in group]
        outcomes, watch = [Outcome(d.items, registered, settings) for d in data], Stopwatch()
        training = model.train([d.problem for d in data], self.compute.torch_device)
        for epoch in epochs(watch.time(training), model.epochs, f"{self.title} {span(group)}"):
            transferred = _transfer_held_out(model, data)
            for r, outcome in enumerate(outcomes):
                judged = self._judge(sides[r], transferred[r], outcome.items, self._clip(group[r]))
                if self._record(outcome, runs[r], epoch, r, judged):
                    outcome.held, outcome.weights = transferred[r], model.state_dict(r)
        samples = model.epochs * sum(model.rows(d.problem) for d in data)
        transfer = fastest(lambda: model.transfer([d.test.users for d in data]))
        self._set_speed(outcomes, samples, watch.seconds, transfer, sides)
        return outcomes

    def _cell_data(self, cell: Cell) -> CellData:
        source = self._source_factors(cell).tensors("factors.safetensors")
        target = self._target_factors(cell).tensors("factors.safetensors")
        return cell_data(self.store, self.profile, cell, source, target, self.objective.name)

    def _held_out(self, cell: Cell) -> "dict[str, tuple[np.ndarray, Ratings]]":
        """Overlap rows and target ratings of the validation and test users, by side."""
        held_out = {s: held_out_ratings(self.store, self.profile, cell, role) for s, role in SIDES.items()}
        return {side: (members, ratings) for side, (members, ratings) in held_out.items() if len(members)}

    def _judge(
        self,
        sides: "dict[str, tuple[np.ndarray, Ratings]]",
        held: "dict[str, Tensor]",
        items: "Tensor",
        clip: tuple[float, float] | None,
    ) -> dict[str, float]:
        """Metrics of the held-out users' factors, under names that begin with the side."""
        from ml.evaluation.cold_start import measure

        return {
            f"{side}_{metric}": value
            for side, (_, ratings) in sides.items()
            for metric, value in measure(self.objective, held[side], items, ratings, clip=clip).items()
        }

    def _record(
        self,
        outcome: Outcome,
        run: "CellRun | None",
        epoch: "Epoch",
        replica: int,
        judged: dict[str, float],
    ) -> bool:
        """Add an epoch to the cell's curves, and to its MLflow run if any; whether it is the best so far."""
        from ml.evaluation.selection import chosen_epoch

        losses = {name: values[replica] for name, values in epoch.losses.items()}
        if run is not None:
            run.metrics({**losses, **judged}, epoch.number)
        outcome.curves.append({"epoch": epoch.number, **losses, **judged})
        return chosen_epoch(outcome.judged, self.objective) == len(outcome.curves)

    def _set_speed(
        self,
        outcomes: list[Outcome],
        samples: int,
        seconds: float,
        transfer_seconds: float,
        sides: "list[dict[str, tuple[np.ndarray, Ratings]]]",
    ) -> None:
        """Samples and seconds of the whole batched program, as the paper counts: rating rows."""
        from ml.evaluation.ratings import predict

        tested = [
            (o.held["test"], o.items, held_out["test"][1])
            for o, held_out in zip(outcomes, sides, strict=True)
        ]
        scoring = fastest(lambda: [predict(*test) for test in tested])
        speed = {
            "device": self.compute.device_name,
            "replicas": len(outcomes),
            "train_samples": samples,
            "train_seconds": seconds,
            "test_samples": sum(len(held_out["test"][1]) for held_out in sides),
            "test_users": sum(len(held_out["test"][0]) for held_out in sides),
            "test_seconds": transfer_seconds + scoring,
        }
        for outcome in outcomes:
            outcome.speed = speed

    # What is written.

    def _mlflow_run(self, cell: Cell) -> contextlib.AbstractContextManager[CellRun]:
        suffix = "" if self.objective.name == "rating" else f".{self.objective.name}"
        return self.tracking.run(
            model=f"{self.name}{suffix}",
            task=cell.task,
            beta=cell.beta,
            seed=cell.seed,
            profile=self.profile.name,
            params=self._parameters(cell.task),
            tags={
                **self.tags,
                "objective": self.objective.name,
                "dagster.partition": cell.key,
                "code_version": code_of(*self.profile.kinds(self.name)),
                "split_hash": self.store.split(cell).require()["manifest_hash"],
            },
            inputs=[
                DatasetRecord(name=domain, digest=raw["sha256"][:32], source=raw["source"], context=side)
                for side, domain in _domains(cell).items()
                for raw in [self.store.reviews(domain).require()]
            ],
        )

    def _parameters(self, task: str) -> dict[str, object]:
        """Every hyper-parameter with its value, defaults included, as MLflow shows it."""
        factors = {f"factors.{k}": v for k, v in self.profile.factors(task).items()}
        trials = self.profile.trials(self.name, task)
        # Of several trials the chosen one's are added when it is known.
        settings = _hyperparameters(trials[0]) if len(trials) == 1 else {}
        # Not `clip`: that is what DiffCDR calls its largest gradient norm.
        return {**factors, **settings, "clip_predictions": self.clips}

    def _write(self, cell: Cell, wanted: str, run: CellRun, outcome: Outcome) -> None:
        rows = metric_rows(outcome, self.objective)
        last = int(outcome.curves[-1]["epoch"])
        run.metrics(
            {f"{row['stage']}.{row['selection']}.{row['metric']}": row["value"] for row in rows}, last
        )
        run.flush()
        files = {
            "metrics.parquet": parquet(pd.DataFrame(rows)),
            "curves.parquet": parquet(pd.DataFrame(outcome.curves)),
            **self._weight_files(cell, run, outcome),
        }
        if outcome.held:
            own_items = {"items": outcome.items} if self.registered in ("cmf", *PREDICTORS) else {}
            files["users.safetensors"] = tensors({"users": outcome.held["test"], **own_items})
        if self.objective.name == "rating":
            files |= error_files(self.store, self.profile, cell, outcome, self.clips)
        if outcome.trials:
            files["trials.parquet"] = parquet(pd.DataFrame(outcome.trials))
        if outcome.speed:
            files["throughput.parquet"] = parquet(pd.DataFrame([outcome.speed]))
        self.entry(cell).write(
            files,
            wanted,
            mlflow_run_id=run.run_id,
            mlflow_url=run.url,
            test_users=len(self._held_out(cell)["test"][0]),
            warm_left_out=outcome.warm_left_out,
        )

    def _weight_files(self, cell: Cell, run: CellRun, outcome: Outcome) -> dict[str, bytes]:
        if not outcome.weights:
            return {}
        weights = tensors(outcome.weights)
        if self.name == self.registered == "diffcdr" and not self.profile.biased:
            widths = (self.profile.factors(cell.task)["k"], outcome.held["test"].shape[1])
            log_diffcdr(run, weights=weights, hyperparameters=outcome.settings, widths=widths)
        config = {"model": outcome.model, "hyperparameters": outcome.settings}
        return {"weights.safetensors": weights, "config.json": json.dumps(config, indent=1).encode()}


def _hyperparameters(settings: Mapping[str, object]) -> dict[str, object]:
    """The `model` of these settings and all its hyper-parameters, defaults included."""
    from ml.distribution import registry as distributions
    from ml.models.registry import MODELS, build

    given = {name: value for name, value in settings.items() if name != "model"}
    model = str(settings["model"])
    if model in MODELS or ":" in model:
        given = build(model, **given).hyperparameters()
    if model in distributions.MODELS:
        given = distributions.hyperparameters(distributions.build(model, **given))
    return {"model": model, **given}


def _domains(cell: Cell) -> dict[str, str]:
    task = CATALOG.tasks[cell.task]
    return {"source": task.source, "target": task.target}


def _transfer_held_out(model: "TransferModel", data: list[CellData]) -> "list[dict[str, Tensor]]":
    """Target factors of each replica's validation and test users."""
    out: list[dict] = [{} for _ in data]
    for side in SIDES:
        users = [getattr(d, side) for d in data]
        if None not in users:
            transferred = model.transfer([u.users for u in users])
            for result, each, factors in zip(out, data, transferred, strict=True):
                result[side] = each.complete(factors)
    return out
