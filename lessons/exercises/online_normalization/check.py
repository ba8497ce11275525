"""Checks of the exercise `online_normalization`, in the order in which they build on one another."""

from types import ModuleType
from typing import Any

import numpy as np

from minitrain.lab.exercises import require

DECAY = 0.8


def sample(seed: int, channels: int = 3, pixels: int = 5) -> dict[str, np.ndarray]:
    """A sample in the middle of a stream: what comes in, and what is known."""
    rng = np.random.default_rng(seed)
    big, small = rng.standard_normal((3, channels, pixels)), rng.standard_normal((4, channels))
    return {
        "x": 1 + 2 * big[0], "y": big[1], "g": 0.5 + big[2],
        "m": small[0], "s": 0.3 + small[1] ** 2, "r": 0.5 + small[1] ** 2, "u": 3 + small[2], "v": 2 + small[3],
    }  # fmt: skip


def forward(answer: ModuleType, given: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """What the learner's `forward` returns, as four arrays."""
    found = answer.forward(*(given[name].copy() for name in "xms"), DECAY, 1e-2)
    return arrays(found, (given["x"].shape, *[given["m"].shape] * 3), "(y, r, m, s)")


def backward(answer: ModuleType, given: dict[str, np.ndarray], decay: float = DECAY) -> tuple[np.ndarray, ...]:
    """What the learner's `backward` returns, as three arrays."""
    found = answer.backward(*(given[name].copy() for name in "gyruv"), decay)
    return arrays(found, (given["g"].shape, *[given["u"].shape] * 2), "(back, u, v)")


# --- forward ------------------------------------------------------------------------------------------------------------


def check_output(answer: ModuleType) -> None:
    """forward normalizes with the statistics as they are handed in."""
    given = sample(1)
    y, r, *_ = forward(answer, given)
    x, m, s = (given[name] for name in "xms")
    m2, s2 = updated(given)
    require_same(
        r,
        np.sqrt(s + 1e-2),
        "r of each channel",
        {
            "that is with the variance after this sample, which must not normalize itself": np.sqrt(s2 + 1e-2),
            "eps stands under the root, beside the variance": np.sqrt(s) + 1e-2,
            "that is r squared": s + 1e-2,
        },
    )
    require_same(
        y,
        (x - m[:, None]) / np.sqrt(s + 1e-2)[:, None],
        "y of each pixel",
        {
            "that is with the mean after this sample": (x - m2[:, None]) / np.sqrt(s + 1e-2)[:, None],
            "the mean is not taken off": x / np.sqrt(s + 1e-2)[:, None],
        },
    )


def check_mean(answer: ModuleType) -> None:
    """forward moves the mean by 1 - decay of the way to the sample's."""
    given = sample(2)
    _, _, m, _ = forward(answer, given)
    old, a = given["m"], given["x"].mean(1)
    hints = {
        "decay is the share of the old mean that stays": (1 - DECAY) * old + DECAY * a,
        "the mean has not moved": old,
        "that is the sum over the pixels": DECAY * old + (1 - DECAY) * given["x"].sum(1),
    }
    require_same(m, DECAY * old + (1 - DECAY) * a, "the next mean", hints)


def check_variance(answer: ModuleType) -> None:
    """forward's variance is that inside the samples and between their means."""
    given = sample(3)
    *_, s = forward(answer, given)
    x, old, a = given["x"], given["m"], given["x"].mean(1)
    inside = DECAY * given["s"] + (1 - DECAY) * x.var(1)
    between = DECAY * (1 - DECAY)
    hints = {
        "the variance between the means is missing": inside,
        "the distance is that from the mean before this sample": inside + between * (a - updated(given)[0]) ** 2,
        "the variance of a sample is divided by its number of pixels, not by one less": inside
        + (1 - DECAY) * (x.var(1, ddof=1) - x.var(1))
        + between * (a - old) ** 2,
        "the squared distance of the means has the factor decay (1 - decay)": inside + (1 - DECAY) * (a - old) ** 2,
    }
    require_same(s, inside + between * (a - old) ** 2, "the next variance", hints)


# --- backward -----------------------------------------------------------------------------------------------------------


def check_control(answer: ModuleType) -> None:
    """backward takes off what the controllers hold, and divides by r in between."""
    given = sample(4)
    g, y = given["g"], given["y"]
    r, u, v = (given[name][:, None] for name in "ruv")
    share = 1 - DECAY
    back, *_ = backward(answer, given, decay=1.0)
    hints = {"that is g": g, "only 1 - decay of u and of v is taken off, not all": (g - v * y) / r - u}
    require_same(back, g / r, "with decay 1, where nothing is controlled, the gradient handed back", hints)
    back, *_ = backward(answer, given)
    hints = {
        "that is g / r: neither controller acts": g / r,
        "v acts with the wrong sign": (g + share * v * y) / r - share * u,
        "u acts with the wrong sign": (g - share * v * y) / r + share * u,
        "only 1 - decay of u and of v is taken off, not all": (g - v * y) / r - u,
        "take u off after the division by r, not before": (g - share * v * y - share * u) / r,
        "take v off before the division by r, not after": g / r - share * v * y - share * u,
        "u is not taken off": (g - share * v * y) / r,
        "v is not taken off": g / r - share * u,
    }
    require_same(back, (g - share * v * y) / r - share * u, "the gradient handed back", hints)


def check_v(answer: ModuleType) -> None:
    """backward adds to v what is left along the output, as a mean over the pixels."""
    given = sample(5)
    *_, found = backward(answer, given)
    g, y, r, v = (given[name] for name in "gyrv")
    h = g - (1 - DECAY) * v[:, None] * y
    hints = {
        "v has not moved": v,
        "that is the sum over the pixels; take the mean, or larger images are controlled harder": v + (h * y).sum(1),
        "what was taken off already is counted again: add the mean of h y, not of g y": v + (g * y).mean(1),
        "add before the division by r": v + (h * y).mean(1) / r,
    }
    require_same(found, v + (h * y).mean(1), "the next v", hints)


def check_u(answer: ModuleType) -> None:
    """backward adds to u the mean of what it hands back, for each channel."""
    given = sample(6)
    back, found, _ = backward(answer, given)
    u = given["u"]
    before = back + (1 - DECAY) * u[:, None]
    hints = {
        "u has not moved": u,
        "that is the sum over the pixels": u + back.sum(1),
        "what was taken off already is counted again: add the mean of what is handed back": u + before.mean(1),
        "each channel has its own u": u + back.mean(),
    }
    require_same(found, u + back.mean(1), "the next u", hints)


# --- both ---------------------------------------------------------------------------------------------------------------


def check_stream(answer: ModuleType) -> None:
    """On a stream of 20,000 samples the gradient is that of batch norm with a large batch."""
    rng = np.random.default_rng(7)
    x, noise = rng.standard_normal((2, 20_000, 2, 1))
    g = 0.5 + 0.7 * x + noise
    x = 2 + 3 * x
    m, s, u, v = np.zeros(2), np.ones(2), np.zeros(2), np.zeros(2)
    backs = []
    for one, gradient in zip(x, g, strict=True):
        y, r, m, s = answer.forward(one, m, s, 0.999)
        back, u, v = answer.backward(gradient, y, r, u, v, 0.99)
        backs.append(back)
    x, g, found = (np.asarray(z)[:, :, 0] for z in (x, g, backs))
    y = (x - x.mean(0)) / x.std(0)
    true = (g - g.mean(0) - y * (g * y).mean(0)) / x.std(0)  # the two conditions, met exactly
    late = slice(5000, None)
    a, b = found[late].ravel(), true[late].ravel()
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    require(cosine > 0.99, f"a cosine of {cosine:.4f}", "above 0.99, after the first 5,000 samples")


# --- helpers ------------------------------------------------------------------------------------------------------------


def updated(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance after the sample."""
    m, a = given["m"], given["x"].mean(1)
    s = DECAY * given["s"] + (1 - DECAY) * given["x"].var(1) + DECAY * (1 - DECAY) * (a - m) ** 2
    return DECAY * m + (1 - DECAY) * a, s


def arrays(found: Any, shapes: tuple[tuple[int, ...], ...], names: str) -> tuple[np.ndarray, ...]:
    """What the learner returned, as arrays of these shapes."""
    try:
        values = [np.asarray(x, dtype=float) for x in found]
    except (TypeError, ValueError):
        values = []
    required = f"{names}, of shapes {', '.join(map(str, shapes))}"
    require(len(values) == len(shapes), found if not values else f"{len(values)} things", required)
    require([x.shape for x in values] == list(shapes), f"shapes {', '.join(str(x.shape) for x in values)}", required)
    return tuple(values)


def require_same(found: np.ndarray, required: np.ndarray, what: str, likely: dict[str, np.ndarray]) -> None:
    """Rejects other numbers, with the hint whose numbers they are; `what` says what they stand for."""
    hint = next((words for words, wrong in likely.items() if np.allclose(found, wrong, rtol=1e-6)), "")
    first = np.unravel_index(np.argmax(np.abs(found - required)), found.shape)
    place = f"{what} (at {', '.join(map(str, first))})"
    require(
        np.allclose(found, required, rtol=1e-6, atol=1e-9),
        f"{found[first]:.6g}, {place}",
        f"{required[first]:.6g}",
        hint,
    )
