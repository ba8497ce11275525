"""Ours."""

import struct

STEP = 1 << 16  # from one bfloat16 number to the next, on float32 patterns


def pattern(x: float) -> int:
    """The 32 bits of a float32 number."""
    return struct.unpack("<I", struct.pack("<f", x))[0]


def number(bits: int) -> float:
    """The reverse."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def twins(near: float) -> tuple[float, float]:
    """The two ties beside a bfloat16 number that is even: both round to it, and both have the lower half 0x8000.

    An odd `near` would send the ties beside it away, one up and one down; so the even one below it is taken.
    """
    even = pattern(near) & ~STEP
    return number(even - STEP // 2), number(even + STEP // 2)


def weights(inputs: int, hidden: int, classes: int) -> int:
    """How many there are."""
    return inputs * hidden + hidden * classes


def standing(inputs: int, hidden: int, classes: int, size: int) -> int:
    """Weights and two averages."""
    return 3 * size * weights(inputs, hidden, classes)


def at_the_loss(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """`x`, `h` and `a` wait; log-probabilities, their gradient and that of `z.float()`, four bytes a number each."""
    waiting = size * rows * (inputs + 2 * hidden)
    return standing(inputs, hidden, classes, size) + waiting + 3 * 4 * rows * classes


def in_the_middle(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """`x`, `h`, `a`, the gradients of `z` and of `a`, and that of `out`."""
    tensors = rows * (inputs + 2 * hidden) + rows * classes + rows * hidden
    return standing(inputs, hidden, classes, size) + size * (tensors + hidden * classes)


def at_the_end(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """`x`, the gradient of `h`, and the gradients of all weights."""
    tensors = rows * inputs + rows * hidden
    return standing(inputs, hidden, classes, size) + size * (tensors + weights(inputs, hidden, classes))


def peak(rows: int, inputs: int, hidden: int, classes: int, size: int) -> int:
    """Which moment is the largest depends on the sizes."""
    return max(moment(rows, inputs, hidden, classes, size) for moment in (at_the_loss, in_the_middle, at_the_end))
