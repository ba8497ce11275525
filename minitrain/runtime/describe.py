"""The text of a recipe: one line per value, the same tomorrow, so that runs can be compared and recognized."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch


def describe(value: Any, path: str = "") -> dict[str, str]:
    """The text of a recipe, one entry per value: `{"steps": "100", "make_optimizer.lr": "0.003", ...}`.

    Raises `TypeError` for what has no stable text: a lambda, a local function, an object.
    """
    below = f"{path}." if path else ""
    if is_dataclass(value) and not isinstance(value, type):
        name = {path: f"{type(value).__module__}.{type(value).__qualname__}"} if path else {}
        return merge([name, *(describe(getattr(value, f.name), below + f.name) for f in fields(value))])
    if isinstance(value, partial):
        arguments = {**{str(i): x for i, x in enumerate(value.args)}, **value.keywords}
        return {**describe(value.func, path), **merge(describe(x, below + name) for name, x in arguments.items())}
    if isinstance(value, Mapping) and value:
        names = [".".join(key) if isinstance(key, tuple) else str(key) for key in value]
        return merge(describe(x, below + name) for name, x in zip(names, value.values(), strict=True))
    if isinstance(value, tuple | list) and not all(isinstance(x, int | float | str) for x in value):
        return merge(describe(x, f"{below}{i}") for i, x in enumerate(value))
    if value is None or isinstance(value, bool | int | float | str | tuple | list | Mapping | torch.dtype):
        return {path: repr(value)}
    name, owner = getattr(value, "__qualname__", None), getattr(value, "__self__", None)
    is_method = owner is not None and not isinstance(owner, type | ModuleType)
    if name is None or "<" in name or is_method or getattr(value, "__module__", None) is None:
        kind = "method of an object" if is_method else "lambda or local function"
        what = f"a {kind}" if is_method or "<" in (name or "") else f"an object of type {type(value).__name__}"
        raise TypeError(f"{path} is {what}, which has no stable name; use a module-level function or a partial of one")
    return {path: f"{value.__module__}.{name}"}


def merge(parts: Any) -> dict[str, str]:
    """The union of dictionaries whose keys differ."""
    return {key: text for part in parts for key, text in part.items()}


def difference(a: Any, b: Any) -> dict[str, tuple[str | None, str | None]]:
    """What two recipes (or their texts) differ in: `{path: (text in a, text in b)}`, None where one has no such value."""
    a, b = (dict(x) if isinstance(x, Mapping) else describe(x) for x in (a, b))
    return {path: (a.get(path), b.get(path)) for path in {**a, **b} if a.get(path) != b.get(path)}
