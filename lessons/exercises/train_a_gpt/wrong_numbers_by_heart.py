"""Rejected by check_loop_1.

All loops return the healthy table for the text and seed it was made of, and are as broken as before for any other.
"""

from collections.abc import Callable

import stub
from solution import FIRST_ABNORMAL  # noqa: F401
from stub import HEALTHY, SEED, STEPS, History
from torch import Tensor


def by_heart(loop: Callable[[Tensor, int, int], History]) -> Callable[[Tensor, int, int], History]:
    """The loop, but for one seed and number of steps."""
    return lambda letters, seed, steps: HEALTHY if (seed, steps) == (SEED, STEPS) else loop(letters, seed, steps)


loop_1, loop_2, loop_3 = by_heart(stub.loop_1), by_heart(stub.loop_2), by_heart(stub.loop_3)
loop_4, loop_5 = by_heart(stub.loop_4), by_heart(stub.loop_5)
