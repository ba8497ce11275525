"""Numbers as text, with as many digits as their uncertainty leaves them."""

import math
import statistics
from collections.abc import Sequence


def number(x: float) -> str:
    """Four significant digits."""
    return f"{x:.4g}"


def alike(numbers: Sequence[float], error: float) -> list[str]:
    """All with the decimals that show two digits of `error`, the size of what is uncertain about them."""
    largest = max(map(abs, numbers))
    if not error > 1e-9 * largest:
        return [number(x) for x in numbers]
    if not 1e-4 <= largest < 1e6:
        return [f"{x:.3g}" for x in numbers]
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return [f"{x:.{decimals}f}" for x in numbers]


def plus_minus(values: Sequence[float | None]) -> str:
    """`2.1052 ± 0.0093`: the mean and its standard error; or in how many runs there is no finite value."""
    finite = [x for x in values if x is not None and math.isfinite(x)]
    if not values:
        return ""
    if len(finite) < len(values):
        return f"diverged in {len(values) - len(finite)} of {len(values)}"
    error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else 0.0
    if not error > 1e-9 * abs(finite[0]):
        return number(finite[0])
    return " ± ".join(alike([statistics.fmean(finite), error], error))


def with_interval(mean: float, low: float, high: float, unit: str = "") -> str:
    """`2.1052 nats (2.0837 to 2.1267)`."""
    shown = alike([mean, low, high], (high - low) / 2)
    return f"{shown[0]}{unit}" if len(set(shown)) == 1 else f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"
