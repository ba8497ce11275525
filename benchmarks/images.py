"""What do channels-last, bf16 and ghost noise do to a step of a ResNet-20, and a loop over samples to online norm?

Whole training steps of 128 images of 32x32, of noise, by SGD; and the online norm of a layer forward and backward, all
samples at once and one after the other. The two forms of a ratio take turns in one process, on one thread, and no others
are there, whose memory would be in the way; every round gives one ratio, and the tables show their median, smallest and
largest, of the process's CPU time. Without `--quick`, a record goes to docs/results.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import benchmark

from minitrain.optim import SGD
from minitrain.recipe import by_kind, cross_entropy
from minitrain.resnet import ResNet, cifar_resnet
from minitrain.runtime.device import autocast
from minitrain.techniques.ghost_noise import ghost_noised
from minitrain.techniques.online_norm import OnlineNorm2d, gradient_of_sample, normalize_sample

RECORD = Path(__file__).parents[1] / "docs" / "results" / "images_speed.json"
BATCH = 128
LAYERS = {"64": (64,), "64 x 8 x 8": (64, 8, 8), "32 x 16 x 16": (32, 16, 16), "16 x 32 x 32": (16, 32, 32)}
EAGER, LAST, OURS = "fp32, contiguous", "fp32, channels-last", "bf16, channels-last"
NOISY, NOISY_BF16 = "fp32, channels-last, ghost noise", "bf16, channels-last, ghost noise"
GOALS = [  # (form, beside, name, at least or at most, ratio of the times of `beside` and `form`, or the reverse)
    (EAGER, OURS, "images a second, ours / fp32 contiguous", "at least", 2.2),
    (EAGER, LAST, "images a second, channels-last / contiguous, fp32", "", None),
    (NOISY, LAST, "a step with ghost noise / without, fp32", "at most", 1.3),
    (NOISY_BF16, OURS, "a step with ghost noise / without, bf16", "at most", 1.6),
]
ONLINE_GOAL = 5.0


# --- steps of a ResNet ------------------------------------------------------------------------------------------------


class Contiguous(nn.Module):
    """A ResNet as most write it: images and weights lie in memory as torch makes them."""

    def __init__(self, model: ResNet):
        super().__init__()
        nn.utils.convert_conv2d_weight_memory_format(model, torch.contiguous_format)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        x = self.model.stem(x)
        for block in self.model.blocks:
            x = block(x)
        return self.model.head(F.relu(self.model.norm(x)).mean((2, 3)))


def step_of(model: nn.Module, precision: str) -> Callable[[], object]:
    """A training step, always on the same images."""
    model.train()
    optimizer = SGD(by_kind(model), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32, generator=random), torch.arange(BATCH) % 10
    if not isinstance(model, Contiguous):
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(torch.device("cpu"), precision):
            loss = cross_entropy(model, images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(names: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """Some of the forms of a step."""
    torch.manual_seed(0)
    noisy = partial(ghost_noised, cifar_resnet, ghost_batch_size=16)
    forms = {
        EAGER: lambda: step_of(Contiguous(cifar_resnet()), "fp32"),
        LAST: lambda: step_of(cifar_resnet(), "fp32"),
        OURS: lambda: step_of(cifar_resnet(), "bf16"),
        NOISY: lambda: step_of(noisy(), "fp32"),
        NOISY_BF16: lambda: step_of(noisy(), "bf16"),
    }
    return {name: forms[name]() for name in names}


# --- online norm ------------------------------------------------------------------------------------------------------


def all_at_once(x: Tensor, g: Tensor, layer: OnlineNorm2d) -> tuple[Tensor, Tensor]:
    """Output and gradient of a batch."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(g)
    assert x.grad is not None
    return y.detach(), x.grad


def one_by_one(x: Tensor, g: Tensor, layer: OnlineNorm2d) -> tuple[Tensor, Tensor]:
    """The same by the definition, sample by sample."""
    m, s, u, v = layer.mean, layer.var, layer.u, layer.v
    outputs, gradients = [], []
    x, g = x.view(*x.shape[:2], -1), g.view(*x.shape[:2], -1)
    for sample, back in zip(x, g, strict=True):
        y, r, m, s = normalize_sample(sample, m, s, layer.forward_decay, layer.eps)
        gradient, u, v = gradient_of_sample(back, y, r, u, v, layer.backward_decay)
        outputs.append(y)
        gradients.append(gradient)
    for buffer, new in zip((layer.mean, layer.var, layer.u, layer.v), (m, s, u, v), strict=True):
        buffer.copy_(new)
    return torch.stack(outputs), torch.stack(gradients)


def online_forms(shape: tuple[int, ...]) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Both forms on the same batch, each with a layer of its own."""
    random = torch.Generator().manual_seed(0)
    x, g = (torch.randn(BATCH, *shape, generator=random) for _ in range(2))
    layers = [OnlineNorm2d(shape[0], guard="none", affine=False) for _ in range(2)]
    return {"loop": partial(one_by_one, x, g, layers[0]), "at once": partial(all_at_once, x, g, layers[1])}


# --- measuring --------------------------------------------------------------------------------------------------------


def take_turns(forms: dict[str, Callable[[], Any]], rounds: int, times: int) -> dict[str, list[float]]:
    """CPU milliseconds of one call of each form, in each round the mean of `times` calls, after one that gets memory."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, work in forms.items():
            work()
            start = time.process_time()
            for _ in range(times):
                work()
            found[name].append(1e3 * (time.process_time() - start) / times)
    return found


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """`a / b`, round by round."""
    each = [x / y for x, y in zip(a, b, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def online(shape: tuple[int, ...], rounds: int, times: int) -> dict[str, Any]:
    """The two forms of online norm on one layer, and how far apart their outputs and gradients are."""
    forms = online_forms(shape)
    with torch.no_grad():
        loop = forms["loop"]()
    once = forms["at once"]()
    apart = max(float((a.flatten() - b.flatten()).norm() / b.norm()) for a, b in zip(once, loop, strict=True))
    with torch.inference_mode(False):
        found = take_turns({"loop": torch.no_grad()(forms["loop"]), "at once": forms["at once"]}, rounds, times)
    return {
        "cpu_milliseconds": {name: statistics.median(values) for name, values in found.items()},
        "speed_up": ratio(found["loop"], found["at once"]) | {"goal": ONLINE_GOAL, "bound": "at least"},
        "relative_difference": apart,
    }


def measure(rounds: int, times: int) -> dict[str, Any]:
    """The record: plain numbers, without dates, hosts or paths."""
    torch.set_num_threads(1)
    found, ratios = {}, {}
    for form, beside, name, bound, goal in GOALS:
        pair = take_turns(steps((form, beside)), rounds, times)
        ratios[name] = ratio(pair[form], pair[beside]) | ({"goal": goal, "bound": bound} if goal else {})
        found |= pair
    return {
        "command": " ".join(["python benchmarks/images.py", *sys.argv[1:]]),
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "torch": str(torch.__version__),
        "threads": 1,
        "batch": BATCH,
        "rounds": rounds,
        "steps_per_round": times,
        "cpu_milliseconds": {name: statistics.median(values) for name, values in found.items()},
        "images_per_second": {name: 1e3 * BATCH / statistics.median(values) for name, values in found.items()},
        "ratios": ratios,
        "online_norm": {name: online(shape, rounds, times) for name, shape in LAYERS.items()},
    }


def show(record: dict[str, Any]) -> None:
    """The record as tables."""
    print(f"{record['cpu']}, threads: 1, torch {record['torch']}; medians of {record['rounds']} rounds, (min to max)")
    print(f"\nA training step of ResNet-20, {record['batch']} images")
    for name, value in record["cpu_milliseconds"].items():
        print(f"{name:<36} {value:>7.1f} ms {record['images_per_second'][name]:>7.0f} images/s")
    for name, found in record["ratios"].items():
        print(f"{name:<52} {said(found)}")
    print(f"\nOnline norm of {record['batch']} samples, forward and backward: a loop over samples / all at once")
    for name, found in record["online_norm"].items():
        times = found["cpu_milliseconds"]
        print(f"{name:<14} {times['loop']:>6.1f} / {times['at once']:>5.1f} ms   {said(found['speed_up'])}")


def said(found: dict[str, Any]) -> str:
    """A ratio with its spread, and its goal if it has one."""
    spread = f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
    return f"{spread:<22} goal: {found['bound']} {found['goal']:.2f}" if "goal" in found else spread


if __name__ == "__main__":
    benchmark(__doc__, measure, show, RECORD, rounds=11, steps=2)
