"""What readers call tasks and models, and how a model stands in a comparison: facts of the registry."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from assets.settings.catalog import Catalog
from assets.settings.profile import Profile


@dataclass(frozen=True)
class Names:
    """The tasks of a catalogue and the models of a profile, under their titles."""

    catalog: Catalog
    profile: Profile

    def task(self, name: str) -> str:
        task = self.catalog.tasks.get(name)
        if task is None:
            return name
        return f"{task.title} (the paper's Task {task.paper})" if task.paper else task.title

    def short_task(self, name: str) -> str:
        task = self.catalog.tasks.get(name)
        if task is None:
            return name
        return f"Task {task.paper}" if task.paper else task.title

    def in_order(self, tasks: Iterable[str]) -> list[str]:
        """Tasks in the order of the catalogue; what it no longer has comes last."""
        known = list(self.catalog.tasks)
        return sorted(set(tasks), key=lambda name: (known.index(name) if name in known else len(known), name))

    def model(self, name: str) -> str:
        return self._titles.get(name, name)

    def ours(self, objective: str = "rating") -> str | None:
        """The profile's own model that is trained for an objective; None where it has none."""
        mine = (name for name in self.profile.ours if objective in self.profile.objectives_of(name))
        return next(mine, None)

    def our_title(self, objective: str = "rating") -> str:
        """The title of the profile's own model for an objective."""
        name = self.ours(objective)
        return self.model(name) if name else "our model"

    @property
    def our_titles(self) -> str:
        """The titles of the profile's own models, and for what they are where they are several."""
        rating, ranking = self.our_title(), self.our_title("ranking")
        if not self.ours("ranking") or rating == ranking:
            return rating
        return f"{rating} (of lists: {ranking})" if self.ours() else ranking

    @cached_property
    def _titles(self) -> dict[str, str]:
        titles = {name: self.profile.title_of(name) for name in self.profile.trained}
        seen = Counter(titles.values())
        # A column of a table is one model.
        return {name: text if seen[text] == 1 else f"{text} ({name})" for name, text in titles.items()}


def gives_distribution(profile: Profile, name: str) -> bool:
    """Whether a model of a profile gives probabilities of the rating levels."""
    return bool({"effects", "stars"} & set(profile.facts[profile.kind(name)].needs))


def compared(profile: Profile) -> list[str]:
    """The models and controls of a profile that some objective is trained for; no ablations."""
    return [name for name in profile.trained if name not in profile.ablations]


def trained_for(profile: Profile, objective: str) -> list[str]:
    """All of a profile that is trained for an objective, ablations included."""
    return [name for name in profile.trained if objective in profile.objectives_of(name)]
