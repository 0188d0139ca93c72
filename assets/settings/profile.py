"""Profiles: which models are trained with which settings. Another profile is a YAML file, not code.

Built-in profiles lie beside this file; a user's own in the folder that `DIFFCDR_PROFILES` names.

    title: Mine
    extends: strict                      # start from another profile; what is written here is laid over it
    validation: true                     # keep validation users, so that choices are made on them
    objectives: [rating]
    ours: wide                           # the model, or models, that all others are compared with
    factors: {k: 16}                     # with `trials`: biased and regularised; with `model: spark_als`: by
                                         # Spark; else the paper's
    list_factors: {k: 32}                # of choices, for ranking; without it ranking uses `factors`
    models:
      emcdr: {lr: 0.02, clip_predictions: true}
      wide: {model: diffcdr, hidden: 256}                           # a variant starts from diffcdr's settings
      shift: {model: "shift:Shift", trials: [{lr: 0.01}, {lr: 0.05}]}           # a class of one's own
      lacdr: {trials: {count: 20, space: {lr: {low: 1.0e-4, high: 1.0e-2, log: true}, latent: [4, 8]}}}
    controls:
      permuted_source: {of: wide}
    tasks:
      book_music: {factors: {batch: 512}, models: {emcdr: {batch: 128}}}
"""

import itertools
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.settings.profile_file import GROUPS, KEYS, ModelKeys, whole, written
from assets.settings.space import Range, Settings, Space, read_trials
from assets.settings.yaml import SettingsFile
from ml.models.facts import Facts, check, defaults
from ml.models.registry import MODELS, facts

# The factorizations whose settings `factors` are.
PLAIN, BIASED = "ml.factorization.adam:MatrixFactorization", "ml.factorization.biased:BiasedFactorization"
# And the one whose settings `list_factors` are.
IMPLICIT = "ml.factorization.implicit:ImplicitFactorization"
# What `model` makes of either, for ratings beyond one machine.
BY_SPARK = "spark_als"
SPARK, SPARK_IMPLICIT = (f"ml.factorization.spark:Spark{kind}Factorization" for kind in ("", "Implicit"))
# Whom all others are compared with, unless the profile says so.
OURS = "diffcdr"
# The model whose λ and s `search` looks for.
SEARCHED = "diffcdr"


class ProfileError(ValueError):
    """A profile that cannot be used; the message names the file, the key and the hint."""


@dataclass(frozen=True)
class Entry:
    """One model of a profile. kind: its name in the registry, or `module:Class`; settings: hyper-parameters
    of its own; title, objectives, clip_predictions: None where it does not say; trials: what is tried."""

    kind: str
    settings: Settings
    title: str | None = None
    objectives: tuple[str, ...] | None = None
    clip_predictions: bool | None = None
    trials: tuple[Settings, ...] | Space = ()


@dataclass(frozen=True)
class Profile:
    """Settings of one family of runs.

    validation: whether validation users' target ratings are hidden from training, so that choices are made on
    them. objectives: what is trained for. models, ablations, controls: names of the compared models, of the
    variants that show a part's worth, and of what a model must beat. ours: the models that all others are
    compared with. search: the paper's grid of λ and s, without a count. list_factors: settings of the
    factorizations of choices that ranking starts from, None where it starts from those of ratings. entries:
    the models by name. facts: of their classes, by kind. overrides: settings by task, of `factors` and by
    model.
    """

    name: str
    title: str
    validation: bool
    objectives: tuple[str, ...]
    models: tuple[str, ...]
    ablations: tuple[str, ...]
    controls: tuple[str, ...]
    ours: tuple[str, ...]
    search: Space | None
    base_factors: Settings
    list_factors: Settings | None
    entries: Mapping[str, Entry]
    facts: Mapping[str, Facts]
    overrides: Mapping[str, Mapping[str, Mapping]]

    def factors(self, task: str, objective: str = "rating") -> dict[str, object]:
        """Hyper-parameters of the matrix factorizations that models of a task start from for an objective."""
        if self.implicit(objective):
            return dict(self.list_factors)
        return {**self.base_factors, **self.overrides.get(task, {}).get("factors", {})}

    def implicit(self, objective: str) -> bool:
        """Whether factors for an objective are of choices, where every rating counts as 1."""
        return objective == "ranking" and self.list_factors is not None

    def factorization(self, objective: str = "rating") -> str:
        """`module:Class` of the factorizations that models start from for an objective."""
        if self.implicit(objective):
            return SPARK_IMPLICIT if _by_spark(self.list_factors) else IMPLICIT
        if _by_spark(self.base_factors):
            return SPARK
        return BIASED if "trials" in self.base_factors else PLAIN

    @property
    def plain(self) -> bool:
        """Whether factors of ratings are the paper's: those that warm start goes on training, and that
        Figure 4 has a ground truth of."""
        return self.factorization() == PLAIN

    def by_spark(self, objective: str) -> bool:
        """Whether factors for an objective are computed by Spark."""
        return self.factorization(objective) in (SPARK, SPARK_IMPLICIT)

    def group(self, stage: str) -> str:
        """The group of assets of a stage, as Dagster shows them together: `strict_models`."""
        return f"{self.name}_{stage}"

    def kind(self, name: str) -> str:
        """What the registry calls a profile's model, or its `module:Class`."""
        return self.entries[name].kind

    def title_of(self, name: str) -> str:
        """What tables call a model: what the profile says, else its own title, else that of its kind."""
        kind = name if name in MODELS else self.kind(name)
        return self.entries[name].title or facts(kind).title

    def kinds(self, name: str) -> tuple[str, ...]:
        """The kinds that the trials of a model are of, each once."""
        entry = self.entries[name]
        if isinstance(entry.trials, Space):
            return tuple(map(str, entry.trials.varied.get("model", (entry.kind,))))
        return tuple(dict.fromkeys(str(trial.get("model", entry.kind)) for trial in entry.trials or [{}]))

    def model(self, name: str, task: str) -> dict[str, object]:
        """Hyper-parameters of one model on a task, where they differ from its defaults."""
        about = self.facts[self.kind(name)]
        shared = self.factors(task) if about.settings_from == "factors" else {}
        by_task = self.overrides.get(task, {}).get("models", {})
        layers = [{k: v for k, v in shared.items() if k in about.defaults}]
        for model in (*self._base(name), name):
            layers += [self.entries[model].settings, by_task.get(model, {})]
        return {k: v for layer in layers for k, v in layer.items()}

    def trials(self, name: str, task: str) -> list[dict[str, object]] | Space:
        """What is tried of a model on a task: its kind as `model` and the hyper-parameters, once for each
        trial; or a space, laid over `given`."""
        tried = self.entries[name].trials
        if isinstance(tried, Space):
            return tried
        return [{**self.given(name, task), **trial} for trial in tried or [{}]]

    def given(self, name: str, task: str) -> dict[str, object]:
        """What the trials of a model have in common, its kind as `model`."""
        return {"model": self.kind(name), **self.model(name, task)}

    def tried(self, name: str, task: str) -> object:
        """`trials` as JSON, for fingerprints."""
        trials = self.trials(name, task)
        return {"given": self.given(name, task), **trials.as_json()} if isinstance(trials, Space) else trials

    def of(self, name: str) -> str | None:
        """The model of this profile that another is made from, as the permuted control is; None for most."""
        about = self.facts[self.kind(name)]
        if "model" not in about.needs:
            return None
        return str(self.entries[name].settings.get("of", about.defaults.get("of")))

    def clips(self, name: str) -> bool:
        """Whether a model's predictions are clipped to the rating scale where they are evaluated."""
        for model in (name, *self._base(name)):
            own = self.entries[model].clip_predictions
            if own is not None:
                return own
        of = self.of(name)
        return self.clips(of) if of else False

    @property
    def trained(self) -> tuple[str, ...]:
        """Models, ablations and controls that have an objective: each is an asset."""
        return tuple(name for name in self.entries if self.objectives_of(name))

    def objectives_of(self, name: str) -> tuple[str, ...]:
        """What a model is trained for in this profile."""
        allowed = set(self.objectives)
        for kind in self.kinds(name):
            allowed &= set(self.facts[kind].objectives)
        own, of = self.entries[name].objectives, self.of(name)
        if own is not None:
            allowed &= set(own)
        if of is not None:
            allowed &= set(self.objectives_of(of))
        return tuple(objective for objective in self.objectives if objective in allowed)

    def _base(self, name: str) -> tuple[str, ...]:
        """The profile's own model of that kind, whose settings a variant starts from, if there is one. An
        entry of that name may itself be a variant of yet another kind, which is none."""
        kind = self.kind(name)
        own = kind != name and kind in self.entries and self.kind(kind) == kind
        return (kind,) if own else ()


def load_profiles(own: str | None = None, tasks: Collection[str] | None = None) -> dict[str, Profile]:
    """All profiles by name; `own` (else `DIFFCDR_PROFILES`) is a folder whose files add to or replace ours.

    tasks: those of the catalogue, where overrides by task shall be checked for their names too.
    Raises ProfileError for the first thing that is wrong, with its file and key.
    """
    own = own or os.environ.get("DIFFCDR_PROFILES")
    folders = [Path(__file__).parent / "profiles", *([Path(own)] if own else [])]
    if own and not Path(own).is_dir():
        raise ProfileError(f"DIFFCDR_PROFILES names {own}, which is not a folder")
    paths = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    files = {n: SettingsFile(p, ProfileError, "profile", "DIFFCDR_PROFILES") for n, p in paths.items()}
    contents = {name: written(file) for name, file in files.items()}
    return {name: _profile(file, name, whole(name, contents, files), tasks) for name, file in files.items()}


# What it means, and whether it can be.


def _profile(
    file: SettingsFile, name: str, content: dict[str, Any], tasks: Collection[str] | None
) -> Profile:
    where = {model: f"{group}.{model}" for group in GROUPS for model in content[group]}
    for group, other in itertools.combinations(GROUPS, 2):
        for twice in content[group].keys() & content[other].keys():
            raise file.wrong(f"{other}.{twice}", f"{group} has a model of that name; take one of them out")
    entries = {
        model: _entry(file, where[model], model, said)
        for group in GROUPS
        for model, said in content[group].items()
    }
    search, known = content.get("search"), list(content["models"])
    profile = Profile(
        name=name,
        title=content.get("title") or name,
        validation=content.get("validation") or False,
        objectives=content.get("objectives") or ("rating", "ranking"),
        **{group: tuple(content[group]) for group in GROUPS},
        ours=content.get("ours") or tuple(model for model in known if model == OURS),
        search=search and Space({axis: tuple(sorted(set(values))) for axis, values in search.items()}),
        base_factors=content["factors"],
        list_factors=content.get("list_factors"),
        entries=entries,
        facts=dict(_facts(file, where, entries)),
        overrides=content["tasks"],
    )
    for model in profile.ours:
        if model not in profile.models:
            raise file.wrong("ours", f"{model!r} is not one of the profile's models: {', '.join(known)}")
    _check_factors(file, profile)
    _check_overrides(file, profile, tasks)
    for model in entries:
        _check_entry(file, where[model], profile, model)
    if profile.search and profile.entries.get(SEARCHED, Entry("", {})).kind != SEARCHED:
        raise file.wrong("search", f"it looks for λ and s of {SEARCHED}, which the profile does not have")
    if profile.search and not profile.validation:
        raise file.wrong("search", "it needs validation users; set `validation: true` or `search: {}`")
    return profile


def _entry(file: SettingsFile, where: str, name: str, said: dict[str, Any]) -> Entry:
    about = file.validated(
        ModelKeys, where, {key: said[key] for key in KEYS if key in said and key != "trials"}
    )
    return Entry(
        kind=about.model or name,
        settings={key: value for key, value in said.items() if key not in KEYS},
        title=about.title,
        objectives=about.objectives,
        clip_predictions=about.clip_predictions,
        trials=read_trials(file, f"{where}.trials", said["trials"]) if "trials" in said else (),
    )


def _facts(
    file: SettingsFile, where: Mapping[str, str], entries: Mapping[str, Entry]
) -> Iterator[tuple[str, Facts]]:
    for name, entry in entries.items():
        named = [("model", entry.kind)]
        if isinstance(entry.trials, Space):
            choices = entry.trials.varied.get("model", ())
            if isinstance(choices, Range):
                raise file.wrong(f"{where[name]}.trials.space.model", "list the models to choose from")
            named += [("trials.space.model", choice) for choice in choices]
        else:
            named += [(f"trials.{i}.model", t["model"]) for i, t in enumerate(entry.trials) if "model" in t]
        for key, kind in named:
            try:
                yield kind, facts(kind)
            except (ValueError, TypeError, AttributeError) as error:
                raise file.wrong(f"{where[name]}.{key}", error) from error


def _check_settings(file: SettingsFile, where: str, about: Facts, settings: Settings) -> None:
    for key, value in settings.items():
        if key == "clip" and isinstance(value, bool):
            raise file.wrong(
                f"{where}.clip", f"to clip predictions write `clip_predictions: {str(value).lower()}`"
            )
        try:
            check(about.name, about.defaults, {key: value})
        except ValueError as error:
            raise file.wrong(f"{where}.{key}", error) from error


def _check_entry(file: SettingsFile, where: str, profile: Profile, name: str) -> None:
    entry, about = profile.entries[name], profile.facts[profile.kind(name)]
    _check_settings(file, where, about, entry.settings)
    able = [
        o for o in ("rating", "ranking") if all(o in profile.facts[k].objectives for k in profile.kinds(name))
    ]
    for objective in entry.objectives or ():
        if objective not in able:
            raise file.wrong(
                f"{where}.objectives", f"{entry.kind} is not for {objective}, only for {', '.join(able)}"
            )
    _check_of(file, where, profile, name)
    if entry.trials:
        if not profile.validation:
            raise file.wrong(
                f"{where}.trials",
                "they need validation users to choose on; set `validation: true` or remove the trials",
            )
        if not any(profile.facts[kind].defaults for kind in profile.kinds(name)) or profile.of(name):
            raise file.wrong(f"{where}.trials", f"{entry.kind} has no settings to try; take the trials out")
    for task in ("", *profile.overrides):
        _check_trials(file, where, profile, name, task)


def _check_of(file: SettingsFile, where: str, profile: Profile, name: str) -> None:
    of = profile.of(name)
    if of is None:
        return
    known = [model for model in profile.entries if model not in profile.controls]
    if of not in known:
        raise file.wrong(
            f"{where}.of",
            f"{name} is made from a model of the profile, which has no {of!r}; write `of:` and one of "
            f"{', '.join(known) or 'them'}",
        )


def _check_trials(file: SettingsFile, where: str, profile: Profile, name: str, task: str) -> None:
    """Each trial's settings, with what it has in common with the others."""
    given, tried = profile.given(name, task), profile.entries[name].trials
    if isinstance(tried, Space):
        ends = {n: (v.low, v.high) if isinstance(v, Range) else v for n, v in tried.varied.items()}
        points = [{n: value} for n, values in ends.items() if n != "model" for value in values]
        settings = [{**given, "model": k, **point} for k in profile.kinds(name) for point in points]
        places = [f"{where}.trials.space"] * len(settings)
    else:
        settings = [{**given, **trial} for trial in tried or [{}]]
        places = [f"{where}.trials.{i}" if tried else where for i in range(len(settings))]
    for place, values in zip(places, settings, strict=True):
        about = profile.facts[str(values["model"])]
        _check_settings(file, place, about, {k: v for k, v in values.items() if k != "model"})


def _by_spark(settings: Settings | None) -> bool:
    return (settings or {}).get("model") == BY_SPARK


def _check_factors(file: SettingsFile, profile: Profile) -> None:
    for where, settings in (("factors", profile.base_factors), ("list_factors", profile.list_factors or {})):
        if "model" in settings and not _by_spark(settings):
            raise file.wrong(
                f"{where}.model",
                f"{settings['model']!r} is no factorization; write {BY_SPARK}, or leave it out",
            )
    if profile.by_spark("rating") and profile.list_factors is None and _starts_lists(profile):
        raise file.wrong(
            "factors.model",
            f"{BY_SPARK} draws no negatives, so lists need factors of choices: add "
            f"`list_factors: {{model: {BY_SPARK}}}`, or write `objectives: [rating]`",
        )
    for key, value in _hyperparameters(profile.list_factors or {}).items():
        try:
            check("list_factors", defaults(profile.factorization("ranking")), {key: value})
        except ValueError as error:
            raise file.wrong(f"list_factors.{key}", error) from error
    allowed = defaults(profile.factorization())
    for task in ("", *profile.overrides):
        where = f"tasks.{task}.factors" if task else "factors"
        settings = profile.overrides[task]["factors"] if task else _hyperparameters(profile.base_factors)
        if "trials" in settings and profile.by_spark("rating"):
            raise file.wrong(f"{where}.trials", f"{BY_SPARK} has none; take them out")
        trials = settings.get("trials", [])
        if "trials" in settings and (not isinstance(trials, list) or not trials):
            raise file.wrong(f"{where}.trials", "write a list of settings, like [{penalty: 4.0}]")
        tried = {f"{where}.trials.{i}": file.mapping(f"{where}.trials.{i}", t) for i, t in enumerate(trials)}
        own = {key: value for key, value in settings.items() if key != "trials"}
        for place, values in {where: own, **tried}.items():
            for key, value in values.items():
                try:
                    check("factors", allowed, {key: value})
                except ValueError as error:
                    raise file.wrong(f"{place}.{key}", error) from error


def _hyperparameters(factors: Settings) -> Settings:
    return {key: value for key, value in factors.items() if key != "model"}


def _starts_lists(profile: Profile) -> bool:
    """Whether some model for ranking starts from factors."""
    for_lists = [name for name in profile.entries if "ranking" in profile.objectives_of(name)]
    needs = {need for name in for_lists for kind in profile.kinds(name) for need in profile.facts[kind].needs}
    return bool(needs & {"factors", "target_factors"})


def _check_overrides(file: SettingsFile, profile: Profile, tasks: Collection[str] | None) -> None:
    for task, override in profile.overrides.items():
        if tasks is not None and task not in tasks:
            raise file.wrong(f"tasks.{task}", f"there is no such task; known are {', '.join(tasks)}")
        for model, settings in override["models"].items():
            where = f"tasks.{task}.models.{model}"
            if model not in profile.entries:
                known = ", ".join(profile.entries)
                raise file.wrong(where, f"the profile has no such model; known are {known}")
            for key in KEYS:
                if key in settings:
                    raise file.wrong(f"{where}.{key}", "only hyper-parameters may vary by task")
            _check_settings(file, where, profile.facts[profile.kind(model)], settings)
