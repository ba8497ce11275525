"""An optimizer is an input rule, a direction, a step rule and a storage.

The papers taught here ask one question: given the direction, how far? So an optimizer is written as four parts, each a
few lines that do one thing, and one class that walks over the parameters and keeps their state:

    input rule   the gradient as it is, or with weight decay added to it (L2)
    direction    gradient and own state -> an update `u` that knows nothing of the learning rate or the decay
    step rule    weight, `u`, learning rate, weight decay -> the new weight
    storage      how the weight's bits are kept between steps

A part declares what it needs by keyword-only arguments with the names of the optimizer's hyper-parameters (`lr`,
`weight_decay`, `betas`, ...), which it is given from the parameter's group. Symbols: `w` weight, `g` gradient, `m` and
`v` first and second moment, `b` buffer, `u` update.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.equilibrium import (
    Equilibrium,
    Filter,
    equilibrium,
    equilibrium_l2,
    exponential,
    heavy_ball,
    sign_of_two_averages,
)
from minitrain.runtime.fused import forget_count, fused_adamw


def widened(x: Tensor) -> Tensor:
    """In float32 at least, in which sums over many numbers are safe."""
    return x if x.dtype == torch.float64 else x.float()


# --- input rules ------------------------------------------------------------------------------------------------------


def plain_gradient(g: Tensor, w: Tensor) -> Tensor:
    """The gradient as it is: whatever decay there is happens in the step rule ("decoupled")."""
    return g


def l2_gradient(g: Tensor, w: Tensor, *, weight_decay: float) -> Tensor:
    """`g + weight_decay * w`: the gradient of a penalty `weight_decay/2 |w|^2`, which then passes through the moments."""
    return g.add(w, alpha=weight_decay) if weight_decay else g


# --- directions -------------------------------------------------------------------------------------------------------


def ema(state: dict, name: str, x: Tensor, beta: float) -> Tensor:
    """Updates and returns the exponential moving average `state[name] <- beta * state[name] + (1 - beta) * x`."""
    if name not in state:
        state[name] = torch.zeros_like(x)
    return state[name].lerp_(x, 1 - beta)


def sgdm(g: Tensor, state: dict, *, momentum: float, nesterov: bool) -> Tensor:
    """Heavy ball `b <- momentum*b + g`, `u = b` (Polyak, 1964); Nesterov looks one step ahead, `u = g + momentum*b`."""
    if momentum == 0:
        return g
    if "b" not in state:
        state["b"] = torch.zeros_like(g)
    b = state["b"].mul_(momentum).add_(g)
    return g.add(b, alpha=momentum) if nesterov else b


# --8<-- [start:adam]
def adam(g: Tensor, state: dict, *, betas: tuple[float, float], eps: float) -> Tensor:
    """`u = m_hat / (sqrt(v_hat) + eps)` (Kingma & Ba, 2015, arXiv 1412.6980, algorithm 1).

    The averages start at zero, so each is divided by the same average taken of ones: `1 - beta^t` for a constant beta,
    and still right when a schedule changes beta in mid-run (where the closed form would silently cut the step).
    """
    beta1, beta2 = betas
    forget_count(state)
    m, v = ema(state, "m", g, beta1), ema(state, "v", g.square(), beta2)
    m_ones = state["m_ones"] = beta1 * state.get("m_ones", 0.0) + (1 - beta1)
    v_ones = state["v_ones"] = beta2 * state.get("v_ones", 0.0) + (1 - beta2)
    return (m / m_ones).div_((v / v_ones).sqrt_().add_(eps))


# --8<-- [end:adam]
def lion(g: Tensor, state: dict, *, betas: tuple[float, float]) -> Tensor:
    """`u = sign(beta1*m + (1-beta1)*g)`, then `m <- beta2*m + (1-beta2)*g` (Chen et al., 2023, arXiv 2302.06675)."""
    beta1, beta2 = betas
    if "m" not in state:
        state["m"] = torch.zeros_like(g)
    u = state["m"].lerp(g, 1 - beta1).sign_()
    ema(state, "m", g, beta2)
    return u


# --- step rules; further ones stand in `techniques/` -------------------------------------------------------------------


def no_decay(w: Tensor, u: Tensor, state: dict, *, lr: float) -> Tensor:
    """`w - lr*u`."""
    return w - lr * u


def decay_by_lr(w: Tensor, u: Tensor, state: dict, *, lr: float, weight_decay: float) -> Tensor:
    """`(1 - lr*weight_decay) w - lr*u`: AdamW as torch has it."""
    return w.mul(1 - lr * weight_decay).sub_(u, alpha=lr)


# --- storage ----------------------------------------------------------------------------------------------------------


class PlainStorage:
    """The parameter itself holds the weight. Another storage joins the weight's bits in `load`, splits them in `store`."""

    way: str | None = None  # how a state says that it belongs to this storage, under "split"

    def load(self, p: Tensor, state: dict) -> Tensor:
        return p

    def store(self, p: Tensor, w: Tensor, state: dict) -> None:
        p.copy_(w)

    def whole(self, p: Tensor, state: dict) -> Tensor:
        """The weight with all the bits there are."""
        return p

    def fused_adamw(self, p: Tensor, state: dict, group: dict[str, Any]) -> bool:
        """The step of `adam` with `decay_by_lr` in one pass; False, with nothing done, where that cannot be."""
        return type(self) is PlainStorage and fused_adamw(p, state, group)

    def finish(self) -> None:
        """Called once after every parameter's step."""


# --- the optimizer ----------------------------------------------------------------------------------------------------

GROUP_KEYS = {"params", "name", "kind", "initial_lr", "row_dims"}  # what a group may hold beside hyper-parameters


class Optimizer(torch.optim.Optimizer):
    """Walks over the parameters, hands each to its parts, and keeps their state; usable in anybody's training loop.

    `hyper` holds the hyper-parameters' defaults by name; a group may override them. Raises `ValueError` for a value out
    of range, and for a group with a key that no part of this optimizer knows.
    """

    def __init__(
        self,
        params: Iterable,
        hyper: dict[str, Any],
        *,
        direction: Callable[..., Tensor],
        step_rule: Callable[..., Tensor],
        input_rule: Callable[..., Tensor] = plain_gradient,
    ):
        self.input_rule, self.direction, self.step_rule = input_rule, direction, step_rule
        self.storage: Any = PlainStorage()
        super().__init__(params, hyper)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        known = set(self.defaults) | GROUP_KEYS
        unknown = set(param_group) - known - {f"initial_{key}" for key in known}
        if unknown:
            allowed = ", ".join(sorted(known))
            raise ValueError(
                f"{type(self).__name__} does not know the group key {sorted(unknown)[0]!r}; it knows {allowed}"
            )
        check_hyperparameters({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("initial_lr", group["lr"])
        if any(p.is_complex() for p in group["params"]):
            self.param_groups.pop()
            raise ValueError("complex parameters are not supported; keep real and imaginary part as two parameters")

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and pickle, where torch would forget the parts."""
        parts = {name: getattr(self, name) for name in ("input_rule", "direction", "step_rule", "storage")}
        return {**super().__getstate__(), **parts}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient. `closure` recomputes the loss, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, group)
        self.storage.finish()
        return loss

    @torch.no_grad()
    def update(self, p: Tensor, group: dict[str, Any]) -> None:
        """One step of one parameter."""
        gradient = p.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise ValueError(f"{type(self).__name__} needs dense gradients; build the embedding with sparse=False")
        state = self.state[p]
        input_rule, step_rule = self.rules(group)
        w = self.storage.load(p, state)
        g = input_rule(gradient.to(w.dtype), w, **needed(input_rule, group))
        u = self.direction(g, state, **needed(self.direction, group))
        self.storage.store(p, step_rule(w, u, state, **needed(step_rule, group)), state)

    def rules(self, group: dict[str, Any]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """Input rule and step rule of a group; a technique may treat some groups in its own way."""
        return self.input_rule, self.step_rule

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state keeps its own dtype, where torch would cast it to the parameter's.

        Raises `ValueError` for the state of one of torch's own optimizers, whose names differ, of an optimizer with other
        hyper-parameters, for one whose weights were split otherwise than here, and for weights of other shapes.
        """
        self.check_state(state_dict)
        super().load_state_dict(state_dict)
        for i, p in zip(*self.saved_and_own(state_dict), strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                self.state[p][key] = value.to(p.device, copy=True) if isinstance(value, Tensor) else value

    def saved_and_own(self, state_dict: dict[str, Any]) -> tuple[list[int], list[Tensor]]:
        """The numbers of the parameters in a state, and the optimizer's own."""
        return (
            [i for group in state_dict["param_groups"] for i in group["params"]],
            [p for group in self.param_groups for p in group["params"]],
        )

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Raises `ValueError` for a state that this optimizer cannot go on from."""
        for saved in state_dict["param_groups"]:
            if missing := set(self.defaults) - set(saved):
                raise ValueError(
                    f"this state has no {sorted(missing)[0]!r}, which {type(self).__name__} needs, for another optimizer "
                    "saved it; load it into one of that kind, or start without it"
                )
            if self.storage.way and any(i not in state_dict["state"] for i in saved["params"]):
                raise ValueError(
                    "this state lacks the bits of some split weights; call SplitWeights once all groups are there, and "
                    "load a state that was saved so"
                )
        for state in state_dict["state"].values():
            if {"exp_avg", "momentum_buffer"} & set(state):
                raise ValueError(
                    "this state was saved by an optimizer of torch; go on with that one, or start without it"
                )
            if state.get("split") != self.storage.way:
                raise ValueError(
                    f"this state is of weights split as {state.get('split')!r}, and the optimizer's are split as "
                    f"{self.storage.way!r}; call SplitWeights or join_weights on it first, as before the state was saved"
                )
        for i, p in zip(*self.saved_and_own(state_dict), strict=False):  # torch itself says where their number differs
            state = state_dict["state"].get(i, {})
            for x in (state[key] for key in ("m", "v", "b", "low") if key in state):
                if x.shape != p.shape:
                    raise ValueError(
                        f"this state is of a weight of shape {tuple(x.shape)}, where the optimizer has one of "
                        f"{tuple(p.shape)}; give it the parameters in the order in which they were when it was saved"
                    )

    def momentum_filter(self, group: dict[str, Any]) -> Filter | None:
        """The filter that turns this optimizer's gradients into updates; None where nobody said which it is."""
        return None

    def equilibrium(self, group: dict[str, Any], fan_in: int) -> Equilibrium | None:
        """Where the group's neurons, of `fan_in` inputs each, settle under its present values.

        None without decay, for an unknown filter, and where even the angle depends on the gradients' size (Adam with L2).
        Of SGD the angle and the time are known; update and norm, which depend on the gradients' size, are NaN.
        """
        lr, filter = group["lr"], self.momentum_filter(group)
        if filter is None or not lr * group.get("weight_decay", 0.0) > 0:
            return None
        if self.input_rule is l2_gradient:
            known = self.direction is sgdm
            return equilibrium_l2(filter, lr, group["weight_decay"], unit_gradient=math.nan) if known else None
        # A step rule that decays takes a share of the weight, whatever the update: equal to AdamW's of this weight_decay.
        one = torch.ones((), dtype=torch.float64)
        share = 1 - self.step_rule(one, torch.zeros_like(one), {}, **needed(self.step_rule, group)).item()
        settled = equilibrium(filter, lr, share / lr, fan_in) if share > 0 else None
        if settled and getattr(self.direction, "direction", self.direction) is sgdm:
            # gradients that nothing normalizes go as 1/|w|, and growth and time with them
            return settled._replace(update=math.nan, norm=math.nan, steps=settled.steps / 2)
        return settled


def needed(part: Callable, group: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that `part` asks for by keyword-only arguments, from `group`."""
    return {name: group[name] for name in keyword_only(part) if name in group}


@functools.cache
def keyword_only(part: Callable) -> tuple[str, ...]:
    """The names of the keyword-only arguments of `part`."""
    parameters = inspect.signature(part).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def check_hyperparameters(hyper: dict[str, Any]) -> None:
    """Raises `ValueError` with one sentence that names the first value out of range."""
    allowed = {
        "lr": ("a number above 0 and at most 1e30", lambda x: 0 < x <= 1e30),
        "weight_decay": ("a number from 0 to 1e30", lambda x: 0 <= x <= 1e30),
        "eps": ("a number from 0 to 1e30", lambda x: 0 <= x <= 1e30),
        "momentum": ("a number from 0 to below 1", lambda x: 0 <= x < 1),
        "betas": ("two numbers from 0 to below 1", lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x)),
    }
    for name, (words, test) in allowed.items():
        try:
            ok = name not in hyper or (not isinstance(hyper[name], Tensor) and bool(test(hyper[name])))
        except (TypeError, ValueError):  # not a number at all
            ok = False
        if not ok:
            raise ValueError(f"{name} must be {words}, not {hyper[name]!r}")


# --- named combinations, with torch's argument names -------------------------------------------------------------------


class SGD(Optimizer):
    """Momentum SGD; the decay is L2, as in torch. Equal to `torch.optim.SGD` with no dampening."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0; give one, or leave nesterov out")
        hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, hyper, input_rule=l2_gradient, direction=sgdm, step_rule=no_decay)

    def momentum_filter(self, group: dict[str, Any]) -> Filter:
        return heavy_ball(group["momentum"], group["nesterov"])


class Adam(Optimizer):
    """Adam with L2: the decay enters the gradient and is divided by `sqrt(v)` with it. Equal to `torch.optim.Adam`."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, hyper, input_rule=l2_gradient, direction=adam, step_rule=no_decay)

    def momentum_filter(self, group: dict[str, Any]) -> Filter:
        return exponential(group["betas"][0])


class AdamW(Optimizer):
    """Adam with decoupled decay `1 - lr*weight_decay`. Equal to `torch.optim.AdamW`.

    Loshchilov & Hutter, 2019, arXiv 1711.05101, with the decay scaled by the learning rate as torch does.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, hyper, direction=adam, step_rule=decay_by_lr)

    def update(self, p: Tensor, group: dict[str, Any]) -> None:
        is_plain = (*self.rules(group), self.direction) == (plain_gradient, decay_by_lr, adam)
        if not (is_plain and self.storage.fused_adamw(p, self.state[p], group)):
            super().update(p, group)

    def momentum_filter(self, group: dict[str, Any]) -> Filter:
        return exponential(group["betas"][0])


class Lion(Optimizer):
    """The sign of two averages, with decoupled decay (Chen et al., 2023, arXiv 2302.06675, algorithm 2)."""

    def __init__(
        self, params: Iterable, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ):
        hyper = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, hyper, direction=lion, step_rule=decay_by_lr)

    def momentum_filter(self, group: dict[str, Any]) -> Filter:
        return sign_of_two_averages(group["betas"])


# --- wrappers -----------------------------------------------------------------------------------------------------------


def wrapped(
    params: Iterable, *, make: Callable[..., Any], by: Iterable[Callable[..., Any]], **hyper: Any
) -> torch.optim.Optimizer:
    """The optimizer `make(params, **hyper)`, handed through each of `by` in turn.

    For recipes: `partial(wrapped, make=AdamW, by=(SplitWeights, StepInBackward), lr=1e-3)`. The keywords are passed on, so
    that a recipe names each as if it were the optimizer's own, and a sweep finds its `lr`.
    """
    optimizer = make(params, **hyper)
    for wrap in by:
        optimizer = wrap(optimizer)
    return optimizer


# --- a hook between gradient and step -----------------------------------------------------------------------------------


class ClipGradNorm:
    """A `before_step` hook: scales all gradients down together where their joint norm is above `max_norm`."""

    def __init__(self, max_norm: float = 1.0):
        if not 0 < max_norm < float("inf"):
            raise ValueError(
                f"max_norm must be a finite number above 0, not {max_norm}; leave the hook out to not clip"
            )
        self.max_norm = max_norm
        self.norm = torch.zeros(())

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.norm = nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)

    def metrics(self) -> dict[str, float]:
        return {"grad_norm": self.norm.item()}  # before clipping
