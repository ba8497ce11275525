"""The one training loop. It knows no technique by name: each field of a recipe is used at one visible line.

    run.losses[run.step] = gradient(run, forward)    forward and backward, micro batch by micro batch
    for hook in run.before_step: ...                 clipping
    run.optimizer.step()                             how far
    for hook in run.after_step: ...                  averaging

What it writes goes into one folder, which `runtime/folder.py` describes.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minitrain.recipe import Data, Recipe, check_ownership
from minitrain.runtime.device import autocast, move
from minitrain.runtime.files import only_writer, stop_requests
from minitrain.runtime.folder import check_losses, log, save, start_or_resume
from minitrain.schedules import set_schedules


@dataclass
class Run:
    """A recipe in motion: what it built, how far it is, and what it measured. `step` counts the steps taken."""

    recipe: Recipe
    model: nn.Module
    data: Data
    optimizer: torch.optim.Optimizer
    before_step: list[Any]
    after_step: list[Any]
    losses: Tensor
    """Training loss of every step in nats, of shape `(steps,)`; NaN for those to come."""
    device: torch.device
    folder: Path | None = None
    step: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """What `metrics.jsonl` holds, a dictionary for each logged step."""

    @property
    def finished(self) -> bool:
        return self.step == self.recipe.steps

    @property
    def micro_rows(self) -> int:
        """Rows that go through the model at once."""
        return (self.recipe.micro_batch_size or self.recipe.batch_size) // self.data.row_size


@runtime_checkable
class Probe(Protocol):
    """A measurement, every `every` steps, that leaves weights, state and random numbers as they are."""

    every: int

    def before(self, run: Run) -> None:
        """Called before the gradient is computed."""
        ...

    def after(self, run: Run) -> dict[str, Any] | None:
        """Called after the step, while gradients are still there; what it returns is logged."""
        ...


def build(recipe: Recipe, device: str | torch.device = "cpu") -> Run:
    """Builds what the recipe names, without taking a step. Seeds torch's default generators.

    Raises `ValueError` where the parts do not fit together.
    """
    device = torch.device(device)
    torch.manual_seed(recipe.seed)
    model = recipe.build_model().to(device).train()
    with device:  # where the tensors lie that a data set makes
        data = recipe.data()
    row = data.row_size
    if recipe.batch_size % row or (recipe.micro_batch_size or 0) % row:
        raise ValueError(f"batch_size and micro_batch_size count tokens; make both multiples of the context, {row}")
    if recipe.batch_size > data.size:
        raise ValueError(
            f"batch_size {recipe.batch_size:,} is larger than the {data.size:,} tokens or images there are to train on"
        )
    groups = recipe.param_groups(model)
    check_ownership(model, groups)
    optimizer = recipe.make_optimizer(groups)
    for name, key in recipe.schedules:
        if not any(name in ("*", group.get("name")) and key in group for group in optimizer.param_groups):
            raise ValueError(f"the schedule of {key!r} in {name!r} fits no parameter group; check both names")
    return Run(
        recipe, model, data, optimizer,
        before_step=[make() for make in recipe.before_step],
        after_step=[make() for make in recipe.after_step],
        losses=torch.full((recipe.steps,), torch.nan, device=device),
        device=device,
    )  # fmt: skip


def train(
    recipe: Recipe | Run,
    *,
    device: str | torch.device = "cpu",
    folder: Path | str | None = None,
    resume: bool = False,
    probes: Iterable[Probe] = (),
    log_every: int = 25,
    evaluate_every: int = 250,
    checkpoint_every: int = 250,
    compile: bool = False,
    progress: bool = False,
) -> Run:
    """Trains to the recipe's end, or until Ctrl-C or SIGTERM, which save a checkpoint where there is a folder.

    A run that `build` made already is taken as it is, on its device.
    Raises `FloatingPointError` when the loss is no longer a number; the checkpoints written before stay as they are.
    """
    probes = tuple(probes)
    if min(log_every, evaluate_every, checkpoint_every, *(probe.every for probe in probes)) < 1:
        raise ValueError("log_every, evaluate_every, checkpoint_every and every probe's every must be at least 1 step")
    run = build(recipe, device) if isinstance(recipe, Recipe) else recipe
    recipe = run.recipe
    forward = torch.compile(run.model) if compile else run.model

    def due(every: int) -> bool:
        return run.step % every == 0 or run.finished

    if folder and not resume:
        Path(folder).mkdir(parents=True, exist_ok=True)
    unit = "tok" if run.data.row_size > 1 else "img"
    bar = tqdm(total=recipe.steps * recipe.batch_size, unit=unit, unit_scale=True, disable=not progress, smoothing=0.1)
    with bar, only_writer(Path(folder) if folder else None), stop_requests() as stop_requested:
        start_or_resume(run, folder, resume)
        bar.n = bar.initial = bar.last_print_n = run.step * recipe.batch_size
        if not run.metrics:
            log(run, {"val_loss": evaluate(run)})
        # --8<-- [start:loop]
        while not run.finished and not stop_requested():
            measuring = [probe for probe in probes if (run.step + 1) % probe.every == 0]
            for probe in measuring:
                probe.before(run)
            set_schedules(run.optimizer, recipe.schedules, run.step)
            run.losses[run.step] = gradient(run, forward)
            for hook in run.before_step:
                hook(run.model, run.optimizer)
            run.optimizer.step()
            for hook in run.after_step:
                hook(run.model, run.optimizer)
            run.step += 1

            metrics: dict[str, Any] = {}
            for probe in measuring:
                metrics |= probe.after(run) or {}
            run.optimizer.zero_grad()
            if due(log_every):
                metrics |= training_metrics(run, log_every)
                bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
            if due(evaluate_every):
                metrics["val_loss"] = evaluate(run)
            if metrics:
                log(run, metrics)
            if due(checkpoint_every):
                save(run)
            bar.update(recipe.batch_size)
        # --8<-- [end:loop]
        if not run.finished:
            save(run)
    return run


# --8<-- [start:gradient]
def gradient(run: Run, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Accumulates the batch's gradient in `.grad` and returns the batch's mean loss, without waiting for the device."""
    recipe = run.recipe
    inputs, targets = run.data.batch(recipe.seed, run.step, recipe.batch_size // run.data.row_size)
    total = torch.zeros((), device=run.device)
    for x, y in zip(inputs.split(run.micro_rows), targets.split(run.micro_rows), strict=True):
        with autocast(run.device, recipe.precision):
            loss = recipe.loss(forward, move(x, run.device), move(y, run.device)) * (len(x) / len(inputs))
        loss.backward()
        total += loss.detach()
    return total


# --8<-- [end:gradient]


@torch.no_grad()
def evaluate(run: Run) -> float:
    """Mean validation loss in nats, of the model that `evaluation_model` names."""
    total, count = torch.zeros((), device=run.device), 0
    with evaluation_model(run) as model, autocast(run.device, run.recipe.precision):
        for inputs, targets in run.data.validation(run.micro_rows):
            total += run.recipe.loss(model, move(inputs, run.device), move(targets, run.device)) * len(inputs)
            count += len(inputs)
    return (total / count).item()


@contextmanager
def evaluation_model(run: Run) -> Generator[nn.Module]:
    """The model to evaluate, in evaluation mode: a copy, where a hook or the optimizer has `evaluation_copy(model)`."""
    offers: list[Any] = [x for x in (*run.after_step, run.optimizer) if hasattr(x, "evaluation_copy")]
    model: nn.Module = offers[0].evaluation_copy(run.model) if offers else run.model
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def training_metrics(run: Run, log_every: int) -> dict[str, Any]:
    """Loss (mean since the last log), learning rate, and what the hooks report. Waits for the device."""
    first = (run.step - 1) // log_every * log_every
    check_losses(run, first)
    metrics = {"loss": run.losses[first : run.step].mean().item(), "lr": run.optimizer.param_groups[0]["lr"]}
    for hook in (*run.before_step, *run.after_step):
        metrics |= hook.metrics() if hasattr(hook, "metrics") else {}
    return metrics
