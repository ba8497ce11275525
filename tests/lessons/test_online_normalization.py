"""The lesson's stream against a large batch worked out by hand; its probe; its arms' learning rates."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from minitrain.data.images import Images
from minitrain.lab.lessons import load_lesson
from minitrain.recipe import Recipe
from minitrain.techniques.online_norm import OnlineNorm2d
from minitrain.train import train

lesson = load_lesson("online_normalization")


def tiny_images() -> Images:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (96, 8, 8, 3)).astype(np.uint8), np.arange(96) % 10
    return Images(images[:64], labels[:64], images[64:], labels[64:])


def small(**changes: Any) -> dict[str, Any]:
    """The arms at a tiny size."""
    size = {"seeds": 2, "steps": 6, "batch_size": 8, "width": 2, "every": 2, "data": tiny_images}
    return lesson.experiment(**size | changes)


@pytest.mark.parametrize("decay", [0.9, 1.0])
def test_a_stream_is_compared_with_the_gradient_that_meets_both_conditions(decay: float):
    lines = lesson.stream(3, decay, samples=400, channels=2, window=100)
    assert [line["step"] for line in lines] == [100, 200, 300, 400]
    random = torch.Generator().manual_seed(3)
    noise, other = (torch.randn(400, 2, generator=random, dtype=torch.float64) for _ in range(2))
    x, g = 2 + 3 * noise, 0.5 + 0.7 * noise + other
    y = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    true = g - g.mean(0) - y * (g * y).mean(0)
    layer = OnlineNorm2d(2, 0.999, decay, guard="none", affine=False)
    outputs, back = lesson.through(layer, x, g)
    for line in lines:
        part = slice(line["step"] - 100, line["step"])
        a, b = back[part], true[part]
        cosines = (a * b).sum(0) / a.norm(dim=0) / b.norm(dim=0)
        assert line["cosine"] == pytest.approx(cosines.mean().item(), rel=1e-6)
        kept = [back[: line["step"]].mean(0), (back * outputs)[: line["step"]].mean(0)]
        assert [line["sum"], line["along"]] == pytest.approx([3 * z.square().mean().sqrt().item() for z in kept])
    assert lines[-1]["sum"] == pytest.approx(3 * (layer.u / 400).square().mean().sqrt().item())
    assert "late_cosine" not in lines[0]
    assert -1 < lines[-1]["late_cosine"] < 1


def test_arms_of_other_batch_sizes_are_measured_at_the_same_images():
    wanted = small(one_by_one=True)
    probe = wanted["probes"][0]
    found = {}
    for arm in (lesson.ONLINE, lesson.ONE, lesson.LAYER):
        lines = train(wanted["arms"][arm], probes=[probe()], log_every=48, evaluate_every=48).metrics
        found[arm] = [line for line in lines if "val_accuracy" in line]
        assert [line["images"] for line in found[arm]] == [16, 32, 48]
        assert all(0 <= line["val_accuracy"] <= 1 for line in found[arm])
    assert all("along" in line for line in found[lesson.ONE])
    assert not any("along" in line for line in found[lesson.LAYER])


def test_what_is_left_is_what_the_layers_hold_with_control_and_without():
    for arm in (lesson.ONLINE, lesson.BROKEN):
        wanted = small()
        run = train(wanted["arms"][arm], probes=[wanted["probes"][0]()])
        layers = [module for module in run.model.modules() if isinstance(module, OnlineNorm2d)]
        assert len(layers) == 7
        for key in ("sum", "along"):
            values = torch.cat([layer.get_buffer({"sum": "u", "along": "v"}[key]) for layer in layers])
            assert run.metrics[-1][key] == pytest.approx(values.square().mean().sqrt().item())
            assert run.metrics[-1][key] > 0


def test_arms_differ_in_the_norm_and_one_image_a_step_takes_its_rates_by_the_rule():
    arms = small(one_by_one=True)["arms"]
    trained = {name: arm for name, arm in arms.items() if isinstance(arm, Recipe)}
    decays = {name: [m.backward_decay for m in arm.build_model().modules() if isinstance(m, OnlineNorm2d)][:1]
              for name, arm in trained.items()}  # fmt: skip
    assert decays == {lesson.BATCH: [], lesson.ONLINE: [127 / 128], lesson.LAYER: [], lesson.BROKEN: [1.0],
                      lesson.ONE: [127 / 128]}  # fmt: skip
    one, online = trained[lesson.ONE], trained[lesson.ONLINE]
    assert (one.steps, one.batch_size) == (48, 1)
    made, usual = (arm.make_optimizer([{"params": [torch.zeros(1)]}]).param_groups[0] for arm in (one, online))
    assert made["momentum"] ** 8 == pytest.approx(usual["momentum"])
    assert made["lr"] / (1 - made["momentum"]) == pytest.approx(usual["lr"] / (1 - usual["momentum"]) / 8)
    assert made["weight_decay"] == usual["weight_decay"]
    again = replace(one, batch_size=8, steps=6, make_optimizer=online.make_optimizer, schedules=online.schedules)
    assert again == online
    assert lesson.ONE not in small()["arms"]
    factor = partial(online.schedules["*", "lr"])
    assert factor(5) < factor(2) <= 1
