"""Rejected by check_adamw.

The decay multiplied instead of divided: a longer weight does not need more of it.
"""

from solution import adam_l2_twin, lion_twin, sgd_twin  # noqa: F401


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """Everything grows."""
    return c * lr, weight_decay * c, c, eps / c
