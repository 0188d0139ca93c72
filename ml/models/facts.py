"""What a model says of itself, read from its syntax tree: neither the model nor torch is imported.

Settings are checked, assets named and pages written in processes that train nothing, and torch costs them
seconds. So the class is rebuilt as a skeleton: the same bases and the same dataclass, of which only the
literals are kept. A skeleton and the class itself go through the same function. A class whose facts are no
literals is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import math
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

CONTRACT = ("ml.models.contract", "Model")
TEXTS = ("name", "title", "summary", "source", "role", "settings_from", "warms_by", "serves")
TUPLES = ("needs", "objectives")
FLAGS = ("on_device",)


@dataclass(frozen=True)
class Facts:
    """Facts of a model's class, see `ml.models.contract.Model`.

    path: `module:Class`. defaults: its hyper-parameters and their values, those of a nested dataclass as
    `outer.inner`. types: of these values.
    """

    name: str
    path: str
    title: str
    summary: str
    source: str
    needs: tuple[str, ...]
    objectives: tuple[str, ...]
    role: str
    settings_from: str
    warms_by: str
    serves: str
    on_device: bool
    defaults: Mapping[str, object]

    @property
    def types(self) -> dict[str, type]:
        return {name: type(value) for name, value in self.defaults.items()}


def read(path: str) -> Facts:
    """Facts of the model `module:Class`.

    Raises ValueError for a module or class that is not found, a class that is no model, and one that lacks a
    fact.
    """
    module, _, name = path.partition(":")
    try:
        kind = _skeleton(module, name)
    except _NotLiteral:
        kind = imported(path)
    return facts_of(kind, path)


def defaults(path: str) -> dict[str, object]:
    """Fields of any dataclass `module:Class` and their defaults, as in `Facts`."""
    module, _, name = path.partition(":")
    return dict(_defaults(_skeleton(module, name), path))


def imported(path: str) -> type:
    """The class `module:Class`. Raises ValueError where it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or ".")
        hint = "; is its folder on PYTHONPATH?" if missing else ""
        raise ValueError(f"model {path!r} cannot be imported: {error}{hint}") from error


def facts_of(kind: type, path: str) -> Facts:
    """Facts of a class, or of its skeleton. Raises ValueError where it is no model or lacks a fact."""
    if not isinstance(kind, type) or not any(
        (c.__module__, c.__qualname__) == CONTRACT for c in kind.__mro__
    ):
        raise ValueError(f"model {path!r} is not a subclass of {'.'.join(CONTRACT)}")
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"model {path!r} is not a dataclass; write @dataclass above the class")
    texts = {fact: getattr(kind, fact, None) for fact in TEXTS}
    for fact, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"model {path!r} has no {fact}; add `{fact}: ClassVar[str]` with a text")
    tuples = {fact: getattr(kind, fact) for fact in TUPLES}
    for fact, value in tuples.items():
        if not isinstance(value, tuple):
            raise ValueError(f"model {path!r}: {fact} must be a tuple of names, not {value!r}")
    flags = {fact: getattr(kind, fact) for fact in FLAGS}
    for fact, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"model {path!r}: {fact} must be True or False, not {value!r}")
    return Facts(path=path, **texts, **tuples, **flags, defaults=dict(_defaults(kind, path)))


def _defaults(kind: type, path: str) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is dataclasses.MISSING:
            raise ValueError(f"model {path!r}: {field.name} has no default; every hyper-parameter needs one")
        if dataclasses.is_dataclass(value):
            for name, inner in _defaults(type(value), path):
                yield f"{field.name}.{name}", inner
        else:
            yield field.name, value


# Settings.


def flat(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings with those of a nested mapping as `outer.inner`."""
    out: dict[str, object] = {}
    for name, value in settings.items():
        nested = flat(value) if isinstance(value, Mapping) else None
        out |= {name: value} if nested is None else {f"{name}.{key}": v for key, v in nested.items()}
    return out


def check_settings(model: Facts, settings: Mapping[str, object]) -> None:
    """Raise ValueError for settings that the model cannot have, see `check`."""
    check(model.name, model.defaults, settings)


def check(title: str, defaults: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Raise ValueError, beginning with `title`, for an unknown setting, another type than its default's and a
    value out of range.

    An int may stand for a float. A count, an int whose default is at least 1, is at least 1; a float whose
    default is not negative is not negative. What only the model knows it checks itself when it is built.
    """
    for name, value in flat(settings).items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"{title}: unknown hyper-parameter {name!r}; known: {known}")
        _check_value(f"{title}: {name}", defaults[name], value)


def _check_value(title: str, default: object, value: object) -> None:
    expected = type(default)
    if default is None:
        return
    if type(value) is not expected and not (expected is float and type(value) is int):
        # YAML 1.1 reads 1e-3 as text; it wants the point.
        hint = " (in YAML write 1.0e-3, not 1e-3)" if isinstance(value, str) and expected is float else ""
        raise ValueError(f"{title} must be of type {expected.__name__}, not {value!r}{hint}")
    if expected is float and not math.isfinite(value):
        raise ValueError(f"{title} must be a finite number, not {value}")
    if expected is float and value < 0 <= default:
        raise ValueError(f"{title} must not be negative, got {value}")
    if expected is int and value < 1 <= default:
        raise ValueError(f"{title} must be at least 1, not {value}")


def construct(kind: type, settings: Mapping[str, object]) -> object:
    """A dataclass with `settings` in place of its defaults; those of a nested one are `outer.inner` or a
    mapping. The settings have passed `check_settings`."""
    grouped: dict[str, object] = {}
    for name, value in flat(settings).items():
        outer, dot, inner = name.partition(".")
        if dot:
            grouped.setdefault(outer, {})[inner] = value
        else:
            grouped[outer] = value
    factories = {field.name: field.default_factory for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: construct(factories[name], value) if isinstance(value, dict) else value
            for name, value in grouped.items()
        }
    )


# Skeletons.


class _NotLiteral(Exception):
    """The syntax does not say it; the class must be imported."""


@dataclass(frozen=True)
class _Module:
    """What a module's top level binds: classes, and imported names as (module, attribute or None)."""

    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, tuple[str, str | None]]


def _skeleton(module: str, name: str) -> type:
    """The class `name` of a module, or that it imports, with its literals alone."""
    parsed = _module(module)
    if name in parsed.classes:
        return _rebuilt(module, parsed.classes[name])
    if name not in parsed.imports or parsed.imports[name][1] is None:
        raise _NotLiteral(f"{module} does not say what {name} is")
    return _resolved(*parsed.imports[name])


def _resolved(module: str, name: str) -> type:
    if module.partition(".")[0] in sys.stdlib_module_names:
        return getattr(importlib.import_module(module), name)
    return _skeleton(module, name)


def _rebuilt(module: str, node: ast.ClassDef) -> type:
    if node.keywords:
        raise _NotLiteral(f"{node.name} has a metaclass or the like")
    options = _dataclass_options(module, node)
    namespace: dict[str, object] = {"__module__": module, "__qualname__": node.name}
    annotations: dict[str, object] = {}
    for name, annotation, value in _assignments(node):
        is_field = annotation is not None and not annotation.startswith(("ClassVar", "typing.ClassVar"))
        if annotation is not None:
            annotations[name] = object if is_field else ClassVar
        is_fact = name in TEXTS + TUPLES + FLAGS
        if value is not None and (is_fact or (is_field and options is not None)):
            namespace[name] = _value(module, value)
    bases = tuple(base for b in node.bases if (base := _base(module, b)) is not None)
    kind = types.new_class(
        node.name, bases, exec_body=lambda body: body.update(namespace, __annotations__=annotations)
    )
    return kind if options is None else dataclasses.dataclass(**options)(kind)


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, str | None, ast.expr | None]]:
    """Name, annotation and value of what a class assigns in its body."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, ast.unparse(statement.annotation).strip("'\""), statement.value
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, None, statement.value
        elif isinstance(statement, ast.FunctionDef) and statement.name in TEXTS + TUPLES + FLAGS:
            raise _NotLiteral(f"{node.name}.{statement.name} is computed")


def _dataclass_options(module: str, node: ast.ClassDef) -> dict[str, object] | None:
    """The options of the class's @dataclass; None without one."""
    options = None
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        target = _target(module, call.func if call else decorator)
        if target == ("dataclasses", "dataclass"):
            options = {k.arg: _literal(k.value) for k in call.keywords} if call else {}
        elif target not in (("typing", "final"), ("typing", "runtime_checkable")):
            raise _NotLiteral(f"{node.name} is decorated")
    return options


def _base(module: str, expression: ast.expr) -> type | None:
    """The skeleton of a base class; None for a subscripted one of the standard library, such as Generic."""
    subscripted = isinstance(expression, ast.Subscript)
    target = _target(module, expression.value if subscripted else expression)
    if subscripted and target[0].partition(".")[0] in sys.stdlib_module_names:
        return None
    return _resolved(*target)


def _value(module: str, expression: ast.expr) -> object:
    """A default: a literal, or field(…) with a literal or a dataclass to make it."""
    if not (isinstance(expression, ast.Call) and _target(module, expression.func)[1] == "field"):
        return _literal(expression)
    given = {keyword.arg: keyword.value for keyword in expression.keywords}
    options = {name: _literal(v) for name, v in given.items() if name not in ("default_factory", "metadata")}
    if "default_factory" in given:
        options["default_factory"] = _resolved(*_target(module, given["default_factory"]))
    return dataclasses.field(**options)


def _literal(expression: ast.expr) -> object:
    try:
        return ast.literal_eval(expression)
    except ValueError:
        raise _NotLiteral(ast.unparse(expression)) from None


def _target(module: str, expression: ast.expr) -> tuple[str, str]:
    """The module and the name there that an expression of `module` stands for."""
    parsed = _module(module)
    if isinstance(expression, ast.Name):
        name = expression.id
        where, attribute = parsed.imports.get(name, (module, name))
        if attribute is not None:
            return where, attribute
    *path, name = ast.unparse(expression).split(".")
    if path and path[0] in parsed.imports:
        where, attribute = parsed.imports[path[0]]
        return ".".join([where, *([attribute] if attribute else []), *path[1:]]), name
    raise _NotLiteral(ast.unparse(expression))


def _module(name: str) -> _Module:
    file = _file(name)
    return _parsed(name, file, file.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _parsed(name: str, file: Path, _changed: int) -> _Module:
    classes, imports = {}, {}
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from None
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            classes[statement.name] = _without_bodies(statement)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                imports[alias.asname or bound] = (bound, None)
        elif isinstance(statement, ast.ImportFrom):
            relative = "." * statement.level + (statement.module or "")
            origin = importlib.util.resolve_name(relative, package)
            imports |= {alias.asname or alias.name: (origin, alias.name) for alias in statement.names}
    return _Module(classes, imports)


def _without_bodies(node: ast.ClassDef) -> ast.ClassDef:
    """The class without what its functions do: most of its tree, of which no fact is read."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            statement.body = []
    return node


def _file(module: str) -> Path:
    """The source of a module, found without importing the packages that it lies in."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError as error:  # a module without a file, such as __main__
        raise _NotLiteral(module) from error
    full = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            break
        full = f"{full}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(full, list(spec.submodule_search_locations))
    if spec is None or full != module:
        raise _NotLiteral(f"no module {module}")
    if not spec.origin or not spec.origin.endswith(".py"):
        raise _NotLiteral(f"{module} has no source")
    return Path(spec.origin)
