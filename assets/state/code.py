"""What a result was computed by: a digest of the code that runs, taken from its syntax.

`code_of` starts at a module, class or function and follows the names that it uses, through imports, to the
definitions behind them, as far as the code is ours: this project, or a user's module that is neither
installed nor part of Python. Comments, docstrings, layout, annotations of undecorated functions and imports
for type checkers are not code. Nothing is imported; each file is parsed once a process.

A name that cannot be followed counts as all of the module that it may come from: rather a result too many
made anew than one too few. What is looked up at run time by a string, or read from a file that is not Python,
is not seen: name it as a target, or add `digest_of` its bytes.
"""

import ast
import builtins
import contextlib
import gc
import hashlib
import importlib.machinery
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

# The folder of our packages: the checkout, or where they are installed.
OURS = Path(__file__).resolve().parents[2]
PACKAGES = ("assets", "ml", "pipeline")
_INSTALLED = {"site-packages", "dist-packages"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)


@cache
def code_of(*targets: str) -> str:
    """The digest of everything that `targets` run, each a module ("ml.fold_in") or "module:name".

    Raises LookupError for a module that is not found and a name that its module does not define.
    """
    return _sources.digest(*targets)


def digest_of(*files: Path) -> str:
    """A digest of the names and bytes of files, for what is not Python: templates, published tables."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Import:
    """What an import binds: a module, or one of the names in it."""

    module: str
    name: str | None = None


# A name of a module, or an import within a function, and the attributes that are taken of it.
Use = tuple[str | Import, tuple[str, ...]]
# The name of a module's statements that bind none: they run whatever is used of it.
EFFECTS = ""
# A module and one of its names.
Key = tuple[str, str]


class Sources:
    """Modules as they are found and parsed, and what each of their definitions leads to."""

    def __init__(self) -> None:
        self._modules: dict[str, Module | None] = {}
        self._read: dict[Key, tuple[str, list[Key]]] = {}

    def digest(self, *targets: str) -> str:
        with _uncollected():
            return self._digest(targets)

    def _digest(self, targets: Iterable[str]) -> str:
        pending = [key for target in targets for key in self._start(target)]
        reached: set[Key] = set()
        while pending:
            key = pending.pop()
            if key not in reached:
                reached.add(key)
                pending += self._definition(key)[1]
        lines = (f"{module}:{name} {self._read[module, name][0]}\n" for module, name in sorted(reached))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]

    def _definition(self, key: Key) -> tuple[str, list[Key]]:
        """The digest of one definition and of where its names come from, and the definitions that it uses."""
        if key not in self._read:
            module = self._modules[key[0]]
            # Read once: what is kept of it is the digest.
            syntax, uses = module.definitions.pop(key[1])
            following: list[Key] = []
            origins: set[str] = set()
            for root, attributes in uses:
                bound = module.imports.get(root, ()) if isinstance(root, str) else (root,)
                origins |= {f"{one.module} {one.name}\n" for one in bound}
                following += self._follow(module, root, attributes)
            text = syntax + "".join(sorted(origins))
            self._read[key] = hashlib.sha256(text.encode()).hexdigest(), following
        return self._read[key]

    def _start(self, target: str) -> list[Key]:
        module, _, name = target.partition(":")
        found = self.module(module)
        if found is None:
            raise LookupError(f"{target}: no module {module!r} of this project or of yours is found")
        if not name:
            return self._whole(found)
        if name not in found.bindings and name not in found.imports:
            raise LookupError(f"{target}: {found.path} defines no {name!r}")
        return self._follow(found, name, ())

    def _follow(self, module: "Module", root: str | Import, attributes: tuple[str, ...]) -> list[Key]:
        """The definitions that a name of `module`, or an import in one of its functions, stands for."""
        if isinstance(root, Import):
            return self._imported(root, attributes)
        keys = [(module.name, root), *self._surroundings(module)] if root in module.bindings else []
        for each in module.imports.get(root, ()):
            keys += self._imported(each, attributes)
        if not keys and root not in module.imports and not hasattr(builtins, root):
            for star in filter(None, map(self.module, module.stars)):
                keys += self._whole(star)
        return keys

    def _imported(self, imported: Import, attributes: tuple[str, ...]) -> list[Key]:
        names = attributes if imported.name is None else (imported.name, *attributes)
        module = self.module(imported.module)
        if module is None:
            return []
        for place, name in enumerate(names):
            if name in module.bindings or name in module.imports:
                return self._follow(module, name, names[place + 1 :])
            inner = self.module(f"{module.name}.{name}")
            if inner is None:
                return [] if name.startswith("__") else self._whole(module)
            module = inner
        return self._whole(module)

    def _whole(self, module: "Module") -> list[Key]:
        """Everything in a module and in those from which it takes all names."""
        modules = [module]
        for each in modules:
            stars = filter(None, map(self.module, each.stars))
            modules += [star for star in stars if star not in modules]
        names = [(each.name, name) for each in modules for name in each.bindings]
        return names + [key for each in modules for key in self._surroundings(each)]

    def _surroundings(self, module: "Module") -> list[Key]:
        """What importing a module runs besides definitions, in it and in the packages around it."""
        parts = module.name.split(".")
        around = (self.module(".".join(parts[:count])) for count in range(1, len(parts)))
        return [(each.name, EFFECTS) for each in (*around, module) if each is not None]

    def module(self, name: str) -> "Module | None":
        """The module of that name where it is ours, else None."""
        if name == __name__:
            # A result does not depend on how this module reads the code that made it.
            return None
        if name not in self._modules:
            package = name.rpartition(".")[0]
            if package:
                parent = self.module(package)
                spec = _spec(name, parent.folders) if parent is not None and parent.folders else None
            else:
                spec = _own_spec(name)
            folders = list(spec.submodule_search_locations or ()) if spec is not None else []
            path = Path(spec.origin) if spec is not None and spec.has_location else None
            readable = path is not None and path.suffix == ".py"
            self._modules[name] = (
                Module(name, path if readable else None, folders) if readable or folders else None
            )
        return self._modules[name]


def _own_spec(top: str) -> importlib.machinery.ModuleSpec | None:
    """Of a top-level module that is the project's own or a user's."""
    if (OURS / top / "__init__.py").exists() and (top in PACKAGES or not _INSTALLED & set(OURS.parts)):
        return _spec(top, [str(OURS)])
    if top in sys.stdlib_module_names:
        return None
    spec = _spec(top, None)
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec is not None else []
    return None if any(_INSTALLED & set(Path(place).parts) for place in places) else spec


def _spec(name: str, folders: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    """As an import would find it, without importing the packages around it."""
    found = (each.find_spec(name, folders) for each in sys.meta_path if hasattr(each, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which takes a third of the time where so many small objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(eq=False)
class Module:
    """A file's top-level names: what they stand for, and what its definitions are and use.

    The syntax tree is not kept: those of the whole project would be a third of a process's objects, and half
    of the time that it takes to end.
    """

    name: str
    # None for a folder without __init__.py.
    path: Path | None
    # Where a package's modules are.
    folders: list[str]
    # By name, and of EFFECTS: the syntax of the statements that bind it, and what they use.
    definitions: dict[str, tuple[str, set[Use]]] = field(init=False)
    imports: dict[str, list[Import]] = field(init=False, default_factory=dict)
    stars: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        bindings: dict[str, list[ast.stmt]] = {}
        effects: list[ast.stmt] = []
        tree = ast.parse(self.path.read_bytes() if self.path else b"", self.path or "")
        for statement in _running(tree.body):
            if not self._enter(statement, bindings):
                effects.append(statement)
        # A call upon what is defined here belongs to it, wherever it stands.
        for statement in effects[:]:
            owner = _owner(statement)
            if owner in bindings:
                bindings[owner].append(statement)
                effects.remove(statement)
        self.bindings = frozenset(bindings)
        self.definitions = {name: self._read(bound) for name, bound in {**bindings, EFFECTS: effects}.items()}

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name if self.folders else self.name.rpartition(".")[0]

    def _read(self, statements: Iterable[ast.stmt]) -> tuple[str, set[Use]]:
        reader = _Reader(self.package)
        for statement in statements:
            reader.statement(statement)
        return "".join(reader.syntax), reader.uses

    def _enter(self, statement: ast.stmt, bindings: dict[str, list[ast.stmt]]) -> bool:
        """Whether the statement binds a name or imports one."""
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for name, imported in imports_of(statement, self.package):
                self._import(name, imported)
            return True
        names, imports = set(), []
        for node in _same_scope(statement):
            names |= {_bound(node), _changed(node)} - {None}
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports += imports_of(node, self.package)
        for name, imported in imports:
            self._import(name, imported)
        for name in names:
            bindings.setdefault(name, []).append(statement)
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            for decorator in statement.decorator_list:
                # `@table.register` makes the function a part of the table.
                owner = _root(decorator.func if isinstance(decorator, ast.Call) else decorator)
                if owner in bindings and owner != statement.name:
                    bindings[owner].append(statement)
        return bool(names or imports)

    def _import(self, name: str, imported: Import) -> None:
        if name == "*":
            self.stars.append(imported.module)
        else:
            self.imports.setdefault(name, []).append(imported)


def imports_of(statement: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Import]]:
    """(name bound, what is bound) of an import; the name is * for all names of a module."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (
                alias.asname or alias.name.split(".")[0],
                Import(alias.name if alias.asname else alias.name.split(".")[0]),
            )
        return
    module = statement.module or ""
    if statement.level:
        parts = package.split(".")
        module = ".".join([*parts[: len(parts) - statement.level + 1], *module.split(".")]).strip(".")
    for alias in statement.names:
        yield alias.asname or alias.name, Import(module, None if alias.name == "*" else alias.name)


def _running(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that do something: no docstring, no block for type checkers or for scripts."""
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.If) and _is_type_checking(statement.test):
            yield from _running(statement.orelse)
            continue
        if isinstance(statement, ast.If) and _is_main(statement.test):
            continue
        yield statement


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def _same_scope(statement: ast.stmt) -> Iterator[ast.AST]:
    """What is in a statement, but not what is in the functions, classes and comprehensions within."""
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, _COMPREHENSIONS):
            # A walrus in a comprehension binds outside it.
            yield from (each for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
        elif not isinstance(node, _SCOPES):
            pending += ast.iter_child_nodes(node)


def _bound(node: ast.AST) -> str | None:
    """The name that a node itself binds, imports apart."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return node.name
        case ast.Name(ctx=ast.Store()):
            return node.id
        case ast.NamedExpr():
            return node.target.id
        case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
            return node.name
        case ast.MatchMapping():
            return node.rest
    return None


def _changed(node: ast.AST) -> str | None:
    """The name of what a node changes a part of, as in `TABLE[key] = value`."""
    return _root(node) if isinstance(getattr(node, "ctx", None), ast.Store) else None


def _is_dataclass(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return "dataclass" in (getattr(called, "id", None), getattr(called, "attr", None))


def _root(node: ast.expr) -> str | None:
    """The name at the left of a chain of attributes and subscripts that has at least one of them."""
    if not isinstance(node, ast.Attribute | ast.Subscript):
        return None
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _owner(statement: ast.stmt) -> str | None:
    """The name upon which a bare call is made, as in `TABLE.update(...)`."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    return _root(call.func) if isinstance(call, ast.Call) else None


@dataclass
class _Scope:
    """Names that a function or comprehension binds, and what is used in it."""

    is_comprehension: bool = False
    bound: set[str] = field(default_factory=set)
    imports: dict[str, list[Import]] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)
    uses: set[Use] = field(default_factory=set)

    def leave(self, around: "_Scope", hide: bool = True) -> None:
        """Hand on what is used from around this scope; `hide` is whether its own names hide others."""
        for root, attributes in self.uses:
            own = root in self.bound and root not in self.outside
            if own:
                around.uses |= {(imported, attributes) for imported in self.imports.get(root, ())}
            if not own or not hide:
                around.uses.add((root, attributes))


class _Reader:
    """Writes down the syntax of statements and collects the names they use from outside themselves."""

    def __init__(self, package: str) -> None:
        self.syntax: list[str] = []
        self._package = package
        # Around the place that is read, the module's first.
        self._scopes: list[_Scope] = [_Scope()]
        # What annotations of names are where the reader is: "run", "kept" as syntax only, or "ignored".
        self._annotations = "run"
        self._write: dict[type, Callable] = {
            list: self._list,
            ast.Name: self._name,
            ast.Attribute: self._attribute,
            ast.Constant: self._constant,
            ast.ClassDef: self._class,
            ast.AnnAssign: self._annotated,
            ast.Import: self._import,
            ast.ImportFrom: self._import,
            ast.Global: self._outer,
            ast.Nonlocal: self._outer,
            ast.NamedExpr: self._walrus,
            **dict.fromkeys((ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping), self._binding),
            **dict.fromkeys(_FUNCTIONS, self._function),
            **dict.fromkeys(_COMPREHENSIONS, self._comprehension),
        }

    @property
    def uses(self) -> set[Use]:
        return self._scopes[0].uses

    def statement(self, statement: ast.stmt) -> None:
        self._node(statement)
        self.syntax.append("\n")

    def _node(self, node: object) -> None:
        write = self._write.get(type(node))
        if write is not None:
            write(node)
        elif isinstance(node, ast.AST):
            self._fields(node, node._fields)
        else:
            self.syntax.append(f"{node!r} ")

    def _list(self, nodes: list) -> None:
        self.syntax.append("[")
        for each in _running(nodes) if nodes and isinstance(nodes[0], ast.stmt) else nodes:
            self._node(each)
        self.syntax.append("]")

    def _name(self, node: ast.Name) -> None:
        self.syntax.append(f"{node.id} ")
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id)
        else:
            self._scopes[-1].uses.add((node.id, ()))

    def _constant(self, node: ast.Constant) -> None:
        self.syntax.append(f"{node.value!r} ")

    def _bind(self, name: str | None) -> None:
        if name is not None:
            self._scopes[-1].bound.add(name)

    def _binding(self, node: ast.AST) -> None:
        self._bind(_bound(node))
        self._fields(node, node._fields)

    def _walrus(self, node: ast.NamedExpr) -> None:
        """Binds in the function around all comprehensions."""
        scope = next(scope for scope in reversed(self._scopes) if not scope.is_comprehension)
        scope.bound.add(node.target.id)
        self.syntax.append(f"{node.target.id} := ")
        self._node(node.value)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self._fields(node, node._fields)
        for name, imported in imports_of(node, self._package):
            self._bind(name)
            self._scopes[-1].imports.setdefault(name, []).append(imported)

    def _outer(self, node: ast.Global | ast.Nonlocal) -> None:
        self._scopes[-1].outside |= set(node.names)
        self._fields(node, node._fields)

    def _class(self, node: ast.ClassDef) -> None:
        self._bind(node.name)
        for around in (node.decorator_list, node.bases, node.keywords):
            self._node(around)
        # A data class only names its fields by annotation; pydantic's models run what their annotations name.
        plain = any(map(_is_dataclass, node.decorator_list))
        before, self._annotations = self._annotations, "kept" if plain else "run"
        self._scopes.append(_Scope())
        self.syntax.append(f"(ClassDef {node.name} ")
        self._node(node.body)
        self.syntax.append(")")
        self._annotations = before
        # The functions of a class do not see its names, so none of them hides one of the module.
        self._scopes.pop().leave(self._scopes[-1], hide=False)

    def _annotated(self, node: ast.AnnAssign) -> None:
        if self._annotations == "run":
            self._fields(node, node._fields)
            return
        if self._annotations == "kept":
            self.syntax.append(ast.dump(node.annotation))
        self._fields(node, ("target", "value"))

    def _fields(self, node: ast.AST, names: Iterable[str]) -> None:
        """Absent fields are left out, so that versions of Python that know more of them agree."""
        self.syntax.append(f"({type(node).__name__} ")
        for name in names:
            value = getattr(node, name, None)
            if value is not None and value != [] and name not in ("ctx", "type_comment", "kind"):
                self.syntax.append(f"{name}=")
                self._node(value)
        self.syntax.append(")")

    def _attribute(self, node: ast.Attribute) -> None:
        names: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            names.append(inner.attr)
            inner = inner.value
        names.reverse()
        if isinstance(inner, ast.Name):
            self._scopes[-1].uses.add((inner.id, tuple(names)))
            self.syntax.append(".".join((inner.id, *names)) + " ")
        else:
            self._node(inner)
            self.syntax.append("." + ".".join(names) + " ")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        decorators = getattr(node, "decorator_list", [])
        self._bind(getattr(node, "name", None))
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        # Decorators, defaults and annotations belong to the scope around the function.
        self.syntax.append(f"({type(node).__name__} {getattr(node, 'name', '')} ")
        self._node(decorators)
        self._node(arguments.defaults)
        self._node([each or ast.Constant("required") for each in arguments.kw_defaults])
        shape = (arguments.posonlyargs, arguments.args, arguments.kwonlyargs)
        self.syntax.append(repr([[each.arg for each in group] for group in shape]))
        self.syntax.append(repr([each and each.arg for each in (arguments.vararg, arguments.kwarg)]))
        if decorators:
            # A decorator may read them.
            self._node([each.annotation for each in every if each.annotation is not None])
        scope = _Scope()
        scope.bound |= {each.arg for each in every}
        self._scopes.append(scope)
        before, self._annotations = self._annotations, "ignored"
        self._node(node.body)
        self._annotations = before
        self._scopes.pop().leave(self._scopes[-1])
        self.syntax.append(")")

    def _comprehension(self, node: ast.AST) -> None:
        # The first iterable is evaluated around the comprehension.
        self._node(node.generators[0].iter)
        self._scopes.append(_Scope(is_comprehension=True))
        self._fields(node, node._fields)
        self._scopes.pop().leave(self._scopes[-1])


_sources = Sources()
