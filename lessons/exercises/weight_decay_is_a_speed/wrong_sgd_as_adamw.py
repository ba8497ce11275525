"""Rejected by check_sgd.

The powers of AdamW: as if the length of a gradient did not count.
"""

from solution import adam_l2_twin, adamw_twin, lion_twin  # noqa: F401


def sgd_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """Rate times c, decay over c."""
    return c * lr, weight_decay / c, c
