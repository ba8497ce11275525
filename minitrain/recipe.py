"""A run is a value: a frozen `Recipe` of plain numbers and of callables that have a name.

So a run can be printed, compared with another (`difference` is exactly what an experiment changes) and stored beside
its results. A callable is a module-level function or class, or a `functools.partial` of one; a lambda has no name that
would say tomorrow what ran today, and is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitrain.optim import AdamW
from minitrain.runtime.describe import describe, difference

__all__ = ["Data", "Recipe", "by_kind", "check_ownership", "cross_entropy", "describe", "difference"]


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

    The kind follows from where a parameter stands: in an embedding, in the model's `head`, or else in how many dimensions.
    A tied head is an embedding. Parameters that ask for no gradient are left out.
    """
    groups: dict[str, list[Tensor]] = {"matrices": [], "embeddings": [], "head": [], "gains": []}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, p in model.named_parameters():
        if p in tables:
            kind = "embeddings"
        elif name.startswith("head."):
            kind = "head"
        else:
            kind = "matrices" if p.ndim >= 2 else "gains"
        if p.requires_grad:
            groups[kind].append(p)
    filled = {kind: params for kind, params in groups.items() if params}
    no_decay = {"weight_decay": 0.0}
    return [
        {"name": kind, "params": params, **({} if kind == "matrices" else no_decay)} for kind, params in filled.items()
    ]


@dataclass(frozen=True)
class Recipe:
    """The values that define a run. Raises `ValueError` or `TypeError` with one sentence for values that cannot work."""

    build_model: Callable[[], nn.Module]
    """Called after the seed is set."""
    data: Callable[[], Data]
    """Called once, at the start."""
    steps: int
    """How many steps; there are no epochs."""
    batch_size: int
    """Tokens (or images) per step."""
    micro_batch_size: int | None = None
    """Tokens (or images) that go through the model at once; the gradient is accumulated over the batch. None: all."""
    loss: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor] = cross_entropy
    """What is minimized, from `(model, inputs, targets)`."""
    param_groups: Callable[[nn.Module], list[dict[str, Any]]] = by_kind
    """From the model, which parameters share their hyper-parameters; each group has a `name`."""
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = AdamW
    """From the groups; torch's own optimizers fit as well."""
    schedules: Mapping[tuple[str, str], Callable[[int], Any]] = field(default_factory=dict)
    """`{(group name or "*", key): function of the step}`: a float multiplies the initial value, else it is replaced."""
    before_step: tuple[Callable[[], Callable], ...] = ()
    """Makers of `hook(model, optimizer)`, called in order between gradient and step."""
    after_step: tuple[Callable[[], Callable], ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"
    """The precision of the matrix products; weights and moments are float32 in both."""
    seed: int = 0
    """Sets the initial weights and the order of the data."""

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
