"""Predicted bytes are those of real steps and of sums by hand; a fake CPU chooses as CUDA does, and leaves no trace."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import BASE, CONTEXT, Averaging, assert_one_sentence, tiny_text
from torch import Tensor, nn

from minitrain.gpt import GPT, nanogpt_style
from minitrain.lab import plan as module
from minitrain.lab.plan import GB, KINDS, PHASES, Plan, measured, plan, take_step
from minitrain.optim import SGD, Adam, AdamW, ClipGradNorm, Lion, wrapped
from minitrain.recipe import Recipe, cross_entropy
from minitrain.runtime import attention
from minitrain.runtime.chunked_loss import chunked_cross_entropy
from minitrain.runtime.recompute import recompute_blocks
from minitrain.techniques.split_weights import SplitWeights
from minitrain.techniques.step_in_backward import StepInBackward
from minitrain.train import build, train

ROWS = 16


def made_by(make: Callable, *by: Callable) -> dict:
    """The field of a recipe that says what optimizer."""
    return {"make_optimizer": partial(wrapped, make=make, by=by, lr=1e-3)}


def split_with_bf16_moments(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Under a name, which a recipe wants and a dtype does not have."""
    return SplitWeights(optimizer, moments=torch.bfloat16)


small_gpt = partial(GPT, vocab_size=512, depth=2, width=64, context=CONTEXT)
heavy_gpt = partial(GPT, vocab_size=64, depth=2, width=128, context=CONTEXT)  # its weights are most of it
PLAIN = Recipe(build_model=small_gpt, data=tiny_text, steps=2, batch_size=ROWS * CONTEXT, **made_by(AdamW))
HEAVY = replace(PLAIN, build_model=heavy_gpt, batch_size=CONTEXT)
LIGHT = replace(HEAVY, build_model=partial(heavy_gpt, depth=1))
CHUNKED = {"loss": partial(chunked_cross_entropy, chunk=2 * CONTEXT)}
RECOMPUTED = {"build_model": partial(recompute_blocks, small_gpt)}
SPLIT, IN_BACKWARD = made_by(AdamW, SplitWeights), made_by(AdamW, StepInBackward)
BOTH = made_by(AdamW, SplitWeights, StepInBackward)
BF16 = {"precision": "bf16"}


class Pictures:
    """Inputs of several dimensions, and a target without any."""

    row_size, size, digest = 1, 64, "pictures"

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        return torch.ones(rows, 3, 16, 16), torch.zeros(rows, dtype=torch.int64)

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return []


def convolutions() -> nn.Module:
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16 * 16 * 16, 10))


CASES = {
    "fp32": PLAIN,
    "bf16": replace(PLAIN, **BF16),
    "chunked": replace(PLAIN, **CHUNKED, **BF16),
    "recomputed": replace(PLAIN, **RECOMPUTED, **BF16),
    "micro batches": replace(PLAIN, micro_batch_size=4 * CONTEXT, **BF16),
    "flash attention": replace(
        PLAIN, build_model=partial(small_gpt, attend=partial(F.scaled_dot_product_attention, is_causal=True)), **BF16
    ),
    "nanogpt": replace(
        PLAIN, build_model=partial(nanogpt_style, vocab_size=512, depth=2, width=64, context=CONTEXT), **BF16
    ),
    "convolutions": replace(PLAIN, build_model=convolutions, data=Pictures, batch_size=32, loss=cross_entropy),
    "clipped and averaged": replace(HEAVY, before_step=(ClipGradNorm,), after_step=(Averaging,)),
    "split": replace(HEAVY, **SPLIT),
    "split 8": replace(HEAVY, **made_by(AdamW, partial(SplitWeights, bits=8))),
    "bf16 moments": replace(HEAVY, **made_by(AdamW, split_with_bf16_moments)),
    "in backward": replace(HEAVY, **IN_BACKWARD),
    "all": replace(HEAVY, build_model=partial(recompute_blocks, heavy_gpt), **CHUNKED, **BOTH, **BF16),
    "sgd": replace(LIGHT, **made_by(partial(SGD, momentum=0.9))),
    "adam": replace(LIGHT, **made_by(Adam)),
    "lion": replace(LIGHT, **made_by(Lion)),
    "torch adamw": replace(LIGHT, **made_by(torch.optim.AdamW)),
    "torch adamw fused": replace(LIGHT, **made_by(partial(torch.optim.AdamW, fused=True))),
    "torch adamw foreach": replace(LIGHT, **made_by(partial(torch.optim.AdamW, foreach=True))),
}


@cache
def planned(case: str, device: str = "cpu") -> Plan:
    return plan(CASES[case], device)


def bytes_of(*tensors: Tensor) -> int:
    """Of their memory, shared memory once."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


# --- beside real steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_phase_is_that_of_a_real_step_and_so_is_what_stays_between_steps(case: str) -> None:
    found, predicted = measured(CASES[case]), planned(case)
    assert predicted.total == pytest.approx(max(found.values()), rel=0.005)  # 5 % are asked for
    for phase, sizes in predicted.moments.items():
        assert sum(sizes.values()) == pytest.approx(found[phase], rel=0.02), phase
    run = build(CASES[case])
    take_step(run, nullcontext)
    state = [(key, x) for s in run.optimizer.state.values() for key, x in s.items() if isinstance(x, Tensor)]
    averages = [x for hook in run.after_step for x in hook.mean.values()]
    found = {
        "weights": bytes_of(*run.model.parameters(), *run.model.buffers()),
        "extra bits": bytes_of(*(x for key, x in state if key == "low")),
        "optimizer state": bytes_of(*(x for key, x in state if key != "low"), *averages),
    }
    for kind, size in found.items():
        start = predicted.moments["forward"][kind]
        assert start == pytest.approx(size, abs=100), kind  # the norm that was clipped by, and the like
    assert predicted.parameters == sum(p.numel() for p in run.model.parameters())


def test_gradients_are_all_there_at_the_step_or_never() -> None:
    weights = bytes_of(*build(HEAVY).model.parameters())
    assert planned("clipped and averaged").moments["optimizer step"]["gradients"] == weights
    assert planned("split").moments["optimizer step"]["gradients"] == weights // 2
    assert planned("in backward").moments["optimizer step"]["gradients"] == 0
    assert planned("adam").moments["forward"]["gradients"] == 0
    # With micro batches, the sum of the earlier ones is there in the forward pass of the later ones.
    assert planned("micro batches").moments["forward"]["gradients"] == bytes_of(*build(PLAIN).model.parameters())
    assert planned("fp32").moments["forward"]["gradients"] == 0


# --- beside sums by hand -----------------------------------------------------------------------------------------------

N, INPUT, H, OUT = 32, 24, 128, 16  # rows, and widths of input, hidden layer and output
SCALARS = 64  # bytes: losses and counters, 4 each


class Numbers:
    """Rows of float32 for `Layers`."""

    row_size, size, digest = 1, N, "numbers"

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        return torch.ones(rows, INPUT), torch.ones(rows, OUT)

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return [self.batch(0, 0, rows)]


def layers(*between: Callable[[], nn.Module]) -> nn.Module:
    """Two matrices with something between them; the second one is tied to nothing, and none has a bias."""
    return nn.Sequential(nn.Linear(INPUT, H, bias=False), *(make() for make in between), nn.Linear(H, OUT, bias=False))


Softmax = partial(nn.Softmax, dim=-1)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def squared_error(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(model(inputs).float(), targets)


def in_its_own_precision(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """For 16-bit weights without autocast, which takes the inputs for them."""
    dtype = next(model.parameters()).dtype
    return squared_error(model, inputs.to(dtype), targets)


def reads_a_value(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    loss = squared_error(model, inputs, targets)
    return loss if loss.item() > 0 else -loss


TOY = Recipe(
    build_model=partial(layers, nn.ReLU), data=Numbers, steps=1, batch_size=N, loss=squared_error, **made_by(AdamW)
)
NORMED = replace(TOY, build_model=partial(layers, partial(nn.RMSNorm, H)))
WEIGHTS = 4 * (INPUT * H + H * OUT)


def test_each_kind_is_the_sum_by_hand() -> None:
    predicted = plan(TOY, "cpu")
    x, y, relu = 4 * N * INPUT, 4 * N * OUT, 4 * N * H
    by_hand = {
        # Inputs, targets and what the ReLU gives are kept; what it was given is still there while it computes.
        "forward": {"activations": x + y + relu, "temporaries": relu, "gradients": 0},
        # The gradients of the ReLU's result and of its input, while one weight's gradient is there.
        "backward": {"activations": x + y + relu, "temporaries": 2 * relu, "gradients": 4 * H * OUT},
        "optimizer step": {"activations": 0, "temporaries": 0, "gradients": WEIGHTS},
    }
    for phase, kinds in by_hand.items():
        stays = {"weights": WEIGHTS, "extra bits": 0, "optimizer state": 2 * WEIGHTS}
        for kind, size in {**kinds, **stays}.items():
            assert predicted.moments[phase][kind] == pytest.approx(size, abs=SCALARS), (phase, kind)
    assert tuple(predicted.moments) == PHASES
    assert predicted.peak == predicted.moments["backward"]
    assert tuple(predicted.peak) == KINDS
    # Two products forward, two backward for the second matrix, one for the first, whose input needs no gradient.
    assert predicted.flops == 2 * N * (2 * INPUT * H + 3 * H * OUT)


def test_flops_of_gpt2_are_those_of_its_products_and_blocks_computed_again_cost_a_forward_pass() -> None:
    T, C, depth, V = 64, 768, 2, 50304
    build_model = partial(nanogpt_style, vocab_size=V, depth=depth, width=C, heads=12, context=T)
    recipe = replace(PLAIN, build_model=build_model, data=partial(text_of, T), batch_size=2 * T)
    products, scores = depth * 12 * C * C, 2 * T * C * depth  # per token: the blocks' matrices, and queries by keys
    head = C * V
    expected = (
        2 * 2 * T * (3 * (products + head) + (2 + 5) / 2 * scores)
    )  # attention's backward has 5 products to its 2
    assert plan(recipe).flops == pytest.approx(expected, rel=1e-9)
    again = plan(replace(recipe, build_model=partial(recompute_blocks, build_model))).flops - plan(recipe).flops
    # The last product of each block is not needed again: torch stops before it.
    assert again == pytest.approx(2 * 2 * T * (products - depth * 4 * C * C + scores), rel=1e-9)


def text_of(context: int):
    return module.StandIn(context, 10**9, ((context,), (context,)), ("int64", "int64"))


def tower() -> nn.Module:
    """So many equal matrices that what the largest needs for its step is little."""
    return nn.Sequential(*(nn.Linear(H, H, bias=False) for _ in range(64)))


class OneRow(Numbers):
    """A single row for `tower`, so that activations are little too."""

    size = 1

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        return torch.ones(rows, H), torch.ones(rows, H)


@pytest.mark.parametrize(("by", "least"), [((), 16), ((SplitWeights,), 14), ((SplitWeights, StepInBackward), 12)])
def test_bytes_per_parameter_of_a_model_that_is_mostly_weights(by: tuple, least: int) -> None:
    recipe = replace(
        TOY, build_model=tower, data=OneRow, batch_size=1, loss=in_its_own_precision, **made_by(AdamW, *by)
    )
    cpu, cuda, real = plan(recipe, "cpu"), plan(recipe, "cuda"), measured(recipe)
    for total in (cpu.total, cuda.total, max(real.values())):
        assert least <= total / (64 * H * H) <= 1.02 * least
    bytes_of_a_gradient = 2 if by else 4
    assert cpu.peak["gradients"] == bytes_of_a_gradient * H * H * (1 if StepInBackward in by else 64)


# --- GPT-2 -------------------------------------------------------------------------------------------------------------

gpt2_model = partial(nanogpt_style, vocab_size=50304, depth=12, width=768, heads=12, context=1024)
GPT2 = replace(PLAIN, build_model=gpt2_model, data=partial(text_of, 1024), batch_size=12 * 1024, **BF16)


def test_the_loss_in_chunks_halves_the_peak_of_gpt2() -> None:
    plain, chunked = plan(GPT2), plan(replace(GPT2, loss=partial(chunked_cross_entropy, chunk=1024), **SPLIT))
    assert plain.parameters == 124_373_760
    assert plain.total == pytest.approx(12.39 * GB, rel=0.001)  # what torch's own MemTracker finds
    assert chunked.total <= 0.5 * plain.total
    # Split weights are stepped four million at a time on a GPU, each with its gradient in float32.
    assert chunked.moments["optimizer step"]["temporaries"] == pytest.approx(8 * 2**22, rel=0.01)
    assert plain.fits(12.5)
    assert not plain.fits(12.3)
    assert "backward (peak)" in str(plain)
    assert re.search(r"^all +10.08 +12.39 +1.85$", str(plain), re.MULTILINE)


def test_a_model_larger_than_any_memory_can_be_planned() -> None:
    huge = partial(GPT, vocab_size=50304, depth=4, width=32_768, heads=256, context=1024)
    predicted = plan(replace(GPT2, build_model=huge))
    assert predicted.total > 16 * predicted.parameters > 800 * GB


# --- the choices of CUDA -----------------------------------------------------------------------------------------------


def test_attention_on_cuda_keeps_no_scores() -> None:
    sdpa = replace(PLAIN, build_model=CASES["flash attention"].build_model)
    assert plan(PLAIN, "cuda") == plan(sdpa, "cuda")
    assert plan(PLAIN, "cpu").total > plan(sdpa, "cpu").total


def test_rms_norm_on_cuda_keeps_its_input_and_a_number_for_each_row() -> None:
    forward = plan(NORMED, "cuda").moments["forward"]
    x, y, hidden = 4 * N * INPUT, 4 * N * OUT, 4 * N * H
    assert forward["activations"] == pytest.approx(x + 2 * y + 2 * hidden + 512, abs=8 * 512)  # input, and result
    assert plan(NORMED, "cpu").moments["forward"]["activations"] > x + 2 * y + 3 * hidden


def test_autocast_on_cuda_computes_some_operators_in_float32() -> None:
    def kept(between: Callable, device: str) -> int:
        recipe = replace(TOY, build_model=partial(layers, between), **BF16)
        return plan(recipe, device).moments["forward"]["activations"]

    normalize = partial(nn.LayerNorm, H, bias=False)
    more = {
        name: kept(f, "cuda") - kept(f, "cpu")
        for name, f in (("square", Squared), ("norm", normalize), ("softmax", Softmax))
    }
    # A square keeps its input in float32 and not in bf16, and so does a norm; a softmax its result, besides that in bf16.
    by_hand = {"square": 2 * N * H, "norm": 2 * N * H, "softmax": 4 * N * H}
    assert more == pytest.approx(by_hand, abs=16 * 512)


def test_what_is_computed_again_is_an_activation_again() -> None:
    one_block = partial(heavy_gpt, depth=1)
    plain, again = (
        plan(replace(PLAIN, build_model=build), "cpu").moments
        for build in (one_block, partial(recompute_blocks, one_block))
    )
    assert again["forward"]["activations"] < 0.7 * plain["forward"]["activations"]
    assert again["backward"]["activations"] == pytest.approx(plain["backward"]["activations"], rel=0.1)


def half_layers() -> nn.Module:
    return layers(nn.ReLU).to(torch.bfloat16)


def test_a_model_may_be_converted_while_it_is_built() -> None:
    recipe = replace(TOY, build_model=half_layers, loss=in_its_own_precision)
    assert plan(recipe, "cpu").peak["weights"] == WEIGHTS // 2


def test_memory_on_cuda_comes_in_blocks() -> None:
    assert all(size % 512 == 0 for sizes in plan(TOY, "cuda").moments.values() for size in sizes.values())
    assert any(size % 512 for size in plan(TOY, "cpu").peak.values())


def test_torchs_optimizers_take_all_tensors_at_once_on_cuda_unless_told_otherwise() -> None:
    def temporaries(make: Callable, device: str) -> int:
        return plan(replace(HEAVY, **made_by(make)), device).moments["optimizer step"]["temporaries"]

    weights = bytes_of(*build(HEAVY).model.parameters())
    foreach, fused = (partial(torch.optim.AdamW, **{name: True}) for name in ("foreach", "fused"))
    assert weights / 2 < temporaries(torch.optim.AdamW, "cuda") == temporaries(foreach, "cuda")
    assert temporaries(fused, "cuda") < temporaries(torch.optim.AdamW, "cpu") < weights / 2
    assert temporaries(partial(torch.optim.AdamW, foreach=False), "cuda") < weights / 2


def test_the_lists_of_autocast_are_torchs_own() -> None:
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()
    lists = (("AT_FORALL_FP32", module.CAST_ARGUMENTS), ("AT_FORALL_FP32_SET_OPT_DTYPE", module.ASK_FOR_FLOAT32))
    left_out = r"_?upsample|nuclear|frobenius|p?dist$|renorm|cumprod|linalg_matrix"
    for macro, names in lists:
        found = re.search(rf"#define {macro}\(_\)(.*?)\n\n", header, re.DOTALL)
        assert found
        on_cuda = {name + (f".{o}" if o else "") for name, o in re.findall(r"_\((\w+)(?:, (\w+))?\)", found[1])}
        only_there = {name for name in on_cuda if not has_kernel_of_autocast_on_cpu(name)}
        assert {name for name in only_there if not re.match(left_out, name)} == set(names)


def has_kernel_of_autocast_on_cpu(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU")


# --- what cannot be planned, and what is left behind -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "device", "words"),
    [
        (TOY, "mps", ["device", "cuda or cpu", "mps"]),
        (replace(TOY, loss=reads_a_value), "cpu", ["cannot be planned", "_local_scalar_dense"]),
        (replace(TOY, batch_size=2 * N), "cpu", ["batch_size", "larger"]),
        (TOY, "abacus", ["cuda or cpu", "abacus"]),
        (replace(HEAVY, before_step=(ClipGradNorm,), **IN_BACKWARD), "cpu", ["inside the backward pass"]),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_sentence(recipe: Recipe, device: str, words: list[str]) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        plan(recipe, device)
    assert_one_sentence(caught.value, *words)


@pytest.mark.parametrize("recipe", [PLAIN, replace(TOY, loss=reads_a_value)])
def test_nothing_is_left_behind(recipe: Recipe) -> None:
    random, longest = torch.get_rng_state(), attention.LONGEST_MATERIALIZED
    try:
        plan(recipe, "cuda")
    except ValueError:
        assert recipe.loss is reads_a_value
    assert torch.equal(torch.get_rng_state(), random)
    assert longest == attention.LONGEST_MATERIALIZED
    assert not has_kernel_of_autocast_on_cpu("pow.Tensor_Scalar")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ones(2, dtype=torch.bfloat16).square().dtype == torch.bfloat16
    assert torch.equal(F.rms_norm(torch.full((2, 4), 3.0), (4,)), torch.ones(2, 4))
    assert nn.Linear(2, 2).to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert math.isfinite(float(train(BASE).losses[-1]))
