"""The loss in chunks is the plain loss, with fewer bytes kept for the backward pass."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import BASE, CONTEXT, VOCAB, assert_one_sentence, dropout_gpt, in_own_process, same, tiny_gpt, tiny_text
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from minitrain.gpt import GPT
from minitrain.recipe import cross_entropy, describe
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.train import train

ROWS = 6
TOKENS = ROWS * CONTEXT
Loss = Callable[..., Tensor]


def gpt(tied: bool = False, build: Callable[..., nn.Module] = tiny_gpt) -> nn.Module:
    """With a head that is not zero, so that gradients reach every weight."""
    torch.manual_seed(0)
    model = build(tied=tied)
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def loss_and_gradients(loss: Loss, model: nn.Module, ignore: int = 0, bf16: bool = False) -> list[Tensor]:
    inputs, targets = tiny_text().batch(0, 0, ROWS)
    targets = targets.clone()
    targets.view(-1)[:ignore] = -100
    torch.manual_seed(1)  # for dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        value = loss(model, inputs, targets)
    value.backward()
    return [value.detach(), *(p.grad for p in model.parameters())]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference, each tensor in its own norm."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def mean_of_means(model: Any, inputs: Tensor, targets: Tensor, *, chunk: int) -> Tensor:
    """Wrong: a last chunk that is smaller counts as much as the others."""
    x, y = model.features(inputs).flatten(0, 1), targets.flatten()
    losses = [F.cross_entropy(model.head(a), b) for a, b in zip(x.split(chunk), y.split(chunk), strict=True)]
    return torch.stack(losses).mean()


def over_all_targets(model: Any, inputs: Tensor, targets: Tensor, *, chunk: int) -> Tensor:
    """Wrong: the ignored targets are counted."""
    x, y = model.features(inputs).flatten(0, 1), targets.flatten()
    losses = [
        F.cross_entropy(model.head(a), b, reduction="sum") for a, b in zip(x.split(chunk), y.split(chunk), strict=True)
    ]
    return torch.stack(losses).sum() / y.numel()


def with_a_shared_cast(model: Any, inputs: Tensor, targets: Tensor, *, chunk: int) -> Tensor:
    """Not wrong but coarse: autocast keeps one bf16 copy of the head, in which the chunks' gradients are added."""
    x, y = model.features(inputs).flatten(0, 1), targets.flatten()
    losses = [
        F.cross_entropy(model.head(a).float(), b, reduction="sum")
        for a, b in zip(x.split(chunk), y.split(chunk), strict=True)
    ]
    return torch.stack(losses).sum() / y.numel()


# --- equal to the plain loss -------------------------------------------------------------------------------------------

tied_or_not = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
precisions = pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
FP32 = 2e-6  # some 16 roundings of float32


@tied_or_not
@precisions
@pytest.mark.parametrize("chunk", [TOKENS, TOKENS + 1, 1024])
def test_a_single_chunk_is_the_plain_loss_bit_for_bit(tied: bool, bf16: bool, chunk: int) -> None:
    expected = loss_and_gradients(cross_entropy, gpt(tied), bf16=bf16)
    found = loss_and_gradients(partial(chunked_cross_entropy, chunk=chunk), gpt(tied), bf16=bf16)
    assert same(found, expected)


@tied_or_not
@pytest.mark.parametrize("chunk", [1, 7, 32, TOKENS - 1])
@pytest.mark.parametrize("ignore", [0, 40])
def test_any_chunk_gives_loss_and_gradients_up_to_rounding(tied: bool, chunk: int, ignore: int) -> None:
    expected = loss_and_gradients(cross_entropy, gpt(tied), ignore)
    found = loss_and_gradients(partial(chunked_cross_entropy, chunk=chunk), gpt(tied), ignore)
    assert distance(found, expected) < FP32
    assert found[0].dtype == torch.float32


def test_a_head_before_which_dropout_draws_sees_the_same_draws() -> None:
    expected = loss_and_gradients(cross_entropy, gpt(build=dropout_gpt))
    found = loss_and_gradients(partial(chunked_cross_entropy, chunk=7), gpt(build=dropout_gpt))
    assert distance(found, expected) < FP32


@pytest.mark.parametrize(("wrong", "ignore"), [(mean_of_means, 0), (over_all_targets, 40)])
def test_a_wrong_mean_is_told_apart(wrong: Loss, ignore: int) -> None:
    expected = loss_and_gradients(cross_entropy, gpt(), ignore)
    assert distance(loss_and_gradients(partial(wrong, chunk=7), gpt(), ignore), expected) > 100 * FP32


@tied_or_not
@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_in_bf16_the_heads_gradient_is_as_exact_as_the_plain_one(tied: bool, chunk: int) -> None:
    """Measured by the distance from the gradient in float32; a cast shared by the chunks adds up in bf16, and shows it."""
    exact = loss_and_gradients(cross_entropy, gpt(tied))
    head = 1 + [name for name, _ in gpt().named_parameters()].index("embedding.weight" if tied else "head.weight")
    plain, found, shared = (
        loss_and_gradients(loss, gpt(tied), bf16=True)
        for loss in (
            cross_entropy, partial(chunked_cross_entropy, chunk=chunk), partial(with_a_shared_cast, chunk=chunk)
        )
    )  # fmt: skip
    torch.testing.assert_close(found[0], plain[0], rtol=FP32, atol=0)
    plain, found, shared = (distance(x[head : head + 1], exact[head : head + 1]) for x in (plain, found, shared))
    assert found < 1.05 * plain
    assert tied or chunk > 7 or shared > 1.2 * found


def test_nothing_to_predict_is_nan_as_in_the_plain_loss() -> None:
    inputs, targets = tiny_text().batch(0, 0, 2)
    for loss in (cross_entropy, chunked_cross_entropy):
        assert loss(gpt(), inputs, torch.full_like(targets, -100)).isnan()


# --- fewer bytes -------------------------------------------------------------------------------------------------------


def kept_bytes(loss: Loss, vocab: int = 4096) -> int:
    """How many bytes the forward pass keeps for the backward pass, the weights aside, each tensor once."""
    torch.manual_seed(0)
    model = GPT(vocab_size=vocab, depth=1, width=32, context=CONTEXT)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x  # held, so that no address is used twice
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        loss(model, *tiny_text().batch(0, 0, ROWS))
    return sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in weights)


def largest_logits(loss: Loss) -> int:
    """How many rows go through the head at most at once, on the way there and on the way back."""
    model, most = gpt(), 0

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal most
        most = max(most, output.numel() // VOCAB)

    model.head.register_forward_hook(note)
    loss(model, *tiny_text().batch(0, 0, ROWS)).backward()
    return most


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    logits = 4 * TOKENS * 4096
    plain, chunked = kept_bytes(cross_entropy), kept_bytes(partial(chunked_cross_entropy, chunk=8))
    assert plain > logits
    assert plain - chunked > 0.95 * logits  # of a chunk, torch keeps the state of the random numbers, 5 kB
    assert chunked < 0.2 * plain
    assert kept_bytes(partial(mean_of_means, chunk=8)) > logits  # chunks alone do not help


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_no_more_than_a_chunk_goes_through_the_head_at_once(chunk: int) -> None:
    assert largest_logits(partial(chunked_cross_entropy, chunk=chunk)) == chunk
    assert largest_logits(cross_entropy) == TOKENS


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        inputs, targets = tiny_text().batch(0, 0, ROWS)
        found, expected = (loss(gpt().eval(), inputs, targets) for loss in (chunked_cross_entropy, cross_entropy))
    assert found.grad_fn is None
    assert same(found, expected)


# --- in a recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_in_one_chunk_is_the_plain_run_bit_for_bit(precision: str) -> None:
    plain = replace(BASE, precision=precision)
    chunked = replace(plain, loss=partial(chunked_cross_entropy, chunk=1024))
    found, expected = train(chunked), train(plain)
    assert same(found.losses, expected.losses)
    assert same(found.model.state_dict(), expected.model.state_dict())
    assert found.metrics == expected.metrics


def test_a_recipe_names_the_chunk() -> None:
    recipe = replace(BASE, loss=partial(chunked_cross_entropy, chunk=256))
    assert describe(recipe)["loss"] == "minitrain.runtime.chunked_loss.chunked_cross_entropy"
    assert describe(recipe)["loss.chunk"] == "256"


@pytest.mark.slow
def test_of_a_compiled_model_the_features_are_compiled() -> None:
    """In a process of its own: the test suite's checks of shapes cannot be compiled."""
    difference, graphs, calls = in_own_process("compile_and_chunk()").split()
    assert float(difference) < 1e-4
    assert int(graphs) >= 1
    assert int(calls) > 2 * int(graphs)  # compiled once, not in every step


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, -1, True, 2.5])
def test_a_chunk_that_means_nothing_is_refused(chunk: Any) -> None:
    loss: Any = getattr(chunked_cross_entropy, "__wrapped__", chunked_cross_entropy)
    with pytest.raises(Exception, match="chunk") as error:
        loss(gpt(), *tiny_text().batch(0, 0, 1), chunk=chunk)
    if chunk != 2.5:  # which the test suite's checks of types may refuse first
        assert_one_sentence(error.value, "at least 1 token", repr(chunk))


def test_a_model_without_features_and_head_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear cannot have its loss in chunks") as error:
        chunked_cross_entropy(nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1).long())
    assert_one_sentence(error.value, "features", "head", "use cross_entropy")
