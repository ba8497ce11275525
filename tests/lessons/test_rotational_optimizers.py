"""Lesson 07: its probe agrees with the library's, models start as they should, and arms are compared at their best rates."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import BASE, tiny_gpt

from minitrain.lab.compare import Result, Runs
from minitrain.lab.lessons import load_lesson
from minitrain.lab.probes import Norm, Rotation
from minitrain.techniques.rotational import RotationalAdamW
from minitrain.train import train

lesson = load_lesson("rotational_optimizers")


def test_steps_are_spread_out_from_the_first_to_the_last():
    for steps in (1, 5, 250):
        found = lesson.spread_out(steps)
        assert (found[0], found[-1]) == (1, steps)
        assert list(found) == sorted(set(found))
    assert len(lesson.spread_out(250)) < 20


def test_the_probe_is_the_librarys_over_all_neurons():
    recipe = replace(BASE, make_optimizer=partial(RotationalAdamW, lr=0.01, weight_decay=0.1), schedules={})
    probes = [lesson.Turned(steps=(2, 5)), Rotation(every=1, neurons="all"), Norm(every=1, neurons="all")]
    lines = train(recipe, probes=probes, log_every=1).metrics
    assert [line["step"] for line in lines if "turned" in line] == [2, 5]
    for line in (line for line in lines if "turned" in line):
        angles = [x for neurons in line["rotation_per_neuron"].values() for x in neurons]
        assert line["turned"] == pytest.approx(math.sqrt(sum(x * x for x in angles) / len(angles)), rel=1e-3)
        assert line["set"] == pytest.approx(line["predicted_rotation"], rel=1e-3)
        sizes = {
            name: [x / math.sqrt(dict(tiny_gpt().named_parameters())[name].shape[1]) for x in neurons]
            for name, neurons in line["norm_per_neuron"].items()
        }
        flat = [x for neurons in sizes.values() for x in neurons]
        assert line["size"] == pytest.approx(math.sqrt(sum(x * x for x in flat) / len(flat)), rel=1e-3)


def test_matrices_start_with_the_spread_that_is_asked_for_and_nothing_else_is_touched():
    torch.manual_seed(0)
    plain = dict(tiny_gpt().named_parameters())
    torch.manual_seed(0)
    for name, p in lesson.started(tiny_gpt, std=0.02).named_parameters():
        if name.startswith("blocks.") and p.ndim == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.1)
        else:
            assert torch.equal(p, plain[name])


def test_arms_are_compared_each_at_its_best_rate():
    loss = {("a", 1.0): [2.0, 2.2], ("a", 3.0): [1.0, 5.0], ("b", 1.0): [3.0, 3.0], ("b", 3.0): [1.5, 1.6]}
    results = {
        (arm, lr, seed): Result(arm, lr, seed, [{"step": 1, "val_loss": values[seed]}])
        for (arm, lr), values in loss.items()
        for seed in (0, 1)
    }
    runs = Runs({"a": {}, "b": {}}, {}, [0, 1], [1.0, 3.0], results, {})
    assert lesson.cost(runs, "a", "b") == pytest.approx([0.5, 0.6])
    assert lesson.range_over_rates(runs, "a") == pytest.approx([1.0, 2.8])
