"""Rejected by check_at_the_end.

The weights' gradients are forgotten.
"""

from solution import at_the_loss, in_the_middle, peak, standing, twins  # noqa: F401


def at_the_end(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """`x` and the gradient of `h`."""
    return standing(inputs, hidden, classes, size) + size * rows * (inputs + hidden)
