"""Rejected by check_adamw.

The rate left alone: normalized steps have A's length, and so turn B's longer weight less.
"""

from solution import adam_l2_twin, lion_twin, sgd_twin  # noqa: F401


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """The same share as before."""
    return lr, weight_decay, c, eps / c
