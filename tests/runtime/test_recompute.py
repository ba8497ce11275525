"""Recomputed blocks give the same bits, dropout included, and keep little more than their inputs."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import (
    BASE,
    CONTEXT,
    VOCAB,
    Averaging,
    assert_one_sentence,
    dropout_gpt,
    mlp_with_dropout,
    same,
    tiny_gpt,
    tiny_text,
)
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from minitrain.gpt import GPT, nanogpt_style
from minitrain.recipe import by_kind, cross_entropy, describe
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.recompute import recompute_blocks
from minitrain.train import train

ROWS = 4
deep_gpt = partial(GPT, vocab_size=VOCAB, depth=4, width=32, context=CONTEXT)
MODELS = {
    "gpt": deep_gpt,
    "dropout": partial(deep_gpt, mlp=mlp_with_dropout),
    "nanogpt": partial(nanogpt_style, vocab_size=VOCAB, depth=2, width=32, context=CONTEXT),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def recompute_with_other_draws(build_model: Callable[[], nn.Module]) -> nn.Module:
    """Wrong: the random numbers are not replayed."""
    model = build_model()
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    return model


def recompute_the_original(build_model: Callable[[], nn.Module]) -> nn.Module:
    """Wrong: a closure, which in a deep copy still calls the original's block."""
    model = build_model()
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)
    return model


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """With a head that is not zero, so that gradients reach every weight."""
    torch.manual_seed(0)
    model = build()
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def loss_and_gradients(build: Callable[[], nn.Module], bf16: bool = False) -> list[Tensor]:
    """And the state of the random numbers after it."""
    model = seeded(build)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = cross_entropy(model, *tiny_text().batch(0, 0, ROWS))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), torch.get_rng_state()]


# --- the same bits -----------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_loss_gradients_and_random_numbers_are_the_plain_ones_bit_for_bit(build: Callable, bf16: bool) -> None:
    assert same(loss_and_gradients(partial(recompute_blocks, build), bf16), loss_and_gradients(build, bf16))


def test_dropout_that_is_not_replayed_is_told_apart() -> None:
    build = MODELS["dropout"]
    assert not same(loss_and_gradients(partial(recompute_with_other_draws, build)), loss_and_gradients(build))


@pytest.mark.parametrize("build", [tiny_gpt, dropout_gpt])
def test_a_run_is_the_plain_run_bit_for_bit(build: Callable) -> None:
    plain = replace(BASE, build_model=build, micro_batch_size=2 * CONTEXT, after_step=(Averaging,))
    found, expected = train(replace(plain, build_model=partial(recompute_blocks, build))), train(plain)
    assert same(found.losses, expected.losses)
    assert same(found.model.state_dict(), expected.model.state_dict())
    assert found.metrics == expected.metrics  # evaluated on a deep copy


def is_a_model_of_its_own(recompute: Callable) -> bool:
    """Whether a deep copy computes with its own weights."""
    model = seeded(partial(recompute, deep_gpt))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.zero_()
    inputs, _ = tiny_text().batch(0, 0, ROWS)
    return torch.equal(copied(inputs), seeded(deep_gpt)(inputs))


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    assert is_a_model_of_its_own(recompute_blocks)
    assert not is_a_model_of_its_own(recompute_the_original)


def test_names_and_owners_stay() -> None:
    plain, recomputed = seeded(deep_gpt), seeded(partial(recompute_blocks, deep_gpt))
    assert [name for name, _ in recomputed.named_modules()] == [name for name, _ in plain.named_modules()]
    assert same(recomputed.state_dict(), plain.state_dict())
    assert [(g["name"], len(g["params"])) for g in by_kind(recomputed)] == [
        (g["name"], len(g["params"])) for g in by_kind(plain)
    ]


# --- fewer bytes, more work --------------------------------------------------------------------------------------------


def kept_bytes(build: Callable[[], nn.Module]) -> int:
    """How many bytes the blocks keep for the backward pass, the weights aside, each tensor once."""
    model = seeded(build)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x  # held, so that no address is used twice
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        model.features(tiny_text().batch(0, 0, ROWS)[0])
    return sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in weights)


def test_a_block_keeps_its_input_alone() -> None:
    one_input = 4 * ROWS * CONTEXT * 32
    deep, deeper = (partial(deep_gpt, depth=depth) for depth in (4, 8))
    recomputed = [kept_bytes(partial(recompute_blocks, build)) for build in (deep, deeper)]
    assert recomputed[1] - recomputed[0] == 4 * one_input
    assert kept_bytes(deeper) - kept_bytes(deep) > 4 * 10 * one_input


def calls_of_the_attention(build: Callable[[], nn.Module], grad: bool = True) -> int:
    model, calls = seeded(build), []
    model.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(grad):
        loss = cross_entropy(model, *tiny_text().batch(0, 0, ROWS))
    if grad:
        loss.backward()
    return len(calls)


def test_a_block_runs_twice_where_there_are_gradients_and_else_once() -> None:
    recomputed = partial(recompute_blocks, deep_gpt)
    assert calls_of_the_attention(deep_gpt) == calls_of_the_attention(recomputed, grad=False) == 1
    assert calls_of_the_attention(recomputed) == 2


# --- in a recipe -------------------------------------------------------------------------------------------------------


def test_a_recipe_names_the_model_inside() -> None:
    recipe = replace(BASE, build_model=partial(recompute_blocks, partial(tiny_gpt, width=64)))
    text = describe(recipe)
    assert text["build_model"] == "minitrain.runtime.recompute.recompute_blocks"
    assert (text["build_model.0"], text["build_model.0.width"]) == ("small.tiny_gpt", "64")


def test_it_goes_with_the_loss_in_chunks() -> None:
    build = MODELS["dropout"]
    plain, recomputed = seeded(build), seeded(partial(recompute_blocks, build))
    for model in (plain, recomputed):
        torch.manual_seed(1)
        chunked_cross_entropy(model, *tiny_text().batch(0, 0, ROWS), chunk=7).backward()
    assert same([p.grad for p in recomputed.parameters()], [p.grad for p in plain.parameters()])


def linear() -> nn.Module:
    return nn.Linear(2, 2)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no `blocks`") as error:
        recompute_blocks(linear)
    assert_one_sentence(error.value, "leave recompute_blocks out")
