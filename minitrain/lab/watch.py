"""The probes of `minitrain.lab.probes` in anybody's training loop, around any optimizer of torch.

with watch(model, optimizer) as seen:
    for x, y in batches:
        loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
print(seen)
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from minitrain.lab.probes import Rotation
from minitrain.train import Probe


@dataclass
class Watch:
    """What was seen of a loop so far; printed, the latest measurement of each layer with the predicted one beside it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    """How many steps the optimizer has taken since."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """A dictionary for each measured step, as in a run's `metrics`."""

    def __str__(self) -> str:
        if not self.metrics:
            return f"nothing was measured in {self.step} steps; give a probe a smaller `every`"
        return f"after step {self.metrics[-1]['step']}\n" + table(
            {key: value for metrics in self.metrics for key, value in metrics.items()}
        )


@contextmanager
def watch(
    model: nn.Module, optimizer: torch.optim.Optimizer, probes: Iterable[Probe] | None = None
) -> Generator[Watch]:
    """Has `probes` (by default `Rotation()`) measure what `optimizer.step` does to `model`, while the context is open.

    A probe is asked every `every` steps, as in `train`, and leaves the same bits behind. It may use the model and the
    optimizer; raises `ValueError` for one that needs the run's data.
    """
    seen: Any = Watch(model, optimizer)
    probes = (Rotation(),) if probes is None else tuple(probes)
    for probe in probes:
        if getattr(probe, "needs_data", False):
            name = type(probe).__name__
            raise ValueError(f"{name} needs the batches of a run; measure it with train(recipe, probes=[{name}()])")
        if probe.every < 1:
            raise ValueError(f"every must be at least 1 step, not {probe.every}")

    def due() -> list[Any]:
        return [probe for probe in probes if (seen.step + 1) % probe.every == 0]

    def listen() -> None:  # the forward pass comes before the step
        for probe in due():
            getattr(probe, "listen", lambda _: None)(seen)

    def before(*_: Any) -> None:
        for probe in due():
            probe.before(seen)

    def after(*_: Any) -> None:
        measuring = due()
        seen.step += 1
        metrics: dict[str, Any] = {}
        for probe in measuring:
            metrics |= probe.after(seen) or {}
        if metrics:
            seen.metrics.append({"step": seen.step, **metrics})
        listen()

    listen()
    hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for probe in probes:
            getattr(probe, "deafen", lambda: None)()


def table(metrics: dict[str, Any]) -> str:
    """One line per layer and one column per quantity, with the predicted value beside it where there is one."""
    columns: list[tuple[str, dict[str, float]]] = []
    for key, value in metrics.items():
        if key.startswith("predicted_") or not is_per_layer(value):
            continue
        columns.append((key, value))
        predicted = metrics.get(f"predicted_{key}")
        if predicted is not None:
            columns.append(("predicted", predicted if isinstance(predicted, dict) else dict.fromkeys(value, predicted)))
    names = list(dict.fromkeys(name for _, column in columns for name in column))
    cells = [["", *(key for key, _ in columns)]]
    cells += [[name, *(f"{column[name]:.4g}" if name in column else "-" for _, column in columns)] for name in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if i == 0 else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def is_per_layer(value: Any) -> bool:
    """A dictionary of numbers."""
    return isinstance(value, dict) and all(isinstance(x, int | float) for x in value.values())
