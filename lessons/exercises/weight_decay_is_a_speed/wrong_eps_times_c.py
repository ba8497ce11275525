"""Rejected by check_adamw.

`eps` goes the way of the weight instead of the gradient's.
"""

from solution import adam_l2_twin, lion_twin, sgd_twin  # noqa: F401


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """Larger, like the weight."""
    return c * lr, weight_decay / c, c, c * eps
