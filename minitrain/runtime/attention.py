"""Causal attention by whichever kernel is fastest where the tensors are; `gpt.textbook_attention` is the definition."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST_MATERIALIZED = 512  # tokens; beyond it the T x T scores cost more memory than the batched product saves time


def causal_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"]
) -> Float[Tensor, "B H T D"]:
    """`softmax(q k' / sqrt(D)) v` over the tokens up to each query's own."""
    if q.device.type == "cpu" and q.shape[-2] <= LONGEST_MATERIALIZED:
        return batched_matmul_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def batched_matmul_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"]
) -> Float[Tensor, "B H T D"]:
    """The textbook formula as two batched products, the mask added inside the first.

    On a CPU this beats `scaled_dot_product_attention`, whose tiles are too small for the vector units there.
    """
    B, H, T, D = q.shape
    mask = torch.full((T, T), -torch.inf, dtype=q.dtype, device=q.device).triu(1).expand(B * H, T, T)
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    scores = torch.baddbmm(mask, q, k.mT, alpha=D**-0.5)
    # Autocast computes a softmax in float32; casting back keeps the second product in the fast precision.
    return torch.bmm(scores.softmax(-1).to(v.dtype), v).view(B, H, T, D)
