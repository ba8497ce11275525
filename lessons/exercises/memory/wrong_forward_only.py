"""Rejected by check_at_the_loss.

The end of the forward pass, where only the log-probabilities and `z.float()` are there.
"""

from solution import at_the_end, in_the_middle, peak, standing, twins  # noqa: F401


def at_the_loss(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """Two tensors of logits."""
    waiting = size * rows * (inputs + 2 * hidden)
    return standing(inputs, hidden, classes, size) + waiting + 8 * rows * classes
