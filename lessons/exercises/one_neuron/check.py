"""Checks of the exercise `one_neuron`, in the order in which they build on one another."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from minitrain.lab.exercises import hint_for, require, require_close, require_numbers, require_pair

# --- filters whose c_k we know ------------------------------------------------------------------------------------------


def recall(g: Any, state: dict, c: Sequence[float]) -> Any:
    """The filter with these `c_k`: it keeps the last gradients and adds them up."""
    state["past"] = [g, *state.get("past", [])][: len(c)]
    return sum(x * past for x, past in zip(c, state["past"], strict=False))


def average(g: Any, state: dict, beta: float) -> Any:
    """The exponential average."""
    state["m"] = beta * state.get("m", 0.0) + (1 - beta) * g
    return state["m"]


def nesterov(g: Any, state: dict, beta: float) -> Any:
    """The average that looks one step ahead."""
    return beta * average(g, state, beta) + (1 - beta) * g


def nesterov_response(beta: float, length: int) -> np.ndarray:
    """Its `c_k`."""
    c = (1 - beta) * beta ** np.arange(1, length + 1)
    c[0] = (1 - beta) * (1 + beta)
    return c


FILTERS = {
    "three gradients": (partial(recall, c=[0.5, -0.25, 2.0]), [0.5, -0.25, 2.0, 0, 0, 0]),
    "the gradient of one step ago": (partial(recall, c=[0.0, 1.0]), [0, 1.0, 0, 0, 0, 0]),
    "an average": (partial(average, beta=0.5), [0.5**k for k in range(1, 7)]),
    "an average with Nesterov": (partial(nesterov, beta=0.5), nesterov_response(0.5, 6)),
}


def check_impulse_response(answer: ModuleType) -> None:
    """impulse_response reads c_0, c_1, ... of any direction."""
    for name, (direction, c) in FILTERS.items():
        found = answer.impulse_response(direction, len(c))
        values = require_numbers(found, len(c), f"{len(c)} numbers for {name!r}")
        required = np.array(c)
        hint = ""
        if np.allclose(values[:-1], required[1:]):
            hint = "you read one step late: c_0 comes out while the impulse goes in"
        elif np.allclose(values[1:], required[:-1]):
            hint = "you read one step early: the first number is from before the impulse"
        elif np.allclose(values, np.cumsum(required)):
            hint = "you fed a gradient of 1 in every step, so the answers add up; after the impulse, feed zeros"
        elif name != next(iter(FILTERS)):
            hint = "does every call of yours begin with an empty dictionary?"
        right = np.allclose(values, required, atol=1e-9)
        require(right, found, f"{required.tolist()} for the filter {name!r}", hint)


def check_sums(answer: ModuleType) -> None:
    """sums gives the sum S and the energy E2 of a filter."""
    for c in ([1.0, 0.5, 0.25], [0.1, 0.09, 0.081], [0.5, -0.25, 2.0], [0.3, 0.0, -0.2, 1.0, 0.5], [2.0]):
        S, E2 = require_pair(answer.sums(c), f"two numbers, S and E2, for c = {c}")
        hints = {
            "signs count: what is taken back later does not move the weight": sum(map(abs, c)),
            "a filter may be of any length; take all of its c_k": sum(c[:3]),
        }
        require_close(S, sum(c), 1e-6, hint_for(S, hints) or f"S of c = {c}")
        squares = sum(x * x for x in c)
        hints = {
            "you squared the sum; E2 is the sum of the squares, since products of different gradients average to 0": sum(
                c
            )
            ** 2,
            "E2 is the mean square of u, without the root": math.sqrt(squares),
            "E2 is a sum, not a mean over the ages": squares / len(c),
        }
        require_close(E2, squares, 1e-6, hint_for(E2, hints) or f"E2 of c = {c}")


SETTINGS = [(1.0, 0.05, 0.01, 0.1, 256), (10.0, 5.0, 0.002, 0.05, 100), (0.5, 2.0, 0.005, 0.02, 1000)]
FIRST_ORDER = 1e-3  # passes an exact balance too, with (lr*weight_decay)^2, and the arc tangent of step over norm


def check_equilibrium_norm(answer: ModuleType) -> None:
    """equilibrium_norm is where growth by noise and decay balance."""
    for S, E2, lr, weight_decay, fan_in in SETTINGS:
        norm = answer.equilibrium_norm(S, E2, lr, weight_decay, fan_in)
        base = lr * fan_in / weight_decay
        hints = {
            "the factor 2 of 2*lr*weight_decay is missing: decay takes that share of |w|^2, lr*weight_decay of |w|": (
                S * math.sqrt(base)
            ),
            "S is missing: momentum applies the same gradient again and again, until it has moved w by lr*S": math.sqrt(
                base / 2
            ),
            "E2 stands where S^2 belongs: steps that share a gradient add up in length, not in squares": math.sqrt(
                E2 * base / 2
            ),
            "that is |w|^2; its root is asked for": S**2 * base / 2,
            "is lr^2 on one side and lr on the other? one of them cancels": S * math.sqrt(fan_in / (2 * weight_decay)),
        }
        given = f"at S={S}, E2={E2}, lr={lr}, weight_decay={weight_decay}, fan_in={fan_in}"
        require_close(norm, S * math.sqrt(base / 2), FIRST_ORDER, hint_for(norm, hints, FIRST_ORDER) or given)


def check_equilibrium_rotation(answer: ModuleType) -> None:
    """equilibrium_rotation is the step's length over the norm."""
    for S, E2, lr, weight_decay, _ in SETTINGS:
        rotation = answer.equilibrium_rotation(S, E2, lr, weight_decay)
        root = math.sqrt(2 * lr * weight_decay * E2)
        hints = {
            "S is missing: the norm has it, so the angle is divided by it": root,
            "the factor 2 of 2*lr*weight_decay is missing": root / math.sqrt(2) / S,
            "that is the rotation when decay goes through the filter (L2); here it is decoupled": root / math.sqrt(S),
            "one step is lr*sqrt(E2*fan_in) long: did you take lr*S*sqrt(fan_in)?": math.sqrt(2 * lr * weight_decay),
            "E2 is a square; its root is the length": math.sqrt(2 * lr * weight_decay) * E2 / S,
            "that is the square of the angle": (root / S) ** 2,
        }
        given = f"at S={S}, E2={E2}, lr={lr}, weight_decay={weight_decay}"
        require_close(rotation, root / S, FIRST_ORDER, hint_for(rotation, hints, FIRST_ORDER) or given)


def check_nesterov_sums(answer: ModuleType) -> None:
    """nesterov_sums knows the optimizer that you have never met."""
    for beta in (0.9, 0.5, 0.99, 0.0):
        S, E2 = require_pair(answer.nesterov_sums(beta), f"two numbers, S and E2, for beta = {beta}")
        c = nesterov_response(beta, 5000)
        total, energy = c.sum(), (c**2).sum()
        plain, scale = (1 - beta) / (1 + beta), (1 - beta) ** 2
        slow = f"{100 * (1 - math.sqrt(plain / energy)):.0f} %"
        hints = {
            "the factor 1-beta of an average is missing: c_0 is (1-beta)*(1+beta)": total / (1 - beta),
            "S is the sum of all c_k; is the look-ahead in it?": (1 - beta**2),
        }
        length = "an impulse response must be many times 1/(1-beta) long"
        require_close(S, total, 1e-4, hint_for(S, hints) or f"S at beta={beta}; {length}")
        hints = {
            f"your E2 is the plain average's (the heavy ball's, scaled): {slow} too slow": plain,
            "your E2 is the heavy ball's, without the factor (1-beta)^2 of an average": plain / scale,
            "the factor (1-beta)^2 of an average is missing": energy / scale,
            "c_k is (1-beta)*beta^(k+1) from k = 1 on; is one power of beta missing?": scale
            * ((1 + beta) ** 2 + beta**2 / (1 - beta**2)),
        }
        require_close(E2, energy, 1e-4, hint_for(E2, hints) or f"E2 at beta={beta}; {length}")


def check_random_walk(answer: ModuleType) -> None:
    """A random walk with Nesterov settles where you predict (within 2 %)."""
    how = 0.01, 0.1  # learning rate and decay
    S, E2 = answer.nesterov_sums(0.9)
    norm, rotation = random_walk(partial(nesterov, beta=0.9), *how, fan_in=256)
    require_close(answer.equilibrium_norm(S, E2, *how, 256), norm, 0.02, "measured is your prediction of the norm")
    require_close(answer.equilibrium_rotation(S, E2, *how), rotation, 0.02, "measured is your prediction of the angle")


# --- helpers ------------------------------------------------------------------------------------------------------------


def random_walk(direction: Callable, lr: float, weight_decay: float, fan_in: int) -> tuple[float, float]:
    """Where `|w|` and the angle per step settle: 8 neurons, 3000 steps, normalized gradients at right angles to `w`."""
    rng = np.random.default_rng(0)
    w, state, norms, angles = 4 * unit(rng.standard_normal((8, fan_in))), {}, [], []
    for _ in range(3000):
        old = unit(w)
        noise = rng.standard_normal(w.shape)
        g = noise - old * (noise * old).sum(axis=1, keepdims=True)
        w = (1 - lr * weight_decay) * w - lr * direction(g, state)
        norms.append(np.mean(w**2) * fan_in)
        angles.append(np.mean((2 * np.arcsin(np.linalg.norm(unit(w) - old, axis=1) / 2)) ** 2))
    return math.sqrt(np.mean(norms[-1000:])), math.sqrt(np.mean(angles[-1000:]))


def unit(w: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return w / np.linalg.norm(w, axis=1, keepdims=True)
