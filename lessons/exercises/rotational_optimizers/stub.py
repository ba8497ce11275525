"""Rotational optimizers: the step that turns every neuron by a given angle.

45 minutes, difficulty 2 of 3. Write the three functions below in any order; `minitrain check rotational_optimizers` holds
them against the mathematics. The first two are one to three lines each, the last about ten.

A matrix of shape `(O, I)` has one neuron in each row, with `I` inputs. All tensors are torch's.
"""

from torch import Tensor


def turned(old: Tensor, new: Tensor) -> Tensor:
    """The angle in radians between each row of `old` and the same row of `new`; of shape `(O,)`.

    Both are float32, their rows have any lengths above zero, and angles of 1e-4 must come out within 1 %.
    """
    raise NotImplementedError


def rotation(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> float:
    """The angle per step at which SGD settles, to first order in `lr * weight_decay`.

    `g` is the gradient plus `weight_decay * w`. The buffer is `b <- momentum * b + g`, the update `u = b`, or with Nesterov
    `u = g + momentum * b`, and the step `w <- w - lr * u`. The decay thus goes through the same filter as the gradients:
    with `S` the sum of the filter's `c_k` and `E2` that of their squares, the angle is `sqrt(2 lr weight_decay E2 / S)`.
    """
    raise NotImplementedError


def turn(w: Tensor, u: Tensor, state: dict, angle: float, rms_decay: float) -> Tensor:
    """The new weight, from a weight and an update of shape `(O, I)`; neither of them is changed.

    Each row `w` goes against its row of `u`, and what is asked of it is asked of each row by itself:

    - its mean stays what it is, zero: all rows of the first `w` are centred;
    - only what of `u` goes across `w` counts;
    - the step's length is `angle` times the row's length, times `|u| / r`, where `r^2` is the exponential moving average of
      `|u|^2` with `rms_decay`, started at zero and corrected for that start (with 0, `r` is `|u|` itself);
    - in the end the row is as long as it was in the first step;
    - a row without an update stays where it is.

    `state` is empty in the first step and yours to keep what you need between steps.
    """
    raise NotImplementedError
