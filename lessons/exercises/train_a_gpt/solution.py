"""Our solution: a comment stands at each line that was mended. What the loops share is imported, unchanged."""

from stub import History, batch, loss_of, loss_on, note, start
from torch import Tensor

# --8<-- [start:solution]
FIRST_ABNORMAL = {
    "loop_1": ("grad_norm", 1),  # longer than one batch's by two thirds; in the last step ten times as long
    "loop_2": ("val_loss", 0),  # loss, gradient and step are healthy, so only the measuring is left
    "loop_3": ("loss", 0),  # before any step was taken, so neither optimizer nor schedule can be the cause
    "loop_4": ("val_loss", 0),  # and all other columns are healthy to the last digit
    "loop_5": ("lr", 1),  # half as large again as it should be
}


def loop_1(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: no zero_grad. backward() adds to the gradient that is there, so each step took all batches so far."""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, 1:])
        optimizer.zero_grad()  # was missing
        loss.backward()
        note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
        model.train()
    return history


def loop_2(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: evaluation in training mode. Dropout set hidden numbers to zero while it measured."""
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
        model.eval()  # was missing
        history["val_loss"].append(loss_on(model, validation))
        model.train()  # was missing; without it all later steps would train without dropout
    return history


def loop_3(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: labels not shifted. Each letter was to guess itself."""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, 1:])  # was [:, :-1], twice
        optimizer.zero_grad()
        loss.backward()
        note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
        model.train()
    return history


def loop_4(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: an overlapping split. The last three quarters were measured, and two thirds of these were trained on."""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]  # was letters[-border:]
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


def loop_5(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: the schedule was stepped twice. The learning rate was at zero after half of the steps."""
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
        schedule.step()  # stood here twice
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
        model.train()
    return history


# --8<-- [end:solution]
