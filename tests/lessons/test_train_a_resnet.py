"""Lesson 14: what its probe reports is what the weights and gradients say, and arms are compared at their best rates."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minitrain.data.images import Images
from minitrain.lab.compare import Result, Runs
from minitrain.lab.lessons import load_lesson
from minitrain.optim import SGD
from minitrain.recipe import Recipe
from minitrain.resnet import ResNet, layer_norm
from minitrain.techniques.weight_standardization import weight_standardized
from minitrain.train import Run, build, train

lesson = load_lesson("train_a_resnet")


def colours() -> Images:
    """Noise whose brightness is its class."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    images = (60 * labels[:, None, None, None] + random.integers(0, 60, (40, 6, 6, 3))).astype(np.uint8)
    return Images(images, labels, images[:8], labels[:8])


def tiny(norm: Any = nn.BatchNorm2d) -> ResNet:
    return ResNet([(8, 1), (12, 1)], classes=4, norm=norm)


RECIPE = Recipe(
    build_model=tiny,
    data=colours,
    steps=6,
    batch_size=8,
    make_optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
)


class Keep:
    """Weights inside blocks before and after every step, and their gradients, one row a filter."""

    every = 1

    def __init__(self) -> None:
        self.steps: list[list[dict[str, Tensor]]] = []

    def of(self, run: Run, what: str) -> dict[str, Tensor]:
        named = {n: p for n, p in run.model.named_parameters() if n.startswith("blocks.") and p.ndim == 4}
        return {n: (p if what == "data" else p.grad).detach().flatten(1).clone() for n, p in named.items()}

    def before(self, run: Run) -> None:
        self.steps.append([self.of(run, "data")])

    def after(self, run: Run) -> None:
        self.steps[-1] += [self.of(run, "data"), self.of(run, "grad")]


def test_the_probe_reports_angles_their_spread_and_what_gradients_have_along_the_filters():
    kept = Keep()
    lines = [line for line in train(RECIPE, probes=[kept, lesson.Filters(every=3)]).metrics if "turned" in line]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        old, new, grad = kept.steps[line["step"] - 1]
        angles = {n: torch.acos(torch.cosine_similarity(old[n].double(), new[n].double(), dim=1)) for n in old}
        assert line["turned"] == pytest.approx(torch.cat(list(angles.values())).square().mean().sqrt().item(), rel=1e-3)
        spreads = [math.log(x.quantile(0.95) / x.quantile(0.05)) for x in angles.values()]
        assert line["spread"] == pytest.approx(math.exp(sum(spreads) / len(spreads)), rel=1e-3)
        for place in lesson.PLACES:
            found = torch.cat([torch.cosine_similarity(old[n], grad[n], dim=1) for n in old if f".{place}." in n])
            assert line["along"][place] == pytest.approx(found.square().mean().sqrt().item(), rel=1e-2, abs=1e-5)


@pytest.mark.parametrize(
    ("build_model", "silent"),
    [
        (tiny, {"conv1"}),
        (partial(tiny, layer_norm), set()),
        (partial(weight_standardized, partial(tiny, layer_norm), eps=0.0), set(lesson.PLACES)),
    ],
    ids=["batch", "layer", "standardized"],
)
def test_which_gradients_have_something_along_their_filter(build_model: Any, silent: set[str]):
    recipe = Recipe(build_model=build_model, data=colours, steps=4, batch_size=8, make_optimizer=RECIPE.make_optimizer)
    along = train(recipe, probes=[lesson.Filters(every=4)]).metrics[-1]["along"]
    assert {place for place, x in along.items() if x < 1e-3} == silent
    assert all(along[place] > 0.01 for place in set(lesson.PLACES) - silent)


def test_a_constant_rate_is_what_is_looked_at():
    lines = [{"step": step, "x": float(step)} for step in (20, 30, 40, 140, 150, 160, 300)]
    assert lesson.halfway("x")(lines) == pytest.approx((40 + 140 + 150) / 3)
    schedule = lesson.experiment(seeds=1, rates=(0.1,))["arms"][lesson.BATCH].schedules["*", "lr"]
    assert [schedule(step - 1) for step in (30, 31, 150)] == [1, 1, 1]
    assert schedule(10) < 1
    assert schedule(151) < 1


def test_arms_are_compared_each_at_its_best_rate():
    right = {("a", 1.0): [0.5, 0.6], ("a", 3.0): [0.9, 0.1], ("b", 1.0): [0.2, 0.2], ("b", 3.0): [0.3, 0.3]}
    results = {
        (arm, lr, seed): Result(arm, lr, seed, [{"step": 1, "val_accuracy": values[seed], "x": lr}])
        for (arm, lr), values in right.items()
        for seed in (0, 1)
    }
    runs = Runs({"a": {}, "b": {}}, {}, [0, 1], [1.0, 3.0], results, {})
    assert lesson.more_wrong("b", "a")(runs) == pytest.approx([20, 30])
    assert lesson.ratio_at_best("b", "a", lambda metrics: metrics[0]["x"])(runs) == [3.0, 3.0]


def test_the_networks_differ_in_their_norms_only():
    recipes = lesson.experiment(seeds=1, rates=(0.1,))["arms"]
    models = {name: build(recipe).model for name, recipe in recipes.items() if name != lesson.STANDARDIZED}
    shapes = {name: [p.shape for p in m.parameters() if p.ndim > 1] for name, m in models.items()}
    assert len({str(x) for x in shapes.values()}) == 1
    assert not any("norm" in name for name, _ in models[lesson.BROKEN].named_parameters())
    a, b = (models[name].state_dict() for name in (lesson.BATCH, lesson.LAYER))
    assert all(torch.equal(a[name], b[name]) for name in a if "conv" in name or "stem" in name)
