"""Rejected by check_history."""

from solution import FIRST_ABNORMAL, loop_1, loop_2, loop_3, loop_5  # noqa: F401
from stub import History, batch, loss_of, note, start
from torch import Tensor


def loop_4(letters: Tensor, seed: int, steps: int) -> History:
    """It has no overlap any more, because it has no evaluation any more."""
    model, optimizer, schedule = start(seed, steps)
    training = letters[: 3 * len(letters) // 4]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
    return history
