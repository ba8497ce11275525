"""Exercise 01: five broken training loops. About 45 minutes, difficulty 1 of 3.

Each of the five loops below trains the same small model on the same text with the same seed. Each has one fault, of the
kind that raises no error. Run this file: it prints what each loop measured beside what a healthy loop measures.

1. Read the tables as you read a page: row by row, and each row from left to right. The first abnormal number of a loop is
   the first one that departs by more than half a per cent (rounding differs a little between machines) from the healthy
   number in its place. Write its column and step into `FIRST_ABNORMAL`.
2. Ask what could make this number wrong and none before it. Then mend the loop; one or two lines are enough for each.

`minitrain check train_a_gpt` looks at your answers, then runs your loops on other texts with other seeds and compares all
that they return with a healthy loop. What stands above the loops is healthy; leave it as it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

History = dict[str, list[float]]

# Replace each `...` by the column and step of the loop's first abnormal number, for example ("loss", 7).
FIRST_ABNORMAL = {"loop_1": ..., "loop_2": ..., "loop_3": ..., "loop_4": ..., "loop_5": ...}

# --- what all loops share -----------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.:-'"
TEXT = (
    "a model reads a text letter by letter, and guesses each letter before it comes. how wrong the guess was is the loss. "
    "the gradient says in which direction the loss rises, and the optimizer takes a step the other way. then come other "
    "letters, and all begins again. a fault in this loop seldom stops it. the loss still falls, only a little more or a "
    "little less than it should. so read the numbers from the top, and ask of each whether it can be true."
)


class Guesser(nn.Module):
    """Guesses the next letter from the last three. In training, dropout sets each hidden number to zero with
    probability one half.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.hidden = nn.Linear(3 * 16, 128)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(128, 32)
        nn.init.normal_(self.head.weight, std=0.2)

    def forward(self, letters: Tensor) -> Tensor:
        """From letters `(B, T)` to scores `(B, T, 32)`, one for each letter that could come next."""
        x = self.embedding(letters)
        last_three = [F.pad(x, (0, 0, age, 0))[:, : x.shape[1]] for age in range(3)]
        return self.head(self.dropout(self.hidden(torch.cat(last_three, dim=-1)).relu()))


def start(seed: int, steps: int) -> tuple[Guesser, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """A new model, its optimizer, and the schedule of the learning rate: up for four steps, then down to zero."""
    torch.manual_seed(seed)
    model = Guesser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    def share(step: int) -> float:
        return max(0.0, min((step + 1) / 4, (steps - step) / (steps - 3)))

    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def batch(letters: Tensor, seed: int, step: int) -> Tensor:
    """Sixteen passages of nine letters, `(16, 9)`, from anywhere in `letters`; the same ones for the same seed and step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    first = torch.randint(len(letters) - 8, (16, 1), generator=generator)
    return letters[first + torch.arange(9)]


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """What the model's guesses cost on average, in nats per letter."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def loss_on(model: nn.Module, letters: Tensor) -> float:
    """The loss on the whole of `letters`, cut into passages."""
    passages = letters.unfold(0, 9, 8)
    return loss_of(model, passages[:, :-1], passages[:, 1:]).item()


def note(history: History, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Appends what is known just before the step: loss, length of the gradient, learning rate."""
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    history["loss"].append(loss.item())
    history["grad_norm"].append(torch.cat(gradients).norm().item())
    history["lr"].append(optimizer.param_groups[0]["lr"])


# --- the five loops -----------------------------------------------------------------------------------------------------
# `letters` is a text as numbers: its first three quarters are for training, the rest is for validation. A loop returns, for
# each step, "loss", "grad_norm" and "lr" just before the step and "val_loss", the loss on the validation part, after it.


# --8<-- [start:loops]
def loop_1(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: ?"""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, 1:])
        loss.backward()
        note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
        model.eval()
        history["val_loss"].append(loss_on(model, validation))
        model.train()
    return history


def loop_2(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: ?"""
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
        history["val_loss"].append(loss_on(model, validation))
    return history


def loop_3(letters: Tensor, seed: int, steps: int) -> History:
    """The fault: ?"""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {"loss": [], "grad_norm": [], "lr": [], "val_loss": []}
    for step in range(steps):
        passages = batch(training, seed, step)
        loss = loss_of(model, passages[:, :-1], passages[:, :-1])
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
    """The fault: ?"""
    model, optimizer, schedule = start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[-border:]
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
    """The fault: ?"""
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
        model.train()
        schedule.step()
    return history


# --8<-- [end:loops]
# --- the tables ---------------------------------------------------------------------------------------------------------

SEED, STEPS = 4, 16
HEALTHY: History = {
    "loss": [
        3.812,
        3.762,
        3.482,
        2.726,
        2.668,
        2.556,
        2.611,
        2.451,
        2.254,
        2.613,
        2.236,
        2.216,
        2.199,
        2.501,
        1.898,
        1.749,
    ],
    "grad_norm": [
        1.772,
        1.781,
        1.648,
        1.511,
        1.451,
        1.467,
        1.344,
        1.488,
        1.259,
        1.387,
        1.134,
        1.246,
        1.196,
        1.257,
        1.022,
        1.013,
    ],
    "lr": [
        0.005,
        0.01,
        0.015,
        0.02,
        0.018462,
        0.016923,
        0.015385,
        0.013846,
        0.012308,
        0.010769,
        0.0092308,
        0.0076923,
        0.0061538,
        0.0046154,
        0.0030769,
        0.0015385,
    ],
    "val_loss": [
        3.480,
        3.152,
        2.873,
        2.765,
        2.794,
        2.805,
        2.796,
        2.800,
        2.798,
        2.790,
        2.787,
        2.774,
        2.763,
        2.750,
        2.743,
        2.740,
    ],
}


def encode(text: str) -> Tensor:
    """A text as numbers from 0 to 31."""
    return torch.tensor([LETTERS.index(letter) for letter in text])


def print_beside_healthy(name: str, history: History) -> None:
    """A table: the healthy loop's numbers on the left, this loop's on the right."""
    columns = "    loss  grad_norm      lr  val_loss"
    print(f"\n{'healthy':>25}{name:>39}\nstep{columns}   |{columns}")
    for step in range(STEPS):
        left, right = ([rows[key][step] for key in HEALTHY] for rows in (HEALTHY, history))
        rows = ["{:8.3f}{:11.3f}{:8.4f}{:10.3f}".format(*row) for row in (left, right)]
        print(f"{step:>4}{rows[0]}   |{rows[1]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for loop in (loop_1, loop_2, loop_3, loop_4, loop_5):
        print_beside_healthy(loop.__name__, loop(encode(TEXT), SEED, STEPS))
