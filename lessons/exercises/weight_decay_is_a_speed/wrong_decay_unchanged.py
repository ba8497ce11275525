"""Rejected by check_adamw.

The decay left alone, so that the larger rate takes a larger share of the weight.
"""

from solution import adam_l2_twin, lion_twin, sgd_twin  # noqa: F401


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """Only the rate."""
    return c * lr, weight_decay, c, eps / c
