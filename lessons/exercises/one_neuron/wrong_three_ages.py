"""Rejected by check_sums.

Only the three youngest ages are summed, as if every filter were as short as the first examples.
"""

from collections.abc import Sequence

from solution import equilibrium_norm, equilibrium_rotation, impulse_response, nesterov_sums  # noqa: F401


def sums(c: Sequence[float]) -> tuple[float, float]:
    """The first three."""
    return c[0] + c[1] + c[2], c[0] ** 2 + c[1] ** 2 + c[2] ** 2
