"""Checks of the exercise `memory`: exact bits for the twins, exact bytes for the peak, and plans of real training steps."""

import math
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minitrain.lab.exercises import require, require_close
from minitrain.lab.plan import plan
from minitrain.optim import AdamW
from minitrain.recipe import Recipe

# --- the twins ----------------------------------------------------------------------------------------------------------

STEP = 1 << 16  # from one bfloat16 number to the next, on float32 patterns
TIE = 1 << 15
EVEN = (0x3F80, 0x4000, 0x3F82, 0x3DCC, 0xBF80, 0xC0FE, 0x0100, 0x7F7E, 0xFF7E)  # powers of two among them
ODD = (0x3F81, 0x3DCD, 0xBFFF, 0x42FF, 0x8101, 0x7F7D)
LARGEST = (0x7F7F, 0xFF7F)


def check_twins_collide(answer: ModuleType) -> None:
    """twins gives two different float32 numbers with the same halves."""
    for high in EVEN:
        require_twins(answer, high)


def check_twins_near(answer: ModuleType) -> None:
    """The twins lie less than two steps from where they were asked for, on the same side of zero."""
    for high in EVEN:
        near = number(high << 16)
        patterns = require_twins(answer, high)
        away = [(x - (high << 16)) / STEP for x in patterns]
        ok = all(abs(steps) < 2 for steps in away)
        words = f"twins({near:.9g}) are {away[0]:+g} and {away[1]:+g} steps from it"
        require(ok, words, "each less than 2 steps away, with the same sign")


def check_twins_anywhere(answer: ModuleType) -> None:
    """There are twins beside an odd number too, and beside the largest finite one."""
    for high in (*ODD, *LARGEST):
        patterns = require_twins(answer, high)
        away = [abs(x - (high << 16)) / STEP for x in patterns]
        require(
            max(away) < 2, f"twins({number(high << 16):.9g}) are up to {max(away):g} steps from it", "less than 2 steps"
        )


def require_twins(answer: ModuleType, high: int) -> list[int]:
    """The patterns of the twins beside a bfloat16 number, after all that must hold of them but the distance."""
    near = number(high << 16)
    asked = f"twins({near:.9g})"
    found = answer.twins(near)
    if found is ...:
        require(False, ..., "")
    pair = list(found) if isinstance(found, Iterable) else []
    require(len(pair) == 2, found, f"two numbers from {asked}")
    patterns = []
    for x in pair:
        value = plain(x)
        require(value is not None, f"{x!r} from {asked}", "a real number")
        with np.errstate(over="ignore"):
            stored = np.float32(value)
        finite = "a NaN is no number; whole ranges of patterns are NaN, and rounding tells none of them from another"
        require(np.isfinite(stored), f"{asked} gives {value!r}", "finite float32 numbers", finite)
        exact = f"{value!r} is not a float32 number; the nearest one is {float(stored)!r}"
        require(float(stored) == value, f"{asked} gives {exact}", "numbers that float32 holds exactly")
        patterns.append(int(stored.view(np.uint32)))
    a, b = patterns
    require(a != b, f"{asked} gives {pair[0]!r} twice", "two different numbers")
    measured = f"{asked}: {shown_halves(a)} and {shown_halves(b)}"
    require(halves(a) == halves(b), measured, "the same two halves", hint_for(a, b))
    return patterns


def halves(pattern: int) -> tuple[int, int]:
    """Upper half to the nearest, ties to even, and the last 16 bits; with whole numbers only."""
    upper, lower = divmod(pattern, STEP)
    up = lower > TIE or (lower == TIE and upper % 2 == 1)
    return upper + up, lower


def shown_halves(pattern: int) -> str:
    """`3f7f8000 -> 3f80 + 8000`."""
    high, low = halves(pattern)
    return f"{pattern:08x} -> {high:04x} + {low:04x}"


def hint_for(a: int, b: int) -> str:
    """What is the likely mistake behind two patterns that differ in their halves."""
    ties = [x % STEP == TIE for x in (a, b)]
    if a % STEP != b % STEP:
        exactly = "" if any(ties) else "; neither is a tie, which is a number exactly between two bfloat16 numbers"
        return f"the lower halves differ, so the two can be told apart{exactly}"
    if not all(ties):
        return "these are no ties: both were rounded the same way, so they land on different upper halves"
    return "both are ties, but rounding took them apart; ties go to the number that is even. Which of these are even?"


def number(pattern: int) -> float:
    """A float32 number from its pattern."""
    return float(np.uint32(pattern).view(np.float32))


def plain(x: Any) -> float | None:
    """One real number as a Python float, whatever holds it; None where it is none."""
    try:
        return None if isinstance(x, bool | str) else float(x)
    except (TypeError, ValueError, RuntimeError):
        return None


# --- the peak -----------------------------------------------------------------------------------------------------------

SHAPES = {  # rows, inputs, hidden, classes: what is largest where
    "logits": (2048, 256, 256, 8192),
    "weights": (64, 512, 2048, 512),
    "hidden layer": (4096, 256, 1024, 32),
    "input": (4096, 2048, 128, 16),
    "nothing": (512, 512, 1024, 1024),
}
CLOSE = 0.01  # room for targets and single numbers


class Count:
    """The bytes of a step, with each contribution by its name, so that a wrong sum can be explained by what is missing."""

    def __init__(self, rows: int, inputs: int, hidden: int, classes: int, size: int):
        self.weights = size * (inputs * hidden + hidden * classes)
        self.x, self.h, self.dz = (size * rows * wide for wide in (inputs, hidden, classes))
        self.logit = rows * classes
        self.out = size * hidden * classes

    def standing(self) -> int:
        return 3 * self.weights

    def at_the_loss(self) -> int:
        return self.standing() + self.x + 2 * self.h + 12 * self.logit

    def in_the_middle(self) -> int:
        return self.standing() + self.x + 3 * self.h + self.dz + self.out

    def at_the_end(self) -> int:
        return self.standing() + self.x + self.h + self.weights

    def peak(self) -> int:
        return max(self.at_the_loss(), self.in_the_middle(), self.at_the_end())


def every_case() -> Iterable[tuple[tuple[int, int, int, int, int], Count, str]]:
    """All shapes, in both sizes of numbers, with the words for them."""
    for name, shape in SHAPES.items():
        for size in (4, 2):
            words = dict(zip(("rows", "inputs", "hidden", "classes", "size"), (*shape, size), strict=True))
            yield (*shape, size), Count(*shape, size), f"at {', '.join(f'{k}={v}' for k, v in words.items())} ({name})"


def first_hint(measured: Any, likely: Mapping[str, float], given: str) -> str:
    """The likely mistake whose value is the measured one, and where it was measured."""
    value = plain(measured)
    hints = (hint for hint, wrong in likely.items() if value is not None and math.isclose(value, wrong, rel_tol=0.002))
    return next((f"{hint}; {given}" for hint in hints), given)


def check_standing(answer: ModuleType) -> None:
    """standing counts what is there between two steps."""
    for (_, *sizes), count, given in every_case():
        measured = answer.standing(*sizes)
        size = sizes[-1]
        likely = {
            "Adam keeps two averages for each weight, you counted one": 2 * count.weights,
            "only the weights; Adam's two averages stay as well": count.weights,
            "gradients are gone between two steps": 4 * count.weights,
            "a bfloat16 number has 2 bytes; you counted 4": 3 * count.weights * 4 / size,
            "that is how many numbers there are; each has `size` bytes": 3 * count.weights / size,
            "there are two weights, `up` and `out`": 3 * (count.weights - count.out),
        }
        require_close(measured, count.standing(), CLOSE, first_hint(measured, likely, given))


def check_at_the_loss(answer: ModuleType) -> None:
    """at_the_loss counts what waits for the backward pass, and the logits' three."""
    for sizes, count, given in every_case():
        measured = answer.at_the_loss(*sizes)
        right = count.at_the_loss()
        likely = {
            "GELU keeps its input and the product after it its own: that is both `h` and `a`": right - count.h,
            "the gradient of the log-probabilities is missing: three of that size are there": right - 4 * count.logit,
            "both gradients are missing: you stopped at the end of the forward pass": right - 8 * count.logit,
            "`z` itself was dropped when `z.float()` was made": right + count.dz,
            "`z.float()` was dropped when the log-probabilities were there": right + 4 * count.logit,
            "the cross-entropy is in float32, 4 bytes a number, whatever `size` is": right
            - 3 * (4 - sizes[-1]) * count.logit,
            "`x` is missing: the first product keeps it": right - count.x,
            "no weight has a gradient yet": right + count.weights,
            "what is `standing` is there as well": right - count.standing(),
        }
        require_close(measured, right, CLOSE, first_hint(measured, likely, given))


def check_in_the_middle(answer: ModuleType) -> None:
    """in_the_middle counts the hidden layer three times, and one weight's gradient."""
    for sizes, count, given in every_case():
        measured = answer.in_the_middle(*sizes)
        right = count.in_the_middle()
        likely = {
            "`h`, `a` and the gradient of `a` are as wide as the hidden layer, and you counted two": right - count.h,
            "the gradient of `h` is made after this moment, when `a` was dropped": right + count.h,
            "the gradient of `out` was made just before, and it stays": right - count.out,
            "the gradient of `up` comes last": right - count.out + count.weights,
            "the gradient of `z` is still being read": right - count.dz,
            "what the cross-entropy kept was dropped when the gradient of `z` was there": right + 4 * count.logit,
            "`x` is missing: it is needed to the end": right - count.x,
        }
        require_close(measured, right, CLOSE, first_hint(measured, likely, given))


def check_at_the_end(answer: ModuleType) -> None:
    """at_the_end counts all gradients."""
    for sizes, count, given in every_case():
        measured = answer.at_the_end(*sizes)
        right = count.at_the_end()
        likely = {
            "the gradients of the weights are missing": right - count.weights,
            "the gradient of `out` is there too": right - count.out,
            "the gradient of `h` is still being read": right - count.h,
            "`x` is still being read": right - count.x,
            "`x` and the gradient of `h` are still being read": right - count.x - count.h,
            "nobody asked for the gradient of `x`": right + count.x,
            "`h` was dropped when its gradient was there": right + count.h,
        }
        require_close(measured, right, CLOSE, first_hint(measured, likely, given))


def check_peak(answer: ModuleType) -> None:
    """peak is the largest moment, whichever that is."""
    for sizes, count, given in every_case():
        measured = answer.peak(*sizes)
        moments = {"loss": count.at_the_loss(), "middle": count.in_the_middle(), "end": count.at_the_end()}
        likely = {
            "the moments come one after the other; their bytes do not add up": sum(moments.values()),
            "what stands between the steps is in each moment once": sum(moments.values()) - 2 * count.standing(),
            **{f"that is the moment `{name}`, and here another is larger": value for name, value in moments.items()},
        }
        require_close(measured, count.peak(), CLOSE, first_hint(measured, likely, given))


def check_plan(answer: ModuleType) -> None:
    """The plans of real training steps agree with peak, within 3 %."""
    for shape in SHAPES.values():
        rows, inputs, hidden, classes = shape
        for size, dtype in ((4, "float32"), (2, "bfloat16")):
            recipe = Recipe(
                build_model=partial(two_layers, inputs, hidden, classes, dtype),
                data=partial(Vectors, inputs, classes, dtype),
                steps=1,
                batch_size=rows,
                make_optimizer=AdamW,
            )
            with warnings.catch_warnings(action="ignore"):
                found = plan(recipe, "cpu").total
            given = f"measured is yours, required the plan's, at {shape} with {dtype} numbers"
            require_close(answer.peak(*shape, size), found, 0.03, given)


def two_layers(inputs: int, hidden: int, classes: int, dtype: str) -> nn.Module:
    """The model of the stub."""
    kind = getattr(torch, dtype)
    up, out = (nn.Linear(a, b, bias=False, dtype=kind) for a, b in ((inputs, hidden), (hidden, classes)))
    return nn.Sequential(up, nn.GELU(), out)


class Vectors:
    """Rows of noise and a class for each: what a plan needs to know of a data set."""

    row_size, size, digest = 1, 1 << 30, ""

    def __init__(self, inputs: int, classes: int, dtype: str):
        self.inputs, self.classes, self.dtype = inputs, classes, getattr(torch, dtype)

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(rows, self.inputs, dtype=self.dtype), torch.zeros(rows, dtype=torch.int64)

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return []
