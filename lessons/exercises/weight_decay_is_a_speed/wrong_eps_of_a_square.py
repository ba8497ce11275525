"""Rejected by check_adamw.

`eps` scaled as if it were added to `v`, a square.
"""

from solution import adam_l2_twin, lion_twin, sgd_twin  # noqa: F401


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """Twice divided."""
    return c * lr, weight_decay / c, c, eps / (c * c)
