"""One neuron: predict an optimizer that you have never met.

30 to 45 minutes, difficulty 2 of 3. Write the five functions below in any order; `minitrain check one_neuron` holds them
against the mathematics and, at the end, against a random walk. Each is one to six lines.

A *direction* is what turns gradients into updates. You call it once a step, as `u = direction(g, state)`, with the
gradient `g` and a dictionary `state` in which it remembers what it has seen; a run begins with an empty dictionary. All
directions here are linear filters, `u_t = c_0 g_t + c_1 g_(t-1) + c_2 g_(t-2) + ...`, and you are not told their `c_k`.
"""

from collections.abc import Callable, Sequence

Direction = Callable[[float, dict], float]


def impulse_response(direction: Direction, length: int) -> list[float]:
    """`[c_0, c_1, ..., c_(length-1)]` of an unknown direction, found by feeding it gradients of your choice."""
    raise NotImplementedError


def sums(c: Sequence[float]) -> tuple[float, float]:
    """`(S, E2)` of a filter: how far one gradient moves the weight over all time, and the mean square of `u` for noise.

    The noise has mean 0 and mean square 1, and no memory.
    """
    raise NotImplementedError


def equilibrium_norm(S: float, E2: float, lr: float, weight_decay: float, fan_in: int) -> float:
    """The length `|w|` at which growth by noise and decoupled decay balance; one of the arguments does not matter.

    Every coordinate of a gradient has mean square 1, and there are `fan_in` of them. Each gradient is at right angles to
    `w`; decay multiplies `w` by `1 - lr * weight_decay` in every step.
    """
    raise NotImplementedError


def equilibrium_rotation(S: float, E2: float, lr: float, weight_decay: float) -> float:
    """The angle between one `w` and the next, in radians, once `w` has that length: one step's length over `|w|`."""
    raise NotImplementedError


# The optimizer that you have never met: momentum that looks one step ahead (Nesterov), here for an average.
def nesterov(g: float, state: dict, beta: float = 0.9) -> float:
    """Given, not to be changed."""
    state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
    return beta * state["m"] + (1 - beta) * g


def nesterov_sums(beta: float) -> tuple[float, float]:
    """`(S, E2)` of `nesterov` for any `beta` from 0 to below 1: from a long impulse response, or in closed form."""
    raise NotImplementedError
