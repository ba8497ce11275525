"""A digest of the source that a run reaches, so that an edit of a technique is never answered with yesterday's numbers.

From the names in a recipe's text the definitions are followed through the modules: what a definition names in its own
module or imports from other modules is reached as well. Each counts by its name and its text: comments, docstrings, layout,
the file it stands in and whatever else stands there do not. Python and installed libraries are not followed; their versions
are part of a run's key instead.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from minitrain.lab.lessons import make_lessons_importable
from minitrain.lab.places import PACKAGE

Import = ast.Import | ast.ImportFrom
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def digest(names: Iterable[str]) -> str:
    """16 hexadecimal digits for the source reached from `names` such as `minitrain.gpt.GPT`; others are passed over."""
    return shortened(reached(names))


def shortened(found: dict[str, str]) -> str:
    """16 hexadecimal digits of what `reached` found, wherever it stands."""
    texts = {(name.rpartition(".")[2], text) for name, text in found.items()}
    return hashlib.sha256(repr(sorted(texts)).encode()).hexdigest()[:16]


def reached(names: Iterable[str]) -> dict[str, str]:
    """Every definition reached from `names`: its full name, and its syntax tree as text."""
    make_lessons_importable()
    found: dict[str, str] = {}
    todo = list(roots(names))
    seen: set[tuple[str, str]] = set()
    while todo:
        module, name = todo.pop()
        if (module, name) in seen or not is_followed(module):
            continue
        seen.add((module, name))
        definitions = statements(module)
        if name == "*":
            todo += [(module, every) for every in definitions]
        for node in definitions.get(name, []):
            imports = [x for x in ast.walk(node) if isinstance(x, Import)]  # a definition may import by itself
            todo += [pair for x in imports for pair in imported(x, module, None if x is not node else name)]
            if not isinstance(node, Import):
                found[f"{module}.{name}"] = found.get(f"{module}.{name}", "") + ast.dump(without_docstrings(node))
                todo += [(module, used.id) for used in ast.walk(node) if isinstance(used, ast.Name)]
        if name not in definitions:  # perhaps from what is imported whole
            whole = [x for x in definitions.get("*", []) if isinstance(x, Import)]
            todo += [(base, name) for x in whole for base, _ in imported(x, module, "*")]
    return found


def roots(names: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Those of the names that stand for a definition, as its module and its own name."""
    return frozenset(pair for name in names if (pair := split(name)))


def split(name: str) -> tuple[str, str] | None:
    """`("minitrain.gpt", "GPT")` from `minitrain.gpt.GPT` or `minitrain.gpt.GPT.method`; None for what names no source."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    for i in range(len(parts) - 1, 0, -1):
        if is_followed(".".join(parts[:i])):
            return ".".join(parts[:i]), parts[i]
    return None


@functools.cache
def is_followed(module: str) -> bool:
    """Whether a module is of minitrain, of its lessons or of the user's own files, and not of Python or a library."""
    path = file_of(module)
    if path is None or path.suffix != ".py" or module.partition(".")[0] in sys.stdlib_module_names:
        return False
    return path.is_relative_to(PACKAGE) or not {"site-packages", "dist-packages"} & set(path.parts)


def file_of(module: str) -> Path | None:
    """The file of a module, imported or not."""
    known = getattr(sys.modules.get(module), "__file__", None)
    if known is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        known = spec.origin if spec else None
    return Path(known) if known and Path(known).is_file() else None


def statements(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of a module that define or change a name, by the name; those of `from x import *` under `*`."""
    path = file_of(module)
    return statements_in(path, path.stat().st_mtime_ns) if path else {}


@functools.lru_cache(maxsize=256)
def statements_in(path: Path, modified: int) -> dict[str, list[ast.stmt]]:
    """The same for a file; `modified` is there so that an edited file is read anew."""
    found: dict[str, list[ast.stmt]] = {}
    for node in at_top_level(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, Import):
            names = [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif is_text(node):
            names = []
        else:  # assignments of all kinds, and calls like `TABLE.update(...)`
            loops = [x for x in ast.walk(node) if isinstance(x, COMPREHENSIONS)]  # their variables are their own
            inside = {name for loop in loops for name in ast.walk(loop)}
            found_names = [x for x in ast.walk(node) if isinstance(x, ast.Name) and x not in inside]
            names = [x.id for x in found_names if may_change(x, node)]
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(node)
    return found


def may_change(name: ast.Name, node: ast.stmt) -> bool:
    """Whether a statement of a module's top level gives `name` a value or may change the one it has."""
    if isinstance(name.ctx, ast.Store | ast.Del):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    called = [node.value.func] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else []
    inside = [x for target in (*targets, *called) if not isinstance(target, ast.Name) for x in ast.walk(target)]
    return name in inside


def at_top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, with those inside `if`, `try`, `with` and loops."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
            blocks += [handler.body for handler in getattr(node, "handlers", [])]
            for block in blocks:
                yield from at_top_level(block)
        else:
            yield node


def imported(node: Import, module: str, name: str | None) -> list[tuple[str, str]]:
    """The definitions that an import into `module` stands for, or only those under `name`; all where it is a module."""
    found: list[tuple[str, str]] = []
    for alias in node.names:
        if name is not None and name != (alias.asname or alias.name).partition(".")[0]:
            continue
        if isinstance(node, ast.Import):
            found.append((alias.name, "*"))
            continue
        base = base_of(node, module)
        whole = f"{base}.{alias.name}"
        is_module = alias.name not in statements(base) and file_of(whole) is not None
        found.append((whole, "*") if is_module else (base, alias.name))
    return found


def base_of(node: ast.ImportFrom, module: str) -> str:
    """The full name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    parts, file = module.split("."), file_of(module)
    up = node.level - (file is not None and file.name == "__init__.py")  # a package is its own parent
    parents = parts[: len(parts) - up]
    return ".".join([*parents, node.module] if node.module else parents)


def without_docstrings(node: ast.stmt) -> ast.stmt:
    """The same definition with every docstring left out."""
    node = ast.parse(ast.unparse(node)).body[0]  # a copy
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if isinstance(body, list):
            inner.body = [x for x in body if not is_text(x)] or [ast.Pass()]  # ty: ignore[missing-attribute]
    return node


def is_text(node: ast.AST) -> bool:
    """A string that stands by itself: a docstring, of a function or of a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
