"""Rejected by check_loop_1."""

from solution import FIRST_ABNORMAL, loop_2, loop_3, loop_4, loop_5  # noqa: F401
from stub import History, batch, loss_of, loss_on, note, start
from torch import Tensor


def loop_1(letters: Tensor, seed: int, steps: int) -> History:
    """It halves a gradient that holds two batches, where it should hold one: right for the second step alone."""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, 1:])
        loss.backward()
        if step:
            for p in model.parameters():
                assert p.grad is not None
                p.grad /= 2
        note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
        model.train()
    return history
