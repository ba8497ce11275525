"""The detective: which learning rate, which decay and which beta1 did this run use?

30 to 45 minutes, difficulty 2 of 3. Somebody trained a neuron with AdamW and will not say how. You are given what could be
seen from outside: the length of its weight vector at every step, and some of its weights, each before and after one step.
Write the three functions below in any order, each two to eight lines; `minitrain check rotational_equilibrium` tests each
by itself and then has them solve three runs whose values follow from your name, within 5 %.

The gradients were noise at right angles to the weight, divided by their own size as Adam does it (mean square 1 in every
coordinate); decay was decoupled and the learning rate constant. The weight began far too long or far too short, and had
settled in the last third of the run.
"""

from typing import Any

import numpy as np

NAME = ...  # yours, in quotes; other readers have other runs to solve


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """The root mean square, over the rows, of the angle between a row of `before` and the same row of `after`, in radians.

    Both are float32 of shape (rows, fan_in); angles may be as small as 3e-4, and rows of any length.
    """
    raise NotImplementedError


def time_constant(norms: np.ndarray) -> float:
    """In how many steps the distance of `|w|^2` from where it ends falls to 1/e of what it was.

    `norms` holds `|w|` after 0, 1, 2, ... steps; it ends a little restless. To be right within 3 %.
    """
    raise NotImplementedError


def recover(norm: float, rotation: float, steps: float, fan_in: int) -> tuple[float, float, float]:
    """`(lr, weight_decay, beta1)` of AdamW, from the norm and the rotation in equilibrium and the time constant in steps."""
    raise NotImplementedError


def detective(run: dict[str, Any]) -> tuple[float, float, float]:
    """All of it; given, not to be changed."""
    norms = run["norms"]
    late = norms[-len(norms) // 3 :]
    norm = float(np.sqrt(np.mean(late**2)))
    return recover(norm, turned(run["before"], run["after"]), time_constant(norms), run["before"].shape[1])
