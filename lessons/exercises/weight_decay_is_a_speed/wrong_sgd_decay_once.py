"""Rejected by check_sgd.

The rate is right, the decay is divided by `c` once: the gradient that it joins has shrunk as well.
"""

from solution import adam_l2_twin, adamw_twin, lion_twin  # noqa: F401


def sgd_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """`weight_decay * w` stays as it was."""
    return c * c * lr, weight_decay / c, c
