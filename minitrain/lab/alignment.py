"""How much of a weight, and of its change, gets through to a linear layer's outputs.

Weight and update have norms, but what the next layer sees is `W X`: of two steps of equal length the one that is better
aligned with the inputs moves the outputs further. So the relative change of the outputs is the relative update times the
ratio of two alignments (in the form that reviews of Kosson et al., 2025, arXiv 2510.19093, give).
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minitrain.lab.probes import Loop, Measured, Neurons, Weight, WeightProbe, quotient, widened


# --8<-- [start:alignment]
def alignment(old: Float[Tensor, "O I"], new: Float[Tensor, "O I"], x: Float[Tensor, "N I"]) -> dict[str, Measured]:
    """What `Alignment` reports of one layer, from its weight before and after the step and its inputs."""
    w, x = widened(old), widened(x)
    dw = widened(new) - w
    with torch.autocast(x.device.type, enabled=False):  # whatever loop this stands in
        y, dy = x @ w.mT, x @ dw.mT

    def aligned(y: Float[Tensor, "N O"], w: Float[Tensor, "O I"]) -> Measured:
        return Measured(quotient(y.norm(), w.norm() * x.norm()), quotient(y.norm(dim=0), w.norm(dim=1) * x.norm()))

    update, weight = aligned(dy, dw), aligned(y, w)
    return {
        "update_alignment": update,
        "weight_alignment": weight,
        "alignment_ratio": Measured(*map(quotient, update, weight)),
        "representation_change": Measured(quotient(dy.norm(), y.norm()), quotient(dy.norm(dim=0), y.norm(dim=0))),
    }


# --8<-- [end:alignment]
class Alignment(WeightProbe):
    """How much of a weight and of its change gets through to the outputs of linear layers, on the inputs of this step.

    With inputs `X`, weight `W` before the step and its change `dW` (decay included), in Frobenius norms:

        weight_alignment        |W X| / (|W| |X|)       1/sqrt(I) for a random weight
        update_alignment        |dW X| / (|dW| |X|)     1 where the change is made of one input and meets only that one
        alignment_ratio         update_alignment / weight_alignment
        representation_change   |dW X| / |W X| = alignment_ratio |dW| / |W|

    Hooks keep what every `nn.Linear` of the group reads while gradients are recorded: the first `tokens` rows of a step,
    whose micro batches come in turn. A layer that reads nothing is NaN.
    """

    def __init__(
        self,
        group: str | None = "matrices",
        every: int = 25,
        neurons: Neurons | None = None,
        tokens: int = 4096,
    ):
        super().__init__(group, every, neurons)
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, not {tokens}")
        self.tokens = tokens
        self.inputs: dict[str, list[Tensor]] = {}
        self.hooks: list[RemovableHandle] = []

    def weights(self, run: Loop) -> list[Weight]:
        linear = {m.weight for m in run.model.modules() if isinstance(m, nn.Linear)}
        found = [w for w in super().weights(run) if w.parameter in linear]
        if not found:
            raise ValueError(f"group {self.group!r} holds no weight of an nn.Linear, whose inputs alignment is about")
        return found

    def listen(self, run: Loop) -> None:
        """Keeps inputs from now on until `deafen`. `before` does it too; earlier, where it comes after the forward pass."""
        names = {w.parameter: w.name for w in self.weights(run)}
        self.inputs = {name: [] for name in names.values()}
        self.hooks = [
            m.register_forward_hook(partial(self.keep, names[m.weight]), with_kwargs=True)
            for m in run.model.modules()
            if isinstance(m, nn.Linear) and m.weight in names
        ]

    def keep(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Tensor], output: Tensor) -> None:
        """A forward hook."""
        room = self.tokens - sum(map(len, self.inputs[name]))
        if room > 0 and torch.is_grad_enabled():
            x: Tensor = (*args, *kwargs.values())[0].detach()
            self.inputs[name].append(x.reshape(math.prod(x.shape[:-1]), x.shape[-1])[:room].clone())

    def deafen(self) -> None:
        """Takes the hooks off the model and forgets what they kept."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.inputs = [], {}

    def before(self, run: Loop) -> None:
        super().before(run)
        if not self.hooks:
            self.listen(run)

    def after(self, run: Loop) -> dict[str, Any]:
        try:
            return super().after(run)
        finally:
            self.deafen()

    def measure(self, weights: list[Weight]) -> dict[str, dict[str, Measured]]:
        if not any(self.inputs.values()):
            raise ValueError(
                "no input of a linear layer was seen; run the forward pass uncompiled, as modules, and with gradients"
            )
        result: dict[str, dict[str, Measured]] = {}
        for w in weights:
            x = self.inputs[w.name] or [w.parameter[:0]]
            for key, value in alignment(self.old[w.name], w.values, torch.cat(x)).items():
                result.setdefault(key, {})[w.name] = value
        return result
