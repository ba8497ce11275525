"""Rejected by check_sgd.

B starts with A's weights: right in the long run, since the start is forgotten, and not in one step before.
"""

from solution import adam_l2_twin, adamw_twin, lion_twin  # noqa: F401


def sgd_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """The start left alone."""
    return c * c * lr, weight_decay / (c * c), 1.0
