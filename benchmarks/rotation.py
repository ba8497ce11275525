"""How long does a rotational step take, beside torch's AdamW?

Only the optimizer's step, of parameters with the shapes of a GPT of 10 million parameters and of a ResNet-18, in which
every tensor of two dimensions or more rotates; gradients are noise. The forms of `RotationalAdamW` and those of torch's
AdamW take turns in one process, a few steps each; every round gives one ratio, and the tables show their median, smallest
and largest, of the process's CPU time. Without `--quick`, a record goes to docs/results.
"""

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import benchmark

from minitrain.gpt import nanogpt_style
from minitrain.techniques.rotational import RotationalAdamW

RECORD = Path(__file__).parents[1] / "docs" / "results" / "rotation_speed.json"
HYPER: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch AdamW, foreach": partial(torch.optim.AdamW, foreach=True, **HYPER),
    "torch AdamW, for loop": partial(torch.optim.AdamW, foreach=False, **HYPER),
    "torch AdamW, fused": partial(torch.optim.AdamW, fused=True, **HYPER),
    "rotational, readable": partial(RotationalAdamW, form="readable", **HYPER),
    "rotational, fast": partial(RotationalAdamW, **HYPER),
    "rotational, compiled": partial(RotationalAdamW, form="compiled", **HYPER),
}
GOALS = [  # (form, beside, at most this ratio by model)
    ("rotational, fast", "torch AdamW, foreach", {"GPT": 1.0, "ResNet-18": 1.45}),
    ("rotational, fast", "rotational, readable", {"GPT": 1 / 3, "ResNet-18": 1 / 2}),
    ("rotational, compiled", "torch AdamW, fused", {"GPT": 2.0, "ResNet-18": 2.4}),
]


def resnet18_shapes() -> list[tuple[int, ...]]:
    """Of the weights, norm gains and biases of a ResNet-18 for small images and ten classes."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    width = 64
    for wide in (64, 64, 128, 128, 256, 256, 512, 512):
        shapes += [(wide, width, 3, 3), (wide,), (wide,), (wide, wide, 3, 3), (wide,), (wide,)]
        if wide != width:
            shapes += [(wide, width, 1, 1), (wide,), (wide,)]
        width = wide
    return [*shapes, (10, width), (10,)]


def shapes_of(model: str) -> list[tuple[int, ...]]:
    if model == "ResNet-18":
        return resnet18_shapes()
    gpt = nanogpt_style(vocab_size=65, depth=6, heads=6, width=384, context=256)
    return [tuple(p.shape) for p in gpt.parameters()]


def parameters(model: str) -> list[Tensor]:
    """The same numbers at every call, with gradients."""
    random, made = torch.Generator().manual_seed(0), []
    for shape in shapes_of(model):
        p = 0.02 * torch.randn(shape, generator=random)
        p.grad = 1e-3 * torch.randn(shape, generator=random)
        made.append(p)
    return made


def cpu_milliseconds(work: Callable[[], object], times: int) -> float:
    """CPU time of one call: the mean of `times` calls."""
    start = time.process_time()
    for _ in range(times):
        work()
    return 1e3 * (time.process_time() - start) / times


def measure_model(model: str, rounds: int, steps: int) -> dict[str, Any]:
    """Times, ratios and the largest distance of the fast forms from the readable one, of one model."""
    weights = {name: parameters(model) for name in OPTIMIZERS}
    optimizers = {name: make(weights[name]) for name, make in OPTIMIZERS.items()}
    compile_seconds = 0.0
    for name, optimizer in optimizers.items():
        start = time.perf_counter()
        optimizer.step()
        optimizer.step()  # the first step of the rotational ones is the readable form's
        if name == "rotational, compiled":
            compile_seconds = time.perf_counter() - start
        for _ in range(8):
            optimizer.step()
    readable = weights["rotational, readable"]
    difference = {
        name: max(float((a - b).norm() / b.norm()) for a, b in zip(weights[name], readable, strict=True))
        for name in ("rotational, fast", "rotational, compiled")
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            times[name].append(cpu_milliseconds(optimizer.step, steps))
    ratios = {}
    for form, beside, most in GOALS:
        each = [a / b for a, b in zip(times[form], times[beside], strict=True)]
        ratios[f"{form} / {beside}"] = {
            "median": statistics.median(each), "min": min(each), "max": max(each), "goal": most[model],
        }  # fmt: skip
    return {
        "parameters": sum(map(math.prod, shapes_of(model))),
        "tensors": len(shapes_of(model)),
        "cpu_milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "ratios": ratios,
        "relative_difference_after_10_steps": difference,
        "first_compiled_steps_seconds": compile_seconds,
    }


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """The record: plain numbers, without dates, hosts or paths."""
    torch.set_num_threads(1)
    return {
        "command": " ".join(["python benchmarks/rotation.py", *sys.argv[1:]]),
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "torch": str(torch.__version__),
        "threads": 1,
        "rounds": rounds,
        "steps_per_round": steps,
        "models": {model: measure_model(model, rounds, steps) for model in ("GPT", "ResNet-18")},
    }


def show(record: dict[str, Any]) -> None:
    """The record as tables."""
    print(f"{record['cpu']}, threads: 1, torch {record['torch']}; medians of {record['rounds']} rounds, (min to max)")
    for model, found in record["models"].items():
        print(f"\n{model}: {found['parameters'] / 1e6:.1f} M parameters in {found['tensors']} tensors")
        for name, value in found["cpu_milliseconds"].items():
            print(f"{name:<24} {value:>7.1f} ms")
        for name, ratio in found["ratios"].items():
            spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            print(f"{name:<50} {spread:<22} goal: at most {ratio['goal']:.2f}")
        print(f"first compiled steps: {found['first_compiled_steps_seconds']:.1f} s")
        for name, value in found["relative_difference_after_10_steps"].items():
            print(f"{name}: after 10 steps {value:.1e} from the readable form")


if __name__ == "__main__":
    benchmark(__doc__, measure, show, RECORD, rounds=15, steps=5)
