"""Rejected by check_loop_5."""

from solution import FIRST_ABNORMAL, loop_1, loop_2, loop_3, loop_4  # noqa: F401
from stub import History, batch, loss_of, loss_on, note, start
from torch import Tensor


def loop_5(letters: Tensor, seed: int, steps: int) -> History:
    """It steps its schedule twice in every second step: it ends where it should, but limps on the way."""
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
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
        model.train()
        if step % 2:
            schedule.step()
            schedule.step()
    return history
