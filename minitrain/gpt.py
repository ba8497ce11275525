"""A decoder-only GPT, written to be read: one screen per block, no biases, and no flags inside the blocks.

What can be swapped is a constructor argument that is a callable: `norm` and `qk_norm` are `(width) -> Module`, `mlp` is
`(width) -> Module`, `attend` is `(q, k, v) -> y`. Shape letters: B batch, T tokens, C channels, H heads, D head width,
V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minitrain.runtime.attention import causal_attention

NormFactory = Callable[[int], nn.Module]
LayerNorm = partial(nn.LayerNorm, bias=False)
RMSNormWithoutGain = partial(nn.RMSNorm, elementwise_affine=False)  # for queries and keys


class Rotary(nn.Module):
    """Rotary positions: turns each pair of channels by an angle proportional to the token's position.

    A dot product of two turned vectors depends only on how far apart they stand (Su et al., 2021, arXiv 2104.09864).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, context: int, base: float = 10_000.0):
        super().__init__()
        frequency = base ** (-torch.arange(0, head_width, 2) / head_width)  # one per pair, from 1 down towards 1/base
        angle = torch.outer(torch.arange(context).float(), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        cos, sin = self.cos[: x.shape[-2]].to(x.dtype), self.sin[: x.shape[-2]].to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def textbook_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"]
) -> Float[Tensor, "B H T D"]:
    """Causal attention as the books print it: `softmax(q k' / sqrt(D)) v`, no token looking ahead."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head causal self-attention. `positions` turns queries and keys (rotary) or leaves them alone."""

    def __init__(self, width: int, heads: int, attend: Callable, qk_norm: NormFactory, positions: nn.Module):
        super().__init__()
        self.heads, self.attend = heads, attend
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = qk_norm(width // heads), qk_norm(width // heads)
        self.positions = positions

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        q, k, v = rearrange(self.qkv(x), "B T (three H D) -> three B H T D", three=3, H=self.heads)
        q, k = self.positions(self.q_norm(q)), self.positions(self.k_norm(k))
        y = self.attend(q, k, v)
        return self.out(rearrange(y, "B H T D -> B T (H D)"))


def relu_squared(x: Tensor) -> Tensor:
    """`max(x, 0)^2` (So et al., 2021, arXiv 2109.08668): cheaper than GELU."""
    return F.relu(x).square()


class MLP(nn.Module):
    """Two matrices around an activation, four times as wide inside."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor] = relu_squared):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.out(self.activation(self.up(x)))


class SwiGLU(nn.Module):
    """A gated MLP, `out(silu(gate(x)) * up(x))`, 8/3 as wide inside so that it has as many parameters as `MLP`.

    Shazeer, 2020, arXiv 2002.05202. The inner width is rounded up to a multiple of 8.
    """

    def __init__(self, width: int):
        super().__init__()
        hidden = 8 * math.ceil(width / 3)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.out(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm: each half reads a normalized copy of the residual stream and adds its answer to the stream."""

    def __init__(self, width: int, norm: NormFactory, attention: nn.Module, mlp: nn.Module):
        super().__init__()
        self.attention_norm, self.attention = norm(width), attention
        self.mlp_norm, self.mlp = norm(width), mlp

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Tokens to the logits of the next token. `depth` is the one dial: width and heads follow from it unless given.

    `width` defaults to 32 per block, or `depth` follows from a given width; heads are 32 wide.
    `learned_positions=True` adds a table of positions to the embedding in place of the rotary turns; `tied=True` uses the
    embedding as head. Raises `ValueError` for sizes that do not fit together.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        depth: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        context: int = 128,
        norm: NormFactory = nn.RMSNorm,
        mlp: Callable[[int], nn.Module] = MLP,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] = causal_attention,
        qk_norm: NormFactory = RMSNormWithoutGain,
        learned_positions: bool = False,
        tied: bool = False,
    ):
        super().__init__()
        if depth is None:
            depth = 4 if width is None else max(1, width // 32)
        if width is None:
            width = 32 * depth
        if heads is None:
            heads = max(1, width // 32)
        check_sizes(vocab_size=vocab_size, depth=depth, width=width, heads=heads, context=context)
        rotary = nn.Identity() if learned_positions else Rotary(width // heads, context)
        self.context = context
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width) if learned_positions else None
        self.blocks = nn.ModuleList(
            Block(width, norm, Attention(width, heads, attend, qk_norm, rotary), mlp(width)) for _ in range(depth)
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every linear layer of a block keeps the size of its input, whichever `mlp` it is in.

        One that is named `out` writes into the residual stream, and is scaled down for two such additions per block. A
        head of its own starts at zero, so that the model starts as a uniform guess: for bytes, exactly 8 bits per byte.
        """
        tied = self.head.weight is self.embedding.weight
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                additions = 2 * len(self.blocks) if name.endswith(".out") else 1
                nn.init.normal_(module.weight, std=(module.in_features * additions) ** -0.5)
        # A tied table is also the head: rows of unit size would make the first logits large.
        for table in filter(None, (self.embedding, self.positions)):
            nn.init.normal_(table.weight, std=0.02 if tied or self.positions else 1.0)
        if not tied:
            nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return self.head(self.features(tokens))

    def features(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """What the head reads."""
        T = tokens.shape[1]
        if self.context < T:
            raise ValueError(f"{T} tokens do not fit into this model's context of {self.context}; cut the input")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[:T]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "B T"],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "B T2"]:
        """The prompt and what the model adds to it. `temperature=0` takes the likeliest; `top_k` draws from the best k."""
        if math.isnan(temperature) or temperature < 0:
            raise ValueError(f"temperature must be 0 or above, not {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        if prompt.shape[1] < 1:
            raise ValueError("the prompt is empty; give it at least one token")
        tokens = prompt
        for _ in range(max_new_tokens):
            logits = self(tokens[:, -self.context :])[:, -1].float()
            logits, choices = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # the best first
            if temperature > 1e-6:  # below, the likeliest token leaves no chance to any other
                probabilities = ((logits - logits[:, :1]) / temperature).softmax(-1)  # the best at 0: nothing overflows
                choices = choices.gather(-1, torch.multinomial(probabilities, 1, generator=generator))
            tokens = torch.cat((tokens, choices[:, :1]), dim=1)
        return tokens


def check_sizes(**sizes: int) -> None:
    """Raises `ValueError` with one sentence where the sizes of a GPT do not fit together."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    width, heads = sizes["width"], sizes["heads"]
    if width % heads or (width // heads) % 2:
        raise ValueError(f"width {width} does not split into {heads} heads of even width; choose heads that divide it")


# nanoGPT's architecture with `bias=False`, for comparisons: sizes are the caller's, the initialization is ours.
nanogpt_style = partial(
    GPT,
    norm=LayerNorm,
    mlp=partial(MLP, activation=F.gelu),
    qk_norm=nn.Identity,
    learned_positions=True,
    tied=True,
)
