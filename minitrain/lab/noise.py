"""How much of a batch's gradient is signal, and how much noise that another batch would not share.

One row's gradient is `g_i = G + e_i`. The batch gradient's squared length is `|G|^2 + tr/B` on average over batches of `B`
rows, where `tr = E|e|^2`: two batch sizes give two equations, and so both unknowns (McCandlish et al., 2018, arXiv
1812.06162). `tr / |G|^2` is the simple noise scale: the batch size, in rows, at which noise equals signal. All of
this supposes that a row's gradient does not depend on the other rows.
"""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minitrain.lab.probes import Measured, Neurons, Weight, check_neurons, report, weights_of
from minitrain.runtime.device import autocast, move
from minitrain.runtime.folder import random_state, set_random_state

if TYPE_CHECKING:
    from minitrain.train import Run


# --8<-- [start:estimate]
def signal_and_noise(
    small: Float[Tensor, "*O"], large: Float[Tensor, "*O"], b: int, B: int
) -> tuple[Float[Tensor, "*O"], Float[Tensor, "*O"]]:
    """Unbiased `|G|^2` and `tr` from the mean squared length of gradients of `b` rows and that of one of `B` rows.

    Either may come out negative where noise drowns it: average over steps first, divide last.
    """
    signal = (B * large - b * small) / (B - b)
    noise = (small - large) / (1 / b - 1 / B)
    return signal, noise


# --8<-- [end:estimate]
class NoiseScale:
    """Gradient signal, noise and noise scale of the very batch of the step, in rows (sequences, images).

    The batch is cut into `parts` of equal size (more, where they would exceed the micro batch), and each part's gradient
    is taken on a copy of the model, at the cost of one more forward and backward pass of the batch. Where parts of `b` rows
    do not divide the batch, up to `b - 1` rows are left out. Reports by layer `gradient_signal`, `gradient_noise` and
    `noise_scale`, of all of them together `total_gradient_signal`, ...; a scale is infinite where the signal is not above
    zero. `group` names a group, None takes all; `neurons` as for other probes. Raises `ValueError` for a model with batch
    normalization in training mode, whose rows depend on each other.
    """

    needs_data = True  # so it measures runs of `train`, not loops of one's own

    def __init__(self, group: str | None = None, every: int = 200, parts: int = 8, neurons: Neurons | None = None):
        check_neurons(neurons)
        if parts < 2:
            raise ValueError(f"parts must be at least 2, not {parts}; the noise is what differs between them")
        self.group, self.every, self.parts, self.neurons = group, every, parts, neurons
        self.found: dict[str, Any] = {}

    def before(self, run: "Run") -> None:
        state = random_state(run.device)
        try:
            self.found = self.measure(run)
        finally:
            set_random_state(state, run.device)

    def after(self, run: "Run") -> dict[str, Any]:
        return self.found

    def measure(self, run: "Run") -> dict[str, Any]:
        rows = run.recipe.batch_size // run.data.row_size
        if rows < 2:
            raise ValueError(
                "the noise scale needs batches of at least 2 rows; raise batch_size or leave the probe out"
            )
        if any(module.training and mixes_rows(module) for module in run.model.modules()):
            raise ValueError(
                "the noise scale needs rows that do not depend on each other, as they do in batch normalization, online"
                " normalization and ghost noise; normalize within a row (LayerNorm, GroupNorm) or leave the probe out"
            )
        b = max(1, min(rows // self.parts, run.micro_rows))
        B = rows // b * b
        weights = [w for w in weights_of(run, self.group) if w.parameter.requires_grad]
        if not weights:
            raise ValueError(f"no weight of group {self.group!r} asks for a gradient, so there is no noise to measure")
        signal, noise = {}, {}
        for w, (small, large) in zip(weights, squares(run, weights, b, B), strict=True):
            signal[w.name], noise[w.name] = map(whole, signal_and_noise(small, large, b, B))
        scale = {name: Measured(*map(noise_scale, noise[name], signal[name])) for name in signal}
        of = f"_of_{self.group}" if self.group else ""
        found = {"gradient_signal": signal, "gradient_noise": noise, "noise_scale": scale}
        result = {key: value for name, x in found.items() for key, value in report(name, x, self.neurons, of).items()}
        total_signal, total_noise = (sum(result[f"gradient_{name}{of}"].values()) for name in ("signal", "noise"))
        return result | {
            f"total_gradient_signal{of}": total_signal,
            f"total_gradient_noise{of}": total_noise,
            f"total_noise_scale{of}": math.inf if total_signal <= 0 else total_noise / total_signal,
        }


def whole(neurons: Float[Tensor, " O"]) -> Measured:
    """Squared lengths add up."""
    return Measured(neurons.sum(), neurons)


def mixes_rows(module: nn.Module) -> bool:
    """Whether what a layer makes of a row in training depends on the rows beside it."""
    return isinstance(module, _BatchNorm) or getattr(module, "rows_depend", False)


def noise_scale(noise: Float[Tensor, "*O"], signal: Float[Tensor, "*O"]) -> Float[Tensor, "*O"]:
    """`noise / signal`, infinite where no signal was found."""
    return (noise / signal).where(~(signal <= 0), math.inf)


def squares(run: "Run", weights: list[Weight], b: int, B: int) -> list[tuple[Tensor, Tensor]]:
    """For each weight its neurons' squared gradients: those of `b` rows, averaged over the batch, and that of `B` rows.

    Two tensors of shape `(O,)`. Works on a copy of the model and leaves `.grad` alone, so that neither buffers nor hooks of
    the parameters notice.
    """
    recipe, model = run.recipe, copy.deepcopy(run.model)
    parameters = dict(model.named_parameters())
    parameters = [parameters[w.name] for w in weights]
    small = [torch.zeros((), device=run.device) for _ in weights]
    mean = [torch.zeros_like(p) for p in parameters]
    inputs, targets = run.data.batch(recipe.seed, run.step, recipe.batch_size // run.data.row_size)
    for x, y in zip(inputs[:B].split(b), targets[:B].split(b), strict=True):
        with autocast(run.device, recipe.precision):
            loss = recipe.loss(model, move(x, run.device), move(y, run.device))
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            small[i] = small[i] + w.rows(g).square().sum(dim=-1) * (b / B)
            mean[i].add_(g, alpha=b / B)
    return [(small[i], w.rows(mean[i]).square().sum(dim=-1)) for i, w in enumerate(weights)]


def mean_noise_scale(metrics: list[dict[str, Any]], share: float = 1.0) -> float:
    """Mean noise over mean signal of the last `share` of a run's measurements: of ratios of noisy numbers the mean misleads.

    Of all weights, as `NoiseScale()` measures them. Infinite where no signal was found, NaN where nothing was measured.
    """
    found = [(m["total_gradient_noise"], m["total_gradient_signal"]) for m in metrics if "total_gradient_noise" in m]
    late = found[-max(1, round(share * len(found))) :]
    noise, signal = (sum(x) for x in zip(*late, strict=True)) if late else (math.nan, math.nan)
    return math.inf if signal <= 0 else noise / signal
