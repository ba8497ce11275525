"""`watch`: what torch's own optimizers do in a loop written by hand, measured without changing a bit of it."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small import assert_one_sentence, same, tiny_gpt
from torch import Tensor, nn

from minitrain.equilibrium import equilibrium, exponential
from minitrain.lab.alignment import Alignment, alignment
from minitrain.lab.noise import NoiseScale
from minitrain.lab.probes import Norm, RelativeUpdate, Rotation, angle
from minitrain.lab.watch import table, watch
from minitrain.optim import AdamW


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 3))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 8, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 10) -> None:
    """As people write it, with two micro batches to a step."""
    for x, y in batches(steps):
        for part, label in zip(x.split(8), y.split(8), strict=True):
            nn.functional.cross_entropy(model(part), label).div(2).backward()
        optimizer.step()
        optimizer.zero_grad()


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
OPTIMIZERS = {
    "SGD": SGD,
    "AdamW": ADAMW,
    "AdamW, fused": partial(ADAMW, fused=True),
    "Adam": torch.optim.Adam,
    "RMSprop": torch.optim.RMSprop,
    "minitrain's AdamW": AdamW,
}


def all_probes() -> list[Any]:
    return [Rotation(every=1), Norm(every=2), RelativeUpdate(every=3), Alignment(every=2, neurons="quantiles")]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_watched_loop_is_bit_for_bit_the_loop_alone(name: str):
    ends = []
    for watched in (True, False):
        model = small_model()
        optimizer = OPTIMIZERS[name](model.parameters())
        if watched:
            with watch(model, optimizer, all_probes()) as seen:
                loop(model, optimizer)
            assert [line["step"] for line in seen.metrics] == list(range(1, 11))
        else:
            loop(model, optimizer)
        ends.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    assert same(*ends)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_measured_is_what_the_step_did(name: str):
    model = small_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    loop(model, optimizer, 3)
    before, inputs = copy.deepcopy(model), []
    model[3].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    with watch(model, optimizer, [Rotation(every=1, neurons="all"), Norm(every=1), Alignment(every=1)]) as seen:
        loop(model, optimizer, 1)
    (line,) = seen.metrics
    old, new = before[3].weight.detach(), model[3].weight.detach()
    assert line["rotation_per_neuron"]["3.weight"] == pytest.approx(angle(old, new).tolist())
    assert line["norm"]["3.weight"] == pytest.approx(new.norm(dim=1).square().mean().sqrt().item())
    for key, expected in alignment(old, new, torch.cat(inputs)).items():
        assert line[key]["3.weight"] == pytest.approx(expected.layer.item())
    assert seen.metrics[0]["rotation"].keys() == {"0.weight", "3.weight"}


def test_what_is_done_to_weights_between_steps_is_not_the_optimizers():
    model = small_model()
    optimizer = SGD(model.parameters())
    with watch(model, optimizer, [RelativeUpdate(every=1)]) as seen:
        loop(model, optimizer, 1)
        with torch.no_grad():
            model[0].weight.mul_(5).add_(1)
        model.zero_grad(set_to_none=True)
        optimizer.step()  # no gradient anywhere
    assert seen.metrics[1]["relative_update"]["0.weight"] == 0


def test_every_counts_the_steps_while_watching():
    model = small_model()
    optimizer = SGD(model.parameters())
    loop(model, optimizer, 2)
    with watch(model, optimizer, [Rotation(every=3), Norm(every=2)]) as seen:
        loop(model, optimizer, 6)
    loop(model, optimizer, 6)
    assert seen.step == 6
    assert [(m["step"], "rotation" in m, "norm" in m) for m in seen.metrics] == [
        (2, False, True),
        (3, True, False),
        (4, False, True),
        (6, True, True),
    ]


def test_by_default_the_rotation_is_watched():
    model = small_model()
    optimizer = ADAMW(model.parameters())
    with watch(model, optimizer) as seen:
        loop(model, optimizer, 25)
    assert [line.keys() for line in seen.metrics] == [{"step", "rotation", "predicted_rotation"}]


def test_predicted_stands_beside_measured_with_the_rate_of_the_step():
    model = small_model()
    optimizer = ADAMW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    with watch(model, optimizer, [Rotation(every=1), Norm(every=1)]) as seen:
        for _ in range(3):
            loop(model, optimizer, 1)
            schedule.step()
    for i, line in enumerate(seen.metrics):
        first = equilibrium(exponential(0.9), 0.01 / (1 + i), 0.1, fan_in=8)
        assert line["predicted_rotation"] == pytest.approx(first.rotation)
        assert line["predicted_norm"]["0.weight"] == pytest.approx(first.norm)


def test_a_weight_without_gradient_and_a_frozen_one_do_not_turn():
    model = small_model()
    model[0].weight.requires_grad_(False)
    model.idle = nn.Parameter(torch.randn(4, 4))
    optimizer = SGD([{"params": [*model.parameters()], "name": "matrices"}])
    with watch(nn.ModuleList([model]), optimizer, [Rotation(every=1)]) as seen:
        for x, y in batches(2):
            nn.functional.cross_entropy(model[3](model[2](model[1](model[0](x)))), y).backward()
            optimizer.step()
    for line in seen.metrics:
        assert line["rotation"]["0.0.weight"] == line["rotation"]["0.idle"] == 0
        assert line["rotation"]["0.3.weight"] > 0


@pytest.mark.parametrize("make", [SGD, partial(torch.optim.LBFGS, lr=0.1, max_iter=3), partial(AdamW, lr=0.01)])
def test_closures_run_inside_the_measured_step(make: Callable):
    model = small_model()
    optimizer = make(model.parameters())
    x, y = batches(1)[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with watch(model, optimizer, [Rotation(every=1), Alignment(every=1)]) as seen:
        old = model[0].weight.detach().clone()
        optimizer.step(closure)
        turned = angle(old, model[0].weight.detach()).square().mean().sqrt().item()
        optimizer.step(closure)
    assert seen.metrics[0]["rotation"]["0.weight"] == pytest.approx(turned)
    assert 0 < seen.metrics[1]["update_alignment"]["0.weight"] <= 1


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool):
    model = small_model()
    optimizer = SGD(model.parameters())

    def watched() -> None:
        with watch(model, optimizer, [Alignment(every=1)]):
            loop(model, optimizer, 2)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            watched()
    else:
        watched()
    assert not any(module._forward_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_hooks_are_on_the_model_in_measured_steps_only():
    model = small_model()
    optimizer = SGD(model.parameters())
    hooked = []
    with watch(model, optimizer, [Alignment(every=3)]):
        for _ in range(7):
            hooked.append(bool(model[0]._forward_hooks))
            loop(model, optimizer, 1)
    assert hooked == [False, False, True, False, False, True, False]


def test_two_optimizers_are_watched_side_by_side():
    model = small_model()
    one, other = SGD(model[0].parameters()), ADAMW(model[3].parameters())
    with watch(model, one, [Rotation(every=1)]) as first, watch(model, other, [Rotation(every=1)]) as second:
        loop(model, one, 1)
        other.step()
    assert first.metrics[0]["rotation"].keys() == {"0.weight"}
    assert second.metrics[0]["rotation"].keys() == {"3.weight"}


def test_inside_autocast_the_alignment_is_measured_in_float32():
    found = []
    for enabled in (True, False):
        model = small_model()
        optimizer = SGD(model.parameters())
        with watch(model, optimizer, [Alignment(every=1)]) as seen:
            x, y = batches(1)[0]
            nn.functional.cross_entropy(model(x), y).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step()
        found.append(seen.metrics)
    assert same(*found)


def test_a_gpt_with_torchs_optimizer_in_ten_lines():
    torch.manual_seed(0)
    model = tiny_gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    tokens = torch.randint(64, (4, 17))
    with watch(model, optimizer, [Rotation(every=2), Alignment(every=2)]) as seen:
        for _ in range(4):
            nn.functional.cross_entropy(model(tokens[:, :-1]).mT, tokens[:, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
    lines = str(seen).splitlines()
    assert lines[0] == "after step 4"
    assert lines[1].split()[:3] == ["rotation", "predicted", "update_alignment"]
    assert [line.split()[0] for line in lines[2:]] == list(seen.metrics[-1]["rotation"])
    assert len({len(line) for line in lines[1:]}) == 1


def test_the_table_holds_the_latest_of_each_quantity():
    metrics = {
        "step": 7,
        "loss": 2.0,
        "rotation": {"a": 0.0123456, "long.name": 1.0},
        "predicted_rotation": 0.25,
        "norm": {"a": 3.0, "b": math.nan},
        "predicted_norm": {"a": 4.0},
        "rotation_per_neuron": {"a": {"p5": 1.0}},
    }
    assert table(metrics).splitlines() == [
        "           rotation  predicted  norm  predicted",
        "a           0.01235       0.25     3          4",
        "long.name         1       0.25     -          -",
        "b                 -          -   nan          -",
    ]


def test_a_loop_too_short_to_be_measured_says_so():
    model = small_model()
    optimizer = SGD(model.parameters())
    with watch(model, optimizer) as seen:
        loop(model, optimizer, 3)
    assert str(seen) == "nothing was measured in 3 steps; give a probe a smaller `every`"


def test_what_cannot_be_watched_is_refused():
    model = small_model()
    optimizer = SGD(model.parameters())
    for probe, words in ((NoiseScale(), "NoiseScale needs the batches"), (Rotation(every=0), "every must be")):
        with pytest.raises(ValueError, match=words) as caught, watch(model, optimizer, [probe]):
            pass
        assert_one_sentence(caught.value)
    assert not optimizer._optimizer_step_pre_hooks
