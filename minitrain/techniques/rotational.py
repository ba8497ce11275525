"""Rotational optimizers: every neuron keeps its length and turns by the angle that weight decay leads to in the end.

With weight decay, a weight vector's length and the angle that it turns per step settle where learning rate, decay and
momentum put them; before that, and after every change of the rate, it turns faster or slower. Here the end is imposed from
the first step: no decay is applied, `weight_decay` only says together with `lr` how far to turn. Of an update `u` without
decay, for each neuron's weight `w` of length `n`, which stays what it was at first:

    u <- u - mean(u)                                  no common shift of all inputs (`center`)
    u <- u - w <u, w> / |w|^2                         only what goes across w
    size <- average of |u|^2 with `rms_decay`         its usual length, with the bias of the average corrected
    w <- w - angle n u / sqrt(size);   w <- n w/|w|   back onto the sphere

With `rms_decay=0` each step turns every neuron by `atan(angle)`, with 0.9 the root mean square over time is that, and a
gradient that is 100 times too large turns a neuron at most `1 / sqrt(1 - 0.9)` = 3.2 times as far.

Reference: Kosson et al., 2023, arXiv 2305.17212, and its official code for the defaults.

When it does not help: these are probes of the theory, and no better optimizers in general. Where plain training never comes
near its equilibrium (small `lr * weight_decay`, or a short run), the imposed rotation is not the one that was tuned, and may
train worse. Weights that no normalization follows lose their length as something to learn. A schedule reaches the angle
through its root: a rate of a quarter turns half as far, unless `schedule_rotation` has the angle follow it. A
`weight_decay` that a schedule takes to 0 ends the rotation. Plain bf16 weights lose rotations smaller than their last bit,
so use `SplitWeights`.

Deviations: the angle of Nesterov's momentum is its own equilibrium's, where the code takes the heavy ball's, 14 % less at
0.9. No small number is added to the length of `u`; a neuron stands still whose `u` is zero, or along `w` but for rounding,
or of a length that cannot be squared safely (in float32 below 1e-15 or above 1e15). One whose `u` is NaN becomes NaN.
`schedule_rotation` is ours; the authors square the schedule instead. Weights are centred when a group is added, so that the
first step is a pure rotation; one that is centred already keeps its bits. Lengths are stored in the first step, and a weight
that was loaded in between, or was frozen before, is centred then.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from minitrain.equilibrium import Equilibrium, equilibrium, equilibrium_l2
from minitrain.optim import (
    SGD,
    AdamW,
    Lion,
    Optimizer,
    PlainStorage,
    adam,
    l2_gradient,
    needed,
    plain_gradient,
    widened,
)
from minitrain.runtime.fast_rotation import FastRotation, usable

Form = Literal["fast", "readable", "compiled"]


# --- the step ---------------------------------------------------------------------------------------------------------


# --8<-- [start:rotate]
def rotate(
    w: Tensor,
    u: Tensor,
    state: dict,
    *,
    angle: float,
    per_neuron: bool,
    center: bool,
    rms_decay: float,
    row_dims: int = 1,
) -> Tensor:
    """The new weight: each neuron turned against `u` by about `angle` radians (its tangent), at the length it had at first.

    `state` keeps each neuron's length `norm`, the mean square `size` of its updates, and optionally its `speed`.
    """
    x, u = neurons(w, row_dims, per_neuron), neurons(u, row_dims, per_neuron)
    if "norm" not in state:
        x = begin(x, state, center)
    norm, whole = state["norm"], length(u)
    if center:
        u = u - u.mean(dim=1, keepdim=True)
    # u <- u - w <u, w> / |w|^2
    dot = (u * x).sum(dim=1, keepdim=True)
    u = u - x * (dot / x.square().sum(dim=1, keepdim=True))
    across = length(u)
    across = across.where(across > 8 * torch.finfo(u.dtype).eps * whole, 0.0).square()  # less is rounding
    across = usable(across, dot)
    # size <- f size + (1-f) |u|^2,  and the same average of ones
    size = state["size"].lerp_(across, 1 - rms_decay)
    ones = state["size_ones"] = rms_decay * state["size_ones"] + (1 - rms_decay)
    # w <- w - angle n u / r,  then w <- n w / |w|
    turned = x - angle * state.get("speed", 1.0) * norm * u / (size / ones).sqrt()
    turned = turned * (norm / length(turned))
    return turned.where(across != 0, x).view_as(w).to(w.dtype)


# --8<-- [end:rotate]
def neurons(x: Tensor, row_dims: int = 1, per_neuron: bool = True) -> Float[Tensor, "O I"]:
    """One row per neuron, or the whole tensor as one row, in float32 at least."""
    return widened(x.flatten(row_dims).flatten(0, row_dims - 1) if per_neuron else x.reshape(1, -1))


def length(x: Float[Tensor, "O I"]) -> Float[Tensor, "O 1"]:
    """Of each row, as a column."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def centered(x: Float[Tensor, "O I"], tolerance: float = 1e-5) -> Float[Tensor, "O I"]:
    """The rows with a mean of zero, at the length they had; one that is centred but for rounding keeps its bits."""
    mean = x.mean(dim=1, keepdim=True)
    shifted = x - mean
    shifted = shifted * (length(x) / length(shifted))
    return shifted.where(mean.abs() * math.sqrt(x.shape[1]) > tolerance * length(x), x)


def begin(x: Float[Tensor, "O I"], state: dict, center: bool) -> Float[Tensor, "O I"]:
    """Fills a state before its first step, and returns the rows to start from."""
    refuse_zeros(x, center)
    x = centered(x) if center else x
    state.update(norm=length(x), size=torch.zeros_like(x[:, :1]), size_ones=0.0)
    return x


def refuse_zeros(x: Float[Tensor, "O I"], center: bool) -> None:
    """Raises `ValueError` for rows that have no direction; without values (meta, fake) there is nothing to see."""
    if is_fake(x) or x.is_meta:
        return
    left = length(x - x.mean(dim=1, keepdim=True)) if center else length(x)
    bad = int((~(left > 1e-6 * length(x))).sum())
    if bad:
        what = "zero, or equal in all inputs" if center else "zero"
        raise ValueError(
            f"{bad} of the {len(x)} rows of a weight with {x.shape[1]} inputs are {what}, so they have no direction to"
            " turn; start them at random, or put the weight into a group with rotates=False"
        )


# --- which tensors ----------------------------------------------------------------------------------------------------


# --8<-- [start:which]
def rotates(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether a parameter rotates: as its group's `rotates` says; by default in groups that have names the `matrices`,
    in others what has two dimensions or more."""
    if group["rotates"] is not None:
        return group["rotates"]
    return group["name"] == "matrices" if "name" in group else p.ndim >= 2


# --8<-- [end:which]
def which_rotate(optimizer: "Rotational", model: nn.Module | None = None) -> str:
    """A line for each parameter: its name (of `model`, else its place), shape, whether it rotates, and why."""
    names = {p: name for name, p in model.named_parameters()} if model else {}
    lines = []
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if group["rotates"] is not None:
                why = f"rotates={group['rotates']}"
            elif "name" in group:
                why = f"in the group {group['name']!r}"
            else:
                why = f"{p.ndim} dimension{'s' * (p.ndim != 1)}, in a group without a name"
            done = f"turns {optimizer.angle(group):.3g} rad" if rotates(p, group) else "plain"
            lines.append((names.get(p, f"group {i}, tensor {j}"), str(tuple(p.shape)), done, why))
    widths = [max(len(line[k]) for line in lines) for k in range(3)] if lines else [0] * 3
    return "\n".join("  ".join([*map(str.ljust, line[:3], widths), line[3]]) for line in lines)


def check(group: dict[str, Any]) -> list[Tensor]:
    """The group's parameters that rotate, but for frozen ones, whose values are not looked at until they are stepped.

    Raises `ValueError` with one sentence where something cannot rotate.
    """
    for key in ("per_neuron", "center", "schedule_rotation"):
        if type(group[key]) is not bool:
            raise ValueError(f"{key} must be True or False, not {group[key]!r}")
    if group["rotates"] not in (True, False, None):
        raise ValueError(f"rotates must be True, False, or None for the default, not {group['rotates']!r}")
    if not (isinstance(group["rms_decay"], int | float) and 0 <= group["rms_decay"] < 1):
        raise ValueError(f"rms_decay must be a number from 0 to below 1, not {group['rms_decay']!r}")
    turning = [p for p in group["params"] if rotates(p, group)]
    if turning and not group["weight_decay"] > 0:
        raise ValueError(
            "without weight decay the angle of a rotation is 0; give the group a weight_decay above 0, or rotates=False"
        )
    for p in turning:
        check_shape(p, group)
    trained = [p for p in turning if p.requires_grad]
    for p in trained:
        refuse_zeros(neurons(p.detach(), group.get("row_dims", 1), group["per_neuron"]), group["center"])
    return trained


def check_shape(p: Tensor, group: dict[str, Any]) -> None:
    """Raises `ValueError` for a weight whose neurons have too few inputs to turn."""
    row_dims = group.get("row_dims", 1)
    if type(row_dims) is not int or row_dims < 1:
        raise ValueError(f"row_dims must be a whole number of at least 1, not {row_dims!r}")
    inputs = math.prod(p.shape[row_dims:]) if group["per_neuron"] else p.numel()
    fewest = 3 if group["center"] else 2
    if inputs < fewest or (group["per_neuron"] and p.ndim <= row_dims):
        raise ValueError(
            f"a neuron needs at least {fewest} inputs to turn{' once it is centred' * group['center']}, and those of a"
            f" weight of shape {tuple(p.shape)} have {inputs}; put it into a group with rotates=False"
        )


# --- the optimizers ---------------------------------------------------------------------------------------------------


class Rotational(Optimizer):
    """What the three share; stands before the optimizer whose direction, filter and plain steps it takes.

    Keys of a group beside that optimizer's: `rotates` (see `rotates`), and one's own `per_neuron` (False: the whole tensor
    is one vector), `center`, `rms_decay` and `schedule_rotation` (the schedule of `lr` multiplies the angle, where it would
    go in by its root; it may not go above `initial_lr`). Parameters that do not rotate are stepped plainly, with decay.
    Printing the optimizer, or `which_rotate(optimizer, model)`, says which do. `form` is how rotations are computed: "fast"
    and "compiled" give the numbers of "readable", the definition, to rounding.
    """

    options: dict[str, Any]
    fast: FastRotation | None

    def choose(self, per_neuron: Any, center: Any, rms_decay: Any, schedule_rotation: Any, form: Any) -> None:
        """Takes on the arguments that the three share, before the groups are added."""
        if form not in get_args(Form):
            raise ValueError(f"form must be 'fast', 'readable' or 'compiled', not {form!r}")
        self.options = {"rotates": None, "per_neuron": per_neuron, "center": center, "rms_decay": rms_decay}
        self.options["schedule_rotation"] = schedule_rotation
        self.fast = None if form == "readable" else FastRotation(compiled=form == "compiled")

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.defaults.update(self.options)  # here, for torch's constructor makes `defaults` and then adds the groups
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            turning = check(group)
        except ValueError:
            self.param_groups.pop()
            raise
        for p in turning if group["center"] else ():
            # a 16-bit weight is never centred better than to its last bit
            tolerance = max(1e-5, torch.finfo(p.dtype).eps)
            p.copy_(centered(neurons(p, group.get("row_dims", 1), group["per_neuron"]), tolerance).view_as(p))

    def update(self, p: Tensor, group: dict[str, Any]) -> None:
        if not rotates(p, group):
            super().update(p, group)
            return
        group = {**group, "angle": self.angle(group)}
        if not (type(self.storage) is PlainStorage and self.fast and self.fast_update(p, group)):
            super().update(p, group)

    @torch.no_grad()
    def fast_update(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Steps `p` in fewer passes and returns True; or, where these do not fit, leaves all as it is and returns False."""
        state, fast, g = self.state[p], self.fast, p.grad
        assert fast is not None
        if g is None or not fast.fits(p, g, state, group):
            return False
        if not (self.direction is adam and fast.adam(p, g, state, group)):
            fast.turn(p, self.direction(g, state, **needed(self.direction, group)), state, group)
        return True

    def rules(self, group: dict[str, Any]) -> tuple[Any, Any]:
        return (plain_gradient, rotate) if "angle" in group else super().rules(group)

    def angle(self, group: dict[str, Any]) -> float:
        """The angle, in radians, that the group's neurons turn per step under its present values.

        Raises `ValueError` under `schedule_rotation` for a rate above `initial_lr`.
        """
        lr, scale = group["lr"], 1.0
        if group["schedule_rotation"]:
            lr, scale = group["initial_lr"], group["lr"] / group["initial_lr"]
            if scale > 1 + 1e-6:
                raise ValueError(
                    f"schedule_rotation takes initial_lr, which is {lr:g}, for the highest rate, and lr is {group['lr']:g}; "
                    "use a schedule that lowers the rate it was given, such as LambdaLR, and not OneCycleLR, which sets both"
                )
        filter, weight_decay = self.momentum_filter(group), group["weight_decay"]
        if filter is None or not lr * weight_decay > 0:
            return 0.0
        if self.input_rule is l2_gradient:
            return scale * equilibrium_l2(filter, lr, weight_decay, unit_gradient=math.nan).rotation
        return scale * equilibrium(filter, lr, weight_decay, fan_in=1).rotation

    def equilibrium(self, group: dict[str, Any], fan_in: int) -> Equilibrium | None:
        """For neurons that rotate the imposed angle, from the first step on; their length is what it was, so NaN here.

        With `per_neuron=False` the angle is the whole tensor's, and how far its rows turn is not known: NaN as well.
        """
        by_dimensions = group["rotates"] is None and "name" not in group
        if fan_in > 1 if by_dimensions else rotates(torch.empty(()), group):
            return Equilibrium(math.nan, math.nan, self.angle(group) if group["per_neuron"] else math.nan, 0.0)
        return super().equilibrium(group, fan_in)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "options": self.options, "fast": self.fast}

    def __str__(self) -> str:
        return f"{type(self).__name__}\n{which_rotate(self)}"


class RotationalAdamW(Rotational, AdamW):
    """AdamW's direction, turned by `sqrt(2 lr weight_decay (1-beta1)/(1+beta1))` radians a step."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        per_neuron: bool = True,
        center: bool = True,
        rms_decay: float = 0.9,
        schedule_rotation: bool = False,
        form: Form = "fast",
    ):
        self.choose(per_neuron, center, rms_decay, schedule_rotation, form)
        super().__init__(params, lr, betas, eps, weight_decay)


class RotationalSGD(Rotational, SGD):
    """Momentum SGD's direction, turned by `sqrt(2 lr weight_decay / (1+momentum))` radians; with Nesterov by more."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        *,
        per_neuron: bool = True,
        center: bool = True,
        rms_decay: float = 0.9,
        schedule_rotation: bool = False,
        form: Form = "fast",
    ):
        self.choose(per_neuron, center, rms_decay, schedule_rotation, form)
        super().__init__(params, lr, momentum, weight_decay, nesterov)


class RotationalLion(Rotational, Lion):
    """Lion's direction, turned by `sqrt(pi lr weight_decay K)` radians (`equilibrium.sign_of_two_averages` has K)."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1.0,
        *,
        per_neuron: bool = True,
        center: bool = True,
        rms_decay: float = 0.9,
        schedule_rotation: bool = False,
        form: Form = "fast",
    ):
        self.choose(per_neuron, center, rms_decay, schedule_rotation, form)
        super().__init__(params, lr, betas, weight_decay)


# --- imbalance, on purpose ----------------------------------------------------------------------------------------------


def unbalance(optimizer: torch.optim.Optimizer, fraction: float, speed: float, seed: int = 0) -> "Rotational":
    """Has a `fraction` of each weight's neurons, drawn with `seed`, turn `speed` times as far as the others from now on.

    Of each weight at least one neuron. Returns the same optimizer. To measure what balance is worth: all else stays equal.
    Raises `ValueError` where whole tensors turn as one (`per_neuron=False`).
    """
    if not isinstance(optimizer, Rotational):
        raise ValueError("unbalance takes a rotational optimizer, itself, before anything is put around it")
    if not 0 < fraction <= 1 or not 0 < speed < math.inf:
        raise ValueError(f"give a fraction above 0 to 1 and a speed above 0, not {fraction!r} and {speed!r}")
    turning = [(p, group) for group in optimizer.param_groups for p in group["params"] if rotates(p, group)]
    if not all(group["per_neuron"] for _, group in turning):
        raise ValueError(
            "with per_neuron=False a tensor turns as one, and no share of it faster; leave it out to unbalance neurons"
        )
    generator = torch.Generator().manual_seed(seed)
    for p, group in turning:
        rows = neurons(p.detach(), group.get("row_dims", 1))
        chosen = torch.randperm(len(rows), generator=generator)[: max(1, round(fraction * len(rows)))]
        speeds = torch.ones_like(rows[:, :1])
        speeds[chosen.to(rows.device)] = speed
        optimizer.state[p]["speed"] = speeds
    return optimizer
