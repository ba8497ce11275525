"""Arms for `compare` that need no model; module-level and light to import, so that workers can have them."""

import os
import random
import signal
from pathlib import Path
from typing import Any

Metrics = list[dict[str, Any]]


def sum_of(seed: int, lr: float) -> Metrics:
    return [{"step": 0, "x": seed + lr}]


def draws(seed: int, add: float = 0.0) -> Metrics:
    return [{"step": 0, "x": 1 + random.Random(seed).random() + add}]


def leave_a_mark(seed: int, path: str) -> Metrics:
    with Path(path).open("a") as file:
        file.write(f"{seed}\n")
    return draws(seed)


def crash_on_seed_1(seed: int) -> Metrics:
    if seed == 1:
        raise KeyError("no such thing")
    return draws(seed)


def crash(seed: int) -> Metrics:
    raise RuntimeError("always")


def dies_on_seed_1(seed: int) -> Metrics:
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return draws(seed)


class EndsItself:
    """A hook that asks its own process to stop, as a batch system would."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, optimizer: Any) -> None:
        self.calls += 1
        if self.calls == 50:
            os.kill(os.getpid(), signal.SIGTERM)
