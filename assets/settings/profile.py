"""Profiles: which models are trained with which settings. Another profile is a YAML file, not code.

Built-in profiles lie beside this file; a user's own in the folder that `DIFFCDR_PROFILES` names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ml.models.registry import MODELS, facts

GROUPS = ("models", "ablations", "controls")
NO_HYPERPARAMETERS = ("model", "objectives", "clip", "trials", "title")
KEYS = {"title", "extends", "validation", "objectives", "factors", *GROUPS, "search", "tasks"}


class ProfileError(ValueError):
    """A profile that cannot be used; the message names the file and the mend."""


@dataclass(frozen=True)
class Profile:
    """Settings of one family of runs.

    validation: whether validation users' target ratings are hidden from training, so that choices are made on
    them. objectives: what is trained for. models, ablations, controls: names of the compared models, of the
    variants that show a part's worth, and of what needs no training. search: the grid by hyper-parameter.
    A model's setting `model:` names the registered model it is a variant of, whose settings it starts from;
    `objectives:` restricts what it is trained for; `clip: true` clips its predictions to the rating scale;
    `trials:` lists settings to choose from on validation users, each of which may have a `model:` of its own.
    `factors` with `trials:` are biased and regularised, each domain's penalties chosen on held-out ratings;
    else they are the paper's.
    """

    name: str
    title: str
    validation: bool
    objectives: tuple[str, ...]
    models: tuple[str, ...]
    ablations: tuple[str, ...]
    controls: tuple[str, ...]
    search: Mapping[str, Sequence[float]]
    base_factors: Mapping[str, object]
    settings: Mapping[str, Mapping[str, object]]
    overrides: Mapping[str, Mapping]

    def factors(self, task: str) -> dict[str, object]:
        """Hyper-parameters of the matrix factorizations of a task."""
        return {**self.base_factors, **self.overrides.get(task, {}).get("factors", {})}

    def model(self, name: str, task: str) -> dict[str, object]:
        """Hyper-parameters of one model on a task."""
        by_task = self.overrides.get(task, {}).get("models", {})
        base = self.registered(name)
        # The profile's own entry of that name may be a variant of yet another model.
        own = base in self.settings and self.registered(base) == base
        layers = [
            layer.get(model, {})
            for model in dict.fromkeys([base, name] if own else [name])
            for layer in (self.settings, by_task)
        ]
        return {k: v for layer in layers for k, v in layer.items() if k not in NO_HYPERPARAMETERS}

    def trials(self, name: str, task: str) -> list[dict[str, object]]:
        """The registered `model` and the hyper-parameters of one model on a task, once for each trial."""
        base = {"model": self.registered(name), **self.model(name, task)}
        return [{**base, **trial} for trial in self.settings[name].get("trials", [{}])]

    def kinds(self, name: str) -> tuple[str, ...]:
        """The registered models that the trials of a model are of, each once."""
        trials = self.settings[name].get("trials", [{}])
        return tuple(dict.fromkeys(str(trial.get("model", self.registered(name))) for trial in trials))

    @property
    def biased(self) -> bool:
        """Whether factors carry biases: the last number of a user's, and an offset beside an item's."""
        return "trials" in self.base_factors

    def clips(self, name: str) -> bool:
        """Whether a model's predictions are clipped to the rating scale where they are evaluated."""
        own = self.settings.get(name, {})
        base = self.settings.get(str(own.get("model", name)), {})
        return bool(own.get("clip", base.get("clip", False)))

    def registered(self, name: str) -> str:
        """The registry's name of a profile's model."""
        return str(self.settings[name].get("model", name))

    def title_of(self, name: str) -> str:
        """What tables call a model: what the profile says, else its own title, else that of its kind."""
        own = self.settings[name].get("title")
        return str(own) if own else facts(name if name in MODELS else self.kinds(name)[0]).title

    @property
    def trained(self) -> tuple[str, ...]:
        """Models, ablations and controls that have an objective: each is an asset."""
        names = (*self.models, *self.ablations, *self.controls)
        return tuple(name for name in names if self.objectives_of(name))

    def objectives_of(self, name: str) -> tuple[str, ...]:
        """What a model is trained for in this profile."""
        allowed = self.settings[name].get("objectives", self.objectives)
        return tuple(objective for objective in self.objectives if objective in allowed)


EMPTY = Profile("", "", False, ("rating", "ranking"), (), (), (), {}, {}, {}, {})


def load_profiles(own: str | None = None) -> dict[str, Profile]:
    """All profiles by name; `own` (else `DIFFCDR_PROFILES`) is a folder whose files add to or replace ours.

    Raises ProfileError for a file that is no YAML mapping, has an unknown key, or extends an unknown profile.
    """
    own = own or os.environ.get("DIFFCDR_PROFILES")
    folders = [Path(__file__).parent / "profiles", *([Path(own)] if own else [])]
    if own and not Path(own).is_dir():
        raise ProfileError(f"DIFFCDR_PROFILES names {own}, which is not a folder")
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    raw = {name: _read(path) for name, path in files.items()}
    return {name: _resolve(name, raw, files) for name in raw}


def _factors(base: Profile, own: Mapping[str, object]) -> dict[str, object]:
    """The parent's settings with a profile's own; those of plain factors mean nothing to biased ones."""
    return dict(own) if "trials" in own and not base.biased else {**base.base_factors, **own}


def _read(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ProfileError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path} must be a mapping with some of the keys {sorted(KEYS)}")
    unknown = set(content) - KEYS
    if unknown:
        raise ProfileError(f"{path} has unknown keys {sorted(unknown)}; a profile knows {sorted(KEYS)}")
    return content


def _resolve(
    name: str, raw: Mapping[str, dict], files: Mapping[str, Path], seen: tuple[str, ...] = ()
) -> Profile:
    content = raw[name]
    parent = content.get("extends")
    if parent is not None and (parent not in raw or parent in (*seen, name)):
        raise ProfileError(
            f"{files[name]} extends {parent!r}; known profiles are {sorted(set(raw) - {name})}"
        )
    base = _resolve(parent, raw, files, (*seen, name)) if parent else EMPTY
    own = {group: content.get(group) or {} for group in GROUPS}
    settings = {model: dict(values or {}) for group in own.values() for model, values in group.items()}
    profile = Profile(
        name=name,
        title=content.get("title", base.title),
        validation=content.get("validation", base.validation),
        objectives=tuple(content.get("objectives", base.objectives)),
        **{group: tuple(dict.fromkeys([*getattr(base, group), *own[group]])) for group in GROUPS},
        search=content.get("search", base.search),
        base_factors=_factors(base, content.get("factors", {})),
        settings={**base.settings, **{m: {**base.settings.get(m, {}), **s} for m, s in settings.items()}},
        overrides={**base.overrides, **content.get("tasks", {})},
    )
    empty = [model for model in profile.settings if profile.settings[model].get("trials") == []]
    if empty:
        raise ProfileError(f"{files[name]}: trials of {', '.join(empty)} is an empty list; leave it out")
    tried = [model for model in profile.settings if "trials" in profile.settings[model]]
    if tried and not profile.validation:
        raise ProfileError(
            f"{files[name]}: the trials of {', '.join(tried)} need validation users to choose on; set "
            "`validation: true` or remove the trials"
        )
    return profile
