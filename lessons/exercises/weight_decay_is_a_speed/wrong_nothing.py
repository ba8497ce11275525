"""Rejected by check_sgd.

A is not its own twin: the same predictions, but weights of the same size.
"""


def sgd_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """As it was."""
    return lr, weight_decay, 1.0


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """As it was."""
    return lr, weight_decay, 1.0, eps


lion_twin, adam_l2_twin = sgd_twin, adamw_twin
