"""Rejected by check_in_the_middle.

The gradient of `a` is forgotten while `h` and `a` are still there.
"""

from solution import at_the_end, at_the_loss, peak, standing, twins  # noqa: F401


def in_the_middle(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """`x`, `h`, `a`, the gradient of `z` and that of `out`."""
    tensors = rows * (inputs + 2 * hidden) + rows * classes
    return standing(inputs, hidden, classes, size) + size * (tensors + hidden * classes)
