"""From the options of a command, plain values, to the `Recipe` that they name."""

import dataclasses
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import nn

from minitrain import gpt, schedules
from minitrain.cli.options import ImageModel, ImageTraining, Model, TextTraining, Training
from minitrain.data.download import cifar10
from minitrain.data.images import letters, own_images
from minitrain.data.text import own_text, standard_library
from minitrain.optim import SGD, Adam, AdamW, ClipGradNorm, Lion, wrapped
from minitrain.recipe import Recipe, cross_entropy
from minitrain.resnet import cifar_resnet, layer_norm, resnet18
from minitrain.runtime.attention import causal_attention
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.ghost_noise import ghost_noised
from minitrain.techniques.online_norm import OnlineNorm2d
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.step_in_backward import StepInBackward
from minitrain.techniques.weight_standardization import weight_standardized

# Peak learning rate and decay that suit a GPT of about 1 M parameters and 1200 steps of 1024 tokens.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 6e-3, "weight_decay": 0.5, "betas": (0.9, 0.95)},
    "adam": {"lr": 6e-3, "weight_decay": 1e-4, "betas": (0.9, 0.95)},
    "lion": {"lr": 1e-3, "weight_decay": 3.0, "betas": (0.9, 0.95)},
    "sgd": {"lr": 0.5, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": True},
}
# The same for a ResNet-20 and 1000 steps of 128 images.
IMAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)},
    "adam": {"lr": 3e-3, "weight_decay": 1e-4, "betas": (0.9, 0.95)},
    "lion": {"lr": 5e-4, "weight_decay": 1.0, "betas": (0.9, 0.95)},
    "sgd": {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True},
}


def recipe_of(
    model: Model, training: TextTraining, precision: Literal["fp32", "bf16"], vocabulary: int = 256
) -> Recipe:
    """The recipe that the options name. Raises `ValueError` with one sentence where they do not fit together."""
    build_model = partial(
        gpt.GPT,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        context=model.context,
        norm={"rms": nn.RMSNorm, "layer": gpt.LayerNorm}[model.norm],
        mlp={"relu-squared": gpt.MLP, "gelu": partial(gpt.MLP, activation=F.gelu), "swiglu": gpt.SwiGLU}[model.mlp],
        attend={
            "fastest": causal_attention,
            "textbook": gpt.textbook_attention,
            "sdpa": partial(F.scaled_dot_product_attention, is_causal=True),
        }[model.attention],
        qk_norm=gpt.RMSNormWithoutGain if model.qk_norm else nn.Identity,
        learned_positions=model.positions == "learned",
        tied=model.tied,
    )
    text = partial(own_text, path=str(training.data)) if training.data else standard_library
    # What is off leaves no trace in the recipe, so that runs from before an option was there can still be resumed.
    if vocabulary != 256:
        build_model = partial(build_model, vocab_size=vocabulary)
    loss = cross_entropy if training.loss_chunk is None else partial(chunked_cross_entropy, chunk=training.loss_chunk)
    if training.loss_chunk is not None and training.loss_chunk < 1:
        raise ValueError(f"loss_chunk must be at least 1 token, not {training.loss_chunk}; leave it out for one chunk")
    recipe = Recipe(build_model, partial(text, context=model.context), training.steps, training.batch_size, loss=loss)
    return trained_as(recipe, training, DEFAULTS, precision)


def image_recipe_of(model: ImageModel, training: ImageTraining, precision: Literal["fp32", "bf16"]) -> Recipe:
    """The recipe that the options name. Raises `ValueError` with one sentence where they do not fit together."""
    if training.split_weights is not None and model.norm == "batch":
        raise ValueError("batch norm keeps its statistics in 32 bits and takes no gains in 16; choose another norm")
    if model.ghost_noise is not None and model.norm == "online":
        raise ValueError("ghost noise goes into batch norm and layer norm; choose another norm, or leave it out")
    if training.recompute_blocks and model.norm == "online":
        raise ValueError(
            "online norm moves its statistics as it computes, so blocks cannot be recomputed; leave one out"
        )
    if training.data == "letters":
        if training.held_out == "test":
            raise ValueError("letters have no test images beside the validation ones; leave --held-out out")
        data = letters
    elif training.data == "cifar10":
        data = partial(cifar10, held_out=training.held_out)
    else:
        data = partial(own_images, path=str(training.data), held_out=training.held_out)
    shown = data()
    norm = {"batch": nn.BatchNorm2d, "layer": layer_norm, "online": OnlineNorm2d}[model.norm]
    sizes: dict[str, Any] = {"classes": shown.classes, "channels": shown.channels, "norm": norm}
    if model.width is not None:
        sizes["width"] = model.width
    build_model = partial(resnet18, **sizes) if model.depth == 18 else partial(cifar_resnet, depth=model.depth, **sizes)
    if model.weight_standardization:
        build_model = partial(weight_standardized, build_model)
    if model.ghost_noise is not None:
        build_model = partial(ghost_noised, build_model, ghost_batch_size=model.ghost_noise)
    recipe = Recipe(build_model, data, training.steps, training.batch_size)
    return trained_as(recipe, training, IMAGE_DEFAULTS, precision)


def trained_as(
    recipe: Recipe, training: Training, defaults: dict[str, dict[str, Any]], precision: Literal["fp32", "bf16"]
) -> Recipe:
    """The recipe with all that the options say of the training, whatever is trained on whatever."""
    hyper = dict(defaults[training.optimizer])
    for name in ("lr", "weight_decay", "betas"):
        if (value := getattr(training, name)) is not None:
            if name not in hyper:
                raise ValueError(f"{training.optimizer} has no {name}; leave it out or choose another optimizer")
            hyper[name] = value
    if not 0 <= training.clip < float("inf"):
        raise ValueError(f"clip must be a number above 0, or 0 to not clip, not {training.clip}")
    build_model = recipe.build_model
    return dataclasses.replace(
        recipe,
        build_model=partial(recompute_blocks, build_model) if training.recompute_blocks else build_model,
        micro_batch_size=training.micro_batch_size,
        make_optimizer=optimizer_of(training, hyper),
        schedules={("*", "lr"): schedule_of(training)},
        before_step=(partial(ClipGradNorm, max_norm=training.clip),) if training.clip else (),
        precision=precision,
        seed=training.seed,
    )


def optimizer_of(training: Training, hyper: dict[str, Any]) -> partial:
    """The maker of the optimizer, with what is put around it."""
    make = {"adamw": AdamW, "adam": Adam, "lion": Lion, "sgd": SGD}[training.optimizer]
    by: tuple = () if training.split_weights is None else (partial(SplitWeights, bits=training.split_weights),)
    if training.step_in_backward:
        if training.clip:
            raise ValueError("step_in_backward has no gradients left to clip by their joint norm; add --clip 0")
        if training.micro_batch_size not in (None, training.batch_size):
            raise ValueError("step_in_backward cannot accumulate a gradient; leave micro_batch_size out")
        by = (*by, StepInBackward)
    return partial(wrapped, make=make, by=by, **hyper) if by else partial(make, **hyper)


def schedule_of(training: Training) -> partial:
    """The learning rate's multiplier as a function of the step. Raises `ValueError` for options that it would ignore."""
    for name, value in (("warmup", training.warmup), ("cooldown", training.cooldown)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is a share of the steps, from 0 to 1, not {value}")
    for name, of in (("cooldown", ("wsd", "exponential")), ("shape", ("wsd",))):
        if getattr(training, name) is not None and training.schedule not in of:
            raise ValueError(f"{training.schedule} takes no {name}; leave it out or choose {' or '.join(of)}")
    steps, warmup = training.steps, round(training.warmup * training.steps)
    share = 0.5 if training.cooldown is None else training.cooldown
    cooldown = round(share * steps)
    if training.warmup + share <= 1:
        cooldown = min(cooldown, steps - warmup)  # both may have been rounded up
    shapes = {
        "linear": schedules.linear,
        "one-minus-sqrt": schedules.one_minus_sqrt,
        "lowered-linear": schedules.lowered_linear,
        "cosine": schedules.cosine_shape,
        "mirror-cosine": schedules.mirror_cosine,
        "square": schedules.square,
    }
    schedule = {
        "constant": partial(schedules.constant, warmup=warmup),
        "wsd": partial(
            schedules.warmup_stable_decay,
            steps=steps,
            warmup=warmup,
            cooldown=cooldown,
            shape=shapes[training.shape or "linear"],
        ),
        "cosine": partial(schedules.cosine, steps=steps, warmup=warmup),
        "linear": partial(schedules.linear_to_floor, steps=steps, warmup=warmup),
        "exponential": partial(schedules.exponential_decay, steps=steps, warmup=warmup, cooldown=cooldown),
        "inverse-sqrt": partial(schedules.inverse_sqrt, warmup=max(warmup, 1)),
        "one-cycle": partial(schedules.one_cycle, steps=steps),
    }[training.schedule]
    schedule(0)  # raises where the parts do not fit
    return schedule
