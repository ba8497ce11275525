"""Rejected by check_at_the_loss.

The hidden layer is counted once, where GELU keeps `h` and the product after it `a`.
"""

from solution import at_the_end, in_the_middle, peak, standing, twins  # noqa: F401


def at_the_loss(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """`x` and the hidden layer wait."""
    waiting = size * rows * (inputs + hidden)
    return standing(inputs, hidden, classes, size) + waiting + 12 * rows * classes
