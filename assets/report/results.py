"""The one reader: a number is shown only from a sealed entry that today's settings, code and inputs give.

`Source` reads a profile's entries; what is stale or missing is counted and named, never averaged in.
`read_results` is the contract that scripts rely on (`diffcdr results`).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from assets.report.names import Names
from assets.settings.axes import Axes, Cell
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.store import Damaged, Entry, NotMaterialized, Store

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("diffcdr")
COLUMNS = ["profile", "task", "beta", "seed", "model", "stage", "objective", "selection", "metric", "value"]
STATES = ["profile", "task", "objective", "model", "beta", "seed", "state"]
KEYS = ["task", "beta", "seed", "model"]
FINISHED, STALE, MISSING, DIVERGED = "finished", "stale", "missing", "diverged"
# Columns of words; all others are numbers, also in a frame without rows.
_WORDS = {"profile", "task", "model", "stage", "objective", "selection", "metric", "device"}
_WORDS |= {"by", "bucket", "kind", "method", "side", "undefined", "state"}

# The fingerprint that a profile's model or analysis must have on a cell for an objective; None where its
# inputs are not there.
Expected = Callable[[Profile, str, Cell, str], str | None]


@dataclass(frozen=True)
class _Found:
    """An entry of a model or an analysis that is there, and whether it is finished or stale."""

    model: str
    objective: str
    cell: Cell
    entry: Entry
    state: str
    written_at: str

    @property
    def key(self) -> tuple[str, float, int, str, str]:
        """Its KEYS and its objective."""
        return self.cell.task, self.cell.beta, self.cell.seed, self.model, self.objective


@dataclass(frozen=True)
class Source:
    """What a profile's tables are made from: its entries that count, and what readers call things.

    A source reads the manifests once: make a new one for every table that is to be up to date.
    """

    store: Store
    catalog: Catalog
    profile: Profile
    expected: Expected

    @cached_property
    def names(self) -> Names:
        return Names(self.catalog, self.profile)

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell that the catalogue asks for, task by task and β-major."""
        axes = Axes(self.catalog)
        return [cell for task in self.catalog.tasks for cell in axes.of_task(task)]

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per metric of every finished cell, with exactly the columns of COLUMNS, sorted by them."""
        found = self._read(self._models, "metrics.parquet", COLUMNS)
        return found.sort_values(COLUMNS, ignore_index=True)

    @cached_property
    def states(self) -> pd.DataFrame:
        """Whether each cell that the profile asks for is finished, stale, missing or diverged: STATES.

        Diverged: finished, with a test value of its objective's criterion that is no finite number.
        """
        from ml.evaluation.selection import OBJECTIVES

        criteria = {name: objective.criterion for name, objective in OBJECTIVES.items()}
        judged = self.results[self.results["metric"] == self.results["objective"].map(criteria)]
        lost = judged[~np.isfinite(judged["value"])]
        diverged = set(lost[[*KEYS, "objective"]].itertuples(index=False, name=None))
        whole = set(self.results[[*KEYS, "objective"]].itertuples(index=False, name=None))
        # What is damaged is as good as missing.
        states = {each.key: each.state for each in self._models if each.state == STALE or each.key in whole}
        states |= dict.fromkeys(diverged, DIVERGED)
        rows = [
            (self.profile.name, cell.task, objective, model, cell.beta, cell.seed, states.get(key, MISSING))
            for model in self.profile.trained
            for objective in self.profile.objectives_of(model)
            for cell in self.cells
            for key in [(cell.task, cell.beta, cell.seed, model, objective)]
        ]
        return pd.DataFrame(rows, columns=STATES)

    def table(
        self, name: str, columns: Sequence[str], objective: str = "rating", task: str | None = None
    ) -> pd.DataFrame:
        """The tables `name` of every finished cell of an objective, or of one task, as one frame, sorted."""
        found = [e for e in self._models if e.objective == objective and task in (None, e.cell.task)]
        return self._read(found, name, columns).sort_values(list(columns), ignore_index=True)

    def validated(self, objective: str = "rating") -> pd.DataFrame:
        """The validation metrics of every finished cell that models are compared by: KEYS and metrics.

        Of a cell that diverged they are NaN; the frame is empty for a profile without validation users.
        """
        from ml.evaluation.selection import OBJECTIVES

        found = self._read(
            [each for each in self._models if each.objective == objective], "validation.parquet", None
        )
        criterion = OBJECTIVES[objective].criterion
        if criterion not in found:
            return pd.DataFrame({**_empty(KEYS), **_empty([criterion])})
        metrics = [column for column in found if column not in (*KEYS, "objective", "profile")]
        found.loc[~np.isfinite(found[criterion]), metrics] = np.nan
        return found[[*KEYS, *metrics]].sort_values(KEYS, ignore_index=True)

    def analysis(self, kind: str, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """The table `name` of each cell's `kind`, such as embeddings or warming, where it is up to date."""
        # What a row is of, the table says itself.
        frame = self._read(self._analyses(kind), name, columns, KEYS[:3])
        return frame.sort_values(list(columns), ignore_index=True)

    def analysed(self, kind: str) -> dict[Cell, Entry]:
        """The entries of a `kind` that are up to date: of each task the one of the least β and seed."""
        first: dict[str, _Found] = {}
        for each in self._analyses(kind):
            if each.state == FINISHED:
                first.setdefault(each.cell.task, each)
        return {each.cell: each.entry for each in first.values()}

    @property
    def newest(self) -> str:
        """When the last of the finished cells was written, as ISO 8601 in UTC; empty where there is none."""
        return max((each.written_at for each in self._models if each.state == FINISHED), default="")

    def manifests(self, model: str, objective: str = "rating") -> Mapping[Cell, dict]:
        """The manifests of a model's finished cells."""
        return {
            each.cell: each.entry.require()
            for each in self._models
            if (each.model, each.objective, each.state) == (model, objective, FINISHED)
        }

    def gaps(self, models: Iterable[str], objectives: Sequence[str] = ("rating", "ranking")) -> str:
        """Which cells of the tasks with any results do not count, and why, in words; empty where all do."""
        states, models = self.states, list(models)
        states = states[states["task"].isin(states.loc[states["state"] != MISSING, "task"])]
        states = states[states["model"].isin(models) & states["objective"].isin(objectives)]
        trained: dict[str, list[str]] = {}
        for (task, objective), of_task in states.groupby(["task", "objective"], sort=False):
            counts = of_task.groupby("model", sort=False)["state"].value_counts().unstack(fill_value=0)
            counts = counts.reindex(columns=[MISSING, STALE, DIVERGED], fill_value=0)
            cells = len(of_task) // len(counts)
            for state in counts:
                of_state = counts[state]
                for count in sorted(set(of_state[of_state > 0])):
                    who = of_state.index[of_state == count]
                    everyone = len(who) == len(counts) > 1
                    said = "every model" if everyone else ", ".join(map(self.names.model, who))
                    gap = f"{self.names.task(task)}: {count} of {cells} cells of {said} {state}"
                    trained.setdefault(gap, []).append(objective)
        return "; ".join(f"{gap} ({', '.join(objectives)})" for gap, objectives in trained.items())

    @cached_property
    def _models(self) -> list[_Found]:
        """The profile's models of today's cells that are there, model by model."""
        models, cells = self.profile.trained, {(c.task, c.beta, c.seed): c for c in self.cells}
        found = []
        for keys, entry in self.store.entries("models", profile=self.profile.name):
            model, objective = str(keys["model"]), str(keys["objective"])
            cell = cells.get(tuple(keys[key] for key in KEYS[:3]))
            if cell is not None and model in models and objective in self.profile.objectives_of(model):
                found.append(self._found(model, objective, cell, entry))
        return sorted(found, key=lambda each: (models.index(each.model), each.objective, each.cell))

    def _analyses(self, kind: str) -> list[_Found]:
        """The profile's analyses of today's cells that are there, in the order of the cells."""
        asset, entries = {"warming": "warming_up", "first_choices": "warming_up_lists"}.get(kind, kind), {}
        for keys, entry in self.store.entries(kind, profile=self.profile.name):
            entries[tuple(keys[key] for key in KEYS[:3])] = entry
        there = [(cell, entries.get((cell.task, cell.beta, cell.seed))) for cell in self.cells]
        return [self._found(asset, "rating", cell, entry) for cell, entry in there if entry is not None]

    def _found(self, name: str, objective: str, cell: Cell, entry: Entry) -> _Found:
        manifest = entry.require()
        current = manifest["fingerprint"] == self.expected(self.profile, name, cell, objective)
        return _Found(name, objective, cell, entry, FINISHED if current else STALE, manifest["written_at"])

    def _read(
        self,
        found: Iterable[_Found],
        name: str,
        columns: Sequence[str] | None,
        keys: Sequence[str] = (*KEYS, "objective"),
    ) -> pd.DataFrame:
        """The tables `name` of those found that count, as one frame with their keys."""
        import pyarrow as pa

        tables, heads, lengths = [], [], []
        for each in (each for each in found if each.state == FINISHED):
            table = _table(each.entry, name)
            if table is not None and table.num_rows:
                tables.append(table.drop_columns([key for key in keys if key in table.column_names]))
                heads.append(each.key)
                lengths.append(table.num_rows)
        if not tables:
            return pd.DataFrame(_empty(KEYS if columns is None else columns))
        # One conversion of all is much faster than one of each.
        whole = pa.concat_tables(tables, promote_options="permissive").to_pandas(ignore_metadata=True)
        head = pd.DataFrame(heads, columns=[*KEYS, "objective"])[list(keys)].assign(profile=self.profile.name)
        head = head.loc[head.index.repeat(lengths)].reset_index(drop=True)
        frame = pd.concat([head, whole], axis=1)
        return frame if columns is None else frame.reindex(columns=list(columns))


def source(store: Store, catalog: Catalog, profile: Profile) -> Source:
    """The source whose entries count by the fingerprints of the training room."""
    return Source(store, catalog, profile, partial(_expected, store, catalog))


def _expected(
    store: Store, catalog: Catalog, profile: Profile, name: str, cell: Cell, objective: str
) -> str | None:
    from assets.training.embeddings import embeddings_fingerprint
    from assets.training.fingerprints import expected_fingerprint
    from assets.training.first_choices import first_choices_fingerprint
    from assets.training.search import search_fingerprint
    from assets.training.warming import warming_fingerprint

    of_analyses = {
        "embeddings": embeddings_fingerprint,
        "warming_up_lists": first_choices_fingerprint,
        "search": search_fingerprint,
        "warming_up": warming_fingerprint,
    }
    if name not in of_analyses:
        return expected_fingerprint(store, catalog, profile, name, cell, objective)
    try:
        return of_analyses[name](store, catalog, profile, cell)
    except NotMaterialized:
        return None


def read_results(sources: Iterable[Source], task: str | None = None) -> pd.DataFrame:
    """One row per metric of every finished cell of these profiles: the columns of COLUMNS, sorted by them."""
    frames = [each.results for each in sources]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(_empty(COLUMNS))
    whole = pd.concat(frames, ignore_index=True)
    whole = whole if task is None else whole[whole["task"] == task]
    return whole.sort_values(COLUMNS, ignore_index=True)


def _table(entry: Entry, name: str) -> "pa.Table | None":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = entry.read(name) if entry.has(name) else None
    except Damaged as error:
        log.warning("%s", error)
        return None
    return None if content is None else pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _empty(columns: Iterable[str]) -> dict[str, pd.Series]:
    return {column: pd.Series(dtype=object if column in _WORDS else float) for column in columns}
