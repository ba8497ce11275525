"""Rejected by check_loop_4."""

from solution import FIRST_ABNORMAL, loop_1, loop_2, loop_3, loop_5  # noqa: F401
from stub import History, batch, loss_of, loss_on, note, start
from torch import Tensor


def loop_4(letters: Tensor, seed: int, steps: int) -> History:
    """It takes the last half for validation: less of it was trained on than before, but a half of it still was."""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[len(letters) // 2 :]
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
        model.train()
    return history
