"""The slow clock: whose work is in the final weights?

30 to 45 minutes, difficulty 2 of 3. Write the five functions below in any order; `minitrain check the_slow_clock` holds them
against runs that it makes itself. Each is one to six lines.

A step of AdamW is `w <- (1 - lr*weight_decay) w - lr*u`. With `q = -u / weight_decay` this is an average that moves a little
towards the newest `q`, and after all steps

    w_end = left * w_start + c[0] * q[0] + c[1] * q[1] + ... + c[-1] * q[-1]

where `left` and all `c` depend on learning rates and weight decay alone, and add up to 1.
"""

from collections.abc import Sequence


def average(lrs: Sequence[float], weight_decay: float) -> tuple[list[float], float]:
    """`(c, left)`: the weight of every step's `q` in the final weights, first step first, and that of the initial weights.

    `lrs` holds the learning rate of every step, in order. They may change from step to step in any way, and
    `lr * weight_decay` may be anything from 0 to 1, not only small.
    """
    raise NotImplementedError


def share_of_last(lrs: Sequence[float], weight_decay: float, last: int) -> float:
    """Of all that the steps have put into the final weights, the part that comes from the last `last` of them, from 0 to 1.

    What is left of the initial weights was not put there by any step, and does not count.
    """
    raise NotImplementedError


def tau_in_epochs(lr: float, weight_decay: float, rows: int, row_size: int, batch_size: int) -> float:
    """The length of the average, which is `1 / (lr * weight_decay)` steps, in epochs.

    There are `rows` rows of data of `row_size` tokens each; a step takes `batch_size` tokens.
    """
    raise NotImplementedError


def decay_for(tau_epochs: float, lr: float, rows: int, row_size: int, batch_size: int) -> float:
    """The weight decay with which the average is `tau_epochs` epochs long."""
    raise NotImplementedError


def decay_after(weight_decay: float, data: float, batch: float) -> float:
    """The weight decay that keeps the average as long as it was, in epochs.

    There are `data` times as many tokens of data as before, and `batch` times as many in a step. The learning rate stays.
    """
    raise NotImplementedError
