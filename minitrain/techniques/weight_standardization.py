"""Weight standardization: a layer uses its weight with each row brought to mean zero and a fixed spread.

However long a neuron's weight vector is, the neuron then computes the same, so only the vector's direction is learned; a
gain per neuron learns what the length can no longer say. A norm behind a layer does this for the layer as a whole, or, in
front of it, not at all; here it holds for each neuron by itself. That is what the theory of rotational equilibrium takes
for granted of a neuron: a gradient at right angles to the weight, and shorter where the weight is longer.

    W_eff = gain * init_std * (W - mean) / (std + eps)    mean and std of each row; init_std: std when the layer was made

References: Qiao et al., 2019, arXiv 1903.10520 (weight standardization); Kosson et al., 2023, arXiv 2305.17212, who combine
it with layer norm to balance the rotation of neurons. `eps=0` makes it exact: a row times a power of two gives the same
bits, and so does the converted model at first, but for the row means.

When it does not help: where batch norm follows, which makes each neuron's scale irrelevant already; for the head and for
embeddings, whose rows' lengths mean something. It costs a pass over the weight in every forward pass, which counts where
batches are small. Without weight decay the vectors only grow, so they turn slower and slower. A row that starts at zero
has no direction to keep, and is refused.

Deviations: `init_std` keeps the size of the layer's own initialization, as the code of 2305.17212 does and 1903.10520 does
not. That code sets it in the first forward pass; here it is set when the layer is made, and `state_dict` holds it, so that
loading a checkpoint never sets it anew. The gain is per row and leaves the bias alone.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional as F

from minitrain.modules import Which, choose
from minitrain.optim import widened


# --8<-- [start:standardize]
def spread(w: Float[Tensor, "O *I"]) -> tuple[Float[Tensor, "O *ones"], Float[Tensor, "O *ones"]]:
    """The unbiased standard deviation and the mean of each row, with `w`'s number of dimensions."""
    return torch.std_mean(w, dim=tuple(range(1, w.ndim)), keepdim=True)


def scale_rows(w: Float[Tensor, "O *I"], factor: Float[Tensor, " O"]) -> Float[Tensor, "O *I"]:
    """Each row of `w` times its number."""
    return w * factor.view(-1, *[1] * (w.ndim - 1))


def standardize(
    w: Float[Tensor, "O *I"], gain: Float[Tensor, " O"], init_std: Float[Tensor, " O"], eps: float
) -> Float[Tensor, "O *I"]:
    """The weight that the layer uses, in `w`'s dtype; computed in float32 at least."""
    wide = widened(w)
    std, mean = spread(wide)
    # W_eff = gain * init_std * (W - mean) / (std + eps), with a factor of exactly 1 where std is what it was at first
    return scale_rows(wide - mean, gain * (init_std / (std.flatten() + eps))).to(w.dtype)


# --8<-- [end:standardize]


class Standardized:
    """What the linear and the conv layer share: `gain` (O,) is learned, `init_std` (O,) is a buffer.

    `init_std` is that of the weight when the layer was made or converted: a weight that is drawn anew later is used at the
    same size. `model.bfloat16()` rounds it with all else. Raises `ValueError` for rows that cannot be standardized.
    """

    weight: Tensor
    gain: nn.Parameter
    init_std: Tensor
    eps: float

    def effective_weight(self) -> Float[Tensor, "O *I"]:
        """What the layer multiplies with."""
        return standardize(self.weight, self.gain, self.init_std, self.eps)


class WeightStandardizedLinear(Standardized, nn.Linear):
    """A linear layer whose rows are standardized."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        start(self, "this layer", eps)

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return F.linear(input, self.effective_weight(), self.bias)


class WeightStandardizedConv2d(Standardized, nn.Conv2d):
    """A convolution whose filters are standardized, each over its input channels and its window."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        window = (kernel_size, stride, padding, dilation)
        super().__init__(in_channels, out_channels, *window, groups, bias, padding_mode, device, dtype)
        start(self, "this layer", eps)

    def forward(self, input: Float[Tensor, "*B I H W"]) -> Float[Tensor, "*B O H2 W2"]:
        return self._conv_forward(input, self.effective_weight(), self.bias)


class ScaledLinear(nn.Linear):
    """A plain linear layer with a learned gain (O,) per row: magnitudes stay learnable where an optimizer fixes norms."""

    gain: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        add_gain(self)

    def effective_weight(self) -> Float[Tensor, "O I"]:
        """What the layer multiplies with."""
        return scale_rows(self.weight, self.gain)

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return F.linear(input, self.effective_weight(), self.bias)


STANDARDIZED: dict[type, type] = {nn.Linear: WeightStandardizedLinear, nn.Conv2d: WeightStandardizedConv2d}
SCALED: dict[type, type] = {nn.Linear: ScaledLinear}


def add_gain(layer: Any) -> None:
    """A gain of one per row, which learns if the weight does."""
    w = layer.weight
    layer.gain = nn.Parameter(torch.ones_like(w[(slice(None), *[0] * (w.ndim - 1))]), requires_grad=w.requires_grad)


@torch.no_grad()
def start(layer: Any, name: str, eps: float) -> None:
    """Gives a layer the gain, `init_std` and `eps` of a standardized one. Raises `ValueError` as `check_rows` does."""
    check_rows(layer, name, eps)
    add_gain(layer)
    layer.register_buffer("init_std", spread(widened(layer.weight))[0].flatten())
    layer.eps = eps


@torch.no_grad()
def check_rows(layer: Any, name: str, eps: float) -> None:
    """Raises `ValueError` with one sentence where the layer's rows cannot be standardized with this `eps`."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a finite number of 0 or above, not {eps!r}")
    w = layer.weight.detach()
    inputs = math.prod(w.shape[1:])
    if inputs < 3 or not len(w):
        raise ValueError(
            f"{name} has {len(w)} rows of {inputs} weights, and of fewer than 3 standardizing leaves nothing to learn; "
            "leave it out"
        )
    if w.is_meta or is_fake(w):  # there are no values to look at
        return
    w = widened(w.flatten(1))
    rounding = 4 * torch.finfo(w.dtype).eps * w.abs().amax(1)
    constant = ~(w.std(1) > rounding)  # also finds NaN
    if constant.any():
        raise ValueError(
            f"row {int(constant.nonzero()[0])} of {name} has no direction to keep, for its weights are all the same (zero?) "
            "or not finite; initialize them with random numbers, or leave the layer out"
        )


# --- conversion -------------------------------------------------------------------------------------------------------


def inside_blocks(name: str, layer: nn.Module) -> bool:
    """Whether a layer stands inside the model's `blocks`: not the head, nor what comes before the first block."""
    return name.startswith("blocks.")


# --8<-- [start:convert]
def convert(model: nn.Module, which: Which = inside_blocks, eps: float = 1e-5) -> nn.Module:
    """Standardizes the weights of the model's linear and conv layers that `which` chooses, and returns the model.

    `which` is a collection of layer names, or says yes or no to `(name, layer)`. The layers are changed in place, as are the
    model's parameters: make the optimizer afterwards. Weights keep their names, and `gain` and `init_std` stand beside
    them; `converted(model)` lists the layers. At first the model computes what it did, but that each chosen row has lost
    its mean (and, with an `eps` above 0, the share `eps / std`). Raises `ValueError` for what cannot be converted, before
    anything is.
    """
    chosen = untied(model, which, STANDARDIZED)
    for name, layer in chosen.items():
        check_rows(layer, name, eps)
    for name, layer in chosen.items():
        start(layer, name, eps)
        layer.__class__ = STANDARDIZED[type(layer)]  # the same object, so that hooks and other names for it stay
    return model


# --8<-- [end:convert]
def convert_scaled(model: nn.Module, which: Which = inside_blocks) -> nn.Module:
    """The same for `ScaledLinear`, which changes nothing that the model computes at first, not a bit of it."""
    for layer in untied(model, which, SCALED).values():
        add_gain(layer)
        layer.__class__ = SCALED[type(layer)]
    return model


def converted(model: nn.Module) -> list[str]:
    """The names of the layers that have a gain of their own by this module."""
    kinds = (*STANDARDIZED.values(), *SCALED.values())
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def weight_standardized(
    build_model: Callable[[], nn.Module], which: Which = inside_blocks, eps: float = 1e-5
) -> nn.Module:
    """`convert` for a recipe: `build_model=partial(weight_standardized, partial(GPT, depth=2))`."""
    return convert(build_model(), which, eps)


def scaled(build_model: Callable[[], nn.Module], which: Which = inside_blocks) -> nn.Module:
    """`convert_scaled` for a recipe: `build_model=partial(scaled, partial(GPT, depth=2))`."""
    return convert_scaled(build_model(), which)


def untied(model: nn.Module, which: Which, kinds: Collection[type]) -> dict[str, Any]:
    """The layers to convert, by name. Raises `ValueError` for a choice that cannot be converted."""
    chosen = choose(model, which, kinds)
    users: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for own, p in module.named_parameters(recurse=False):
            users.setdefault(p, []).append(f"{name}.{own}")
    for name, layer in chosen.items():
        if len(users[layer.weight]) > 1:
            raise ValueError(
                f"{' and '.join(users[layer.weight])} are one tied weight, and {name} would read it standardized; "
                "untie them, or leave the layer out"
            )
    return chosen
