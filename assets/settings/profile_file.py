"""What is written in a profile's file, and what it becomes over that of the profile that it extends."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, field_validator

from assets.settings.yaml import Name, Section, SettingsFile
from ml.models.facts import flat

GROUPS = ("models", "ablations", "controls")
# What a model may say beside its hyper-parameters.
KEYS = ("model", "title", "objectives", "clip_predictions", "trials")


class ModelKeys(Section):
    """What a model says beside its hyper-parameters and trials."""

    model: str | None = None
    title: Annotated[str, Field(min_length=1)] | None = None
    objectives: tuple[Literal["rating", "ranking"], ...] | None = Field(None, min_length=1)
    clip_predictions: StrictBool | None = None


class _Search(Section):
    task_weight: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    guidance: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(min_length=1)


_Models = dict[Name, dict[str, Any] | None]


class _Override(Section):
    factors: dict[str, Any] = Field(default_factory=dict)
    models: _Models = Field(default_factory=dict)


class _File(Section):
    title: str | None = None
    extends: str | None = None
    validation: StrictBool | None = None
    objectives: tuple[Literal["rating", "ranking"], ...] | None = Field(None, min_length=1)
    ours: tuple[str, ...] | None = None
    factors: dict[str, Any] = Field(default_factory=dict)
    list_factors: dict[str, Any] | None = None
    models: _Models = Field(default_factory=dict)
    ablations: _Models = Field(default_factory=dict)
    controls: _Models = Field(default_factory=dict)
    search: _Search | None = None
    tasks: dict[str, _Override] = Field(default_factory=dict)

    @field_validator("ours", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("search", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return None if value == {} else value


def written(file: SettingsFile) -> dict[str, Any]:
    """A file's own settings in plain values, those of nested dataclasses as `outer.inner`."""
    content = file.validated(_File, "", file.read())
    out = content.model_dump(exclude_unset=True)
    for group in GROUPS:
        out[group] = {name: _flat(model or {}) for name, model in getattr(content, group).items()}
    out["factors"] = content.factors
    out["tasks"] = {
        task: {
            "factors": override.factors,
            "models": {name: _flat(model or {}) for name, model in override.models.items()},
        }
        for task, override in content.tasks.items()
    }
    return out


def _flat(model: dict[str, Any]) -> dict[str, Any]:
    said = {key: model[key] for key in KEYS if key in model}
    return said | flat({key: value for key, value in model.items() if key not in KEYS})


def whole(
    name: str, contents: Mapping[str, dict], files: Mapping[str, SettingsFile], seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What a profile says, with what it starts from."""
    own = contents[name]
    parent = own.get("extends")
    if parent is None:
        return own
    if parent not in contents or parent in (*seen, name):
        known = ", ".join(sorted(set(contents) - {name, *seen}))
        raise files[name].wrong("extends", f"{parent!r} is not one of the other profiles; known are {known}")
    base = whole(parent, contents, files, (*seen, name))
    told = {key: value for key, value in own.items() if value is not None or key == "search"}
    out = {**base, **told, **{group: _models(base[group], own[group]) for group in GROUPS}}
    # Settings of plain factors mean nothing to biased ones, those of one kind of model nothing to another.
    other = _other_factors(base["factors"], own["factors"])
    out["factors"] = own["factors"] if other else {**base["factors"], **own["factors"]}
    if (mine := own.get("list_factors")) is not None:
        theirs = base.get("list_factors") or {}
        out["list_factors"] = mine if _other_factors(theirs, mine) else {**theirs, **mine}
    changed = {name for group in GROUPS for name in own[group] if _other(base[group], own[group], name)}
    out["tasks"] = {
        task: {
            "factors": ({} if other else _of(base, task)["factors"]) | _of(own, task)["factors"],
            "models": _models(
                {n: s for n, s in _of(base, task)["models"].items() if n not in changed},
                _of(own, task)["models"],
            ),
        }
        for task in (base["tasks"] | own["tasks"])
    }
    return out


def _of(content: dict[str, Any], task: str) -> dict[str, dict]:
    return content["tasks"].get(task, {"factors": {}, "models": {}})


def _models(base: Mapping[str, dict], own: Mapping[str, dict]) -> dict[str, dict]:
    """Settings by model, a profile's own over those of its parent."""
    laid = {
        name: model if _other(base, own, name) else base.get(name, {}) | model for name, model in own.items()
    }
    return {**base, **laid}


def _other_factors(base: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a profile's factors are of another kind than its parent's."""
    named = "model" in own and own["model"] != base.get("model")
    return named or ("trials" in own and "trials" not in base)


def _other(base: Mapping[str, dict], own: Mapping[str, dict], name: str) -> bool:
    """Whether the profile makes another kind of its parent's model."""
    return name in base and "model" in own[name] and own[name]["model"] != base[name].get("model", name)
