"""Rejected by check_sums.

The root mean square of the update where its mean square is asked for.
"""

import math
from collections.abc import Sequence

from solution import equilibrium_norm, equilibrium_rotation, impulse_response, nesterov_sums  # noqa: F401


def sums(c: Sequence[float]) -> tuple[float, float]:
    """The sum, and the root of the sum of squares."""
    return sum(c), math.sqrt(sum(x * x for x in c))
