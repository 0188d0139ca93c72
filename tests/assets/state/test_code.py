"""A digest of code follows what runs: a formula and all that it uses, and nothing else."""

import ast
import subprocess
import sys
import textwrap
import time

import pytest

from assets.state.code import OURS, Sources, code_of, digest_of

RECIPE = '''
"""Soup."""
import math
import os.path
from typing import TYPE_CHECKING

import kitchen.tools
import kitchen.stock as base
from kitchen import spices
from kitchen.pots import Pot, lid as cover
from kitchen.tools import stir

if TYPE_CHECKING:
    from kitchen.guests import Guest

SALT = 2  # grams
UNUSED = 1


def soup(guests: "list[Guest]") -> float:
    """Boil it."""
    # slowly
    return boil(SALT) + kitchen.tools.cut(3) + base.bones() + spices.pepper() + cover() + math.sqrt(4)


def boil(salt):
    from kitchen.heat import fire as flame

    return stir(salt) * flame()


def unused():
    return 1


@kitchen.tools.twice
def toast():
    return [stir for stir in range(3)]


class Stew(Pot):
    name = "stew"

    def cook(self):
        return boil(1)
'''
FILES = {
    "recipes.py": RECIPE,
    "kitchen/__init__.py": "from kitchen.inner import *\nfrom .shop import ladle\n",
    "kitchen/inner.py": "def anything():\n    return 1\n",
    "kitchen/shop.py": "def ladle():\n    return 1\n\n\ndef sieve():\n    return 1\n",
    "kitchen/tools.py": "def stir(x):\n    return x\n\n\ndef cut(x):\n    return x\n\n\n"
    "def twice(f):\n    return f\n",
    "kitchen/stock.py": "def bones():\n    return 1\n\n\ndef fish():\n    return 1\n",
    "kitchen/spices.py": "HOT = {}\nHOT['chili'] = 3\nHOT.update(pepper=2)\n\n\n"
    "def pepper():\n    return HOT\n",
    "kitchen/pots.py": "class Iron:\n    weight = 1\n\n\nclass Pot(Iron):\n    size = 1\n\n\n"
    "def lid():\n    return 1\n",
    "kitchen/heat.py": "def fire():\n    return 1\n\n\ndef ice():\n    return 1\n",
    "kitchen/guests.py": "class Guest:\n    hunger = 1\n",
}


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """Writes the modules, some of them changed as (file, old, new), and returns the digest of a target."""
    monkeypatch.syspath_prepend(tmp_path)

    def digest(*changes, target="recipes:soup", files=FILES):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            for file, old, new in changes:
                if file == name:
                    assert old in text
                    text = text.replace(old, new)
            path.write_text(text)
        return Sources().digest(target)

    return digest


SAME = {
    "a comment": ("recipes.py", "# slowly", "# fast"),
    "a docstring": ("recipes.py", '"""Boil it."""', '"""Heat it\n    well."""'),
    "the module's docstring": ("recipes.py", '"""Soup."""', ""),
    "layout": ("recipes.py", "boil(SALT) + ", "boil(\n        SALT,\n    ) + "),
    "an annotation": ("recipes.py", '"list[Guest]"', '"Guest"'),
    "a type-only import": ("recipes.py", "    from kitchen.guests import Guest", "    from g import Guest"),
    "what only types name": ("kitchen/guests.py", "hunger = 1", "hunger = 2"),
    "lines above": ("recipes.py", "SALT = 2", "\n\n\nSALT = 2"),
    "an unused function": ("recipes.py", "def unused():\n    return 1", "def unused():\n    return 2"),
    "an unused constant": ("recipes.py", "UNUSED = 1", "UNUSED = 2"),
    "an unused function of a module used by alias": (
        "kitchen/stock.py",
        "fish():\n    return 1",
        "fish(): 2",
    ),
    "an unused function beside one imported": ("kitchen/heat.py", "def ice():\n    return 1", "def ice(): 2"),
    "an unused class": ("kitchen/pots.py", "size = 1", "size = 2"),
    "an unused import": ("recipes.py", "import os.path\n", ""),
}
OTHER = {
    "its own formula": ("recipes.py", "boil(SALT) + ", "boil(SALT) - "),
    "a constant": ("recipes.py", "SALT = 2", "SALT = 3"),
    "a function of its module": ("recipes.py", "stir(salt) * flame()", "stir(salt) / flame()"),
    "a default": ("recipes.py", "def boil(salt):", "def boil(salt=1):"),
    "a function imported by name": (
        "kitchen/tools.py",
        "def stir(x):\n    return x",
        "def stir(x):\n    return -x",
    ),
    "a function of a module": ("kitchen/tools.py", "def cut(x):\n    return x", "def cut(x):\n    return -x"),
    "a function of an aliased module": (
        "kitchen/stock.py",
        "bones():\n    return 1",
        "bones():\n    return 2",
    ),
    "a function under another name": ("kitchen/pots.py", "lid():\n    return 1", "lid():\n    return 2"),
    "what a function imports": ("kitchen/heat.py", "fire():\n    return 1", "fire():\n    return 2"),
    "an entry of a constant": ("kitchen/spices.py", "HOT['chili'] = 3", "HOT['chili'] = 4"),
    "a call upon a constant": ("kitchen/spices.py", "pepper=2", "pepper=3"),
    "where a foreign name comes from": ("recipes.py", "import math", "import cmath as math"),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_does_not_run_does_not_count(change, kitchen):
    assert kitchen() == kitchen(change)


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_a_change_of_what_runs_counts(change, kitchen):
    assert kitchen() != kitchen(change)


@pytest.mark.parametrize("base", ["size = 1", "weight = 1"])
def test_a_class_is_all_of_itself_and_its_bases(base, kitchen):
    assert kitchen(target="recipes:Stew") != kitchen(
        ("kitchen/pots.py", base, "x = 2"), target="recipes:Stew"
    )
    change = ("kitchen/heat.py", "fire():\n    return 1", "fire():\n    return 2")
    assert kitchen(target="recipes:Stew") != kitchen(change, target="recipes:Stew")


def test_a_decorator_counts_and_a_local_name_hides_an_import(kitchen):
    plain = kitchen(target="recipes:toast")
    decorator = ("kitchen/tools.py", "def twice(f):\n    return f", "def twice(f):\n    return None")
    assert kitchen(decorator, target="recipes:toast") != plain
    hidden = ("kitchen/tools.py", "def stir(x):\n    return x", "def stir(x):\n    return -x")
    assert kitchen(hidden, target="recipes:toast") == plain


def test_names_pass_through_packages_by_relative_and_star_imports(kitchen):
    files = FILES | {
        "a.py": "import kitchen\nfrom kitchen import ladle, anything\n\n\ndef x():\n    return ladle()\n"
    }
    files["a.py"] += "\n\ndef y():\n    return anything()\n"
    ladle = ("kitchen/shop.py", "def ladle():\n    return 1", "def ladle():\n    return 2")
    sieve = ("kitchen/shop.py", "def sieve():\n    return 1", "def sieve():\n    return 2")
    star = ("kitchen/inner.py", "return 1", "return 2")
    x, y = (kitchen(target=f"a:{name}", files=files) for name in "xy")
    assert kitchen(ladle, target="a:x", files=files) != x
    assert kitchen(sieve, target="a:x", files=files) == x
    assert kitchen(star, target="a:y", files=files) != y


def test_a_module_that_is_passed_on_counts_whole(kitchen):
    files = FILES | {"a.py": "from kitchen import heat\n\n\ndef x(name):\n    return getattr(heat, name)()\n"}
    ice = ("kitchen/heat.py", "ice():\n    return 1", "ice():\n    return 2")
    assert kitchen(target="a:x", files=files) != kitchen(ice, target="a:x", files=files)


def test_what_runs_on_import_counts(kitchen):
    files = FILES | {"a.py": "import math\n\nprint(1)\n\n\ndef x():\n    return 1\n"}
    assert kitchen(target="a:x", files=files) != kitchen(
        ("a.py", "print(1)", "print(2)"), target="a:x", files=files
    )
    files["a.py"] += "\n\nif __name__ == '__main__':\n    print(3)\n"
    script = ("a.py", "print(3)", "print(4)")
    assert kitchen(target="a:x", files=files) == kitchen(script, target="a:x", files=files)


def test_fields_of_a_data_class_are_names_and_those_of_a_model_are_code(kitchen):
    text = "from {} import {}\nfrom kitchen.pots import Pot\n\n\n{}class A{}:\n    pot: Pot\n    n: int = 1\n"
    pot = ("kitchen/pots.py", "size = 1", "size = 2")
    for source, name, decorator, base, same in [
        ("dataclasses", "dataclass", "@dataclass(frozen=True)\n", "", True),
        ("pydantic", "BaseModel", "", "(BaseModel)", False),
    ]:
        files = FILES | {"a.py": text.format(source, name, decorator, base)}
        assert (kitchen(target="a:A", files=files) == kitchen(pot, target="a:A", files=files)) is same
        typed = ("a.py", "n: int", "n: float")
        assert kitchen(target="a:A", files=files) != kitchen(typed, target="a:A", files=files)


def test_a_folder_without_init_is_a_users_package_too(kitchen):
    files = {
        "mine/model.py": "from mine.part import f\n\n\ndef g():\n    return f()\n",
        "mine/part.py": "def f():\n    return 1\n",
    }
    before = kitchen(target="mine.model:g", files=files)
    assert kitchen(("mine/part.py", "1", "2"), target="mine.model:g", files=files) != before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ml.nowhere", r"ml.nowhere: no module 'ml.nowhere' of this project"),
        ("ml.splits:nothing", r"ml/splits.py defines no 'nothing'"),
        ("numpy:array", "no module 'numpy'"),
    ],
)
def test_an_unknown_target_is_refused(target, message):
    with pytest.raises(LookupError, match=message):
        code_of(target)


def test_nothing_is_imported_and_all_of_the_project_is_read_in_a_moment():
    script = """
        import sys, time
        from assets.state.code import code_of
        start = time.process_time()
        code_of("pipeline.definitions", "ml.models.diffcdr:DiffCDR")
        print(time.process_time() - start, *sorted({name.split(".")[0] for name in sys.modules}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    seconds, *modules = subprocess.run(
        command, cwd=OURS, capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 2  # 0.3 s on a quiet machine
    assert not {"torch", "numpy", "ml", "pipeline"} & set(modules)


def test_every_file_of_the_project_can_be_read_whole():
    sources = Sources()
    start = time.perf_counter()
    for file in sorted((OURS / "ml").rglob("*.py")):
        parts = file.relative_to(OURS).with_suffix("").parts
        assert sources.digest(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        assert ast.parse(file.read_bytes())
    assert time.perf_counter() - start < 20


def test_other_files_count_by_name_and_bytes(tmp_path):
    one, two = tmp_path / "a.csv", tmp_path / "b.csv"
    one.write_text("1")
    two.write_text("2")
    before = digest_of(one, two)
    assert digest_of(two, one) == before
    two.write_text("3")
    assert digest_of(one, two) != before
