"""The lesson's numpy optimizers and walk are those that the library has in torch."""

from typing import Any

import numpy as np
import pytest
import torch

from minitrain import optim
from minitrain.lab.lessons import load_lesson

lesson = load_lesson("one_neuron")
TORCH: dict[str, Any] = {
    "SGD": lambda g, state: optim.sgdm(g, state, momentum=0.9, nesterov=False),
    "AdamW": lambda g, state: optim.adam(g, state, betas=(0.9, 0.95), eps=0.0),
    "Adam with L2": lambda g, state: optim.adam(g, state, betas=(0.9, 0.95), eps=0.0),
    "Lion": lambda g, state: optim.lion(g, state, betas=(0.9, 0.99)),
}


@pytest.mark.parametrize("name", list(lesson.DIRECTIONS))
def test_each_direction_is_the_librarys(name: str):
    random, mine, ours = np.random.default_rng(0), {}, {}
    for _ in range(30):
        g = random.standard_normal((3, 5))
        expected = TORCH[name](torch.from_numpy(g.copy()), ours)
        np.testing.assert_allclose(lesson.DIRECTIONS[name](g, mine), expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize("name", list(lesson.DIRECTIONS))
def test_a_step_decays_as_the_librarys_does(name: str, monkeypatch: pytest.MonkeyPatch):
    """One step of the walk without noise across: what is left is the decay alone."""
    lr, weight_decay = 0.01, 0.5
    monkeypatch.setitem(lesson.DIRECTIONS, name, lambda g, state: g)
    size = {"neurons": 2, "fan_in": 64, "steps": 1, "log_every": 1, "unit_gradient": 1e-12, "start": 2.0}
    norm = lesson.random_walk(0, optimizer=name, lr=lr, weight_decay=weight_decay, **size)[-1]["norm"]
    assert norm == pytest.approx(2.0 * (1 - lr * weight_decay), rel=1e-9)
