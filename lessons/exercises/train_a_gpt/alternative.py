"""Another right answer: the five loops share one body, which sets the rate and computes the gradients in its own way."""

import copy

import torch
from stub import Guesser, History, batch, loss_of, loss_on, start
from torch import Tensor

FIRST_ABNORMAL = {
    "loop_1": ["grad_norm", 1],
    "loop_2": ["val_loss", 0],
    "loop_3": ["loss", 0],
    "loop_4": ["val_loss", 0],
    "loop_5": ["lr", 1],
}


def validate(model: Guesser, letters: Tensor) -> float:
    """The loss of a copy in evaluation mode, so that the model itself stays as it is."""
    return loss_on(copy.deepcopy(model).eval(), letters)


def mended(letters: Tensor, seed: int, steps: int) -> History:
    """Gradients that are returned rather than added up, and a rate that is computed rather than stepped."""
    model, optimizer, _ = start(seed, steps)
    count = len(letters) * 3 // 4
    rows = []
    for step in range(steps):
        rate = 0.02 * min((step + 1) / 4, (steps - step) / (steps - 3))
        passages = batch(letters[:count], seed, step)
        loss = loss_of(model, passages[:, :8], passages[:, 1:9])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
        optimizer.step()
        rows.append((loss.item(), norm, rate, validate(model, letters[count:])))
    names = ("loss", "grad_norm", "lr", "val_loss")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


loop_1 = loop_2 = loop_3 = loop_4 = loop_5 = mended
