"""Facts of models by their syntax: the same as by import, and errors that say what to do."""

import subprocess
import sys
from textwrap import dedent

import pytest

from ml.models.facts import Facts, check_settings, facts_of, imported, read
from ml.models.registry import MODELS, build, facts

BODY = """
    def fit(self, data, device="cpu"): yield
    def predict(self, users, ratings, replica=0): ...
    def scores(self, users, items, replica=0): ...
    def state_dict(self, replica=0): ...
    def load_state_dict(self, *states): ...
    def items_of(self, replica=0): ...
"""
PLAIN = f"""
from __future__ import annotations
import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar
from ml.models import contract
from ml.models.contract import Model

@dataclass
class Inner:
    hidden: int = 32
    decay: float = 1e-2

@dataclass
class Plain(Model):
    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "Plain"
    summary: ClassVar[str] = "a model."
    needs: ClassVar[tuple[str, ...]] = ("ratings", "factors")
    lr: float = 1e-3
    shift: float = -1.0
    epochs: int = 10
    start: str = "source"
    diffusion: Inner = field(default_factory=Inner)
{BODY}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module on the Python path and says its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(name: str, text: str) -> str:
        target = tmp_path / f"{name.replace('.', '/')}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(dedent(text))
        names.append(name)
        return name

    yield write
    for name in [
        loaded for loaded in sys.modules if loaded.partition(".")[0] in {n.split(".")[0] for n in names}
    ]:
        del sys.modules[name]


def test_every_registered_model_says_the_same_by_syntax_and_by_import():
    for name, path in MODELS.items():
        told = facts(name)
        assert told == facts_of(imported(path), path)
        assert told.name == name


def test_a_class_of_literals_is_read_without_importing_it(module):
    module("plain", PLAIN + "\nraise RuntimeError('imported')\n")
    told = read("plain:Plain")
    assert "plain" not in sys.modules
    assert told == Facts(
        name="plain",
        path="plain:Plain",
        title="Plain",
        summary="a model.",
        source="",
        needs=("ratings", "factors"),
        objectives=("rating", "ranking"),
        role="learned",
        settings_from="",
        warms_by="",
        serves="anyone",
        on_device=True,
        defaults={
            "lr": 1e-3,
            "shift": -1.0,
            "epochs": 10,
            "start": "source",
            "diffusion.hidden": 32,
            "diffusion.decay": 1e-2,
        },
    )
    assert told.types["lr"] is float


def test_neither_torch_nor_the_contract_is_imported(module, tmp_path):
    module("plain", PLAIN)
    code = (
        "import sys; from ml.models.registry import facts; facts('plain:Plain'); "
        "print(sorted({'torch', 'numpy', 'plain', 'ml.models.contract'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, '.']; {code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_inherited_facts_and_fields_come_through_the_imports_of_a_package(module):
    module("pack.base", PLAIN)
    module("pack.again", "from pack.base import Plain as Renamed\n")
    module(
        "pack.own",
        """
        import dataclasses
        import pack.base
        from typing import ClassVar
        from .again import Renamed
        from . import base

        class Mixin:
            role: ClassVar[str] = "simple"
            unused: int = 3

        @dataclasses.dataclass
        class Wide(Mixin, Renamed):
            name = "wide"
            lr: float = 0.1
            diffusion: base.Inner = dataclasses.field(default_factory=lambda: None, init=False)
            width: int = dataclasses.field(default=8, metadata={"unit": max(1, 2)})

        @dataclasses.dataclass
        class Wider(pack.base.Plain):
            name = "wider"
            objectives = ("rating",)
            diffusion: base.Inner = dataclasses.field(default_factory=base.Inner)
        """,
    )
    for name in ("Wide", "Wider"):
        told = read(f"pack.own:{name}")
        assert told == facts_of(imported(f"pack.own:{name}"), f"pack.own:{name}")
    wide = read("pack.own:Wide")
    assert (wide.name, wide.role, wide.title) == ("wide", "simple", "Plain")
    assert wide.defaults == {"lr": 0.1, "shift": -1.0, "epochs": 10, "start": "source", "width": 8}


def test_what_is_no_literal_is_imported(module):
    module("computed", PLAIN.replace("lr: float = 1e-3", "lr: float = 10 ** -3"))
    assert read("computed:Plain").defaults["lr"] == 1e-3
    assert "computed" in sys.modules


def test_a_changed_file_is_read_anew(module):
    module("plain", PLAIN)
    read("plain:Plain")
    module("plain", PLAIN.replace("epochs: int = 10", "epochs: int = 1000"))
    assert read("plain:Plain").defaults["epochs"] == 1000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plian", "", "unknown model 'plian'; known models: tgt, cmf,.* or give module:Class"),
        ("nowhere_at_all:Plain", "", "cannot be imported: No module named 'nowhere_at_all'.*PYTHONPATH"),
        ("own:Other", "class Plain: ...", "cannot be imported: module 'own' has no attribute 'Other'"),
        ("own:Plain", "class Plain: ...", r"'own:Plain' is not a subclass of ml.models.contract.Model"),
        ("own:Plain", "Plain = 3", r"'own:Plain' is not a subclass"),
        ("own:Plain", "class Plain(:", r"own.py, line 1: invalid syntax"),
        ("own:Plain", PLAIN.replace("    title", "    other"), "no title; add `title: ClassVar"),
        ("own:Plain", PLAIN.replace("@dataclass\nclass Plain", "class Plain"), "write @dataclass above"),
        ("own:Plain", PLAIN.replace("lr: float = 1e-3", "lr: float"), "lr has no default"),
        (
            "own:Plain",
            PLAIN.replace('("ratings", "factors")', '"ratings"'),
            "needs must be a tuple of names, not 'ratings'",
        ),
        (
            "own:Plain",
            PLAIN.replace("    lr: float", "    on_device: ClassVar[bool] = 1\n    lr: float"),
            "on_device must be True or False, not 1",
        ),
    ],
)
def test_what_is_no_model_is_refused_with_a_sentence(module, name, text, message):
    module("own", text)
    with pytest.raises(ValueError, match=message):
        facts(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rl": 0.1},
            "plain: unknown hyper-parameter 'rl'; known: lr, shift, epochs, start, diffusion.hidden",
        ),
        ({"diffusion": {"wide": 3}}, "unknown hyper-parameter 'diffusion.wide'"),
        ({"diffusion": 3}, "unknown hyper-parameter 'diffusion'"),
        ({"lr": "1e-3"}, r"lr must be of type float, not '1e-3' \(in YAML write 1.0e-3, not 1e-3\)"),
        ({"epochs": 1.0}, "epochs must be of type int, not 1.0$"),
        ({"epochs": True}, "epochs must be of type int, not True"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"diffusion.hidden": -1}, "diffusion.hidden must be at least 1"),
        ({"lr": -0.1}, "lr must not be negative, got -0.1"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"start": ["source"]}, "start must be of type str"),
    ],
)
def test_settings_are_checked_without_the_class(module, settings, message):
    module("plain", PLAIN)
    with pytest.raises(ValueError, match=message):
        check_settings(read("plain:Plain"), settings)


def test_settings_of_the_right_kind_pass_and_build_the_model(module):
    module("plain", PLAIN)
    settings = {"lr": 1, "shift": -2.0, "diffusion": {"hidden": 16}, "diffusion.decay": 0.0}
    model = build("plain:Plain", **settings)
    assert (model.lr, model.shift, model.diffusion.hidden, model.diffusion.decay) == (1, -2.0, 16, 0.0)
