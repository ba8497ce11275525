"""Ours. B's gradient is `g / c`: the slope across a landscape that was stretched by `c`."""


def sgd_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """What is added to `g / c` must be `1 / c` of A's too, and the step, `1 / c` of A's, must become `c` times A's."""
    return c * c * lr, weight_decay / (c * c), c


def adamw_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """`m / sqrt(v)` knows no scale, unless `eps` spoils it; the step is to be `c` times A's, the decay factor the same."""
    return c * lr, weight_decay / c, c, eps / c


def lion_twin(c: float, lr: float, weight_decay: float) -> tuple[float, float, float]:
    """A sign knows no scale at all."""
    return c * lr, weight_decay / c, c


def adam_l2_twin(c: float, lr: float, weight_decay: float, eps: float) -> tuple[float, float, float, float]:
    """The decay joins a gradient as with SGD; what is made of both is divided by its own size as with AdamW."""
    return c * lr, weight_decay / (c * c), c, eps / c
