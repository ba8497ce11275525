"""Cross-entropy a chunk of tokens at a time, so that the logits of a whole batch never exist at once.

With a vocabulary of 50,000 the logits, their float32 copy, its log-softmax and the gradient are most of a step's memory.
Here each chunk's logits are dropped after its loss is known and computed again in the backward pass (the recomputation of
Chen et al., 2016, arXiv 1604.06174, applied to the head alone), which leaves one chunk's worth of them.

When it does not help: with a small vocabulary, where the logits are no larger than the activations of a block. It costs
one more forward pass of the head, and chunks below a few hundred tokens keep a GPU waiting. Of a model that `train`
compiles, the features are compiled and the head is not. Forward hooks of the head run once for each chunk and once again
when it is computed anew; those of the whole model do not run.

Deviations: kernels that form the gradient in the forward pass (Hsu et al., 2024, arXiv 2410.10989) avoid the second pass
of the head; here the head may be any module, and no gradient exists before the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # the target that `F.cross_entropy` leaves out


def chunked_cross_entropy(
    model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, *, chunk: int = 1024
) -> Float[Tensor, ""]:
    """`recipe.cross_entropy` with the logits of at most `chunk` tokens at once, for a model with `features` and `head`.

    As `Recipe.loss=partial(chunked_cross_entropy, chunk=256)`. With a single chunk the numbers are the plain ones bit for
    bit; with more they differ by the rounding of float32 sums. Raises `ValueError` for a model without the two parts.
    """
    if type(chunk) is not int or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1 token, not {chunk!r}")
    features, head = parts(model)
    x, y = features(inputs).flatten(0, -2), targets.flatten()
    sums = [
        checkpoint(summed_cross_entropy, head, some_x, some_y, use_reentrant=False)
        for some_x, some_y in zip(x.split(chunk), y.split(chunk), strict=True)
    ]
    return torch.stack(sums).sum() / (y != IGNORED).sum()


def summed_cross_entropy(
    head: nn.Module, features: Float[Tensor, "N C"], targets: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """The sum, not the mean, over the tokens of one chunk."""
    kind = features.device.type
    # Autocast would share one rounded copy of the head's weight between the chunks, and so add up their gradients in
    # bf16. Without its cache every chunk rounds anew, and the gradients are added in the weight's own precision.
    with torch.autocast(
        kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
    ):
        logits = head(features)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def parts(model: Any) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """What computes the features, compiled where the model is, and the head that turns them into logits."""
    if not (callable(getattr(model, "features", None)) and isinstance(getattr(model, "head", None), nn.Module)):
        raise ValueError(
            f"{type(model).__name__} cannot have its loss in chunks: that needs a method `features` and a module `head`"
            " that turns them into logits; use cross_entropy"
        )
    is_compiled = hasattr(model, "_orig_mod")  # its `features` are those of the original
    return torch.compile(model.features) if is_compiled else model.features, model.head
