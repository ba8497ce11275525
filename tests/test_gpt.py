"""The model: attention against torch's own, causality of every variant, positions, the dial, the start, generation."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small import assert_one_sentence, every_pair
from torch import Tensor, nn

from minitrain.gpt import (
    GPT,
    MLP,
    Attention,
    Block,
    LayerNorm,
    RMSNormWithoutGain,
    Rotary,
    SwiGLU,
    nanogpt_style,
    textbook_attention,
)
from minitrain.runtime.attention import LONGEST_MATERIALIZED, batched_matmul_attention, causal_attention

VOCAB, CONTEXT = 11, 9


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


NORMS = {"rms": nn.RMSNorm, "layer": LayerNorm}
QK_NORMS = {"qk": RMSNormWithoutGain, "qk-layer": LayerNorm, "no-qk": nn.Identity}
MLPS = {"relu2": MLP, "gelu": partial(MLP, activation=F.gelu), "swiglu": SwiGLU}
POSITIONS = {"rotary": False, "learned": True}
HEADS = {"untied": False, "tied": True}
VARIANTS = {
    "-".join(names): {
        "norm": NORMS[names[0]],
        "qk_norm": QK_NORMS[names[1]],
        "mlp": MLPS[names[2]],
        "learned_positions": POSITIONS[names[3]],
        "tied": HEADS[names[4]],
    }
    for names in every_pair(NORMS, QK_NORMS, MLPS, POSITIONS, HEADS)
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def small_gpt(**choices) -> GPT:
    """A GPT of two blocks whose head is no longer zero, so that its logits say something."""
    model = GPT(**{"vocab_size": VOCAB, "depth": 2, "width": 16, "heads": 2, "context": CONTEXT, **choices})
    if model.head.weight is not model.embedding.weight:
        nn.init.normal_(model.head.weight)
    return model


def some_tokens(rows: int = 3, length: int = CONTEXT) -> Tensor:
    return torch.randint(VOCAB, (rows, length))


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- attention --------------------------------------------------------------------------------------------------------


def attention_without_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def attention_one_token_ahead(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(2).bool(), -torch.inf).softmax(-1) @ v


def attention_without_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return textbook_attention(q * math.sqrt(q.shape[-1]), k, v)


torch_attention = partial(F.scaled_dot_product_attention, is_causal=True)
OURS = [textbook_attention, batched_matmul_attention, causal_attention]
WRONG = [attention_without_mask, attention_one_token_ahead, attention_without_scale]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def queries_keys_values(length: int, dtype: torch.dtype = torch.float64, heads: int = 3) -> list[Tensor]:
    """Laid out as `Attention` hands them over: views of one `(B, T, 3 H D)` tensor, not contiguous."""
    qkv = torch.randn(2, length, 3, heads, 6, dtype=dtype)
    return [x.transpose(1, 2) for x in qkv.unbind(2)]


def output_and_gradients(attend, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = attend(*leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)  # so that no gradient is zero by symmetry
    return [y, *torch.autograd.grad((y * weights).sum(), leaves)]


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attend", OURS)
def test_attention_and_its_gradients_equal_torchs(attend, dtype: torch.dtype):
    for length in (1, 2, 7, 33):
        inputs = queries_keys_values(length, dtype)
        ours, reference = output_and_gradients(attend, inputs), output_and_gradients(torch_attention, inputs)
        assert [x.dtype for x in ours] == [dtype] * 4
        assert largest_difference(ours, reference) < TOLERANCE[dtype], length


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_attention_differs_from_torchs(wrong):
    inputs = queries_keys_values(7)
    assert largest_difference(output_and_gradients(wrong, inputs), output_and_gradients(torch_attention, inputs)) > 0.1


@pytest.mark.parametrize("length", [LONGEST_MATERIALIZED, LONGEST_MATERIALIZED + 1])
def test_causal_attention_is_the_same_on_both_sides_of_its_switch(length: int):
    inputs = queries_keys_values(length, heads=1)
    ours, reference = (output_and_gradients(attend, inputs) for attend in (causal_attention, textbook_attention))
    assert largest_difference(ours, reference) < 1e-11


@pytest.mark.parametrize("attend", OURS)
def test_equal_scores_give_the_running_mean_of_the_values(attend):
    q, k, v = queries_keys_values(7)
    running_mean = v.cumsum(-2) / torch.arange(1, 8).view(7, 1)
    torch.testing.assert_close(attend(torch.zeros_like(q), k, v), running_mean)


@pytest.mark.parametrize("attend", OURS)
def test_huge_scores_pick_one_value_and_stay_finite(attend):
    q, k, v = queries_keys_values(7, torch.float32)
    y = attend(1e4 * q, 1e4 * k, v)
    best = (q @ k.mT).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).argmax(-1)
    torch.testing.assert_close(y, v.gather(-2, best[..., None].expand_as(v)))


# --- causality --------------------------------------------------------------------------------------------------------


def influence(model: GPT) -> Tensor:
    """`(t, s)`: by how much the logits at position s move when only token t changes."""
    tokens = some_tokens(rows=1).expand(CONTEXT, CONTEXT)
    changed = (tokens + torch.eye(CONTEXT, dtype=torch.int64)) % VOCAB
    return (model(changed) - model(tokens)).abs().amax(-1)


@every_variant
def test_a_token_changes_no_logits_before_it_and_a_shorter_input_gets_the_same(variant: dict):
    model, tokens = small_gpt(**variant), some_tokens()
    with torch.no_grad():
        moved = influence(model)
    before = torch.ones(CONTEXT, CONTEXT).tril(-1).bool()
    assert (moved[before] == 0).all()
    assert (moved[~before] > 0).all()
    torch.testing.assert_close(model(tokens[:, :4]), model(tokens)[:, :4], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", [attention_without_mask, attention_one_token_ahead])
def test_attention_that_looks_ahead_is_caught(wrong):
    moved = influence(small_gpt(attend=wrong))
    assert (moved.tril(-1) > 0).any()


@every_variant
def test_the_variant_is_the_same_model_with_textbook_attention(variant: dict):
    model, tokens = small_gpt(**variant), some_tokens()
    expected = model(tokens)
    for block in model.blocks:
        block.attention.attend = textbook_attention
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)


def test_attention_splits_its_channels_into_heads_in_order_and_turns_queries_and_keys():
    rotary = Rotary(4, 5)
    layer = Attention(8, 2, textbook_attention, nn.Identity, rotary)
    x = torch.randn(1, 5, 8)
    split = [[y[:, None, :, i : i + 4] for y in layer.qkv(x).split(8, dim=-1)] for i in (0, 4)]
    heads = [textbook_attention(rotary(q), rotary(k), v)[:, 0] for q, k, v in split]
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, dim=-1)))


# --- positions --------------------------------------------------------------------------------------------------------


class RotaryWithWrongSign(Rotary):
    """Not a rotation: the second sine has lost its partner's sign."""

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos + b * sin, a * sin + b * cos), dim=-1)


def turned_dot_products(rotary: nn.Module) -> Tensor:
    """`(i, j)`: the product of one query standing at i with one key standing at j."""
    q, k = torch.randn(2, 8, dtype=torch.float64)
    q, k = (rotary(x.expand(1, 1, 32, 8))[0, 0] for x in (q, k))
    return q @ k.mT


def spread_along_diagonals(products: Tensor) -> float:
    """How far products at the same distance differ."""
    size = len(products)
    return max(d.max().item() - d.min().item() for d in (products.diagonal(i) for i in range(1 - size, size)))


def test_rotary_products_depend_on_the_distance():
    products = turned_dot_products(Rotary(8, 32))
    assert spread_along_diagonals(products) < 1e-4
    assert products[0].std() > 0.1
    assert spread_along_diagonals(turned_dot_products(RotaryWithWrongSign(8, 32))) > 0.1


def test_rotary_is_a_complex_factor_on_each_pair():
    x = torch.randn(2, 3, 32, 8, dtype=torch.float64)
    frequency = torch.tensor([10_000.0 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
    angle = torch.arange(32, dtype=torch.float64)[:, None] * frequency
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(Rotary(8, 32)(x), torch.cat((pairs.real, pairs.imag), -1), atol=1e-5, rtol=1e-5)


def test_rotary_keeps_the_precision_it_is_given_and_adds_nothing_to_what_is_saved():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert Rotary(8, 32)(torch.randn(1, 1, 4, 8, dtype=dtype)).dtype == dtype
    assert not Rotary(8, 32).state_dict()


def order_matters(model: GPT) -> bool:
    """Whether the last logits notice that two earlier tokens changed places."""
    there, swapped = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 1, 3, 4]])
    return not torch.allclose(model(there)[:, -1], model(swapped)[:, -1], atol=1e-4)


def test_rotary_positions_tell_the_order():
    model = small_gpt(depth=1)
    assert order_matters(model)
    model.blocks[0].attention.positions = nn.Identity()
    assert not order_matters(model)


def test_learned_positions_tell_the_order():
    model = small_gpt(depth=1, learned_positions=True)
    nn.init.normal_(model.positions.weight)
    assert order_matters(model)
    nn.init.zeros_(model.positions.weight)
    assert not order_matters(model)


# --- the blocks -------------------------------------------------------------------------------------------------------


def test_mlp_is_two_matrices_around_relu_squared():
    mlp, x = MLP(6), torch.randn(2, 3, 6)
    torch.testing.assert_close(mlp(x), (x @ mlp.up.weight.T).clamp(min=0).pow(2) @ mlp.out.weight.T)
    assert mlp.up.weight.shape == (24, 6)


def test_swiglu_is_a_gated_product():
    mlp, x = SwiGLU(6), torch.randn(2, 3, 6)
    gate, up = x @ mlp.gate.weight.T, x @ mlp.up.weight.T
    torch.testing.assert_close(mlp(x), (gate * gate.sigmoid() * up) @ mlp.out.weight.T)


def test_swiglu_has_about_as_many_parameters_as_the_mlp():
    for width in (16, 32, 96, 128, 250, 384, 768):
        with torch.device("meta"):
            gated, plain = SwiGLU(width), MLP(width)
        assert gated.up.out_features % 8 == 0
        assert 1 <= count_parameters(gated) / count_parameters(plain) <= 1 + 3 / width


def test_a_block_adds_two_answers_to_the_stream():
    attention, mlp, x = nn.Linear(6, 6, bias=False), MLP(6), torch.randn(2, 3, 6)
    after_attention = x + attention(F.layer_norm(x, (6,)))
    expected = after_attention + mlp(F.layer_norm(after_attention, (6,)))
    torch.testing.assert_close(Block(6, LayerNorm, attention, mlp)(x), expected)


@every_variant
def test_features_through_the_head_are_the_logits_and_nothing_has_a_bias(variant: dict):
    model, tokens = small_gpt(**variant), some_tokens()
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    features = model.features(tokens)
    assert features.shape == (3, CONTEXT, 16)
    assert torch.equal(model.head(features), model(tokens))


@every_variant
def test_bf16_autocast_stays_close_to_float32(variant: dict):
    model, tokens = small_gpt(**variant), some_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    reference = model(tokens)
    assert (logits - reference).std() < 0.05 * reference.std()


def test_tied_head_is_the_embedding():
    model = GPT(depth=1, tied=True)
    assert model.head.weight is model.embedding.weight
    assert count_parameters(GPT(depth=1)) - count_parameters(model) == 256 * 32


# --- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [1, 256])
def test_untied_model_starts_as_a_uniform_guess(vocab_size: int):
    model = GPT(vocab_size, depth=1)
    tokens = torch.randint(vocab_size, (2, 9))
    logits = model(tokens)
    assert logits.shape == (2, 9, vocab_size)
    assert (logits == 0).all()
    assert F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item() == pytest.approx(math.log(vocab_size))


@pytest.mark.parametrize("vocab_size", [2, 1000])
def test_tied_model_starts_near_a_uniform_guess(vocab_size: int):
    model = nanogpt_style(vocab_size, depth=1)
    tokens = torch.randint(vocab_size, (2, 9))
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).item()
    assert loss == pytest.approx(math.log(vocab_size), abs=0.1)


@pytest.mark.parametrize("mlp", MLPS.values(), ids=MLPS)
def test_matrices_start_at_the_size_that_keeps_their_input(mlp):
    depth, width = 3, 96
    for block in GPT(depth=depth, mlp=mlp).blocks:
        assert block.attention.qkv.weight.std().item() == pytest.approx(width**-0.5, rel=0.03)
        assert block.mlp.up.weight.std().item() == pytest.approx(width**-0.5, rel=0.03)
        for out in (block.attention.out, block.mlp.out):  # two additions a block to the residual stream
            assert out.weight.std().item() == pytest.approx((out.in_features * 2 * depth) ** -0.5, rel=0.03)


@pytest.mark.parametrize(
    ("choices", "std"), [({}, 1.0), ({"tied": True}, 0.02), ({"learned_positions": True}, 0.02)], ids=str
)
def test_embeddings_start_at_unit_size_unless_something_shares_their_scale(choices: dict, std: float):
    model = GPT(depth=2, **choices)
    for table in filter(None, (model.embedding, model.positions)):
        assert table.weight.std().item() == pytest.approx(std, rel=0.03)


def parameters_without_gradient(model: GPT, tokens: Tensor) -> set[str]:
    model.zero_grad()
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten()).backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


@every_variant
def test_gradients_reach_every_parameter_once_the_head_has_moved(variant: dict):
    model, tokens = GPT(VOCAB, depth=2, width=16, heads=2, context=CONTEXT, **variant), some_tokens()
    names = {name for name, _ in model.named_parameters()}
    at_start = parameters_without_gradient(model, tokens)
    assert at_start == (set() if variant["tied"] else names - {"head.weight"})
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert parameters_without_gradient(model, tokens) == set()


# --- the dial ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "depth", "width", "heads"),
    [
        ({}, 4, 128, 4),
        ({"depth": 1}, 1, 32, 1),
        ({"depth": 13}, 13, 416, 13),
        ({"width": 16}, 1, 16, 1),
        ({"width": 384}, 12, 384, 12),
        ({"depth": 2, "width": 256}, 2, 256, 8),
        ({"depth": 2, "heads": 8}, 2, 64, 8),
    ],
    ids=str,
)
def test_sizes_follow_from_what_is_given(given: dict, depth: int, width: int, heads: int):
    with torch.device("meta"):
        model = GPT(**given)
    assert len(model.blocks) == depth
    assert model.embedding.weight.shape == (256, width)
    assert {block.attention.heads for block in model.blocks} == {heads}
    assert model.blocks[0].attention.positions.cos.shape == (128, width // heads // 2)


def test_nanogpt_style_has_the_parts_of_gpt2():
    model = nanogpt_style(depth=1)
    block = model.blocks[0]
    assert block.mlp.activation is F.gelu
    assert {type(norm) for norm in (block.attention_norm, block.mlp_norm, model.norm)} == {nn.LayerNorm}
    assert {type(x) for x in (block.attention.q_norm, block.attention.k_norm, block.attention.positions)} == {
        nn.Identity
    }
    assert model.positions.weight.shape == (128, 32)
    assert model.head.weight is model.embedding.weight


def test_nanogpt_style_at_gpt2s_sizes_has_gpt2s_parameters():
    with torch.device("meta"):
        model = nanogpt_style(vocab_size=50304, depth=12, width=768, context=1024)
    tables, matrices, gains = (50304 + 1024) * 768, 12 * 12 * 768**2, 25 * 768
    assert count_parameters(model) == tables + matrices + gains == pytest.approx(124e6, rel=0.005)
    assert count_parameters(nanogpt_style(depth=4, width=128)) == pytest.approx(0.8e6, rel=0.05)  # nanoGPT on a CPU


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"vocab_size": 0}, ["vocab_size", 0]),
        ({"depth": 0}, ["depth", 0]),
        ({"depth": 2, "width": -32}, ["width", -32]),
        ({"heads": 0}, ["heads", 0]),
        ({"context": 0}, ["context", 0]),
        ({"depth": 2, "heads": 3}, ["width 64", "3 heads"]),
        ({"width": 30, "heads": 2}, ["width 30", "2 heads", "even"]),
        ({"width": 8, "heads": 16}, ["width 8", "16 heads"]),
        ({"width": 30, "heads": 2, "learned_positions": True}, ["width 30"]),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_in_one_sentence(sizes: dict, words: list):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the words are checked below
        GPT(**sizes)
    assert_one_sentence(caught.value, *words)


@pytest.mark.parametrize("learned", [False, True])
def test_more_tokens_than_context_are_refused_in_one_sentence(learned: bool):
    model = small_gpt(learned_positions=learned)
    model(some_tokens(length=CONTEXT))
    with pytest.raises(ValueError, match="context") as caught:
        model(some_tokens(length=CONTEXT + 1))
    assert_one_sentence(caught.value, CONTEXT + 1, CONTEXT)


# --- generation -------------------------------------------------------------------------------------------------------


class FixedLogits(GPT):
    """Answers the same logits everywhere, so that what is drawn has a known distribution."""

    def __init__(self, logits: list[float]):
        super().__init__(len(logits), depth=1, width=2)
        self.logits = torch.tensor(logits)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(*tokens.shape, -1)


PROMPT = torch.tensor([[1, 2, 3]])


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def greedy_by_hand(model: GPT, tokens: Tensor, count: int) -> Tensor:
    for _ in range(count):
        tokens = torch.cat((tokens, model(tokens[:, -CONTEXT:])[:, -1].argmax(-1)[:, None]), dim=1)
    return tokens


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1e-10, None), (1e-40, None), (5.0, 1)])
def test_at_temperature_zero_or_near_it_or_of_one_candidate_the_likeliest_token_is_taken(temperature, top_k):
    model = small_gpt()
    for prompt in (some_tokens(1, 4), some_tokens(3, 4)):
        assert torch.equal(model.generate(prompt, 12, temperature, top_k), greedy_by_hand(model, prompt, 12))


def test_the_same_seed_draws_the_same_tokens():
    model = small_gpt()
    drawn = [model.generate(PROMPT, 20, generator=seed(number)) for number in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_generator_leaves_the_default_random_numbers_alone():
    model = small_gpt()
    state = torch.get_rng_state()
    model.generate(PROMPT, 5, generator=seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    model.generate(PROMPT, 5)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(temperature: float):
    logits, draws = [0.0, 1.0, 2.0, -1.0], 20_000
    tokens = FixedLogits(logits).generate(torch.zeros(draws, 1, dtype=torch.int64), 1, temperature, generator=seed(0))
    share = tokens[:, -1].bincount(minlength=4) / draws
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_only_the_best_k_tokens_are_drawn():
    for top_k, seen in ((1, {2}), (2, {1, 2}), (3, {0, 1, 2}), (4, {0, 1, 2, 3})):
        tokens = FixedLogits([0.0, 0.1, 0.2, -0.1]).generate(PROMPT, 100, top_k=top_k, generator=seed(0))
        assert set(tokens[0, 3:].tolist()) == seen


def test_top_k_draws_no_more_than_k_tokens_when_logits_tie():
    """A model that was never trained has equal logits everywhere."""
    tokens = GPT(VOCAB, depth=1).generate(PROMPT, 100, top_k=3, generator=seed(0))
    assert len(set(tokens[0, 3:].tolist())) <= 3


def test_a_top_k_above_the_vocabulary_changes_nothing():
    model = small_gpt()
    cut, free = (model.generate(PROMPT, 20, top_k=k, generator=seed(1)) for k in (VOCAB + 1, None))
    assert torch.equal(cut, free)


def test_generation_appends_to_the_prompt():
    tokens = small_gpt().generate(PROMPT, 5, generator=seed(0))
    assert tokens.shape == (1, 8)
    assert torch.equal(tokens[:, :3], PROMPT)
    assert torch.equal(small_gpt().generate(PROMPT, 0), PROMPT)


@pytest.mark.parametrize("learned", [False, True])
def test_a_prompt_longer_than_the_context_is_read_from_its_end(learned: bool):
    model, prompt = small_gpt(learned_positions=learned), some_tokens(2, 3 * CONTEXT)
    long, cut = (model.generate(p, 12, generator=seed(1)) for p in (prompt, prompt[:, -CONTEXT:]))
    assert torch.equal(long[:, : 3 * CONTEXT], prompt)
    assert torch.equal(long[:, 3 * CONTEXT :], cut[:, CONTEXT:])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"temperature": math.nan}, "nan"),
        ({"temperature": -0.5}, "-0.5"),
        ({"top_k": 0}, "0"),
        ({"top_k": -1}, "-1"),
        ({"prompt": PROMPT[:, :0]}, "empty"),
    ],
    ids=str,
)
def test_generation_refuses_what_it_cannot_do(arguments: dict, word: str):
    with pytest.raises(ValueError, match=r"temperature|top_k|prompt") as caught:
        small_gpt().generate(**{"prompt": PROMPT, "max_new_tokens": 1, **arguments})
    assert_one_sentence(caught.value, word)
