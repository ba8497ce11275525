"""The share of right answers, counted by hand, and a run that does not notice it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small import BASE, train_small
from torch import nn

from minitrain.data.images import Images
from minitrain.lab.accuracy import Accuracy, share_right
from minitrain.optim import SGD
from minitrain.recipe import Recipe
from minitrain.train import build, train


class Brightness(nn.Module):
    """Says 1 for bright images and 0 for dark ones; the parameter is there to be trained. Says the reverse in training."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean((1, 2, 3)) * (-1 if self.training else 1)
        return torch.stack((-bright, bright), -1) + self.w


def grey() -> Images:
    """Six training images, all right; five to validate, of which the last two bear wrong labels."""
    bright = np.full((11, 4, 4), 255, dtype=np.uint8)
    bright[::2] = 0
    labels = np.arange(11) % 2
    return Images(bright[:6], labels[:6], bright[6:], np.array([0, 1, 0, 0, 1]))


RECIPE = Recipe(build_model=Brightness, data=grey, steps=2, batch_size=2, make_optimizer=partial(SGD, lr=1e-3))


def test_right_answers_are_counted():
    metrics = train(RECIPE, probes=[Accuracy(every=1, seen=4)]).metrics
    assert [(m["val_accuracy"], m["train_accuracy"]) for m in metrics if "val_accuracy" in m] == [(3 / 5, 1.0)] * 2


def test_the_last_batch_may_be_smaller():
    run = build(RECIPE)
    assert share_right(run, run.data.validation(5)) == share_right(run, run.data.validation(2)) == 3 / 5


def test_a_text_has_an_accuracy_too_and_the_run_does_not_notice():
    metrics = train_small(BASE, probes=[Accuracy(every=2)]).metrics
    found = [m.pop("val_accuracy") for m in metrics if "val_accuracy" in m]
    assert found
    assert all(0 <= share <= 1 for share in found)
    plain = train_small(replace(BASE)).metrics
    assert [m for m in metrics if len(m) > 1] == plain


@pytest.mark.parametrize("arguments", [{"every": 0}, {"seen": -1}])
def test_what_cannot_be_counted_is_refused(arguments):
    with pytest.raises(ValueError, match="every must be at least 1 step and seen at least 0 images"):
        Accuracy(**arguments)
