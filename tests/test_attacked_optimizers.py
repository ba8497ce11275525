"""Random lives of optimizers: whatever happens between the steps, each step is that of a reference in float64.

Rates, betas and the meaning of decay change; weights are split and joined, saved and loaded, laid out otherwise; gradients
are missing, zero, large or small.
"""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minitrain.optim import SGD, Adam, AdamW, Lion, Optimizer
from minitrain.techniques.split_weights import SplitStorage, SplitWeights, join_weights
from minitrain.techniques.weight_decay import Meaning, with_decay

KINDS = {"adamw": AdamW, "adam": Adam, "lion": Lion, "sgd": SGD}
BETAS = [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.9, 0.0)]


class Reference:
    """One weight in float64, with the definitions written out once more."""

    def __init__(self, kind: str, w: Tensor, hyper: dict[str, Any]):
        self.kind, self.w, self.hyper, self.first = kind, w.double(), dict(hyper), hyper
        self.meaning: Meaning = "l2" if kind in ("adam", "sgd") else "adamw"
        self.moments = [torch.zeros_like(self.w), torch.zeros_like(self.w)]
        self.ones = [0.0, 0.0]

    def step(self, g: Tensor) -> None:
        lr, decay = self.hyper["lr"], self.hyper["weight_decay"]
        taken = {"l2": 0.0, "adamw": lr * decay, "schedule_only": lr / self.first["lr"] * decay, "constant": decay}
        u = self.direction(g + decay * self.w if self.meaning == "l2" else g)
        self.w = (1 - taken[self.meaning]) * self.w - lr * u

    def direction(self, g: Tensor) -> Tensor:
        m = self.moments[0]
        if self.kind == "sgd":
            self.moments[0] = b = self.hyper["momentum"] * m + g
            return g + self.hyper["momentum"] * b if self.hyper["nesterov"] else b
        betas = self.hyper["betas"]
        if self.kind == "lion":
            self.moments[0] = betas[1] * m + (1 - betas[1]) * g
            return (betas[0] * m + (1 - betas[0]) * g).sign()
        for i, (x, beta) in enumerate(((g, betas[0]), (g * g, betas[1]))):
            self.moments[i] = beta * self.moments[i] + (1 - beta) * x
            self.ones[i] = beta * self.ones[i] + (1 - beta)
        return self.moments[0] / self.ones[0] / ((self.moments[1] / self.ones[1]).sqrt() + 1e-8)


def loaded_anew(kind: str, old: Optimizer, hyper: dict[str, Any]) -> Optimizer:
    """Another optimizer of another parameter that goes on from a saved state, its weight and its rules."""
    values = old.param_groups[0]["params"][0].detach().clone()
    p = nn.Parameter(values.float() if values.dtype == torch.bfloat16 else values)
    new = KINDS[kind]([p], **hyper)
    if isinstance(old.storage, SplitStorage):
        SplitWeights(new)
        p.data = values
    new.input_rule, new.step_rule = old.input_rule, old.step_rule
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    return new


def happen(chance: random.Random, kind: str, optimizer: Optimizer, reference: Reference) -> Optimizer:
    """One event between two steps."""
    (group,), (p,) = optimizer.param_groups, optimizer.param_groups[0]["params"]
    split = isinstance(optimizer.storage, SplitStorage)
    match chance.choice(["rate", "betas", "meaning", "meaning", "split", "load", "layout", "layout", "nothing"]):
        case "rate":
            group["lr"] = reference.hyper["lr"] = reference.first["lr"] * chance.choice([1.0, 0.3, 1e-3, 0.0])
        case "betas" if "betas" in group:
            group["betas"] = reference.hyper["betas"] = chance.choice(BETAS)
        case "meaning":
            reference.meaning = chance.choice(["l2", "adamw", "adamw", "schedule_only", "constant"])
            with_decay(optimizer, reference.meaning)
        case "split" if p.dtype != torch.float64:
            join_weights(optimizer) if split else SplitWeights(optimizer)
        case "load":
            return loaded_anew(kind, optimizer, reference.first)
        case "layout" if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=chance.choice([torch.channels_last, torch.contiguous_format]))
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_every_step_of_a_random_life_is_that_of_the_reference(kind: str, seed: int):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    w = torch.randn(
        chance.choice([(), (5,), (2, 3, 2, 2), (2, 3, 2, 2)]), dtype=chance.choice([torch.float32, torch.float64])
    )
    w = w.to(memory_format=torch.channels_last) if w.ndim == 4 and chance.random() < 0.5 else w
    hyper: dict[str, Any] = {"lr": 10 ** chance.uniform(-4, -1), "weight_decay": chance.choice([0.0, 0.01, 0.1])}
    hyper |= {"momentum": 0.9, "nesterov": chance.random() < 0.5} if kind == "sgd" else {"betas": chance.choice(BETAS)}
    optimizer, reference = KINDS[kind]([nn.Parameter(w.clone())], **hyper), Reference(kind, w, hyper)
    for _ in range(20):
        optimizer = happen(chance, kind, optimizer, reference)
        (p,) = optimizer.param_groups[0]["params"]
        g = torch.randn(w.shape).bfloat16().double() * chance.choice([0.0, 1.0, 1.0, 2.0**-10, 2.0**7])
        p.grad = None if chance.random() < 0.1 else torch.empty_like(p).copy_(g).detach()
        if p.grad is not None:
            reference.step(g)
        optimizer.step()
        found = optimizer.storage.whole(p, optimizer.state[p]).detach().double()
        tolerance = 1e-9 if w.dtype == torch.float64 else 1e-3
        torch.testing.assert_close(found, reference.w, rtol=tolerance, atol=tolerance * max(hyper["lr"], 1e-3))
