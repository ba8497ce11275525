"""Rejected by check_loop_2."""

from solution import FIRST_ABNORMAL, loop_1, loop_3, loop_4, loop_5  # noqa: F401
from stub import History, batch, loss_of, loss_on, note, start
from torch import Tensor


def loop_2(letters: Tensor, seed: int, steps: int) -> History:
    """It evaluates in evaluation mode and stays there, so that all steps but the first train without dropout."""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
    return history
