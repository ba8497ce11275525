"""Rejected by check_at_the_loss.

The cross-entropy in `size` bytes a number, where it is in float32 always.
"""

from solution import at_the_end, in_the_middle, peak, standing, twins  # noqa: F401


def at_the_loss(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """Three tensors of logits."""
    waiting = size * rows * (inputs + 2 * hidden)
    return standing(inputs, hidden, classes, size) + waiting + 3 * size * rows * classes
