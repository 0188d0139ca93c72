"""What every trained thing is made of, down to the raw files: its fingerprint, be it there or not.

A thing is current if its manifest has the fingerprint that today's settings, code and inputs give; by that
its numbers are shown, or counted as stale.
"""

from assets.data.cell import Cell, source_factors
from assets.data.ratings import ratings_fingerprint
from assets.data.splits import split_fingerprint
from assets.settings.catalog import Catalog
from assets.settings.profile import Profile
from assets.state.code import code_of
from assets.state.store import NotMaterialized, Store, fingerprint

# How the factorizations and effects are fitted, and how any model is trained and judged.
FACTORS = (
    "assets.training.factors:_fit",
    "assets.training.factors:table_objective",
    "assets.training.factors:target_judge",
    "assets.data.cell:source_table",
    "assets.data.cell:target_table",
    "assets.data.cell:source_file",
    "assets.data.cell:target_file",
)
EFFECTS = ("ml.distribution.effects:fit_effects",)
TRAINING = ("assets.training.run:Training", "assets.data.cell:Gate")


def needs_of(profile: Profile, name: str) -> tuple[str, ...]:
    """All that a model of a profile reads of a cell, each once; where it needs another, the other's too."""
    needed = [need for kind in profile.kinds(name) for need in profile.facts[kind].needs]
    other = profile.of(name)
    return tuple(dict.fromkeys([*needed, *(needs_of(profile, other) if other else [])]))


def objectives_with_factors(profile: Profile) -> list[str]:
    """The objectives for which some model of the profile starts from factors."""
    with_factors = [n for n in profile.trained if {"factors", "target_factors"} & set(needs_of(profile, n))]
    return [o for o in profile.objectives if any(o in profile.objectives_of(name) for name in with_factors)]


def clips_tgt(profile: Profile) -> bool:
    """Whether the target factorization is judged as a TGT whose predictions are clipped."""
    return "tgt" in profile.entries and profile.clips("tgt")


class Fingerprints:
    """Fingerprints of all that is made for a profile."""

    def __init__(self, store: Store, catalog: Catalog, profile: Profile) -> None:
        self.store, self.catalog, self.profile = store, catalog, profile

    def source_factors(self, cell: Cell, objective: str) -> str:
        return fingerprint(
            code=code_of(*FACTORS),
            settings=self.profile.factors(cell.task, objective),
            objective=objective,
            ratings=ratings_fingerprint(self.store, cell.source),
        )

    def target_factors(self, cell: Cell, objective: str) -> str:
        return fingerprint(
            code=code_of(*FACTORS),
            objective=objective,
            settings=self.profile.factors(cell.task, objective),
            clips=clips_tgt(self.profile),
            validation=self.profile.validation,
            split=split_fingerprint(self.store, self.catalog, cell),
            ratings=ratings_fingerprint(self.store, cell.target),
        )

    def effects(self, cell: Cell) -> str:
        ratings = ratings_fingerprint(self.store, cell.source)
        return fingerprint(code=code_of(*EFFECTS), seed=cell.seed, ratings=ratings)

    def model(self, name: str, cell: Cell, objective: str) -> str:
        """The fingerprint of a trained model: settings, code and everything it is computed from."""
        profile, needs = self.profile, needs_of(self.profile, name)
        kinds = [profile.facts[kind].path for kind in profile.kinds(name)]
        return fingerprint(
            code=code_of(*TRAINING, *kinds),
            settings=profile.tried(name, cell.task),
            clips=profile.clips(name),
            objective=objective,
            validation=profile.validation,
            # Fine-tuning uses the settings of the factorizations.
            factors=profile.factors(cell.task) if warms(profile, name, objective) else None,
            split=split_fingerprint(self.store, self.catalog, cell),
            inputs={need: self._input(need, name, cell, objective) for need in sorted(needs)},
        )

    def _input(self, need: str, name: str, cell: Cell, objective: str) -> object:
        if need in ("ratings", "stars", "times"):
            return [ratings_fingerprint(self.store, domain) for domain in (cell.source, cell.target)]
        if need == "effects":
            return [self.effects(cell), ratings_fingerprint(self.store, cell.target)]
        if need == "model":
            return self.model(self.profile.of(name), cell, objective)
        target = self.target_factors(cell, objective)
        return [self.source_factors(cell, objective), target] if need == "factors" else target

    def require_inputs(self, name: str, cell: Cell, objective: str) -> None:
        """Raise NotMaterialized, naming it, where something that a model reads is missing or out of date."""
        store, profile, needs = self.store, self.profile, needs_of(self.profile, name)
        store.split(cell).require_current(split_fingerprint(store, self.catalog, cell))
        for domain in (cell.source, cell.target):
            store.ratings(domain.name).require_current(ratings_fingerprint(store, domain))
        if "factors" in needs:
            expected = self.source_factors(cell, objective)
            source_factors(store, profile, cell, objective).require_current(expected)
        if {"factors", "target_factors"} & set(needs):
            expected = self.target_factors(cell, objective)
            store.target_factors(profile.name, cell, objective).require_current(expected)
        if "effects" in needs:
            store.source_effects(profile.name, cell.source.name, cell.seed).require_current(
                self.effects(cell)
            )
        if "model" in needs:
            other = profile.of(name)
            expected = self.model(other, cell, objective)
            store.model(profile.name, other, cell, objective).require_current(expected)


def judges_factors(profile: Profile, objective: str) -> bool:
    """Whether some model is the target factorization itself, as TGT is, so that each epoch is judged."""
    return any(
        objective in profile.objectives_of(name) and "target_factors" in needs_of(profile, name)
        for name in profile.trained
    )


def warms(profile: Profile, name: str, objective: str) -> bool:
    """Whether test users are fine-tuned: the vectors that the paper's warm start moves. Biases, choices and
    distributions warm up without training, and what Spark solved is not trained any further."""
    return profile.plain and not profile.implicit(objective) and name not in profile.controls


def expected_fingerprint(
    store: Store, catalog: Catalog, profile: Profile, name: str, cell: Cell, objective: str
) -> str | None:
    """The fingerprint that a model's cell must have to be shown; None where its raw files are not there."""
    try:
        return Fingerprints(store, catalog, profile).model(name, cell, objective)
    except NotMaterialized:
        return None
