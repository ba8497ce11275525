"""What counts as the source a run reaches: edits that matter change the digest, others do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minitrain.lab import source

MODULE = '''
"""A technique."""
import math
from {helper} import scale, unused
from {helper} import Base as Parent

FACTOR = 2.0
OTHER = 3.0


def step(x):
    """Doc."""
    # a comment
    return inner(x) * FACTOR


def inner(x):
    return scale(x) + math.pi


class Thing(Parent):
    """Doc."""

    size: int = 1
    """Field's doc."""

    def f(self):
        return step(self.size)


def far(x):
    return x
'''
HELPER = """
def scale(x):
    return 3 * x


def unused(x):
    return x


class Base:
    g = 1
"""


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The digest of `technique.NAME` after replacing a piece of either module; a new pair of modules each time."""
    monkeypatch.syspath_prepend(tmp_path)
    count = iter(range(100))

    def digest(name: str, old: str = "", new: str = "", helper_text: str = HELPER) -> str:
        i = next(count)
        module, helper = f"technique_{i}", f"helper_{i}"
        assert old in MODULE + HELPER
        texts = [text.replace(old, new) if old else text for text in (MODULE, helper_text)]
        (tmp_path / f"{module}.py").write_text(texts[0].format(helper=helper))
        (tmp_path / f"{helper}.py").write_text(texts[1])
        source.is_followed.cache_clear()
        return source.digest([f"{module}.{name}"])

    return digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return inner(x) * FACTOR", "return inner(x) / FACTOR"),
        ("FACTOR = 2.0", "FACTOR = 2.5"),
        ("+ math.pi", "- math.pi"),
        ("3 * x", "4 * x"),
    ],
)
def test_an_edit_of_what_is_reached_changes_the_digest(edited: Callable[..., str], old: str, new: str):
    assert edited("step", old, new) != edited("step")
    assert edited("Thing", old, new) != edited("Thing")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another"),
        ('"""Doc."""', '"""Other words."""'),
        ('"""A technique."""', ""),
        ("OTHER = 3.0", "OTHER = 4.0"),
        ("def far(x):\n    return x", "def far(x):\n    return -x"),
        ("def unused(x):\n    return x", "def unused(x):\n    return -x"),
        ("return inner(x) * FACTOR", "return (inner(x) *  FACTOR)"),
    ],
)
def test_an_edit_elsewhere_or_of_words_does_not(edited: Callable[..., str], old: str, new: str):
    assert edited("step", old, new) == edited("step")


def test_a_definition_that_moves_to_another_file_stays_the_same(edited: Callable[..., str]):
    inner = "def inner(x):\n    return scale(x) + math.pi\n"
    moved = MODULE.replace(inner, "from {helper} import inner\n")
    assert edited("step", MODULE, moved, "import math\n" + HELPER + inner) == edited("step")


def test_a_class_reaches_its_bases_methods_and_defaults(edited: Callable[..., str]):
    plain = edited("Thing")
    for old, new in (("g = 1", "g = 2"), ("size: int = 1", "size: int = 2"), ("3 * x", "4 * x")):
        assert edited("Thing", old, new) != plain
    assert edited("Thing", '"""Field\'s doc."""', "") == plain
    assert edited("step", "g = 1", "g = 2") == edited("step")


def test_installed_libraries_and_python_are_not_followed():
    found = source.reached(["minitrain.gpt.GPT", "torch.nn.RMSNorm", "math.pi", "0.003", "'text'", "None", "(1, 2)"])
    assert {key.partition(".")[0] for key in found} == {"minitrain"}
    assert {"minitrain.gpt.Block", "minitrain.gpt.Rotary", "minitrain.runtime.attention.causal_attention"} <= set(found)


def test_the_loop_reaches_what_it_calls():
    found = source.reached(["minitrain.train.train"])
    for name in ("train.gradient", "schedules.set_schedules", "runtime.device.autocast", "train.evaluate"):
        assert f"minitrain.{name}" in found
    assert not [name for name in found if name.startswith("minitrain.lab")]


def test_an_imported_module_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "whole_a.py").write_text(
        "import whole_b\nfrom minitrain import schedules as s\ndef f():\n    return whole_b.g(), s\n"
    )
    (tmp_path / "whole_b.py").write_text("def g():\n    return 1\n\ndef h():\n    return 2\n")
    found = source.reached(["whole_a.f"])
    assert {"whole_a.f", "whole_b.g", "whole_b.h", "minitrain.schedules.cosine"} <= set(found)


def test_digest_is_short_and_steady():
    assert source.digest(["minitrain.train.train"]) == source.digest(["minitrain.train.train", "3.5"])
    assert len(source.digest(["minitrain.train.train"])) == 16


ODDITIES = {  # a module, and a piece of it whose edit must be seen from `f`
    "changed by an item": ("TABLE = {}\nTABLE['b'] = 2\ndef f():\n    return TABLE\n", "= 2", "= 3"),
    "changed by an attribute": ("class C:\n    a = 1\nC.extra = 5\ndef f():\n    return C\n", "a = 1", "a = 2"),
    "changed by a call": ("TABLE = {}\nTABLE.update(b=2)\ndef f():\n    return TABLE\n", "b=2", "b=3"),
    "changed in place": ("n = 1\nn += 2\ndef f():\n    return n\n", "+= 2", "+= 3"),
    "in a try": ("try:\n    n = 1\nexcept ImportError:\n    n = 2\ndef f():\n    return n\n", "n = 2", "n = 3"),
    "in an if": ("if True:\n    def g():\n        return 1\ndef f():\n    return g()\n", "return 1", "return 2"),
    "decorated": ("def d(g):\n    return g\n@d\ndef f():\n    return 1\n", "return g", "return 2"),
    "a default": ("n = 1\ndef f(x=n):\n    return x\n", "n = 1", "n = 2"),
}


@pytest.mark.parametrize(("text", "old", "new"), ODDITIES.values(), ids=ODDITIES)
def test_what_else_python_allows_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, old: str, new: str
):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for i, content in enumerate((text, text.replace(old, new, 1))):
        module = f"odd_{abs(hash((text, old)))}_{i}"
        (tmp_path / f"{module}.py").write_text(content)
        found.append({key.partition(".")[2]: tree for key, tree in source.reached([f"{module}.f"]).items()})
    assert found[0] != found[1]


def test_variables_of_comprehensions_are_no_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loops.py").write_text("ALL = [x * y for x in (1, 2) for y in (3,)]\ndef f(x, y):\n    return x + y\n")
    assert set(source.reached(["loops.f"])) == {"loops.f"}


def test_every_way_to_import_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "ways"
    package.mkdir()
    for name in ("a", "b", "c", "d", "e"):
        (package / f"{name}.py").write_text(f"def {name}_():\n    return 1\n")
    (package / "__init__.py").write_text("from .c import c_\nfrom .d import *\n")
    (package / "user.py").write_text(
        "import ways.a\nimport ways.b\nfrom ways import c_\nfrom ways.d import *\n"
        "def f():\n    from ways.e import e_\n    return ways.a.a_, ways.b.b_, c_, d_, e_\n"
    )
    found = set(source.reached(["ways.user.f"]))
    assert {f"ways.{name}.{name}_" for name in "abcde"} <= found


def test_lessons_in_an_installed_package_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    inside = tmp_path / "site-packages" / "minitrain"
    (inside / "lessons").mkdir(parents=True)
    (inside / "lessons" / "a_lesson.py").write_text("def walk():\n    return 1\n")
    (tmp_path / "site-packages" / "a_library.py").write_text("def walk():\n    return 1\n")
    monkeypatch.setattr(source, "PACKAGE", inside)
    monkeypatch.syspath_prepend(inside / "lessons")
    assert source.reached(["a_lesson.walk"])
    assert not source.reached(["a_library.walk"])
