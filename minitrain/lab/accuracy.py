"""Accuracy: the share of right answers, for people; the loss says more, and earlier."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitrain.runtime.device import autocast, move
from minitrain.train import evaluation_model

if TYPE_CHECKING:
    from minitrain.train import Run


class Accuracy:
    """A probe of `val_accuracy`: how often the likeliest answer is the right one, from 0 to 1, on validation data.

    `seen` counts training images, of a data set that can show them as they are (`Images`); their share is `train_accuracy`,
    by the same model in evaluation mode. `every` counts steps.
    """

    needs_data = True  # so it measures runs of `train`, not loops of one's own

    def __init__(self, every: int = 250, seen: int = 0):
        if every < 1 or seen < 0:
            raise ValueError(f"every must be at least 1 step and seen at least 0 images, not {every} and {seen}")
        self.every, self.seen = every, seen

    def before(self, run: "Run") -> None:
        pass

    def after(self, run: "Run") -> dict[str, float]:
        rows = run.micro_rows
        found = {"val_accuracy": share_right(run, run.data.validation(rows))}
        if self.seen:
            found["train_accuracy"] = share_right(run, run.data.seen(self.seen, rows))  # ty: ignore[missing-attribute]
        return found


@torch.no_grad()
def share_right(run: "Run", batches: list[tuple[Tensor, Tensor]]) -> float:
    """The share of targets that the run's model finds likeliest, from 0 to 1."""
    right, count = torch.zeros((), dtype=torch.int64, device=run.device), 0
    with evaluation_model(run) as model, autocast(run.device, run.recipe.precision):
        for inputs, targets in batches:
            right += (model(move(inputs, run.device)).argmax(-1) == move(targets, run.device)).sum()
            count += targets.numel()
    return right.item() / count
