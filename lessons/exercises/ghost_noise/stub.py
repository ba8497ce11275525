"""Ghost noise: write the injection; and which norm lets a sample see itself. 50 minutes, difficulty 2 of 3.

Write the functions below in any order; `minitrain check ghost_noise` holds the first against what every draw and the mean
of many draws must be, and the other two against differences. Each is three to twelve lines. All tensors are float64.
"""

from torch import Tensor

# --- 1. The injection ---------------------------------------------------------------------------------------------------
#
# For every sample i of the batch draw n samples of the batch, its ghost batch: uniformly, with replacement, the same ones
# for all channels, and for every sample anew. With m_i and v_i the mean and the variance (divide by the number) of all
# pixels of the ghost batch, in each channel, and mu and var those of the whole batch:
#
#     shift_i = m_i - mu       scale_i = sqrt((v_i + eps) / (var + eps))       y_i = (x_i - shift_i) / scale_i
#
# In the backward pass shift and scale count as constants. Outside training there is no noise.


def inject(x: Tensor, n: int, training: bool, eps: float) -> Tensor:
    """The batch `x` of shape (B, C, H, W) with ghost noise; `n` may be larger than B.

    Random numbers come from torch's default generator.
    """
    raise NotImplementedError


# --- 2. The Jacobian ----------------------------------------------------------------------------------------------------
#
# One channel, no pixels, no eps: the samples are numbers x_1 ... x_N. Batch norm makes of them
#
#     y_i = (x_i - mu) / sigma           mu, sigma: mean and standard deviation (divide by N) of all N
#
# and exclusive batch norm
#
#     y_i = (x_i - mu_i) / sigma_i       mu_i, sigma_i: those of the N - 1 others
#
# J[i, j] is the derivative of y_i by x_j. Look at the diagonals when you have both: which part of them goes through the
# statistics?


def batch_norm_jacobian(x: Tensor) -> Tensor:
    """(N, N) from `x` of shape (N,)."""
    raise NotImplementedError


def exclusive_jacobian(x: Tensor) -> Tensor:
    """The same of exclusive batch norm."""
    raise NotImplementedError
