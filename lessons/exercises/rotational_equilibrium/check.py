"""Checks of the exercise `rotational_equilibrium`, in the order in which they build on one another."""

import hashlib
import math
from types import ModuleType
from typing import Any

import numpy as np

from minitrain.lab.exercises import hint_for, require, require_close

# --- the angle ----------------------------------------------------------------------------------------------------------


def turned_rows(angles: np.ndarray, fan_in: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Rows of many lengths, and the same turned by these angles and with other lengths, in float32."""
    rng = np.random.default_rng(7)
    u = unit(rng.standard_normal((len(angles), fan_in)))
    v = rng.standard_normal(u.shape)
    v = unit(v - u * (u * v).sum(axis=1, keepdims=True))
    turned = np.cos(angles)[:, None] * u + np.sin(angles)[:, None] * v
    lengths = rng.uniform(0.3, 3.0, (2, len(angles), 1))
    return (lengths[0] * u).astype(np.float32), (lengths[1] * turned).astype(np.float32)


# Of the tiny angles all are alike, so that acos is told from everything else by them, and the rest by the larger ones.
ANGLES = {
    "large angles, all alike": np.full(40, 0.8),
    "angles beyond a right angle": np.full(40, 2.5),
    "angles from 0.01 to 0.5": np.geomspace(0.01, 0.5, 40),
    "angles of 1e-3": np.full(40, 1e-3),
    "angles of 3e-4": np.full(40, 3e-4),
}


def check_turned(answer: ModuleType) -> None:
    """turned is the root mean square angle, right even where it is tiny."""
    for name, angles in ANGLES.items():
        before, after = turned_rows(angles)
        found = answer.turned(before.copy(), after.copy())
        required = math.sqrt(np.mean(angles**2))
        a, b = unit(before.astype(float)), unit(after.astype(float))
        lengths = np.linalg.norm(before.astype(float), axis=1)
        step = np.linalg.norm(after.astype(float) - before, axis=1) / lengths
        hints = {
            "that is the mean angle; the root mean square weighs far turns more, as |u|^2 in the theory does": angles.mean(),
            "that is the median angle": float(np.median(angles)),
            "that is the mean square; take its root": required**2,
            "that is the relative update |dw| / |w|, which sees a change of length too": math.sqrt(np.mean(step**2)),
            "that is in degrees": math.degrees(required),
            "that is the chord between the unit vectors; the angle is 2 asin(chord / 2)": math.sqrt(
                np.mean(((a - b) ** 2).sum(axis=1))
            ),
            "that is half the angle: a chord is 2 sin(angle / 2) long": required / 2,
            "2 asin(chord) is twice the angle, at small ones": math.sqrt(
                np.mean((2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=1), 0, 1))) ** 2)
            ),
        }
        hint = hint_for(found, hints, 1e-4)
        if not hint and required < 2e-3:
            hint = "a cosine this close to 1 has lost the angle in float32; take the chord between unit vectors, or float64"
        require_close(found, required, 2e-3, hint or name)


# --- the time -----------------------------------------------------------------------------------------------------------


def norms_of(steps: float, start: float, end: float, restless: float) -> np.ndarray:
    """`|w|` after 0, 1, ... steps, for a time constant of `steps`."""
    t = np.arange(round(14 * steps))
    noise = np.random.default_rng(3).standard_normal(len(t)).cumsum()
    noise -= np.convolve(noise, np.ones(101) / 101, mode="same")
    square = end**2 + (start**2 - end**2) * np.exp(-t / steps)
    return np.sqrt(square) * (1 + restless * noise / np.abs(noise).max())


SERIES = {
    "from above": {"steps": 150.0, "start": 3.0, "end": 1.0},
    "from below": {"steps": 90.0, "start": 0.2, "end": 2.0},
    "from far above": {"steps": 60.0, "start": 2.0, "end": 0.4},
}


def check_time_constant(answer: ModuleType) -> None:
    """time_constant reads the time of |w|^2 off its norms."""
    for name, how in SERIES.items():
        for restless in (0.0, 1e-3):
            norms = norms_of(**how, restless=restless)
            found = answer.time_constant(norms.copy())
            steps, start, end = how["steps"], how["start"], how["end"]
            norm_itself = steps * math.log((start**2 - end**2) / ((end + (start - end) / math.e) ** 2 - end**2))
            hints = {
                "that is the half-life; 1/e takes 1/ln 2 times as long": steps * math.log(2),
                "that is twice the time; |w|^2 falls twice as fast as |w| would by decay alone": 2 * steps,
                "that is half the time": steps / 2,
                "that is the rate, one over the time": 1 / steps,
                "that is the time of |w|; it is |w|^2 whose distance falls by the same factor in every step": norm_itself,
                "the slope of a falling line is negative; a time is not": -steps,
            }
            hint = hint_for(found, hints, 0.02)
            words = f"{name}{', restless' if restless else ''}; the distance from the end, not |w|^2 itself, falls like that"
            require_close(found, steps, 0.03, hint or words)


# --- the algebra --------------------------------------------------------------------------------------------------------

RUNS = [(3e-3, 1.0, 0.9, 256), (0.02, 0.1, 0.5, 1000), (1e-3, 4.0, 0.8, 64)]


def check_recover(answer: ModuleType) -> None:
    """recover solves the three equations for lr, weight_decay and beta1."""
    for lr, weight_decay, beta, fan_in in RUNS:
        norm, rotation, steps = settled(lr, weight_decay, beta, fan_in)
        found = triple(answer.recover(norm, rotation, steps, fan_in))
        given = f"for norm={norm:.6g}, rotation={rotation:.6g}, steps={steps:.6g}, fan_in={fan_in}"
        root = math.sqrt(2)
        energy = rotation**2 * steps
        likely = (
            {
                "lr and weight_decay have changed places; lr comes first": weight_decay,
                "the factor 2 of 1 / (2*lr*weight_decay) is missing": lr * root,
                "is a factor 2 there twice?": lr / root,
                "norm stands where norm^2 belongs": math.sqrt(norm / (fan_in * steps)),
                "that is lr^2": lr**2,
                "fan_in is missing: each of its coordinates has mean square 1": norm / math.sqrt(steps),
            },
            {
                "the factor 2 of 1 / (2*lr*weight_decay) is missing": weight_decay * root,
                "the factor 2 of 1 / (2*lr*weight_decay) is missing here, and not in lr": weight_decay * 2,
                "is a factor 2 there twice?": weight_decay / root,
                "norm stands where norm^2 belongs": weight_decay * math.sqrt(norm),
            },
            {
                "E2 of an average is (1-b)/(1+b): noise of many steps is in every update": 1 - energy,
                "that is E2, (1-b)/(1+b); solve it for b": energy,
                "the angle has the root of E2, so its square belongs here": (1 - math.sqrt(energy))
                / (1 + math.sqrt(energy)),
                "is a factor 2 there twice?": (1 - energy / 2) / (1 + energy / 2),
                "is the factor 2 of 2*lr*weight_decay missing?": (1 - 2 * energy) / (1 + 2 * energy),
            },
        )
        for value, required, hints, what in zip(
            found, (lr, weight_decay, beta), likely, ("lr", "weight_decay", "beta1"), strict=True
        ):
            require_close(value, required, 1e-3, hint_for(value, hints, 1e-4) or f"{what} {given}")


# --- the case -----------------------------------------------------------------------------------------------------------


def check_detective(answer: ModuleType) -> None:
    """detective finds the hidden values of three runs of your own (within 5 %)."""
    name = answer.NAME
    require(isinstance(name, str) and name.strip() != "", name, "your name, in quotes")
    seed = int.from_bytes(hashlib.sha256(name.strip().lower().encode()).digest()[:6], "big")
    for number in range(3):
        rng = np.random.default_rng((seed, number))
        run, hidden = hidden_run(rng)
        found = triple(answer.detective({key: value.copy() for key, value in run.items()}))
        for value, required, what in zip(found, hidden, ("lr", "weight_decay", "beta1"), strict=True):
            words = f"{what} of run {number + 1}; `detective` calls your three functions, and was given ready-made"
            require_close(value, required, 0.05, words)


def hidden_run(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], tuple[float, float, float]]:
    """A run to be solved, and its `(lr, weight_decay, beta1)`."""
    steps = rng.uniform(150.0, 300.0)
    beta, fan_in = rng.uniform(0.5, 0.8), int(rng.integers(1000, 1500))
    norm = math.exp(rng.uniform(math.log(0.5), math.log(5.0)))
    lr = norm / math.sqrt(fan_in * steps)
    weight_decay = 1 / (2 * lr * steps)
    start = norm * (rng.uniform(3.0, 4.0) if rng.random() < 0.5 else rng.uniform(0.1, 0.3))
    return walk(rng, lr, weight_decay, beta, fan_in, start, round(12 * steps)), (lr, weight_decay, beta)


def walk(
    rng: np.random.Generator, lr: float, weight_decay: float, beta: float, fan_in: int, start: float, steps: int
) -> dict[str, np.ndarray]:
    """One neuron among normalized noise, under AdamW whose second moment keeps up."""
    w = start * unit(rng.standard_normal((1, fan_in)))[0]
    m, norms, before, after = np.zeros(fan_in), [float(np.linalg.norm(w))], [], []
    for step in range(steps):
        u = w / norms[-1]
        g = rng.standard_normal(fan_in)
        g -= u * (u @ g)
        m = beta * m + (1 - beta) * g
        old, w = w, (1 - lr * weight_decay) * w - lr * m
        norms.append(float(np.linalg.norm(w)))
        if step >= 2 * steps // 3:
            before.append(old)
            after.append(w)
    return {"norms": np.array(norms), "before": np.array(before, np.float32), "after": np.array(after, np.float32)}


# --- helpers ------------------------------------------------------------------------------------------------------------


def settled(lr: float, weight_decay: float, beta: float, fan_in: int) -> tuple[float, float, float]:
    """AdamW's norm and rotation in equilibrium, and the time constant of its squared norm."""
    rate = 2 * lr * weight_decay
    return math.sqrt(lr * fan_in / (2 * weight_decay)), math.sqrt(rate * (1 - beta) / (1 + beta)), 1 / rate


def unit(w: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return w / np.linalg.norm(w, axis=1, keepdims=True)


def triple(found: Any) -> list[Any]:
    """What the learner returned, as three things."""
    try:
        values = list(found)
    except TypeError:
        values = []
    require(len(values) == 3, found, "three numbers: lr, weight_decay, beta1")
    return values
