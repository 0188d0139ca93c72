"""Figure 4: user vectors as t-SNE, and their distances to the true ones."""

from collections.abc import Mapping

import pandas as pd

from assets.report.names import Names
from assets.report.part import Chapter, Part, stored_picture
from assets.report.results import Source
from assets.report.summaries import strict_mean
from assets.report.table import UNDEFINED, Number, Table, table
from assets.settings.axes import Cell
from assets.training.choose import role
from assets.training.embeddings import USERS

COLUMNS = ["task", "beta", "seed", "model", "side", "nfe", "frechet", "mmd", "euclidean", "cosine"]
COLUMNS += ["undefined"]
MEASURES = {"frechet": "Fréchet²", "mmd": "MMD²", "euclidean": "Euclidean", "cosine": "Cosine"}
SIDES = {"train": "Training users", "test": "Test users"}
SOURCE = "source"  # the vectors that everything is transferred from
BEFORE = "_dim"  # behind a model's name: its vectors before alignment


def figure4_frame(distances: pd.DataFrame) -> pd.DataFrame:
    """Means over the analysed seeds of each distance: task, beta, side, model, nfe, …, cells, undefined."""
    grouped = distances.groupby(["task", "beta", "side", "model", "nfe"], dropna=False, sort=False)
    means = grouped[list(MEASURES)].agg(strict_mean)
    reasons = grouped["undefined"].agg(lambda texts: "; ".join(dict.fromkeys(texts.dropna())) or None)
    return means.assign(cells=grouped.size(), undefined=reasons).reset_index()


def figure4_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Rows task × β × vectors, columns the distances on training and on test users."""
    models = names.profile.models
    order = [SOURCE, *models, *(f"{model}{BEFORE}" for model in models)]
    known = frame[frame["model"].isin(order)]
    known = known.assign(rank=known["model"].map(order.index)).sort_values(["beta", "rank", "nfe"])
    # Vectors that nothing has transferred win nothing.
    references = {SOURCE, *(model for model in models if role(names.profile, model) == "blind")}
    lowest = known[~known["model"].isin(references)].groupby(["task", "beta", "side"])[list(MEASURES)].min()
    rows: dict[tuple, dict] = {}
    for task in names.in_order(known["task"]):
        for record in known[known["task"] == task].to_dict("records"):
            head = {
                "Task": names.task(task),
                "β": f"{record['beta']:.0%}",
                "Vectors": _vectors(record, names),
            }
            row = rows.setdefault(tuple(head.values()), head)
            best = lowest.loc[(task, record["beta"], record["side"])] if _wins(record, references) else {}
            for measure, title in MEASURES.items():
                # Similar vectors have a high cosine: there the best is not the lowest.
                is_best = measure != "cosine" and record[measure] == best.get(measure)
                row[SIDES[record["side"]], title] = Number(record[measure], "{:.3f}", best=is_best)
            row["Cells"] = f"{record['cells']}"
    reasons = known["undefined"].dropna().unique()
    notes = (f"{UNDEFINED}: {'; '.join(reasons)}.",) if len(reasons) else ()
    columns = [
        "Task",
        "β",
        "Vectors",
        *((side, title) for side in SIDES.values() for title in MEASURES.values()),
    ]
    return (
        [table("Distances", list(rows.values()), columns, keys=3, sections=True, notes=notes, folded=True)]
        if rows
        else []
    )


def _wins(record: Mapping, references: set[str]) -> bool:
    return record["model"] not in references


def _vectors(record: Mapping, names: Names) -> str:
    model = str(record["model"])
    if model == SOURCE:
        return "Source vectors"
    title = names.model(model.removesuffix(BEFORE))
    title += " before alignment" if model.endswith(BEFORE) else ""
    return title if pd.isna(record["nfe"]) else f"{title}, NFE {record['nfe']:.0f}"


def figure4_part(source: Source) -> Part:
    frame = figure4_frame(source.analysis("embeddings", "distances.parquet", COLUMNS))
    notes = (
        "t-SNE keeps neighbours, not distances: that two clouds touch or lie apart in the picture proves "
        "nothing. The table measures it: each model's vectors against those of a factorization that saw "
        "the test users' ratings. Fréchet² and MMD² (RBF kernel, median bandwidth) compare the clouds, "
        "Euclidean and cosine are means over users; lower is closer, but for cosine higher. Means over "
        "the analysed cells. TGT is trained for training users and for test users never, so it starts "
        "where the truth started.",
    )
    pictures = [
        stored_picture(
            entry,
            "figure4",
            f"figure4-{cell.task}",
            _caption(cell, source.names),
        )
        for cell, entry in source.analysed("embeddings").items()
    ]
    tables, title = figure4_tables(frame, source.names), f"Figure 4. User vectors. {source.profile.title}"
    return Part("figure4", title, frame, tables, notes, "", pictures)


def _caption(cell: Cell, names: Names) -> str:
    return (
        f"Figure 4. {names.task(cell.task)}, β = {cell.beta:.0%}, seed {cell.seed}: t-SNE of up to {USERS} "
        "users (the paper: 1000; distances are of all). (a) training and (b) test users by model, black is "
        "the truth; (c) training and (d) test users by DiffCDR's number of function evaluations, grey is the "
        "source domain."
    )


FIGURE4 = Chapter(
    "figure4",
    "User vectors",
    "Whether transferred vectors lie where the users' true vectors are.",
    "Figure 4: user vectors as t-SNE, and their distances to the true ones.",
    figure4_part,
    lambda profile: ["embeddings"],
    lambda profile: profile.plain,
    reproduces=True,
)
