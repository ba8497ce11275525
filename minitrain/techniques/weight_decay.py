"""What "weight decay" means: five rules go by that name, and any of them can be had with any direction.

They differ in what one step takes off a weight, so that they agree at one learning rate and part as soon as the rate
changes. For weights followed by a normalization that share decides how far they turn per step in the long run, so that the
meaning is not a detail: under a schedule it decides whether the turning slows down with the rate or not.

    l2             g <- g + weight_decay w, before the moments; then w <- w - lr u
    adamw          w <- (1 - lr weight_decay) w - lr u
    schedule_only  w <- (1 - lr/initial_lr weight_decay) w - lr u
    constant       w <- (1 - weight_decay) w - lr u
    lr_squared     w <- (1 - lr^2 weight_decay) w - lr u

Long after a change of `lr` the rotation follows the root of the share, and the norm `lr` over that root (for Adam and Lion):
`adamw` and `schedule_only` turn by the root of `lr`, `constant` goes on turning as before while its weights shrink, and
`lr_squared` turns by `lr` at a norm that stays.

References: Loshchilov & Hutter, 2019, arXiv 1711.05101, whose algorithm 2 has `l2` (Adam) and `schedule_only` (AdamW), as
does its code; torch and Optax have `adamw` under the paper's name. `LIBRARIES` says who has which.

When it does not help: at a constant learning rate the four decoupled rules are one rule, with `weight_decay` in other units,
and nothing is gained by another name. Without a normalization behind the weight, decay also limits what the network can
compute, and is no mere speed.

Deviations: the paper's code also divides the decay by the root of the number of steps, which is left to the caller.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from minitrain.optim import Optimizer, decay_by_lr, l2_gradient, needed, no_decay, plain_gradient

Meaning = Literal["l2", "adamw", "schedule_only", "constant", "lr_squared"]


# --8<-- [start:rules]
def decay_by_schedule(
    w: Tensor, u: Tensor, state: dict, *, lr: float, initial_lr: float, weight_decay: float
) -> Tensor:
    """`(1 - lr/initial_lr*weight_decay) w - lr*u`: AdamW in its paper, arXiv 1711.05101, algorithm 2, and in the code.

    `initial_lr` must be the peak. That of torch's OneCycleLR is not: it overwrites `initial_lr` with the rate of the first
    step, `max_lr / div_factor`, a 25th by default, so that at the peak 25 times `weight_decay` is taken.
    """
    return w.mul(1 - lr / initial_lr * weight_decay).sub_(u, alpha=lr)


def constant_decay(w: Tensor, u: Tensor, state: dict, *, lr: float, weight_decay: float) -> Tensor:
    """`(1 - weight_decay) w - lr*u`: the decay ignores the schedule as well."""
    return w.mul(1 - weight_decay).sub_(u, alpha=lr)


def decay_by_squared_lr(w: Tensor, u: Tensor, state: dict, *, lr: float, weight_decay: float) -> Tensor:
    """`(1 - lr^2*weight_decay) w - lr*u`: decay and the growth by noise, which goes as `lr^2`, keep their proportion."""
    return w.mul(1 - lr * lr * weight_decay).sub_(u, alpha=lr)


# --8<-- [end:rules]


class Rules(NamedTuple):
    """The two parts of an optimizer that a meaning consists of."""

    input_rule: Callable[..., Tensor]
    step_rule: Callable[..., Tensor]


RULES: dict[Meaning, Rules] = {
    "l2": Rules(l2_gradient, no_decay),
    "adamw": Rules(plain_gradient, decay_by_lr),
    "schedule_only": Rules(plain_gradient, decay_by_schedule),
    "constant": Rules(plain_gradient, constant_decay),
    "lr_squared": Rules(plain_gradient, decay_by_squared_lr),
}

# --8<-- [start:libraries]
# What an optimizer's argument `weight_decay` means. Those of torch are held against torch in the tests; of the others the
# code was read, and a formula from it is held against the rule. Nobody is known to us who has `lr_squared`.
LIBRARIES: dict[str, Meaning] = {
    "torch.optim.SGD": "l2",
    "torch.optim.Adam": "l2",
    "torch.optim.NAdam": "l2",
    "torch.optim.RAdam": "l2",
    "torch.optim.Adamax": "l2",
    "torch.optim.RMSprop": "l2",
    "torch.optim.Adagrad": "l2",
    "torch.optim.Adadelta": "l2",
    "torch.optim.AdamW": "adamw",
    "torch.optim.Adafactor": "adamw",
    "torch.optim.Muon": "adamw",
    "optax.adamw": "adamw",
    "optax.lion": "adamw",
    "optax.adafactor": "constant",  # there it is called weight_decay_rate
    "loshchil/AdamW-and-SGDW": "schedule_only",  # the code of Loshchilov & Hutter
    "google-deepmind/nanodo": "schedule_only",  # AdamW with independent_weight_decay=True; else "adamw"
}
# --8<-- [end:libraries]


def with_decay(optimizer: torch.optim.Optimizer, meaning: Meaning) -> Optimizer:
    """Has one of minitrain's optimizers decay weights as `meaning` says, and returns the same optimizer.

    Its direction stays as it is, and `weight_decay` keeps its number: what that number means is what changes. Comes before
    `StepInBackward`, and before or after `SplitWeights`. In a recipe:

        partial(wrapped, make=AdamW, by=(partial(with_decay, meaning="constant"),), lr=1e-3, weight_decay=1e-4)

    Raises `ValueError` for an unknown meaning, for an optimizer that is not minitrain's, that has no `weight_decay` or that
    moves weights by rules of its own, and where a step would take a whole weight or more. That is looked at here, once, and
    not when a scheduler changes `lr` or `initial_lr` later. `schedule_only` needs the peak in `initial_lr`: with torch's
    OneCycleLR, which puts a lower rate there, a step may take more than a whole weight, and weights change sign.
    """
    own = check(optimizer, meaning)
    own.input_rule, own.step_rule = RULES[meaning]
    return own


def check(optimizer: Any, meaning: Any) -> Optimizer:
    """The same optimizer. Raises `ValueError` with one sentence where it cannot be given this meaning."""
    if meaning not in get_args(Meaning):
        raise ValueError(f"meaning must be one of {', '.join(get_args(Meaning))}, not {meaning!r}")
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"with_decay takes one of minitrain's own optimizers, not {type(optimizer).__module__}."
            f"{type(optimizer).__name__}; put StepInBackward around afterwards"
        )
    name = type(optimizer).__name__
    if "weight_decay" not in optimizer.defaults:
        raise ValueError(f"{name} has no weight_decay whose meaning could change; give its hyper-parameters one")
    known = {rule for rules in RULES.values() for rule in rules}
    if not {optimizer.input_rule, optimizer.step_rule} <= known or type(optimizer).rules is not Optimizer.rules:
        raise ValueError(f"{name} moves weights by rules of its own, which a decay would replace; leave with_decay out")
    for group in optimizer.param_groups:
        check_share(meaning, group)
    return optimizer


def share(meaning: Meaning, group: dict[str, Any]) -> float:
    """How much of a weight one step takes that has no update: 0 for `l2`, whose decay is in the update."""
    rule = RULES[meaning].step_rule
    one = torch.ones((), dtype=torch.float64)
    return 1 - rule(one, torch.zeros_like(one), {}, **needed(rule, group)).item()


def check_share(meaning: Meaning, group: dict[str, Any]) -> None:
    """Raises `ValueError` where a step would take a whole weight or more, as when a number is meant for another rule."""
    taken = share(meaning, group)
    if not taken < 1:
        raise ValueError(
            f"under {meaning!r} a weight_decay of {group['weight_decay']:g} would take {taken:g} of every weight in each "
            "step; give a smaller one, so that the share is what AdamW's lr * weight_decay was"
        )
