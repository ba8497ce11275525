"""A digest of the source that a run reaches, so that an edit of a technique is never answered with yesterday's numbers.

From the names in a recipe's text the definitions are followed through the modules: what a definition names in its own
module or imports from other modules is reached as well. Comments, docstrings, layout and whatever else
stands in these files do not count, and neither do installed libraries, whose versions a record states.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def digest(names: Iterable[str]) -> str:
    """16 hexadecimal digits for the source reached from `names` such as `minitrain.gpt.GPT`; others are passed over."""
    return shortened(reached(names))


def shortened(found: dict[str, str]) -> str:
    """16 hexadecimal digits of a dictionary."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def reached(names: Iterable[str]) -> dict[str, str]:
    """Every definition reached from `names`: its full name, and its syntax tree as text."""
    found: dict[str, str] = {}
    todo = [pair for name in names if (pair := split(name))]
    while todo:
        module, name = todo.pop()
        if f"{module}.{name}" in found or not is_followed(module):
            continue
        definitions = top_level(module)
        node = definitions.get(name)
        if isinstance(node, ast.ImportFrom | ast.Import):
            todo += imported(node, name, module)
            continue
        if node is None:
            todo += [(module, every) for every in definitions] if name == "*" else []
            continue
        found[f"{module}.{name}"] = ast.dump(without_docstrings(node))
        todo += [(module, used.id) for used in ast.walk(node) if isinstance(used, ast.Name) and used.id in definitions]
    return found


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
    """Whether a module is of minitrain or of the user's own files, and not of Python or an installed library."""
    path = file_of(module)
    installed = path is not None and {"site-packages", "dist-packages"} & set(path.parts)
    of_python = module.partition(".")[0] in sys.stdlib_module_names
    return (
        path is not None
        and path.suffix == ".py"
        and not of_python
        and (not installed or module.startswith("minitrain."))
    )


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


def top_level(module: str) -> dict[str, ast.stmt]:
    """What a module defines at its top level, by name; imports as well."""
    path = file_of(module)
    return definitions_in(path, path.stat().st_mtime_ns) if path else {}


@functools.lru_cache(maxsize=256)
def definitions_in(path: Path, modified: int) -> dict[str, ast.stmt]:
    """What a file defines at its top level; `modified` is there so that an edited file is read anew."""
    definitions: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            definitions |= {(alias.asname or alias.name).partition(".")[0]: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            definitions |= dict.fromkeys(names, node)
    return definitions


def imported(node: ast.Import | ast.ImportFrom, name: str, module: str) -> list[tuple[str, str]]:
    """The definitions that an import of `name` into `module` stands for; all of them where it is a module."""
    for alias in node.names:
        if name != (alias.asname or alias.name).partition(".")[0]:
            continue
        if isinstance(node, ast.Import):
            return [(alias.name, "*")]
        base = node.module or ""
        if node.level:
            parents = module.split(".")[: -node.level]
            base = ".".join([*parents, base] if base else parents)
        whole = f"{base}.{alias.name}"
        return [(whole, "*")] if alias.name not in top_level(base) and file_of(whole) else [(base, alias.name)]
    return []


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
