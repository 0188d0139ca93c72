"""The search for λ and s of DiffCDR on validation users, one asset a profile (the paper, section 4.1).

All variants of a cell are trained as one batched program on the same data and draws. They share one diffusion
module, whose loss contains neither λ nor s.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd

from assets.data.cell import Gate
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import Catalog
from assets.settings.profile import SEARCHED, Profile
from assets.state import plots
from assets.state.code import code_of
from assets.state.compute import Compute, gpu_tags
from assets.state.progress import epochs
from assets.state.store import Entry, Store, fingerprint, parquet
from assets.state.tracking import CellRun, MlflowTracking
from assets.training.fingerprints import Fingerprints
from assets.training.run import dataset_records
from assets.training.trials import Trials, of_space

if TYPE_CHECKING:
    from ml.data import HeldOut, Problem

log = logging.getLogger("diffcdr")
CODE = code_of("assets.training.search:Search", "ml.models.diffcdr:DiffCDR")
GRID = ("task_weight", "guidance")
SYMBOLS = {"task_weight": "λ", "guidance": "s"}
# What the paper's own search ended with: λ in its code, s in section 4.1.
PAPER = {"task_weight": 0.1, "guidance": 0.1}
METRICS = {"validation_mae": "validation MAE", "validation_rmse": "validation RMSE"}


def search_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The search of a profile that has a grid."""
    count = len(profile.search.grid)

    @dg.asset(
        name="search",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=["split", *(dg.AssetKey([profile.name, key]) for key in ("source_factors", "target_factors"))],
        group_name=profile.group("analysis"),
        kinds={"pytorch", "mlflow"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=axes.seeds_together,
        pool="gpu",
        op_tags=gpu_tags(True),
        description=f"Grid search for the task weight λ and the guidance s of DiffCDR: {count} trainings in "
        f"one batch, judged on validation users alone. Profile: {profile.title}.",
    )
    def search(
        context: dg.AssetExecutionContext, store: Store, compute: Compute, tracking: MlflowTracking
    ) -> None:
        tags = {"dagster.run_id": context.run.run_id, "dagster.asset": f"{profile.name}/search"}
        for key in context.partition_keys:
            entry = Search(store, compute, tracking, axes.catalog, profile, tags).run(axes.parse(key))
            context.add_asset_metadata(_metadata(entry), partition_key=key)

    return search


def grid(profile: Profile, cell: Cell) -> Trials:
    """The trials of a profile's search, λ-major and rising: each a task_weight and a guidance."""
    return of_space(profile.search, {}, cell.seed)


def searched_settings(profile: Profile, cell: Cell) -> dict[str, object]:
    """DiffCDR's hyper-parameters without those that are searched for."""
    return {name: value for name, value in profile.model(SEARCHED, cell.task).items() if name not in GRID}


def search_fingerprint(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> str:
    """The fingerprint of a finished cell: settings, grid, code and everything it is computed from."""
    fingerprints = Fingerprints(store, catalog, profile)
    return fingerprint(
        code=CODE,
        settings=searched_settings(profile, cell),
        grid=profile.search.as_json(),
        inputs=[fingerprints.source_factors(cell, "rating"), fingerprints.target_factors(cell, "rating")],
    )


@dataclass
class Search:
    """Searches the grid of a profile on one cell after another."""

    store: Store
    compute: Compute
    tracking: MlflowTracking
    catalog: Catalog
    profile: Profile
    tags: Mapping[str, str]

    def run(self, cell: Cell) -> Entry:
        """The cell's folder, written unless it is there and up to date."""
        entry, expected = self.store.search(self.profile.name, cell), self.fingerprint(cell)
        title = f"{self.profile.name}/search {cell.key}"
        if entry.is_current(expected):
            log.info("%s: up to date", title)
            return entry
        trials = grid(self.profile, cell)
        # A grid learns nothing on the way, so that all its variants are asked for and trained together.
        variants = [trials.ask() for _ in range(len(trials))]
        with contextlib.ExitStack() as stack:
            parent = stack.enter_context(self._parent_run(cell))
            nested = [
                stack.enter_context(self._nested_run(cell, parent, trials.label(v), v)) for v in variants
            ]
            surface = choose(self._train(cell, variants, nested, title), trials)
            self._write(entry, expected, parent, surface, trials)
        return entry

    def fingerprint(self, cell: Cell) -> str:
        return search_fingerprint(self.store, self.catalog, self.profile, cell)

    def _data(self, cell: Cell) -> "tuple[Problem, HeldOut]":
        """What to train on and the validation users; the test users stay behind here."""
        gate = Gate(self.store, self.profile, cell, needs=("factors",))
        return gate.data.problem, gate.held_out("validation")

    def _train(
        self, cell: Cell, variants: list[dict[str, float]], runs: list[CellRun], title: str
    ) -> pd.DataFrame:
        """Validation errors of every variant at every epoch."""
        from ml.evaluation.cold_start import measure
        from ml.evaluation.selection import RATING
        from ml.models.registry import build

        model = build(SEARCHED, **searched_settings(self.profile, cell))
        problem, validation = self._data(cell)
        rows = []
        training = model.train([problem] * len(variants), self.compute.torch_device, variants)
        for epoch in epochs(training, model.epochs, title):
            transferred = model.transfer([validation.users.factors] * len(variants))
            for r, (variant, run) in enumerate(zip(variants, runs, strict=True)):
                errors = measure(RATING, transferred[r], problem.target_items, validation.ratings)
                judged = {name: errors[name.removeprefix("validation_")] for name in METRICS}
                run.metrics({**{name: v[r] for name, v in epoch.losses.items()}, **judged}, epoch.number)
                rows.append({**variant, "epoch": epoch.number, **judged})
        return pd.DataFrame(rows)

    def _parent_run(self, cell: Cell) -> contextlib.AbstractContextManager[CellRun]:
        inputs = dataset_records(self.store, cell)
        return self.tracking.run(
            **self._about(cell), params=searched_settings(self.profile, cell), inputs=inputs
        )

    def _nested_run(
        self, cell: Cell, parent: CellRun, name: str, variant: dict[str, float]
    ) -> contextlib.AbstractContextManager[CellRun]:
        return self.tracking.run(
            **self._about(cell), params=variant, inputs=(), parent=parent.run_id, variant=name
        )

    def _about(self, cell: Cell) -> dict[str, object]:
        tags = {
            **self.tags,
            "dagster.partition": cell.key,
            "code_version": CODE,
            "split_hash": self.store.split(cell).require()["manifest_hash"],
        }
        where = {"task": cell.task, "beta": cell.beta, "seed": cell.seed}
        return {"model": "search", "profile": self.profile.name, **where, "tags": tags}

    @staticmethod
    def _write(entry: Entry, expected: str, run: CellRun, surface: pd.DataFrame, trials: Trials) -> None:
        best = surface[surface["chosen"]].iloc[0]
        run.params({f"best_{name}": best[name] for name in (*GRID, "epoch")})
        run.metrics({name: best[name] for name in METRICS})
        run.flush()
        image = heat_maps(surface)
        run.figure(image, "surface.png")
        entry.write(
            {
                "surface.parquet": parquet(surface),
                "surface.png": image,
                "trials.parquet": parquet(trials.results),
                "study.json": json.dumps(trials.study, indent=1).encode(),
            },
            expected,
            **run.facts,
        )


def choose(judged: pd.DataFrame, trials: Trials) -> pd.DataFrame:
    """`judged` with the column `chosen`, true in one row: the best trial's at its best epoch, by RMSE.

    judged: one row per epoch and variant, with the columns of GRID, epoch and METRICS, the variants as they
    were asked of `trials`, which are told here. Raises ValueError where no variant has a finite error.
    """
    rmse = judged["validation_rmse"].where(np.isfinite(judged["validation_rmse"]))
    if rmse.isna().all():
        raise ValueError(f"every variant of the search diverged: lower {SEARCHED}'s lr in the profile")
    epochs_of = rmse.groupby([judged[name] for name in GRID], sort=False)
    best = [rows.idxmin() if rows.notna().any() else rows.index[0] for _, rows in epochs_of]
    for number, row in enumerate(judged.loc[best, ["epoch", *METRICS]].to_dict("records")):
        trials.tell(number, row["validation_rmse"], row)
    return judged.assign(chosen=judged.index == best[trials.best])


def at_best_epoch(surface: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The lowest `metric` of each variant over its epochs: rows λ, columns s; NaN where it diverged."""
    finite = surface[metric].where(np.isfinite(surface[metric]))
    return finite.groupby([surface[name] for name in GRID]).min().unstack()


def heat_maps(surface: pd.DataFrame) -> bytes:
    """MAE and RMSE over λ and s as PNG, each variant at its best epoch, each map's best cell framed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        _heat_map(axes, at_best_epoch(surface, metric), title)
    return plots.png(figure)


def _heat_map(axes, values: pd.DataFrame, title: str) -> None:
    from matplotlib.patches import Rectangle

    # A variant that went astray would leave no colours for the others.
    low, high = np.nanquantile(values, [0, 0.9])
    axes.imshow(values, cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > (low + high) / 2 else "black"
        axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=8)
    row, column = np.unravel_index(np.nanargmin(values), values.shape)
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2.5)
    axes.add_patch(frame)
    axes.set_xticks(range(values.shape[1]), [f"{s:g}" for s in values.columns])
    axes.set_yticks(range(values.shape[0]), [f"{weight:g}" for weight in values.index])
    axes.set_xlabel(f"{SYMBOLS['guidance']} (guidance)")
    axes.set_ylabel(f"{SYMBOLS['task_weight']} (task weight)")
    axes.set_title(f"{title} at each cell's best epoch")


def _metadata(entry: Entry) -> dict:
    """What the asset page shows: the surface, the chosen λ and s, and the errors there and at the paper's."""
    facts, surface = entry.require(), entry.table("surface.parquet")
    best = surface[surface["chosen"]].iloc[0]
    image = entry.read("surface.png")
    return {
        "dagster/row_count": len(surface),
        **{f"{SYMBOLS[name]} ({name})": float(best[name]) for name in GRID},
        "epoch": int(best["epoch"]),
        **{metric: float(best[metric]) for metric in METRICS},
        **_at_paper(surface),
        **({"mlflow_run": dg.MetadataValue.url(facts["mlflow_url"])} if "mlflow_url" in facts else {}),
        "surface": dg.MetadataValue.md(plots.as_markdown(image, "validation error over λ and s")),
    }


def _at_paper(surface: pd.DataFrame) -> dict[str, float]:
    """Validation errors at the paper's λ and s, at its epoch of the lowest RMSE; nothing outside the grid."""
    mine = surface[(surface[list(GRID)] == pd.Series(PAPER)).all(axis=1)]
    mine = mine[np.isfinite(mine["validation_rmse"])]
    if mine.empty:
        return {}
    row = mine.loc[mine["validation_rmse"].idxmin()]
    return {f"{metric}_at_paper": float(row[metric]) for metric in METRICS}
