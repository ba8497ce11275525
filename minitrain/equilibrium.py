"""What an optimizer does to a weight in the long run, in closed form, from learning rate, decay and momentum alone.

Noise in the gradients lengthens a weight vector, decay shortens it; where the two balance, its norm and the angle that it
turns per step are known before the first step. Momentum is a linear filter of the gradients, of which two sums matter.
The rotations of SGD, AdamW and Lion are those of Kosson et al., 2023, arXiv 2305.17212; the form for any filter and the
norms are derived here and checked by simulation in the tests. Symbols: `c_k` the weight of a gradient of age `k` in an
update, `a` momentum, `b` a beta.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Filter(NamedTuple):
    """The two sums that tell how an optimizer turns gradients into updates `u_t = sum_k c_k g_(t-k)`.

    `total` is `S = sum_k c_k`, how much one gradient moves the weight over all time; `energy` is `E2 = sum_k c_k^2`, the
    mean square of `u` for white-noise gradients of unit variance. For Adam and Lion the gradients are taken after their
    division by the second moment, or inside the sign.
    """

    total: float
    energy: float


# --8<-- [start:filters]
def heavy_ball(momentum: float, nesterov: bool = False) -> Filter:
    """`c_k = a^k`; Nesterov: `c_0 = 1+a`, `c_k = a^(k+1)`, which has the same total and more energy."""
    a = momentum
    return Filter(1 / (1 - a), (1 + a) ** 2 + a**4 / (1 - a**2) if nesterov else 1 / (1 - a**2))


def exponential(beta: float, nesterov: bool = False) -> Filter:
    """`c_k = (1-b) b^k`, an average: the heavy ball scaled to a total of 1."""
    return Filter(1.0, (1 - beta) ** 2 * heavy_ball(beta, nesterov).energy)


def sign_of_two_averages(betas: tuple[float, float]) -> Filter:
    """Lion: `c_0 = 1-b1`, `c_k = b1 (1-b2) b2^(k-1)` inside a sign, whose output has mean square 1.

    A small change `x` of a normal variable of variance `K = sum c_k^2` moves the mean of its sign by `sqrt(2/(pi K)) x`. For
    normal noise this slope is exact: `E[sign(u) g] = sqrt(2/(pi K)) E[u g]`, whatever the share of `g` in `u` (Bussgang).
    What is left of the sign lengthens the weight a little too, and is left out of `total`.
    """
    beta1, beta2 = betas
    K = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    return Filter(math.sqrt(2 / (math.pi * K)), 1.0)


# --8<-- [end:filters]


class Equilibrium(NamedTuple):
    """Where a neuron's weight settles when its gradients are noise; see `equilibrium`."""

    update: float  # root mean square length of one step, lr |u|
    norm: float  # root mean square |w|
    rotation: float  # root mean square angle between successive w, in radians
    steps: float  # time constant of |w|^2, or for L2 through SGD of |w|^4, on its way there


def equilibrium(filter: Filter, lr: float, weight_decay: float, fan_in: int) -> Equilibrium:
    """Decoupled decay (AdamW, Lion): in equilibrium growth by noise and decay balance.

    The gradients are white noise, orthogonal to a weight vector of `fan_in` numbers, and normalized to unit variance by
    the optimizer, so their scale drops out: every neuron turns at the same rate. Over all time a gradient moves `w` by
    `lr*S` along itself, so `|w|^2` grows by `(lr*S)^2 * fan_in` a step, and decay takes `2*lr*weight_decay*|w|^2`; equating
    the two gives the norm, and the step's length over the norm the angle. Holds while `lr * weight_decay` is well below
    `1 - beta` of the slowest average in the filter; to first order decay of what momentum has not finished with makes the
    norm smaller by the share `lr * weight_decay * beta / (2 * (1 - beta))`.
    """
    check_decay(weight_decay)
    update = lr * math.sqrt(fan_in * filter.energy)
    rotation = math.sqrt(2 * lr * weight_decay * filter.energy) / filter.total
    norm = filter.total * math.sqrt(lr * fan_in / (2 * weight_decay))
    return Equilibrium(update, norm, rotation, 1 / (2 * lr * weight_decay))


def equilibrium_l2(filter: Filter, lr: float, weight_decay: float, unit_gradient: float) -> Equilibrium:
    """L2 through the filter (SGD with momentum): the decay is delayed and amplified like the gradients.

    `unit_gradient` is the root mean square length of the gradient at `|w| = 1`; at norm `|w|` it is `1/|w|` of that, as for
    any weight followed by a normalization. It sets the norm, and drops out of the rotation. The time constant is that of
    `|w|^4`.
    """
    check_decay(weight_decay)
    rotation = math.sqrt(2 * lr * weight_decay * filter.energy / filter.total)
    norm = (lr * unit_gradient**2 * filter.total / (2 * weight_decay)) ** 0.25
    return Equilibrium(rotation * norm, norm, rotation, 1 / (4 * lr * weight_decay * filter.total))


def equilibrium_adam_l2(
    filter: Filter, lr: float, weight_decay: float, fan_in: int, unit_gradient_rms: Tensor | float
) -> Equilibrium:
    """Adam with L2: the decay is divided by the gradient's size, so neurons with large gradients turn slowly.

    `unit_gradient_rms`: root mean square of each coordinate's gradient at `|w| = 1`, of shape `(fan_in,)`, or one number for
    all. Valid while `weight_decay * w` is small beside the gradient. The time constant is that of small deviations.
    """
    check_decay(weight_decay)
    total_rms = float(torch.as_tensor(unit_gradient_rms, dtype=torch.float64).expand(fan_in).sum())
    update = lr * math.sqrt(fan_in * filter.energy)
    norm = (lr * total_rms * filter.total / (2 * weight_decay)) ** (1 / 3)
    typical_rms = total_rms / fan_in / norm  # sqrt(v) at the equilibrium norm
    return Equilibrium(update, norm, update / norm, typical_rms / (3 * lr * weight_decay * filter.total))


def check_decay(weight_decay: float) -> None:
    """Raises `ValueError` without decay, where norms grow for ever."""
    if not weight_decay > 0:
        raise ValueError(f"there is no equilibrium without decay; give a weight_decay above 0, not {weight_decay}")
