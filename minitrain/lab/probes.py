"""Measurements taken around a step that leave the run as it was: the same bits with a probe as without.

Each is a class whose objects `train` and `watch` call before and after every `every`-th step. Of a layer they report one
number under its weight's name, on request also its neurons' values, and the predicted value where theory has one.
"""

import math
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minitrain.equilibrium import Equilibrium, equilibrium, equilibrium_l2, exponential, heavy_ball
from minitrain.optim import widened
from minitrain.recipe import by_kind

Neurons = Literal["quantiles", "all"]
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


# --- mathematics ------------------------------------------------------------------------------------------------------


# --8<-- [start:angle]
def angle(a: Float[Tensor, "... N"], b: Float[Tensor, "... N"]) -> Float[Tensor, "..."]:
    """The angle between vectors, in radians, by the chord: `2 asin(|a/|a| - b/|b|| / 2)`.

    `acos` of a cosine, the usual way, is 8 % wrong in float32 at 1e-3 radians. NaN where a vector is zero.
    """
    a, b = widened(a), widened(b)
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 2 * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1.0))


# --8<-- [end:angle]
def quotient(a: Float[Tensor, "*O"], b: Float[Tensor, "*O"]) -> Float[Tensor, "*O"]:
    """`a / b`, NaN where `b` is not above zero."""
    return (a / b).where(b > 0, math.nan)


def rms(x: Float[Tensor, " O"]) -> Float[Tensor, ""]:
    """The root mean square of those that are numbers."""
    return x.square().nanmean().sqrt()


def rows(w: Tensor, row_dims: int = 1) -> Float[Tensor, "O I"]:
    """A weight as one row per neuron: the first `row_dims` dimensions count neurons, the others are a neuron's inputs."""
    return w.flatten(row_dims).flatten(0, row_dims - 1) if w.ndim > row_dims else w.reshape(-1, 1)


# --- what is measured -------------------------------------------------------------------------------------------------


@runtime_checkable
class Loop(Protocol):
    """What a probe asks of a training loop: a `Run` has it, and `watch` makes it of anybody's."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


class Weight(NamedTuple):
    """A parameter with its name in the model, the optimizer that steps it and that one's group that owns it."""

    name: str
    parameter: Tensor
    group: dict[str, Any]
    optimizer: torch.optim.Optimizer

    @property
    def values(self) -> Tensor:
        """With all the bits that there are: of split weights the model has but half, and steps are smaller than its bits."""
        storage = getattr(self.optimizer, "storage", None)
        return (
            storage.whole(self.parameter, self.optimizer.state.get(self.parameter, {})) if storage else self.parameter
        )

    def rows(self, values: Tensor) -> Float[Tensor, "O I"]:
        """Values of the parameter's shape, one row per neuron, in float32 at least."""
        return widened(rows(values, self.group.get("row_dims", 1)))


class Measured(NamedTuple):
    """One quantity of one layer: of the whole, and of each neuron."""

    layer: Float[Tensor, ""]
    neurons: Float[Tensor, " O"]


def weights_of(loop: Loop, group: str | None) -> list[Weight]:
    """The weights of the optimizer's group of that name; None stands for all groups.

    Where the optimizer's groups have no names, as in most people's loops, those of `recipe.by_kind` are meant. Raises
    `ValueError` where there is no such weight.
    """
    groups = loop.optimizer.param_groups
    owners = {p: owner for owner in groups for p in owner["params"]}
    found = [Weight(name, p, owners[p], loop.optimizer) for name, p in loop.model.named_parameters() if p in owners]
    if not found:
        raise ValueError("the optimizer holds none of the model's parameters; give the model that it trains")
    if group is None:
        return found
    named = groups if any("name" in g for g in groups) else by_kind(loop.model)
    wanted = {p for g in named if g.get("name") == group for p in g["params"]}
    found = [w for w in found if w.parameter in wanted]
    if not found:
        raise ValueError(
            f"the optimizer has no group named {group!r}; name one of its own to measure, or None to measure all"
        )
    return found


def predict(optimizer: torch.optim.Optimizer, group: dict[str, Any], fan_in: int) -> Equilibrium | None:
    """Where a group's neurons settle, for minitrain's optimizers and torch's SGD and AdamW; None where it is not known.

    What depends on the size of the gradients is NaN.
    """
    own = getattr(optimizer, "equilibrium", None)
    if own:
        return own(group, fan_in)
    lr, weight_decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
    if not lr * weight_decay > 0:
        return None
    if type(optimizer) is torch.optim.SGD and group["dampening"] == 0:
        return equilibrium_l2(heavy_ball(group["momentum"], group["nesterov"]), lr, weight_decay, math.nan)
    if isinstance(optimizer, torch.optim.Adam) and group["decoupled_weight_decay"] and not group["amsgrad"]:
        return equilibrium(exponential(group["betas"][0]), lr, weight_decay, fan_in)
    return None


# --- what is reported -------------------------------------------------------------------------------------------------


def report(key: str, measured: dict[str, Measured], neurons: Neurons | None, of: str = "") -> dict[str, Any]:
    """Under `key` the layers' values by name; under `<key>_per_neuron` their neurons', where these are asked for."""
    layers = torch.stack([m.layer for m in measured.values()]).tolist()  # from the device at once
    result: dict[str, Any] = {f"{key}{of}": dict(zip(measured, layers, strict=True))}
    if neurons:
        values = {
            name: m.neurons.tolist() if neurons == "all" else quantiles(m.neurons) for name, m in measured.items()
        }
        result[f"{key}_per_neuron{of}"] = values
    return result


def quantiles(x: Float[Tensor, " O"]) -> dict[str, float]:
    """`{"p5": ..., "p25": ..., "p50": ..., "p75": ..., "p95": ...}` of those that are numbers."""
    at = torch.tensor(list(QUANTILES.values()), dtype=x.dtype, device=x.device)
    return dict(zip(QUANTILES, x.nanquantile(at).tolist(), strict=True))


def check_neurons(neurons: str | None) -> None:
    """Raises `ValueError` for a way to report neurons that there is not."""
    if neurons not in (None, "quantiles", "all"):
        raise ValueError(f"neurons must be 'quantiles', 'all' or None, not {neurons!r}")


# --- the probes -------------------------------------------------------------------------------------------------------


class WeightProbe:
    """What a step does to the weights of one group; a subclass says what of it is measured.

    `group` names the group (`weights_of`), and all but `matrices` stand in the keys: `rotation_of_head`, for None
    `rotation_of_all`. `every` counts steps. `neurons="quantiles"` or `"all"` adds the single neurons' values.
    """

    def __init__(self, group: str | None = "matrices", every: int = 25, neurons: Neurons | None = None):
        check_neurons(neurons)
        self.group, self.every, self.neurons = group, every, neurons
        self.of = "" if group == "matrices" else f"_of_{group or 'all'}"
        self.old: dict[str, Tensor] = {}

    @torch.no_grad()
    def before(self, run: Loop) -> None:
        self.old = {w.name: w.values.clone() for w in self.weights(run)}

    @torch.no_grad()
    def after(self, run: Loop) -> dict[str, Any]:
        weights, result = self.weights(run), {}
        for key, measured in self.measure(weights).items():
            result |= report(key, measured, self.neurons, self.of)
        self.old = {}
        return result | self.predicted(run, weights)

    def weights(self, run: Loop) -> list[Weight]:
        """The weights that are measured."""
        return weights_of(run, self.group)

    def measure(self, weights: list[Weight]) -> dict[str, dict[str, Measured]]:
        """By key and name, from the weights as they are and as they were (`self.old`)."""
        raise NotImplementedError

    def predicted(self, run: Loop, weights: list[Weight]) -> dict[str, Any]:
        """The predicted values that there are."""
        return {}


class Settling(WeightProbe):
    """A probe of one quantity that settles at a value which `minitrain.equilibrium` predicts."""

    key: str

    def measure(self, weights: list[Weight]) -> dict[str, dict[str, Measured]]:
        return {self.key: {w.name: self.change(w.rows(self.old[w.name]), w.rows(w.values)) for w in weights}}

    def change(self, old: Float[Tensor, "O I"], new: Float[Tensor, "O I"]) -> Measured:
        """The quantity of one weight."""
        raise NotImplementedError

    def settled(self, at: Equilibrium) -> float:
        """The quantity in equilibrium."""
        return at.rotation

    def predicted(self, run: Loop, weights: list[Weight]) -> dict[str, Any]:
        """One number where it holds for all the weights, else one by name."""
        sizes = {w.name: w.rows(w.parameter).shape[1] for w in weights}
        # a single number is no vector that could turn
        at = {w.name: predict(run.optimizer, w.group, sizes[w.name]) if sizes[w.name] > 1 else None for w in weights}
        known = {name: value for name, e in at.items() if e and not math.isnan(value := self.settled(e))}
        if not known:
            return {}
        values = set(known.values())
        return {
            f"predicted_{self.key}{self.of}": values.pop() if len(values) == 1 and known.keys() == at.keys() else known
        }


class Rotation(Settling):
    """How far each neuron turned in this step: the root mean square over a matrix's rows, in radians, under its name."""

    key = "rotation"

    def change(self, old: Float[Tensor, "O I"], new: Float[Tensor, "O I"]) -> Measured:
        turned = angle(old, new)
        return Measured(rms(turned), turned)


class RelativeUpdate(Settling):
    """The length of this step over the length of the weight it started from: `|dW| / |W|`, of a neuron `|dw| / |w|`.

    Hardly more than the rotation in equilibrium, where it is predicted as that.
    """

    key = "relative_update"

    def change(self, old: Float[Tensor, "O I"], new: Float[Tensor, "O I"]) -> Measured:
        step = new - old
        return Measured(quotient(step.norm(), old.norm()), quotient(step.norm(dim=-1), old.norm(dim=-1)))


class Norm(Settling):
    """The length of a neuron's weight vector after this step: the root mean square over a matrix's rows."""

    key = "norm"

    def change(self, old: Float[Tensor, "O I"], new: Float[Tensor, "O I"]) -> Measured:
        norm = new.norm(dim=-1)
        return Measured(rms(norm), norm)

    def settled(self, at: Equilibrium) -> float:
        return at.norm
