"""Figure 4: where each model puts the users, beside where they would be if all their ratings were known.

The ground truth is a further target factorization, trained on the test users' ratings too (paper section
4.4). It starts from the same initial vectors as the target factors, so that both have the same axes.
"""

import io
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pandas as pd

from assets.data.cell import Gate, source_factors, source_table
from assets.settings.axes import Axes, Cell, span
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state import plots
from assets.state.code import code_of
from assets.state.compute import Compute, gpu_tags
from assets.state.progress import epochs
from assets.state.store import Entry, NotMaterialized, Store, fingerprint, parquet
from assets.training.fingerprints import Fingerprints
from ml.models.registry import MODELS, facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from ml.data import SourceUsers
    from ml.models.outputs import Variant

log = logging.getLogger("diffcdr")
CODE = code_of("assets.training.embeddings:analyse")
USERS = 250  # of each side in the figure; the paper shows 1000, which takes four times as long
ITERATIONS = 500  # of t-SNE: half of scikit-learn's default, in half the time
POINTS = ["panel", "series", "user", "x", "y"]
SIDES = {"train": "training users", "test": "test users"}
TRUTH, SOURCE, BASE = "truth", "source", "tgt"
PANELS = {"a": ("models", "train"), "b": ("models", "test"), "c": ("nfe", "train"), "d": ("nfe", "test")}
SHOWS = {"models": "models", "nfe": "DiffCDR by function evaluations"}
COLOURS = (
    "tab:blue",
    "tab:orange",
    "tab:purple",
    "tab:red",
    "tab:cyan",
    "tab:pink",
    "tab:brown",
    "tab:olive",
)
OWN_COLOURS = {TRUTH: "black", SOURCE: "tab:gray", "diffcdr_dim": "tab:green", "nfe 30": "tab:green"}
SIZE = 5  # of a marker, in square points
NOTE = (
    "Distances to the ground truth, a factorization that has seen the test users' ratings. `frechet` and "
    "`mmd` are squared and compare clouds; `euclidean` and `cosine` are means over users. `source` is the "
    "vector before transfer; `tgt` the target factors themselves: trained for training users, which is the "
    "floor, and untrained for test users, where they are the very vectors that the ground truth started "
    "from, so that they look closer than they are useful. `diffcdr_dim` is DIM's output before alignment, "
    "which the figure shows."
)


@dataclass(frozen=True)
class Side:
    """The users of one role. rows: (n,) int64 of the overlap table; truth, base: (n, k) float32, their
    vectors in the ground truth and in the target factors that the models were trained on."""

    rows: np.ndarray
    source: "SourceUsers"
    truth: "Tensor"
    base: "Tensor"


@dataclass(frozen=True)
class Inputs:
    """The entries of a cell that the analysis reads; models holds those that have weights."""

    source: Entry
    target: Entry
    models: Mapping[str, Entry]


def embeddings_asset(axes: Axes, profile: Profile) -> dg.AssetsDefinition:
    """The embedding analysis of one profile."""
    upstream = ["source_factors", "target_factors", *profile.models]

    @dg.asset(
        name="embeddings",
        key_prefix=profile.name,
        partitions_def=axes.cells,
        deps=[dg.AssetKey([profile.name, name]) for name in upstream],
        group_name=profile.group("analysis"),
        kinds={"pytorch", "scikitlearn", "parquet"},
        owners=["team:recsys"],
        code_version=CODE,
        backfill_policy=axes.seeds_together,
        pool="gpu",
        op_tags=gpu_tags(True),
        description="Figure 4: transferred user vectors beside the true ones as t-SNE, and their distances. "
        f"Profile: {profile.title}.",
    )
    def embeddings(context: dg.AssetExecutionContext, store: Store, compute: Compute) -> None:
        for group in axes.by_task(context.partition_keys).values():
            analyse(store, compute, axes.catalog, profile, group)
            for cell in group:
                metadata = _metadata(store.embeddings(profile.name, cell))
                context.add_asset_metadata(metadata, partition_key=cell.key)

    return embeddings


def analyse(store: Store, compute: Compute, catalog: Catalog, profile: Profile, group: list[Cell]) -> None:
    """Write the analysis of a task's cells that are missing or stale."""
    expected = {cell: embeddings_fingerprint(store, catalog, profile, cell) for cell in group}
    pending = [cell for cell in group if not store.embeddings(profile.name, cell).is_current(expected[cell])]
    if not pending:
        log.info("%s/embeddings %s: up to date", profile.name, span(group))
        return
    for cell in pending:
        _require_current(store, catalog, profile, cell)
    truth = train_truth(store, compute, profile, pending)
    for cell in pending:
        inputs = cell_inputs(store, profile, cell)
        sides = cell_sides(store, profile, cell, inputs, truth[cell.seed])
        vectors = {side: vectors_of(profile, inputs, users) for side, users in sides.items()}
        distances = compare_all(vectors, sides, cell.seed)
        points = project_all(vectors, sides, cell)
        files = {
            "distances.parquet": parquet(distances),
            "points.parquet": parquet(points),
            "figure4.png": _saved(figure(points), "png", dpi=150),
            "figure4.svg": _saved(figure(points), "svg", dpi=150),
        }
        facts = {"users": {side: len(users.rows) for side, users in sides.items()}}
        store.embeddings(profile.name, cell).write(
            files, expected[cell], models=sorted(inputs.models), **facts
        )


def cell_inputs(store: Store, profile: Profile, cell: Cell) -> Inputs:
    """What the analysis of a cell reads, of the models trained for rating.

    Only models that map factors: TGT maps nothing, and CMF has axes of its own. A model that has not
    been trained yet is left out. Raises NotMaterialized where none has been.
    """
    entries = {name: store.model(profile.name, name, cell) for name in profile.models}
    models = {
        name: entry
        for name, entry in entries.items()
        if entry.manifest() is not None and "factors" in profile.facts[profile.kind(name)].needs
    }
    if not models:
        raise NotMaterialized(
            f"no model of profile {profile.name} has weights for {cell.key}: materialize one of "
            f"{', '.join(profile.models)} first (`diffcdr run` does it)"
        )
    return Inputs(
        source=source_factors(store, profile, cell),
        target=store.target_factors(profile.name, cell),
        models=models,
    )


def _require_current(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> None:
    """Raise NotMaterialized, naming it, where a model that is shown, or what made it, is out of date."""
    fingerprints = Fingerprints(store, catalog, profile)
    for name, entry in cell_inputs(store, profile, cell).models.items():
        fingerprints.require_inputs(name, cell, "rating")
        entry.require_current(fingerprints.model(name, cell, "rating"))


def embeddings_fingerprint(store: Store, catalog: Catalog, profile: Profile, cell: Cell) -> str:
    """The fingerprint of a cell's analysis: settings, code and everything it is computed from."""
    inputs, fingerprints = cell_inputs(store, profile, cell), Fingerprints(store, catalog, profile)
    models = {name: fingerprints.model(name, cell, "rating") for name in inputs.models}
    return fingerprint(code=CODE, settings=profile.factors(cell.task), models=models)


def train_truth(store: Store, compute: Compute, profile: Profile, group: list[Cell]) -> "dict[int, Tensor]":
    """The ground truth of a task by seed: user factors (users, k) trained on all target ratings.

    No split enters, so cells that differ in β alone share it. The target factors have the same seed and
    purpose, hence the same initial vectors.
    """
    from ml.factorization.adam import MatrixFactorization

    task, seeds = group[0].task, sorted({cell.seed for cell in group})
    trainer = MatrixFactorization(**profile.factors(task))
    tables = [source_table(store, group[0].target.name, seed) for seed in seeds]
    training = trainer.train(tables, f"target/{task}", compute.torch_device)
    for _ in epochs(training, trainer.epochs, f"{profile.name}/embeddings ground truth {span(group)}"):
        pass
    return {seed: users.cpu() for seed, users in zip(seeds, trainer.user_factors_, strict=True)}


def cell_sides(
    store: Store, profile: Profile, cell: Cell, inputs: Inputs, truth: "Tensor"
) -> dict[str, Side]:
    """Training and test users of a cell; `truth` (users, k) is the ground truth of all target users."""
    gate = Gate(store, profile, cell, needs=("factors",))
    sides = {"train": gate.data.train, "test": gate.held_out("test").users}
    base = gate.factors["target"]["users"]
    return {
        side: Side(gate.members(side), users.factors, truth[users.target_rows], base[users.target_rows])
        for side, users in sides.items()
    }


def vectors_of(profile: Profile, inputs: Inputs, users: Side) -> "dict[Variant, np.ndarray]":
    """The vectors (n, k) float32 that everything gives the users of one side."""
    from ml.models.outputs import Variant, transferred
    from ml.models.registry import build

    vectors = {Variant(SOURCE): users.source.factors, Variant(BASE): users.base}
    for name, entry in inputs.models.items():
        config = json.loads(entry.read("config.json"))
        model = build(config["model"], **config["hyperparameters"])
        model.load_state_dict(entry.tensors("weights.safetensors"))
        vectors |= transferred(name, model, users.source)
    return {variant: tensor.numpy() for variant, tensor in vectors.items()}


def compare_all(
    vectors: "Mapping[str, Mapping[Variant, np.ndarray]]", sides: Mapping[str, Side], seed: int
) -> pd.DataFrame:
    """Distances of every variant to the ground truth over all users of a side: one row a variant and side.

    Columns: model, side, nfe (null where there is no solver), frechet, mmd, euclidean, cosine, undefined.
    """
    from ml.evaluation.embedding import compare, typical_distance

    rows = []
    for side, variants in vectors.items():
        truth = sides[side].truth.numpy()
        bandwidth = typical_distance(truth, seed)
        for variant, found in variants.items():
            row = {"model": variant.model, "side": side, "nfe": variant.nfe}
            rows.append(row | asdict(compare(found, truth, bandwidth, seed)))
    frame = pd.DataFrame(rows).astype({"nfe": "Int64", "undefined": "string"})
    for row in frame[frame["undefined"].notna()].itertuples():
        log.warning("%s on %s: no distances, %s", row.model, SIDES[row.side], row.undefined)
    return frame.astype({name: float for name in ("frechet", "mmd", "euclidean", "cosine")})


def project_all(
    vectors: "Mapping[str, Mapping[Variant, np.ndarray]]", sides: Mapping[str, Side], cell: Cell
) -> pd.DataFrame:
    """The t-SNE coordinates of Figure 4: panel, series, user (row of the overlap table), x, y float32."""
    frames = []
    for panel, (_, side) in PANELS.items():
        start = time.perf_counter()
        projected = project_panel(panel, vectors[side], sides[side], cell.seed)
        count, seconds = sum(map(len, projected)), time.perf_counter() - start
        log.info("%s figure 4 (%s): t-SNE of %d points in %.1f s", cell.key, panel, count, seconds)
        frames += projected
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=POINTS)


def project_panel(
    panel: str, variants: "Mapping[Variant, np.ndarray]", users: Side, seed: int
) -> list[pd.DataFrame]:
    """One joint t-SNE of a panel over at most USERS users: a frame for each series that it shows."""
    from ml.evaluation.embedding import project, sample

    shows, side = PANELS[panel]
    chosen = sample(len(users.rows), USERS, seed, f"figure4/{side}")
    series = shown_models(variants) if shows == "models" else shown_nfe(variants)
    tables = {name: variants[variant] for name, variant in series.items()}
    if tables:
        tables[TRUTH] = users.truth.numpy()
    points = project({name: table[chosen] for name, table in tables.items()}, seed, ITERATIONS)
    return [
        pd.DataFrame(
            {"panel": panel, "series": name, "user": users.rows[chosen], "x": xy[:, 0], "y": xy[:, 1]}
        )
        for name, xy in points.items()
    ]


def shown_models(variants: "Iterable[Variant]") -> "dict[str, Variant]":
    """The series of panels a and b: every model once, by the output of DIM where it has one."""
    variants = list(variants)
    shown = {}
    for variant in variants:
        before_alignment = variant._replace(model=f"{variant.model}_dim")
        chosen = before_alignment if before_alignment in variants else variant
        if variant.model not in (SOURCE, BASE) and not variant.model.endswith("_dim"):
            shown[chosen.model] = chosen
    return shown


def shown_nfe(variants: "Iterable[Variant]") -> "dict[str, Variant]":
    """The series of panels c and d: the source, and the first model with DIM by function evaluations."""
    from ml.models.outputs import NFE, Variant

    with_dim = [variant for variant in variants if variant.model.endswith("_dim") and variant.nfe in NFE]
    shown = {f"nfe {v.nfe}": v for v in with_dim if v.model == with_dim[0].model}
    return {SOURCE: Variant(SOURCE), **shown} if shown else {}


def figure(points: pd.DataFrame) -> "Figure":
    """Figure 4 from the coordinates, two panels a row, with black triangles for the ground truth."""
    from matplotlib.figure import Figure

    panels = list(points["panel"].unique())
    rows = max(1, -(-len(panels) // 2))
    drawn = Figure(figsize=(10, 5.2 * rows), layout="constrained")
    for place, panel in enumerate(panels, 1):
        _draw(drawn.add_subplot(rows, 2, place), panel, points[points["panel"] == panel])
    return drawn


def _draw(axes: "Axes", panel: str, points: pd.DataFrame) -> None:
    shows, side = PANELS[panel]
    free = cycle(COLOURS)
    names = list(points["series"].unique())
    for place, name in enumerate(names):
        series = points[points["series"] == name]
        solve = name.startswith("nfe")
        axes.scatter(
            series["x"],
            series["y"],
            # Solves of one user nearly meet: the coarser ones are larger and show around the finer.
            s=SIZE * (len(names) - 1 - place) if solve else SIZE,
            marker="^" if name == TRUTH else "o",
            color=OWN_COLOURS.get(name) or next(free),
            linewidths=0,
            alpha=1 if solve or name == TRUTH else 0.6,
            zorder=3 if name == TRUTH else 2,
            label=_label(name),
            # An SVG of as many paths as there are points would be slow to open.
            rasterized=True,
        )
    axes.set_title(f"({panel}) {SHOWS[shows]}, {SIDES[side]}")
    axes.set(xticks=[], yticks=[])  # the axes of a t-SNE mean nothing
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[40])


def _label(series: str) -> str:
    if series.startswith("nfe"):
        return series.upper()
    name = series.removesuffix("_dim")
    title = "ground truth" if name == TRUTH else facts(name).title if name in MODELS else name
    return title + " (DIM)" * series.endswith("_dim")


def _saved(drawn: "Figure", kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # Without a date equal points give equal files.
    drawn.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _preview(points: pd.DataFrame) -> bytes:
    """The figure as PNG in few colours: metadata is kept in Dagster's database, the large one on disk."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(_saved(figure(points), "png", dpi=80)))
    picture.convert("RGB").quantize(64).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _metadata(entry: Entry) -> dict:
    facts, distances, points = (
        entry.require(),
        entry.table("distances.parquet"),
        entry.table("points.parquet"),
    )
    return {
        "dagster/row_count": len(points),
        "models": ", ".join(facts["models"]),
        "figure4": dg.MetadataValue.md(plots.as_markdown(_preview(points), "Figure 4")),
        "distances": dg.MetadataValue.md(f"{distances.to_markdown(index=False, floatfmt='.4g')}\n\n{NOTE}"),
        "files": dg.MetadataValue.path(str(entry.path)),
    }
