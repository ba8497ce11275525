"""Techniques meet: every pair of choices for different parts of a run trains, resumes bit for bit, and keeps its promises.

A run is put together of parts (model, optimizer, decay, storage and timing, memory of the forward pass, loss); each part has
its choices, and every two choices of different parts are together in at least one run. Pairs that cannot work are refused
with one sentence: `REFUSED`.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import BASE, assert_one_sentence, same, stop_at, tiny_gpt
from torch import Tensor, nn

import minitrain
from minitrain.data.images import Images
from minitrain.optim import SGD, AdamW, ClipGradNorm, Lion, wrapped
from minitrain.recipe import Recipe
from minitrain.resnet import ResNet, layer_norm
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.ghost_noise import ghost_noised
from minitrain.techniques.online_norm import OnlineNorm2d
from minitrain.techniques.rotational import Rotational, RotationalAdamW, RotationalLion, RotationalSGD, rotates
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.step_in_backward import StepInBackward, UsedGradient
from minitrain.techniques.weight_decay import with_decay
from minitrain.techniques.weight_standardization import weight_standardized
from minitrain.train import Run, build, train

STEPS = 6


def tiny_images() -> Images:
    """Forty images of 8x8 pixels, and eight to validate."""
    images = np.random.default_rng(0).integers(0, 255, (48, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(48) % 4
    return Images(images[:40], labels[:40], images[40:], labels[40:], pad=1)


tiny_resnet = partial(ResNet, [(4, 1), (8, 1)], classes=4)
TEXT = replace(BASE, steps=STEPS, schedules={}, before_step=())
IMAGES = replace(TEXT, data=tiny_images, batch_size=8)
MODELS: dict[str, Recipe] = {
    "GPT": replace(TEXT, build_model=tiny_gpt),
    "standardized GPT": replace(TEXT, build_model=partial(weight_standardized, tiny_gpt)),
    "GPT with ghost noise": replace(TEXT, build_model=partial(ghost_noised, tiny_gpt, ghost_batch_size=3)),
    "standardized GPT with ghost noise": replace(
        TEXT, build_model=partial(ghost_noised, partial(weight_standardized, tiny_gpt), ghost_batch_size=3)
    ),
    "ResNet": replace(IMAGES, build_model=tiny_resnet),
    "ResNet with ghost noise": replace(IMAGES, build_model=partial(ghost_noised, tiny_resnet, ghost_batch_size=4)),
    "standardized layer-normed ResNet": replace(
        IMAGES, build_model=partial(weight_standardized, partial(tiny_resnet, norm=layer_norm))
    ),
    "online-normalized ResNet": replace(IMAGES, build_model=partial(tiny_resnet, norm=OnlineNorm2d)),
}
OPTIMIZERS: dict[str, partial] = {
    "AdamW": partial(AdamW, lr=1e-2, weight_decay=0.1),
    "SGD": partial(SGD, lr=0.3, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Lion": partial(Lion, lr=1e-3, weight_decay=0.1),
    "RotationalAdamW": partial(RotationalAdamW, lr=1e-2, weight_decay=0.1),
    "RotationalSGD": partial(RotationalSGD, lr=0.3, momentum=0.9, weight_decay=1e-3),
    "RotationalLion": partial(RotationalLion, lr=1e-3, weight_decay=0.1),
}
WRAPPERS: dict[str, tuple[Callable, ...]] = {
    "plainly": (),
    "with the decay of a schedule": (partial(with_decay, meaning="schedule_only"),),
    "16 extra bits": (SplitWeights,),
    "4 extra bits, bf16 moments": (partial(SplitWeights, bits=4, moments=torch.bfloat16),),
    "in backward": (StepInBackward,),
    "16 extra bits, in backward": (SplitWeights, StepInBackward),
}
FORWARDS: dict[str, Callable[[Recipe], Recipe]] = {
    "as it is": lambda recipe: recipe,
    "in bf16": lambda recipe: replace(recipe, precision="bf16"),
    "blocks recomputed": lambda recipe: replace(recipe, build_model=partial(recompute_blocks, recipe.build_model)),
    "loss in chunks": lambda recipe: replace(recipe, loss=partial(chunked_cross_entropy, chunk=24)),
    "in micro batches": lambda recipe: replace(recipe, micro_batch_size=recipe.batch_size // 2),
    "clipped": lambda recipe: replace(recipe, before_step=(partial(ClipGradNorm, 0.3),)),
}
PARTS = (MODELS, OPTIMIZERS, WRAPPERS, FORWARDS)
Choice = tuple[str, str, str, str]


def why_not(choice: Choice) -> str | None:
    """Why four choices cannot work together, as the docs have it; None where they do."""
    model, optimizer, wrapper, forward = choice
    if "ResNet" in model and forward == "loss in chunks":
        return "an image has one target: there is nothing to cut"
    if "in backward" in wrapper and forward in ("clipped", "in micro batches"):
        return "a gradient that is used at once can be neither clipped nor accumulated"
    if model in ("ResNet", "ResNet with ghost noise") and "bits" in wrapper:
        return "torch's batch norm takes no bf16 gains beside float32 statistics (`train-images` says so)"
    if "online" in model and forward == "blocks recomputed":
        return "statistics that move in the forward pass would move twice"
    if "decay" in wrapper and "Rotational" in optimizer:
        return "rotation decides on its own how far"
    return None


def covering() -> list[Choice]:
    """Few choices of four in which each possible pair of choices of different parts occurs, found greedily."""
    choices = [c for c in itertools.product(*PARTS) if not why_not(c)]
    pairs_of = {c: set(itertools.combinations(enumerate(c), 2)) for c in choices}
    missing = set().union(*pairs_of.values())
    found = []
    while missing:
        best = max(choices, key=lambda c: len(pairs_of[c] & missing))  # the first of the best, always the same
        found.append(best)
        missing -= pairs_of[best]
    return found


def recipe_of(choice: Choice) -> Recipe:
    model, optimizer, wrapper, forward = choice
    make = OPTIMIZERS[optimizer]
    recipe = replace(
        MODELS[model], make_optimizer=partial(wrapped, make=make.func, by=WRAPPERS[wrapper], **make.keywords)
    )
    return FORWARDS[forward](recipe)


COVERING = covering()
each = pytest.mark.parametrize("choice", COVERING, ids=[", ".join(c) for c in COVERING])
go = partial(train, log_every=2, evaluate_every=2, checkpoint_every=3)


@each
def test_a_pair_resumes_bit_for_bit_and_keeps_its_promises(choice: Choice, tmp_path: Path):
    recipe = recipe_of(choice)
    whole = go(recipe)
    stopped = go(recipe, folder=tmp_path, probes=[stop_at(4)])
    assert stopped.step == 4
    resumed = go(recipe, folder=tmp_path, resume=True)
    assert resumed.finished
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"])
    assert whole.metrics == resumed.metrics
    start = build(recipe)
    for check in PROMISES:
        check(choice, start, whole)


# --- what each technique promises ----------------------------------------------------------------------------------------


def every_weight_moves(choice: Choice, start: Run, end: Run) -> None:
    """In the bits that the optimizer keeps; nothing is frozen by accident."""
    for (name, old), (_, new) in zip(weights(start).items(), weights(end).items(), strict=True):
        assert new.isfinite().all(), name
        assert not torch.equal(old, new), name


def rotation_keeps_lengths(choice: Choice, start: Run, end: Run) -> None:
    """To the rounding of the storage: 4 extra bits round a weight at each step."""
    if "Rotational" not in choice[1]:
        return
    tolerance = 2e-3 if "4 extra bits" in choice[2] else 1e-5
    old, new, checked = weights(start), weights(end), 0
    optimizer = own(end)
    assert isinstance(optimizer, Rotational)
    for group in optimizer.param_groups:
        for name, p in end.model.named_parameters():
            if any(p is x for x in group["params"]) and rotates(p, group):
                lengths = [w[name].flatten(1).norm(dim=1) for w in (old, new)]
                torch.testing.assert_close(lengths[1], lengths[0], rtol=tolerance, atol=0)
                checked += 1
    assert checked


def split_weights_are_half(choice: Choice, start: Run, end: Run) -> None:
    """The model holds bf16, and the optimizer the rest."""
    expected = torch.bfloat16 if "extra bits" in choice[2] else torch.float32
    assert {p.dtype for p in end.model.parameters()} == {expected}


def gradients_are_gone(choice: Choice, start: Run, end: Run) -> None:
    """A step in backward leaves no gradient behind, before anything has cleared them."""
    if "in backward" in choice[2]:
        x, y = end.data.batch(0, 99, 2)
        end.recipe.loss(end.model.train(), x, y).backward()
        assert all(isinstance(p.grad, UsedGradient) for p in end.model.parameters())


def standardized_neurons_forget_their_length(choice: Choice, start: Run, end: Run) -> None:
    """Twice the weight, the same function (but for the eps)."""
    if "standardized" in choice[0]:
        same_function_when(end, lambda layer: layer.weight.mul_(2), lambda m: hasattr(m, "init_std"))


def noise_is_of_training_alone(choice: Choice, start: Run, end: Run) -> None:
    """Two forward passes differ in training, and only with ghost noise; never in evaluation."""
    x, _ = end.data.batch(0, 99, 8)
    with torch.no_grad():
        for training in (False, True):
            end.model.train(training)
            a, b = end.model(x), end.model(x)
            differs = training and ("noise" in choice[0] or "online" in choice[0])
            assert torch.equal(a, b) is not differs


def online_statistics_move(choice: Choice, start: Run, end: Run) -> None:
    """In forward and backward."""
    for module in end.model.modules():
        if isinstance(module, OnlineNorm2d):
            assert module.mean.abs().sum() > 0
            assert module.u.abs().sum() > 0
            assert module.mean.dtype == module.v.dtype == torch.float32


PROMISES = (
    every_weight_moves,
    rotation_keeps_lengths,
    split_weights_are_half,
    standardized_neurons_forget_their_length,
    online_statistics_move,
    noise_is_of_training_alone,
    gradients_are_gone,
)


def own(run: Run) -> Any:
    """The optimizer without what is put around it."""
    return getattr(run.optimizer, "optimizer", run.optimizer)


def weights(run: Run) -> dict[str, Tensor]:
    """All parameters with all their bits, in float32."""
    optimizer = own(run)
    return {
        name: optimizer.storage.whole(p, optimizer.state[p]).detach().float().clone()
        for name, p in run.model.named_parameters()
    }


@torch.no_grad()
def same_function_when(run: Run, change: Callable[[Any], object], of: Callable[[nn.Module], bool]) -> None:
    """The model computes the same after a change of some layers, in evaluation; and then all is put back."""
    x, _ = run.data.batch(0, 99, 2)
    before, kept = run.model.eval()(x), {k: v.clone() for k, v in run.model.state_dict().items()}
    changed = [layer for layer in run.model.modules() if of(layer)]
    assert changed
    for layer in changed:
        change(layer)
    # eps / std, with std of about 0.2, counts 5e-5; bf16 weights round at 4e-3, the same for both
    torch.testing.assert_close(run.model(x), before, rtol=1e-2, atol=1e-2)
    run.model.load_state_dict(kept)


# --- what cannot work ------------------------------------------------------------------------------------------------------

REFUSED: dict[Choice, tuple[str, ...]] = {
    ("GPT", "AdamW", "in backward", "clipped"): ("clip",),
    ("GPT", "AdamW", "in backward", "in micro batches"): ("accumulation",),
    ("online-normalized ResNet", "SGD", "plainly", "blocks recomputed"): ("activation checkpointing",),
    ("GPT", "RotationalAdamW", "with the decay of a schedule", "as it is"): ("rules of its own",),
}


@pytest.mark.parametrize("choice", REFUSED, ids=[", ".join(c) for c in REFUSED])
def test_a_pair_that_cannot_work_is_refused_in_one_sentence(choice: Choice):
    assert why_not(choice)
    with pytest.raises((ValueError, RuntimeError)) as error:
        go(recipe_of(choice))
    assert_one_sentence(error.value, *REFUSED[choice])


def test_every_possible_pair_is_there():
    seen = {pair for c in COVERING for pair in itertools.combinations(enumerate(c), 2)}
    for (i, a), (j, b) in itertools.combinations(enumerate(PARTS), 2):
        for pair in itertools.product(a, b):
            possible = any(not why_not(c) and (c[i], c[j]) == pair for c in itertools.product(*PARTS))
            assert (((i, pair[0]), (j, pair[1])) in seen) is possible
    assert len(COVERING) < 100


def test_every_technique_takes_part():
    there = {path.stem for path in Path(minitrain.__file__).parent.joinpath("techniques").glob("[!_]*.py")}
    here = Path(__file__).read_text()
    assert {name for name in there if f"minitrain.techniques.{name} import" not in here} == {
        "timescale"
    }  # numbers only


def test_the_docs_say_which_pairs_cannot_work():
    page = (Path(__file__).parent.parent / "docs" / "pieces.md").read_text()
    reasons = {reason for c in itertools.product(*PARTS) if (reason := why_not(c))}
    for reason in reasons:
        assert reason.removesuffix(" (`train-images` says so)") in page
