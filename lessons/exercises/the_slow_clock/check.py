"""Checks of the exercise `the_slow_clock`, in the order in which they build on one another."""

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from minitrain.lab.exercises import hint_for, require, require_close, require_numbers, require_pair

# --- runs of which we know all -----------------------------------------------------------------------------------------

RUNS = {
    "a rate that falls": ([0.4, 0.3, 0.2, 0.1], 0.5),
    "three steps at a constant rate": ([0.1, 0.1, 0.1], 2.0),
    "a step that forgets everything": ([0.2, 0.5, 0.3], 2.0),
    "a rate that rises, with much decay": ([0.1, 0.2, 0.3, 0.4], 2.0),
    "up and down, with little decay": ([0.01, 0.03, 0.02, 0.0, 0.04, 0.01], 0.1),
    "a hundred steps": ([0.01] * 60 + [0.01 * (1 - k / 40) for k in range(40)], 5.0),
}


def walked(lrs: Sequence[float], weight_decay: float) -> tuple[np.ndarray, float]:
    """The weights of steps and of the start, by walking: one coordinate meets `q = 1` in one step, and 0 in the others."""
    steps = len(lrs)
    w = np.eye(steps + 1)[steps]
    for i, lr in enumerate(lrs):
        w = (1 - lr * weight_decay) * w - lr * (-weight_decay * np.eye(steps + 1)[i])
    return w[:steps], float(w[steps])


def check_average_of_steps(answer: ModuleType) -> None:
    """average gives each step's weight in the final weights."""
    for name, (lrs, weight_decay) in RUNS.items():
        found, _ = require_pair(answer.average(list(lrs), weight_decay), "two things, the list c and the number left")
        values = require_numbers(found, len(lrs), f"{len(lrs)} weights for {name}")
        required, rates = walked(lrs, weight_decay)[0], np.array(lrs) * weight_decay
        kept = 1 - rates
        later = np.array([kept[i + 1 :].prod() for i in range(len(lrs))])
        earlier = np.array([kept[:i].prod() for i in range(len(lrs))])
        same = kept[-1] ** np.arange(len(lrs) - 1, -1, -1)
        hints = {
            "that is what a step adds; every later step's decay takes a part of it away again": rates,
            "a step's own decay is over before its update is added; only later steps, j > i, take from it": (
                rates * later * kept
            ),
            "you multiply what the steps before leave; those after it do": rates * earlier,
            "exp(-x) is 1 - x only for small x, and lr * weight_decay is not always small": rates
            * np.exp(np.append(rates[:0:-1].cumsum()[::-1], 0.0) * -1),
            "those are the weights of -u; q = -u / weight_decay is asked for, whose weights are weight_decay times that": (
                np.array(lrs) * later
            ),
            "each later step decays at its own rate, not at that of the last": rates * same,
            "the first step comes first; is your list the other way round?": required[::-1],
            "c includes the division by its own sum; but left is a part of the whole too": required / required.sum(),
        }
        hint = next((hint for hint, wrong in hints.items() if np.allclose(values, wrong, rtol=1e-6, atol=0)), "")
        hint = hint or f"lrs={[round(lr, 4) for lr in lrs[:6]]}, weight_decay={weight_decay}"
        right = np.allclose(values, required, rtol=1e-5, atol=1e-7)
        require(right, values.tolist(), f"{required.round(6).tolist()} for {name}", hint)


def check_left(answer: ModuleType) -> None:
    """average gives what is left of the initial weights."""
    for name, (lrs, weight_decay) in RUNS.items():
        _, left = answer.average(list(lrs), weight_decay)
        required, total = walked(lrs, weight_decay)[1], sum(lrs) * weight_decay
        hints = {
            "exp(-x) is 1 - x only for small x, and lr * weight_decay is not always small": math.exp(-total),
            "decay takes a share of what is left, again and again: multiply, don't add": 1 - total,
            "is one step missing? all of them decay the initial weights, the last too": required
            / (1 - lrs[-1] * weight_decay),
            "is one step missing? all of them decay the initial weights, the first too": required
            / (1 - lrs[0] * weight_decay),
            "that is what the steps have put there; left is the rest": 1 - required,
        }
        require_close(left, required, 1e-5, hint_for(left, hints) or f"left for {name}; with all c it adds up to 1")


def check_share_of_last(answer: ModuleType) -> None:
    """share_of_last is the last steps' part of what all steps put there."""
    for name, (lrs, weight_decay) in RUNS.items():
        for last in (1, 3, len(lrs)):
            found = answer.share_of_last(list(lrs), weight_decay, last)
            c, left = walked(lrs, weight_decay)
            rates = sum(lrs[-last:]) / sum(lrs)
            hints = {
                "that is their part of everything; the initial weights do not count, so divide by 1 - left": (
                    c[-last:].sum()
                ),
                "that is their part of the learning rates, as if nothing were forgotten": rates,
                "that is their number over that of all steps": last / len(lrs),
                "those are the first steps": c[:last].sum() / (1 - left),
                "is one step too many in it?": c[-last - 1 :].sum() / (1 - left),
                "is one step too few in it?": c[len(c) - last + 1 :].sum() / (1 - left),
                "that is the others' part": 1 - c[-last:].sum() / (1 - left),
            }
            given = f"the last {last} of {name}"
            require_close(found, c[-last:].sum() / (1 - left), 1e-5, hint_for(found, hints) or given)


# lr, weight_decay, rows, row_size, batch_size
SIZES = [(4e-3, 0.5, 4096, 64, 1024), (1e-3, 0.1, 10_000, 128, 32_768), (2e-2, 2.0, 50_000, 1, 500)]


def check_tau_in_epochs(answer: ModuleType) -> None:
    """tau_in_epochs counts passes over the data."""
    for lr, weight_decay, rows, row_size, batch_size in SIZES:
        found = answer.tau_in_epochs(lr, weight_decay, rows, row_size, batch_size)
        tau, epoch = 1 / (lr * weight_decay), rows * row_size / batch_size
        hints = {
            "rows over tokens: batch_size counts tokens, so the data must be counted in tokens too": tau
            * batch_size
            / rows,
            "row_size is in it twice: count both in tokens, or both in rows": tau * batch_size / rows / row_size**2,
            "that is the average in steps; an epoch has rows * row_size / batch_size of them": tau,
            "tau in steps times the steps of an epoch: divide, since an epoch is the longer unit": tau * epoch,
            "lr is missing: the average moves by lr * weight_decay a step": 1 / weight_decay / epoch,
            "that is its reverse": epoch / tau,
        }
        given = f"{rows} rows of {row_size} tokens, {batch_size} tokens a step, lr={lr}, weight_decay={weight_decay}"
        require_close(found, tau / epoch, 1e-5, hint_for(found, hints) or given)


def check_decay_for(answer: ModuleType) -> None:
    """decay_for gives the average a wanted length."""
    for lr, tau_epochs, rows, row_size, batch_size in SIZES:
        found = answer.decay_for(tau_epochs, lr, rows, row_size, batch_size)
        tau = tau_epochs * rows * row_size / batch_size
        hints = {
            "that is decay per step, lr * weight_decay; divide by lr": 1 / tau,
            "lr * weight_decay is 1 / tau: does a larger rate need more decay, or less?": lr / tau,
            "tau is tau_epochs in epochs; in steps it is longer": 1 / (lr * tau_epochs),
            "rows over tokens: batch_size counts tokens, so the data must be counted in tokens too": batch_size
            / (lr * tau_epochs * rows),
            "a longer average needs less decay": lr * tau,
        }
        given = f"{tau_epochs} epochs of {rows} rows of {row_size} tokens, {batch_size} tokens a step, lr={lr}"
        require_close(found, 1 / (lr * tau), 1e-5, hint_for(found, hints) or given)


def check_decay_after(answer: ModuleType) -> None:
    """decay_after keeps the average as long in epochs."""
    for weight_decay, data, batch in ((0.1, 2.0, 1.0), (0.1, 1.0, 2.0), (0.3, 8.0, 4.0), (0.5, 0.5, 3.0)):
        found = answer.decay_after(weight_decay, data, batch)
        hints = {
            "twice the data makes an epoch twice as long, in steps; should the average be longer or shorter then?": (
                weight_decay * data * batch
            ),
            "twice the batch makes an epoch half as long, in steps; should the average be longer or shorter then?": (
                weight_decay / data / batch
            ),
            "both the wrong way round: what do more data do to the number of steps in an epoch, what a larger batch?": (
                weight_decay * data / batch
            ),
            "the batch matters: it decides how many steps an epoch has": weight_decay / data,
            "the data matter: they decide how many steps an epoch has": weight_decay * batch,
            "a root belongs to a rule in which the learning rate grows with the batch; here it stays": weight_decay
            * math.sqrt(batch)
            / data,
        }
        given = f"weight_decay={weight_decay}, {data:g} times the data, {batch:g} times the batch"
        require_close(found, weight_decay * batch / data, 1e-5, hint_for(found, hints) or given)


def check_a_real_run(answer: ModuleType) -> None:
    """Your average puts the weights of a run of AdamW together."""
    rng = np.random.default_rng(0)
    steps, weight_decay = 200, answer.decay_for(0.25, 0.02, 200, 16, 16)  # a quarter of a run that is one epoch
    lrs = [0.02 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / steps)) / 2) for k in range(steps)]
    w, target, updates = rng.standard_normal(50), rng.standard_normal(50), []
    start, m, v = w, 0.0, 0.0
    for k, lr in enumerate(lrs):
        g = w - target + rng.standard_normal(50)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        updates.append(m / (1 - 0.9 ** (k + 1)) / np.sqrt(v / (1 - 0.95 ** (k + 1))))
        w = (1 - lr * weight_decay) * w - lr * updates[-1]
    c, left = answer.average(lrs, weight_decay)
    together = float(left) * start + sum(float(x) * -u / weight_decay for x, u in zip(c, updates, strict=True))
    off = float(np.linalg.norm(together - w) / np.linalg.norm(w))
    require(off < 1e-5, f"off by {off:.2g} of the weights' length", "less than 1e-5", "is every step in it, in order?")
