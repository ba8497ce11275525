"""Checks of the exercise `rotational_optimizers`, in the order in which they build on one another."""

import math
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minitrain.lab.exercises import require, require_close

O, I = 6, 40  # noqa: E741


def noise(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix of random numbers."""
    return torch.randn(O, I, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights() -> Tensor:
    """Centred rows of different lengths."""
    w = noise(0)
    return (w - w.mean(dim=1, keepdim=True)) * torch.tensor([[0.1], [0.5], [1.0], [2.0], [5.0], [10.0]]).double()


def updates(step: int) -> Tensor:
    """Those of different rows have different sizes."""
    return noise(100 + step) * torch.tensor([[10.0], [1e-3], [1.0], [100.0], [0.1], [1.0]]).double()


def across(w: Tensor, u: Tensor) -> Tensor:
    """What of a centred update goes across the weight."""
    u = u - u.mean(dim=1, keepdim=True)
    return u - w * (u * w).sum(dim=1, keepdim=True) / w.square().sum(dim=1, keepdim=True)


def true_angle(old: Tensor, new: Tensor) -> Tensor:
    """In float64, by the chord."""
    a, b = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (old, new))
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1.0))


# --- measuring -----------------------------------------------------------------------------------------------------------


def check_turned(answer: ModuleType) -> None:
    """turned measures angles of any size in float32, within 1 %."""
    a, b = weights(), across(weights(), noise(1))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    for angle in (2.5, 1.0, 0.1, 0.01, 1e-3, 1e-4):
        old = 3 * a
        new = math.cos(angle) * a + math.sin(angle) * b
        old, new = old.float(), new.float()
        found = rows_of(answer.turned(old, new), (O,))
        hints = {
            "you took the step over the row's length: bring both rows to length 1 first": (old - new).norm(dim=1)[0]
            / 3,
            "that is the chord's half, or its sine; the angle is 2*asin(chord/2)": torch.tensor(math.sin(angle / 2)),
            "one number for the whole matrix? each row has its own angle": torch.tensor(angle * math.sqrt(O)),
        }
        hint = next((h for h, x in hints.items() if abs(float(found[0]) - float(x)) < 1e-3 * float(x)), "")
        if not hint and angle <= 0.01:
            hint = (
                "in float32 a cosine near 1 has no digits left for a small angle: acos(1 - 1e-8) cannot be told from"
                " acos(1); take the chord |a - b| of the unit vectors, or compute in float64"
            )
        for value in found.tolist():
            require_close(value, angle, 0.01, hint)


# --- how far --------------------------------------------------------------------------------------------------------------


def check_rotation(answer: ModuleType) -> None:
    """rotation is the angle at which SGD settles, with the heavy ball and with Nesterov."""
    for nesterov in (False, True):
        for lr, weight_decay, a in ((0.1, 0.01, 0.9), (0.02, 0.005, 0.5), (0.3, 1e-3, 0.0)):
            ball = math.sqrt(2 * lr * weight_decay / (1 + a))
            energy = (1 + a) ** 2 + a**4 / (1 - a * a)
            required = math.sqrt(2 * lr * weight_decay * energy * (1 - a)) if nesterov else ball
            found = answer.rotation(lr, weight_decay, a, nesterov)
            slow = f"{100 * (1 - ball / required):.0f} %"
            wrong = {
                f"your E2 is the heavy ball's, {slow} too slow: a fresh gradient counts 1 + momentum with Nesterov": ball,
                "the decay is not decoupled here, so E2 is divided by S once": required * math.sqrt(1 - a),
                "the factor 2 of 2*lr*weight_decay is missing": required / math.sqrt(2),
                "that is the square of the angle": required**2,
                "E2/S is missing: momentum makes steps longer": math.sqrt(2 * lr * weight_decay),
            }
            hint = next((h for h, x in wrong.items() if x != required and close(found, x)), "")
            given = f"at lr={lr}, weight_decay={weight_decay}, momentum={a}, nesterov={nesterov}"
            require_close(found, required, 1e-3, hint or given)


# --- the step -------------------------------------------------------------------------------------------------------------


def walk(answer: ModuleType, steps: int, angle: float, rms_decay: float) -> list[Tensor]:
    """The weights of some steps of `turn`."""
    w, state = weights(), {}
    path = [w]
    for step in range(steps):
        u = updates(step)
        before = w.clone(), u.clone()
        new = rows_of(answer.turn(w, u, state, angle, rms_decay), (O, I))
        same = torch.equal(w, before[0]) and torch.equal(u, before[1])
        require(same, "w or u changed in place", "a new tensor; w and u as they were")
        path.append(new)
        w = new
    return path


def check_lengths(answer: ModuleType) -> None:
    """turn keeps each row at the length it had in the first step."""
    path = walk(answer, 30, angle=0.3, rms_decay=0.0)
    norms = torch.stack([w.norm(dim=1) for w in path])
    whole = torch.stack([w.norm() for w in path])
    growth = norms / norms[0]
    hint = ""
    if bool((growth[1] - math.sqrt(1 + 0.3**2)).abs().max() < 1e-3):
        hint = "a step across w makes it longer (Pythagoras); bring each row back to its length"
    elif bool((whole / whole[0] - 1).abs().max() < 1e-6):
        hint = "the matrix keeps its length as a whole, its rows do not: take every norm with dim=1"
    elif not bool(growth.isfinite().all()):
        hint = "not a number: what did you divide by?"
    for value in growth[-1].tolist():
        require_close(value, 1.0, 1e-6, hint or "each row's length after 30 steps, over its length at first")


def check_angle(answer: ModuleType) -> None:
    """turn, with rms_decay = 0, turns every row by the angle whose tangent is `angle`, in every step."""
    path = walk(answer, 10, angle=0.05, rms_decay=0.0)
    for step, (old, new) in enumerate(pairwise(path)):
        tangents = true_angle(old, new).tan()
        u = updates(step)
        centred = u - u.mean(dim=1, keepdim=True)
        share = (across(old, u).norm(dim=1) / centred.norm(dim=1))[0]
        hint = ""
        if float(tangents.max() / tangents.min()) > 1.5:
            hint = "rows turn by unequal angles: each row has its own length |u|, take every norm and sum with dim=1"
        elif close(tangents[0], 0.05 * float(share)):
            hint = "r is the length of what is left across w, not of the whole u"
        elif close(tangents[0], 0.05 / (1 - 0.05**2 / 2)):
            hint = "does your weight also decay? the rotation stands in for that"
        for value in tangents.tolist():
            require_close(value, 0.05, 1e-5, hint or "is the part of u along w taken out before r is measured?")


def check_mean(answer: ModuleType) -> None:
    """turn keeps the mean of each row at zero."""
    mean = float((walk(answer, 20, 0.1, 0.0)[-1].mean(dim=1) / weights().norm(dim=1)).abs().max())
    require(mean < 1e-6, mean, "0", "take the mean of each row out of u before you take out what goes along w")


def check_direction(answer: ModuleType) -> None:
    """turn goes against the update, and across the weight."""
    w = weights()
    u = updates(0)
    moved = rows_of(answer.turn(w, u, {}, 0.01, 0.0), (O, I)) - w
    cosine = torch.cosine_similarity(moved, -across(w, u), dim=1)
    low = float(cosine.min())
    hint = "downhill is against u" if low < -0.9 else "not against what u has across w, once it is centred"
    require(low > 0.999, f"a cosine of {low:.4f} between the way taken and -u", "above 0.999", hint)


def check_first_step(answer: ModuleType) -> None:
    """turn makes a full first step whatever rms_decay is."""
    for rms_decay in (0.9, 0.99):
        old, new = walk(answer, 1, angle=0.02, rms_decay=rms_decay)
        for tangent in true_angle(old, new).tan().tolist():
            too_far = close(tangent, 0.02 / math.sqrt(1 - rms_decay))
            hint = (
                "your average of |u|^2 starts at zero and is not corrected: divide it by 1 - rms_decay**t"
                if too_far
                else f"in the first step the corrected average is |u|^2 itself, at rms_decay={rms_decay}"
            )
            require_close(tangent, 0.02, 1e-4, hint)


def check_usual(answer: ModuleType) -> None:
    """turn, with rms_decay = 0.9, turns by `angle` in the root mean square over time, and by 3.1 times that in a jump."""
    path = walk(answer, 400, angle=0.02, rms_decay=0.9)
    angles = torch.stack([true_angle(a, b) for a, b in pairwise(path[50:])])
    for value in angles.square().mean(dim=0).sqrt().tolist():
        require_close(value, 0.02, 0.02, "is r the root of an average of squares, and of each row's own?")
    state, w = {}, weights()
    for step in range(100):
        old, w = w, answer.turn(w, updates(step) * (1000 if step == 99 else 1), state, 0.02, 0.9)
    for tangent in true_angle(old, w).tan().tolist():
        require_close(tangent, 0.02 / math.sqrt(0.1), 0.05, "an update 1000 times too large, in step 100")


def check_zero_rows(answer: ModuleType) -> None:
    """turn leaves rows without an update where they are."""
    state, w = {}, weights()
    for step in range(6):
        u = updates(step)
        u[2] = 0.0
        u[4] = 0.0 if step >= 3 else u[4]
        old, w = w, rows_of(answer.turn(w, u, state, 0.02, 0.9), (O, I))
        require(w.isfinite().all(), "a row of NaN", "numbers", "0/0: a row with no update yet has |u| = r = 0")
        for i in (2, 4) if step >= 3 else (2,):
            how_far = float(true_angle(old[i : i + 1], w[i : i + 1]))
            require(how_far < 1e-12, f"{how_far:.3g} radians without an update", "0")


# --- helpers --------------------------------------------------------------------------------------------------------------


def rows_of(found: Any, shape: tuple[int, ...]) -> Tensor:
    """What the learner returned, if it is a tensor of the shape."""
    ok = isinstance(found, Tensor) and tuple(found.shape) == shape
    require(ok, found, f"a tensor of shape {shape}")
    return found.double()


def close(found: Any, value: float) -> bool:
    """Whether a learner's number is this one, which is the mark of a mistake."""
    try:
        return math.isclose(float(found), value, rel_tol=1e-3)
    except (TypeError, ValueError):
        return False
