"""What must hold of the five loops. The healthy loop below is the measure; the model and data are those of the stub."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from minitrain.lab.exercises import Rejected, require

torch.set_num_threads(1)
COLUMNS = ("loss", "grad_norm", "lr", "val_loss")
NAMES = ("loop_1", "loop_2", "loop_3", "loop_4", "loop_5")
ABNORMAL = 0.005  # how far a number departs from the healthy one by more than rounding, as a share
SAME = 1e-3  # how far a mended loop's may, as a share: room for other ways to compute the same
History = dict[str, list[float]]


def load_stub() -> ModuleType:
    """The stub as we hand it out, whatever became of the learner's copy."""
    spec = importlib.util.spec_from_file_location("stub_of_train_a_gpt", Path(__file__).with_name("stub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STUB = load_stub()


def healthy(letters: Tensor, seed: int, steps: int) -> History:
    """What a loop without a fault returns."""
    model, optimizer, schedule = STUB.start(seed, steps)
    border = 3 * len(letters) // 4
    training, validation = letters[:border], letters[border:]
    history: History = {column: [] for column in COLUMNS}
    for step in range(steps):
        passages = STUB.batch(training, seed, step)
        optimizer.zero_grad()
        loss = STUB.loss_of(model, passages[:, :-1], passages[:, 1:])
        loss.backward()
        STUB.note(history, loss, model, optimizer)
        optimizer.step()
        schedule.step()
        model.eval()
        history["val_loss"].append(STUB.loss_on(model, validation))
        model.train()
    return history


def departure(measured: float, required: float) -> float:
    """How far a number departs from the healthy one, as a share of the latter."""
    return 0.0 if measured == required else abs(measured - required) / (abs(required) or math.nan)


def first_beyond(history: History, reference: History, limit: float) -> tuple[str, int] | None:
    """Column and step of the first number, reading row by row, that departs by more than `limit`."""
    for step in range(len(reference["loss"])):
        for column in COLUMNS:
            if not departure(history[column][step], reference[column][step]) <= limit:
                return column, step
    return None


def unseen(length: int, seed: int) -> Tensor:
    """A text of syllables that no learner has seen, as numbers from 0 to 31."""
    generator = torch.Generator().manual_seed(seed)
    syllables = torch.randint(32, (12, 4), generator=generator)
    return syllables[torch.randint(12, (length // 4,), generator=generator)].flatten()


def check_history(answer: ModuleType) -> None:
    """Each loop returns its four columns, a number for each step."""
    for name in NAMES:
        history = getattr(answer, name)(unseen(160, 1), seed=1, steps=5)
        for column in COLUMNS:
            values = history.get(column) if isinstance(history, dict) else None
            right = isinstance(values, list) and len(values) == 5 and all(isinstance(x, float) for x in values)
            require(
                right,
                f"{name} with steps=5 gives {column} = {values!r}",
                f"a list of 5 floats under each of {', '.join(COLUMNS)}",
                "A loop is mended when it still measures all that it measured before.",
            )


def check_first_abnormal(answer: ModuleType) -> None:
    """The first abnormal number of each loop is found"""
    reference = healthy(STUB.encode(STUB.TEXT), STUB.SEED, STUB.STEPS)
    for name in NAMES:
        given = answer.FIRST_ABNORMAL.get(name) if isinstance(answer.FIRST_ABNORMAL, dict) else None
        if given is ...:
            raise Rejected(..., "")
        required = f"for {name} a column and a step from 0 to {STUB.STEPS - 1}, like ('loss', 7)"
        pair = isinstance(given, tuple | list) and len(given) == 2
        valid = pair and given[0] in COLUMNS and type(given[1]) is int and 0 <= given[1] < STUB.STEPS
        require(valid, given, required, f"The columns are {', '.join(COLUMNS)}.")
        assert isinstance(given, tuple | list)  # as was just required
        column, step = given
        broken = getattr(STUB, name)(STUB.encode(STUB.TEXT), STUB.SEED, STUB.STEPS)
        away = departure(broken[column][step], reference[column][step])
        if away <= ABNORMAL:
            hint = f"That number departs by only {100 * away:.2g} %, which rounding may explain."
        else:
            hint = "That number is abnormal, but not the first: read each row from left to right, from the top row on."
        first = first_beyond(broken, reference, ABNORMAL)
        require(
            (column, step) == first, f"{name}: {column} at step {step}", "the first number beyond half a per cent", hint
        )


def compare_with_healthy(loop: Callable[..., History], hint: str) -> None:
    """Rejects a loop that differs anywhere from the healthy one on texts, seeds and lengths that it has not seen."""
    for length, seed, steps in ((240, 11, 9), (448, 12, 14), (600, 13, 6)):
        letters = unseen(length, seed)
        history, reference = loop(letters, seed=seed, steps=steps), healthy(letters, seed, steps)
        where = first_beyond(history, reference, SAME)
        if where:
            column, step = where
            required = f"{reference[column][step]:.6g}, as in a healthy loop; all before it is right"
            measured = f"{history[column][step]:.6g} as {column} at step {step} of {steps}, on another text"
            raise Rejected(measured, required, hint)


def check_loop_1(answer: ModuleType) -> None:
    """Loop 1 measures what a healthy loop measures"""
    compare_with_healthy(answer.loop_1, "From step 1 on the gradient is another than that of the step's own batch.")


def check_loop_2(answer: ModuleType) -> None:
    """Loop 2 measures what a healthy loop measures"""
    hint = "Two measurements without a step between them must agree, and leave the next step as it was."
    compare_with_healthy(answer.loop_2, hint)


def check_loop_3(answer: ModuleType) -> None:
    """Loop 3 measures what a healthy loop measures"""
    hint = "In the stub's table the loss falls far below the healthy one while val_loss rises: it learns another task."
    compare_with_healthy(answer.loop_3, hint)


def check_loop_4(answer: ModuleType) -> None:
    """Loop 4 measures what a healthy loop measures"""
    hint = "In the stub's table val_loss follows the loss down, as if the model had seen the answers."
    compare_with_healthy(answer.loop_4, hint)


def check_loop_5(answer: ModuleType) -> None:
    """Loop 5 measures what a healthy loop measures"""
    compare_with_healthy(
        answer.loop_5, "Follow lr down its column: it must rise, turn and end at the same steps as the healthy one."
    )
