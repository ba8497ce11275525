"""Activation checkpointing: a block keeps only its input, and computes the rest again when its gradient is due.

The backward pass needs what every layer saw on the way forward, which for a deep model is most of the memory. With each
block recomputed, that falls from all activations to one input per block and the activations of a single block, for one
more forward pass: about a third more time (Chen et al., 2016, arXiv 1604.06174). Loss and gradients stay the same.

When it does not help: where the loss or the optimizer's state holds the peak, as in small models with a large
vocabulary (chunk the loss first); in evaluation, which keeps no activations anyway.

Deviations: one checkpoint for each block, not one for every square root of the depth; the embedding, the last norm and
the head keep their activations. Random numbers of the default generators are replayed, those of a `generator=` of a
layer's own are not; and a layer that counts its calls, as batch normalization does, counts each one twice.
"""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(build_model: Callable[[], nn.Module]) -> nn.Module:
    """The model that `build_model` makes, each of its `blocks` recomputed in the backward pass.

    As `Recipe.build_model=partial(recompute_blocks, partial(GPT, depth=4))`. Modules, parameters and their names are the
    model's own, so weights and checkpoints fit either. Raises `ValueError` for a model without `blocks`.
    """
    model = build_model()
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no `blocks` (an nn.ModuleList) to recompute; leave recompute_blocks out"
        )
    for block in blocks:
        # The bound method and not a closure, so that a deep copy of the model calls the copied block.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model
