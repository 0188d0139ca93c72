"""One reader of settings files: YAML without doubled keys, checked by pydantic; errors name file and key."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

# Names become partition keys, folder names and SQL identifiers.
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Count = Annotated[StrictInt, Field(ge=1)]


class Section(BaseModel):
    """Keys and values of a settings file, of which no other keys are allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def allowed(cls) -> list[str]:
        """What may be written in it."""
        return list(cls.model_fields)


_Section = TypeVar("_Section", bound=BaseModel)


@dataclass(frozen=True)
class SettingsFile:
    """A file of settings; `error` is raised with its path, the key and what to do. what: such as `catalogue`;
    variable: the environment variable that named it."""

    path: Path
    error: type[ValueError]
    what: str
    variable: str

    def read(self) -> dict[str, Any]:
        """What is written in it; an empty file is an empty mapping."""
        try:
            raw = yaml.load(self.path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
        except OSError as error:
            raise self.error(
                f"{self.path}: cannot read the {self.what} ({error.strerror}); correct the path in "
                f"{self.variable}"
            ) from error
        except UnicodeDecodeError as error:
            raise self.error(f"{self.path}: the {self.what} is not UTF-8 text; save it as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise self.error(f"{self.path}, line {line}: {error.problem}; correct that line") from error
        except (yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise self.error(f"{self.path}: not YAML ({reason}); correct the file") from error
        try:
            json.dumps(raw, default=str, skipkeys=True)
        except (ValueError, RecursionError):
            raise self.error(f"{self.path}: an alias (*) stands within what it names; write it out") from None
        return self.mapping("the file", raw)

    def wrong(self, where: str, problem: object) -> ValueError:
        """The error to raise for the key `where`."""
        return self.error(f"{self.path}: {where}: {problem}")

    def mapping(self, where: str, value: Any) -> dict[str, Any]:
        """`value`, which must be a mapping; nothing is an empty one."""
        if value is not None and not isinstance(value, dict):
            raise self.wrong(where, f"must hold keys and values, got {_short(value)}; write a mapping")
        return value or {}

    def validated(self, section: type[_Section], where: str, values: object) -> _Section:
        """`values` of the key `where` (none for the whole file) as the section that they must be."""
        try:
            return section.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
        loc = first["loc"]
        where = ".".join([*([where] if where else []), *map(str, loc)]) or "the file"
        if first["type"] == "extra_forbidden":
            known = ", ".join(_section_of(section, loc[:-1]).allowed())
            raise self.wrong(where, f"unknown key; known are {known}")
        if first["type"] == "missing":
            raise self.wrong(where, "this key is required; add it")
        if first["type"] == "value_error":
            raise self.wrong(where, f"{first['ctx']['error']}; correct it")
        hint = _HINTS.get(first["type"], "; correct it")
        raise self.wrong(where, f"{first['msg']}, got {_short(first['input'])}{hint}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


_HINTS = {
    "tuple_type": "; write a list, like [a, b]",
    "bool_type": "; write true or false, without quotes",
    "bool_parsing": "; write true or false, without quotes",
    "dict_type": "; write a mapping, like {key: value}",
    "model_type": "; write a mapping, like {key: value}",
}


def _section_of(section: type[BaseModel], loc: tuple) -> type[BaseModel]:
    """The section that stands at `loc` within another."""
    for part in loc:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            section = next(_sections(field.annotation), section)
    return section


def _sections(annotation: Any):
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain YAML keeps the last of two equal keys in silence; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            text = str(key.value)
            if text in seen:
                problem = f"the key {text!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(text)
        return super().construct_mapping(node, deep)
