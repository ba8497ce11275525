"""Rejected by check_sums.

The square of the sum where the sum of the squares is asked for.
"""

from collections.abc import Sequence

from solution import equilibrium_norm, equilibrium_rotation, impulse_response, nesterov_sums  # noqa: F401


def sums(c: Sequence[float]) -> tuple[float, float]:
    """The sum, and its square."""
    return sum(c), sum(c) ** 2
