"""Rejected by check_adam_l2.

SGD's rate: the division by `sqrt(v)` has made the step independent of the gradient's length already.
"""

from solution import adamw_twin, lion_twin, sgd_twin  # noqa: F401


def adam_l2_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """Rate and decay of SGD, and an `eps`."""
    return *sgd_twin(c, lr, weight_decay), eps / c
