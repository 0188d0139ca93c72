"""The model card of a registered version: data, protocol, metrics beside the simple rows, known limits."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from assets.serving.bundle import Bundle
from assets.serving.choice import LISTS, STARS, Chosen, current
from assets.serving.gate import METRICS, Judged, counted
from assets.settings.axes import Axes, Cell
from assets.settings.profile import Profile
from assets.state.store import Store

# Test metrics by objective; what only some models have is shown where any has it.
SHOWN = {
    STARS: {"rmse": "RMSE", "mae": "MAE", "crps": "CRPS", "calibration_error": "calibration error"},
    LISTS: {"ndcg@20": "nDCG@20", "recall@20": "recall@20", "hr@20": "hit rate@20"},
}
TITLES = {STARS: "Stars", LISTS: "Lists"}


def model_card(
    store: Store,
    axes: Axes,
    profile: Profile,
    cell: Cell,
    chosen: Chosen,
    bundle: Bundle,
    judged: Sequence[Judged],
    forced: str = "",
) -> str:
    """Markdown. forced: why the version would have been refused, "" where it would not."""
    overlap, split = store.overlap(cell.task).require(), store.split(cell).require()
    roles = ", ".join(f"{count} {role}" for role, count in split["counts"].items())
    source, target = cell.source, cell.target
    runs = {
        each.name: store.model(profile.name, each.name, cell, each.objective).require().get("mlflow_run_id")
        for each in chosen.all
    }
    recorded = ", ".join(f"{name} in MLflow run {run or 'unknown'}" for name, run in runs.items())
    warning = [f"> **Warning: promoted by force.** {forced}", ""] if forced else []
    if source.synthetic or target.synthetic:
        warning += ["> **The data are synthetic**, and no evidence for or against any model.", ""]
    return "\n".join(
        [
            f"# Recommender of {cell.task}: {bundle.names}",
            "",
            *warning,
            f"Recommends items of {target.name} to users known from {source.name} alone, and says which "
            f"stars to expect. Trained on cell `{cell.key}` of profile {profile.name} ({profile.title}): "
            f"{recorded}.",
            "",
            "## Data",
            "",
            *_domains(store, {"source": source.name, "target": target.name}),
            "",
            f"Overlap: {overlap['users']} users are in both domains, {overlap['without_liked']} of them "
            f"without a source rating above {source.liked_above:g}.",
            "",
            "## Protocol",
            "",
            f"Of the overlapping users: {roles}. The target ratings of validation and test users are hidden "
            "from all training. Models were chosen on validation users; test values are those of the epoch "
            "that validation chose.",
            "",
            *(line for each in judged for line in _metrics(store, axes, profile, cell.task, each)),
            "## Known limits",
            "",
            "- Offline errors on held-out ratings; users do not rate a random sample of items.",
            *_lists_limit(chosen),
            "- Users without source ratings get popular items, the same for all, and are told so.",
            "- Items without a rating in training are never listed; their predicted ratings are noise.",
            "- A new user is folded in with the source items as they are: few ratings leave them near the "
            "mean user. Ratings that arrive later change nothing until the next training.",
        ]
    )


def _lists_limit(chosen: Chosen) -> list[str]:
    if chosen.lists.objective == LISTS:
        return []
    return [
        "- The profile trains no model for lists: they are ordered by predicted stars, and were not compared "
        "with popularity."
    ]


def _domains(store: Store, domains: Mapping[str, str]) -> list[str]:
    rows = ["| side | domain | ratings | users | items | SHA-256 of the raw file |"]
    rows.append("|---|---|---:|---:|---:|---|")
    for side, name in domains.items():
        facts, raw = store.ratings(name).require(), store.reviews(name).require()
        counts = " | ".join(str(facts[key]) for key in ("ratings", "users", "items"))
        rows.append(f"| {side} | {name} | {counts} | `{raw['sha256'][:16]}…` |")
    return rows


def _metrics(store: Store, axes: Axes, profile: Profile, task: str, judged: Judged) -> list[str]:
    """A section of an objective: means over the compared cells, the best first."""
    cells = [cell for cell in axes.of_task(task) if cell.key in set(judged.scores.index)]
    tested = _tested(store, axes, profile, cells, judged)
    shown = {name: title for name, title in SHOWN[judged.objective].items() if name in tested}
    validation = METRICS[judged.objective]
    lines = [f"## {TITLES[judged.objective]}", "", f"Means of {counted(judged.scores)}.", ""]
    if judged.lacking:
        lines += [f"**{judged.not_compared}.**", ""]
    lines.append(f"| model | validation {validation} | {' | '.join(f'test {t}' for t in shown.values())} |")
    lines.append("|---|---:|" + "---:|" * len(shown))
    for name, value in judged.means.items():
        test = [tested[metric].get(name, math.nan) for metric in shown]
        title = f"{name} (simple)" if name in judged.rivals else name
        title = f"**{name}**" if name == judged.best else title
        lines.append(f"| {title} | {' | '.join(f'{number:.4f}' for number in (value, *test))} |")
    if "crps" in shown:
        lines += [
            "",
            "RMSE is that of the predicted mean. Of a model with a CRPS, MAE is that of the median.",
        ]
    return [*lines, ""]


def _tested(
    store: Store, axes: Axes, profile: Profile, cells: Sequence[Cell], judged: Judged
) -> pd.DataFrame:
    """Test metrics (columns) of each model (rows), at the epoch that validation chose."""
    parts = []
    for name in judged.scores:
        for cell in cells:
            entry = current(store, axes.catalog, profile, cell, name, judged.objective)
            if entry is not None and entry.has("metrics.parquet"):
                parts.append(entry.table("metrics.parquet").assign(model=name))
    if not parts:
        return pd.DataFrame()
    rows = pd.concat(parts)
    rows = rows[(rows["stage"] == "cold") & (rows["selection"] == "validation")]
    return rows.pivot_table(index="model", columns="metric", values="value")
