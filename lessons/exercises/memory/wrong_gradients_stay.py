"""Rejected by check_standing.

Gradients are counted between the steps, where `zero_grad` has dropped them.
"""

from solution import at_the_end, at_the_loss, in_the_middle, peak, twins, weights  # noqa: F401


def standing(inputs: int, hidden: int, classes: int, size: int) -> int:
    """Weights, gradients and two averages."""
    return 4 * size * weights(inputs, hidden, classes)
