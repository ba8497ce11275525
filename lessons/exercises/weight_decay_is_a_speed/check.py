"""Checks of the exercise `weight_decay_is_a_speed`: both runs are trained, and every bit is compared."""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain.lab.exercises import require
from minitrain.optim import SGD, Adam, AdamW, Lion

STEPS = 40
SETTINGS = [
    (2.0, 0.0625, 0.25),
    (4.0, 0.05, 0.5),
    (0.125, 0.03, 0.7),
    (64.0, 0.01, 0.3),
]  # c, and A's lr and weight decay


class Path(NamedTuple):
    """What a run did: its predictions before each step, and its weights after it."""

    predictions: list[Tensor]
    weights: list[Tensor]


def run(make: Callable, scale: float, **hyper: float) -> Path:
    """Forty steps of `w` in `(head . norm(W x) - y)^2`, whose norm has no eps; the learning rate halves on the way."""
    random = torch.Generator().manual_seed(0)
    w0, x, head, y = (torch.randn(*shape, generator=random) for shape in ((6, 4), (STEPS, 8, 4), (6, 2), (STEPS, 8, 2)))
    w = nn.Parameter(scale * w0)
    optimizer = make([w], **hyper)
    predictions, weights = [], []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = hyper["lr"] / (2 if step >= STEPS // 2 else 1)
        h = x[step] @ w.T
        out = h / h.square().mean(dim=-1, keepdim=True).sqrt() @ head
        optimizer.zero_grad()
        (out - y[step]).square().mean().backward()
        optimizer.step()
        predictions.append(out.detach())
        weights.append(w.detach().clone())
    return Path(predictions, weights)


def sgd(params: list, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """With momentum."""
    return SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay)


def adamw(params: list, lr: float, weight_decay: float, eps: float) -> torch.optim.Optimizer:
    """Without."""
    return AdamW(params, lr=lr, weight_decay=weight_decay, eps=eps)


def lion(params: list, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """With its own betas."""
    return Lion(params, lr=lr, weight_decay=weight_decay)


def adam_l2(params: list, lr: float, weight_decay: float, eps: float) -> torch.optim.Optimizer:
    """As torch's Adam."""
    return Adam(params, lr=lr, weight_decay=weight_decay, eps=eps)


def check_sgd(answer: ModuleType) -> None:
    """sgd_twin: B makes A's predictions, bit for bit, with weights c times as large."""
    hold(answer.sgd_twin, sgd, rate=2, decay=-2)


def check_adamw(answer: ModuleType) -> None:
    """adamw_twin: the same for AdamW."""
    hold(answer.adamw_twin, adamw, rate=1, decay=-1, eps=(1e-2, 1e-8))


def check_lion(answer: ModuleType) -> None:
    """lion_twin: the same for Lion."""
    hold(answer.lion_twin, lion, rate=1, decay=-1)


def check_adam_l2(answer: ModuleType) -> None:
    """adam_l2_twin: the same for Adam with L2."""
    hold(answer.adam_l2_twin, adam_l2, rate=1, decay=-2, eps=(1e-2, 1e-8))


def hold(twin: Callable, make: Callable, rate: int, decay: int, eps: tuple[float, ...] = ()) -> None:
    """Rejects unless what `twin` returns makes B the twin of A. `rate`, `decay`: the right powers of `c`, for hints."""
    names = ("lr", "weight_decay", "scale", "eps")[: 4 if eps else 3]
    for c, lr, weight_decay in SETTINGS:
        for epsilon in eps or (None,):
            given = {"lr": lr, "weight_decay": weight_decay} | ({} if epsilon is None else {"eps": epsilon})
            found = dict(zip(names, numbers(twin(c, **given), names), strict=True))
            at = f"at c={c:g}, " + ", ".join(f"{name}={value:g}" for name, value in given.items())
            powers = {"lr": rate, "weight_decay": decay, "scale": 1, "eps": -1}
            hint = next((words for name in names if (words := hint_for(name, found, given, c, powers))), "")
            scale = found.pop("scale")
            a = run(make, 1.0, **given)
            try:
                b = run(make, scale, **found)
            except ValueError as error:  # out of an optimizer's range
                require(
                    False, f"{shown(found | {'scale': scale})} {at}", f"values that can be trained with ({error})", hint
                )
            require_twins(a, b, c, at, hint)


def require_twins(a: Path, b: Path, c: float, at: str, hint: str) -> None:
    """Rejects at the first step at which the runs part."""
    for step in range(STEPS):
        of_a, of_b = a.predictions[step], b.predictions[step]
        worst = int((of_a - of_b).abs().argmax())
        said = (
            f"{of_b.flatten()[worst]:.9g} where A predicts {of_a.flatten()[worst]:.9g}, before step {step + 1} ({at})"
        )
        require(torch.equal(of_a, of_b), f"B predicts {said}", f"the same bits in all {STEPS} steps", hint)
        ratio = (b.weights[step] / a.weights[step]).flatten()
        far = int((ratio - c).abs().argmax())
        same = torch.equal(c * a.weights[step], b.weights[step])
        measured = f"after step {step + 1} a weight of B is {ratio[far]:.9g} times that of A ({at})"
        require(same, measured, f"exactly {c:g} times, all of them", hint)


def hint_for(name: str, found: dict[str, float], given: dict[str, float], c: float, powers: dict[str, int]) -> str:
    """What the likely mistake in one of the numbers is; nothing where it is right."""
    value, of_a, right = found[name], given.get(name, 1.0), powers[name]
    power = next((p for p in range(-4, 5) if value == of_a * c**p), None)
    if power == right:
        return ""
    words = {
        ("scale", 0): "B starts where A starts; it must start c times as far from zero",
        ("lr", 0): "with A's learning rate B's steps are too short (or long): they must be c times those of A",
        ("weight_decay", 0): "is the decay of one step still the same share of w? look at lr * weight_decay",
        (
            "weight_decay",
            1,
        ): "the decay goes the wrong way: a larger lr takes a smaller weight_decay for the same share of w",
        ("eps", 0): "eps is added to sqrt(v), which has shrunk with the gradient",
        ("eps", 1): "eps goes the wrong way: it is added to sqrt(v), and B's gradients are 1/c of A's",
        ("eps", -2): "eps is added to sqrt(v), not to v",
    }
    if name == "lr" and {power, right} == {1, 2}:
        return (
            "SGD's step has the length of the gradient, and B's gradient is only 1/c of A's: once more a factor of c"
            if right == 2
            else "a longer gradient makes no longer step here: what does the division, or the sign, leave of its scale?"
        )
    if name == "weight_decay" and {power, right} == {-1, -2}:
        return (
            "here weight_decay * w is added to the gradient: w is c times A's, and the gradient 1/c of A's"
            if right == -2
            else "here the decay is a share lr * weight_decay of w; it has to stay"
        )
    return words.get((name, power), f"look at {name}: which power of c does the rule above ask for?")


def numbers(found: Any, names: tuple[str, ...]) -> list[float]:
    """What the learner returned, as one float for each name."""
    required = f"{len(names)} numbers: ({', '.join(names)})"
    require(isinstance(found, Iterable) and not isinstance(found, str | dict), found, required)
    values = list(found)
    try:
        floats = [float(x) for x in values]
    except (TypeError, ValueError):
        floats = []
    require(len(floats) == len(names), values, required)
    return floats


def shown(values: dict[str, float]) -> str:
    """`lr=0.1, ...`"""
    return ", ".join(f"{name}={value:g}" for name, value in values.items())
