"""A run is a value: a frozen `Recipe` of plain numbers and of callables that have a name.

So a run can be printed, compared with another (`difference` is exactly what an experiment changes) and stored beside
its results. A callable is a module-level function or class, or a `functools.partial` of one; a lambda has no name that
would say tomorrow what ran today, and is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitrain.optim import AdamW


@runtime_checkable
class Data(Protocol):
    """What the loop asks of a data set."""

    row_size: int
    """How many tokens a row trains on; 1 for images."""
    size: int
    """How many tokens (or images) there are to train on."""
    digest: str
    """Tells this data from any other."""

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, a pure function of its arguments."""
        ...

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """The same batches at every call, from a part of the data that `batch` never shows."""
        ...


def cross_entropy(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per target, in float32 whatever the model computes in."""
    return F.cross_entropy(model(inputs).flatten(0, -2).float(), targets.flatten())


def by_kind(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups `matrices`, `embeddings`, `head` and `gains`; only the matrices inside blocks decay.

    The kind follows from the module that owns the parameter: a table, the model's `head`, two or more dimensions, or one.
    A tied head is an embedding. Parameters that ask for no gradient are left out.
    """
    groups: dict[str, list[Tensor]] = {"matrices": [], "embeddings": [], "head": [], "gains": []}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    owned: set[Tensor] = set()
    for path, module in model.named_modules():
        for p in module.parameters(recurse=False):
            if p in owned or not p.requires_grad:
                continue
            owned.add(p)
            if p in tables:
                groups["embeddings"].append(p)
            elif path == "head":
                groups["head"].append(p)
            else:
                groups["matrices" if p.ndim >= 2 else "gains"].append(p)
    no_decay = {"weight_decay": 0.0}
    return [
        {"name": name, "params": params, **({} if name == "matrices" else no_decay)}
        for name, params in groups.items()
        if params
    ]


@dataclass(frozen=True)
class Recipe:
    """The values that define a run. Raises `ValueError` or `TypeError` with one sentence for values that cannot work."""

    build_model: Callable[[], nn.Module]
    """Called after the seed is set."""
    data: Callable[[], Data]
    steps: int
    """How many steps; there are no epochs."""
    batch_size: int
    """Tokens (or images) per step."""
    micro_batch_size: int | None = None
    """Tokens (or images) that go through the model at once; the gradient is accumulated over the batch. None: all."""
    loss: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor] = cross_entropy
    param_groups: Callable[[nn.Module], list[dict[str, Any]]] = by_kind
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = AdamW
    schedules: Mapping[tuple[str, str], Callable[[int], Any]] = field(default_factory=dict)
    """`{(group name or "*", key): function of the step}`: a float multiplies the initial value, else it is replaced."""
    before_step: tuple[Callable[[], Callable], ...] = ()
    """Makers of `hook(model, optimizer)`, called in order between gradient and step."""
    after_step: tuple[Callable[[], Callable], ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"
    """The precision of the matrix products; weights and moments are float32 in both."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if not (value is None and name == "micro_batch_size") and not (type(value) is int and value >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number, 0 or above, not {self.seed!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', not {self.precision!r}")
        describe(self)  # refuses what has no name

    def __str__(self) -> str:
        return "\n".join(f"{path}: {text}" for path, text in describe(self).items())


def describe(value: Any, path: str = "") -> dict[str, str]:
    """The text of a recipe, one entry per value: `{"steps": "100", "make_optimizer.lr": "0.003", ...}`.

    Raises `TypeError` for what has no stable text: a lambda, a local function, an object.
    """
    below = f"{path}." if path else ""
    if isinstance(value, Recipe):
        return merge(describe(getattr(value, f.name), f.name) for f in fields(value))
    if isinstance(value, partial):
        arguments = {**{str(i): x for i, x in enumerate(value.args)}, **value.keywords}
        return {**describe(value.func, path), **merge(describe(x, below + name) for name, x in arguments.items())}
    if isinstance(value, Mapping) and value:
        names = [".".join(key) if isinstance(key, tuple) else str(key) for key in value]
        return merge(describe(x, below + name) for name, x in zip(names, value.values(), strict=True))
    if isinstance(value, tuple | list) and not all(isinstance(x, int | float | str) for x in value):
        return merge(describe(x, f"{below}{i}") for i, x in enumerate(value))
    if value is None or isinstance(value, bool | int | float | str | tuple | list | Mapping):
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


def difference(
    a: Recipe | Mapping[str, str], b: Recipe | Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """What two recipes (or their texts) differ in: `{path: (text in a, text in b)}`, None where one has no such value."""
    a, b = (describe(x) if isinstance(x, Recipe) else dict(x) for x in (a, b))
    return {path: (a.get(path), b.get(path)) for path in {**a, **b} if a.get(path) != b.get(path)}


def check_ownership(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Raises `ValueError` unless every parameter that asks for a gradient is in exactly one group."""
    owners: dict[Tensor, list[str]] = {}
    for i, group in enumerate(groups):
        group["params"] = list(group["params"])  # a generator would be used up here
        for p in group["params"]:
            owners.setdefault(p, []).append(group.get("name", f"group {i}"))
    for name, p in model.named_parameters():
        owner = owners.pop(p, [])
        if p.requires_grad and len(owner) != 1:
            found = " and ".join(owner) or "no group"
            raise ValueError(f"parameter {name} is in {found}; every parameter must be in exactly one group")
    if owners:
        raise ValueError(f"group {next(iter(owners.values()))[0]} holds a tensor that is not a parameter of the model")


def table_of_groups(optimizer: torch.optim.Optimizer) -> str:
    """Who owns what, for people: one line a group with its hyper-parameters."""
    lines = [f"{'group':<12} {'tensors':>7} {'parameters':>11}  {'lr':>8} {'decay':>6}"]
    for i, group in enumerate(optimizer.param_groups):
        count = sum(p.numel() for p in group["params"])
        name, decay = group.get("name", f"group {i}"), group.get("weight_decay", 0.0)
        lines.append(f"{name:<12} {len(group['params']):>7} {count:>11,}  {group['lr']:>8.3g} {decay:>6.3g}")
    return "\n".join(lines)
